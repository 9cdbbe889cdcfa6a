"""Locks: one process at a time makes a run, on one host or several.

On one host the kernel decides: filelock locks a file in the draft of the run, and the kernel
releases this lock when the process ends, also when it is killed. Other hosts on a shared file system see
the lock where the file system passes it on, as NFS of Linux does from version 4 on. Elsewhere a
heartbeat counts: the owner touches a file every `BEAT` seconds, and other hosts take the owner for
dead after `SILENT` seconds without one, by the clock of the file system. If two processes make the
same run all the same, they waste time and no result: their numbers are equal, and the run that ends
first is kept."""
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock, Timeout

from clstudy.utils.files import write_json
from clstudy.utils.progress import bar

BEAT = 15.0  # seconds between two heartbeats
SILENT = 180.0  # seconds; NFS may show a heartbeat a minute late
LOCK, OWNER = "lock", "owner.json"


class Busy(RuntimeError):
    """Another process has the lock; the message names it."""


class RunLock:
    """The lock on the draft of a run: `with RunLock(folder, done, wait) as mine: ...`

    It makes the folder. mine: False, without the lock, if `done()` says that another process made
    the run. wait: for the owner of the lock, with a line that names it. Busy: the lock has an
    owner, and wait is False."""

    def __init__(self, folder: Path, done: Callable[[], bool] = lambda: False, wait: bool = True):
        self.folder, self.done, self.wait = folder, done, wait
        self.kernel = FileLock(folder / LOCK, fallback_to_soft=False)
        self.ended = Event()

    def __enter__(self) -> bool:
        shown, pause = None, 0.05
        try:
            while not self.done():
                if self._acquired():
                    return self._begin()
                said = f"waiting for {owner(self.folder)}, which makes {self.folder.stem}"
                if not self.wait:
                    raise Busy(said)
                shown = shown or bar(total=0, bar_format="{desc} {elapsed}", leave=False)
                shown.set_description_str(said)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
        finally:
            if shown is not None:
                shown.close()
        self.ended.set()
        return False

    def __exit__(self, *_) -> None:
        if not self.ended.is_set():
            self.ended.set()
            with suppress(OSError):
                (self.folder / OWNER).unlink(missing_ok=True)
        self.kernel.release()

    def _acquired(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.kernel.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # the second: the owner just removed the folder
            return False
        except OSError:  # a file system without locks, where the heartbeat alone counts
            (self.folder / LOCK).touch()
        if self._owner_beats():
            self.kernel.release()
            return False
        return True

    def _owner_beats(self) -> bool:
        """Return whether an owner that the kernel here does not know is alive."""
        found = _signed(self.folder)
        if found is None or (found[0] == platform.node() and self.kernel.is_locked):
            return False
        try:
            os.utime(self.folder / LOCK)  # the time of the file system, not of this host
            now = (self.folder / LOCK).stat().st_mtime
            return now - (self.folder / OWNER).stat().st_mtime < SILENT
        except OSError:  # the owner just ended
            return False

    def _begin(self) -> bool:
        """Sign as the owner, unless the run was finished in the meantime."""
        if self.done():
            self.ended.set()
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        with suppress(OSError):  # a full disk: others wait without a name
            write_json(self.folder / OWNER, {"host": platform.node(), "pid": os.getpid()})
        Thread(target=self._beat, daemon=True).start()
        return True

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self.folder / OWNER)


def owner(folder: Path) -> str:
    """Return host:pid of the owner of a lock, if it is known."""
    found = _signed(folder)
    return f"{found[0]}:{found[1]}" if found else "another process"


def _signed(folder: Path) -> tuple[str, int] | None:
    """Return host and process of the last owner; None if the file is missing or damaged."""
    try:
        found = json.loads((folder / OWNER).read_text())
        return str(found["host"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
