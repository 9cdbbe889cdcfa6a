"""Who makes a run: one process at a time, on one host or several. The claim of a process that was killed is free.

On one host the kernel answers: an exclusive lock (`flock`) on a file in the run's draft, which ends with the process,
however it ends. Between hosts that share a file system this holds where it passes locks on, as NFS of Linux does from
version 4 on. Where it does not, a second sign counts: whoever has the claim touches a file every `BEAT` seconds, and
another host takes it for alive until `SILENT` seconds have passed since, by the clock of the file system. Should two
nevertheless make the same run, they waste time and no result: numbers are equal, and the first to finish is kept.
"""
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from clstudy.utils.progress import bar

try:
    import fcntl
except ImportError:  # Windows: the second sign alone
    fcntl = None

BEAT = 15.0  # seconds between two signs of life
SILENT = 180.0  # seconds without one after which another host's claim is free; NFS may show one a minute late
LOCK, OWNER = "lock", "owner.json"


class Busy(RuntimeError):
    """Another process has the claim; the message says which."""


@contextmanager
def claimed(folder: Path, done: Callable[[], bool] = lambda: False, wait: bool = True) -> Iterator[bool]:
    """The claim on a folder, which is made. False, without a claim, once `done()`: somebody else did it.

    wait: for whoever has it, with a line that says so. Busy: somebody has it, and wait is False."""
    lock, shown, pause = None, None, 0.05
    try:
        while not done():
            lock = _lock(folder)
            if lock is not None and done():  # while we asked
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
                lock = None
                break
            if lock is not None:
                break
            said = f"waiting for {owner(folder)}, which makes {folder.stem}"
            if not wait:
                raise Busy(said)
            shown = shown or bar(total=0, bar_format="{desc} {elapsed}", leave=False)
            shown.set_description_str(said)
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
    finally:
        if shown is not None:
            shown.close()
    if lock is None:
        yield False
        return
    ended = Event()
    try:
        _sign(folder)
        Thread(target=_beat, args=(folder / OWNER, ended), daemon=True).start()
        yield True
    finally:
        ended.set()
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        os.close(lock)


def owner(folder: Path) -> str:
    """host:pid of who has the claim, as far as it is known."""
    found = _signed(folder)
    return f"{found[0]}:{found[1]}" if found else "another process"


def _signed(folder: Path) -> tuple[str, int] | None:
    """Host and process of the last sign of life; None where there is none, or a damaged one."""
    try:
        found = json.loads((folder / OWNER).read_text())
        return str(found["host"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(folder: Path) -> int | None:
    """An open file with the lock, or None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder was removed just now
        return None
    if _locked(file) and _here(file, folder) and not _elsewhere(file, folder):
        return file
    os.close(file)
    return None


def _locked(file: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the second sign alone
        return True
    return True


def _here(file: int, folder: Path) -> bool:
    """Whether the file that is open still stands in the folder: it may have been finished and removed since."""
    try:
        return os.path.samestat(os.fstat(file), (folder / LOCK).stat())
    except OSError:
        return False


def _elsewhere(file: int, folder: Path) -> bool:
    """Whether a process of another host gives signs of life; of this host too, where there are no locks."""
    found = _signed(folder)
    if found is None or (found[0] == platform.node() and (fcntl is not None or not _alive(found[1]))):
        return False
    os.utime(folder / LOCK)  # the time of the file system, and not of this host
    try:
        return os.fstat(file).st_mtime - (folder / OWNER).stat().st_mtime < SILENT
    except OSError:  # it ended just now
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        pass
    return True


def _sign(folder: Path) -> None:
    about = {"host": platform.node(), "pid": os.getpid(), "since": time.time()}
    draft = folder / f"{OWNER}.new"
    with suppress(OSError):  # a full disk: whoever waits does not learn for whom
        draft.write_text(json.dumps(about))
        draft.replace(folder / OWNER)


def _beat(path: Path, ended: Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
