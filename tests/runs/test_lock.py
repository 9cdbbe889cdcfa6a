"""One process at a time makes a run: locks that end with their process, heartbeats of other
hosts."""
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clstudy.runs import lock
from clstudy.runs.lock import LOCK, OWNER, SILENT, Busy, RunLock, owner

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom clstudy.runs.lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    time.sleep(60)\n")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "abc.draft"


@pytest.fixture
def holder(folder):
    """Another process that has the lock."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONPATH": paths})
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_the_lock_of_a_living_process_is_respected_and_that_of_a_killed_one_is_free(folder, holder):
    with pytest.raises(Busy, match=rf"waiting for .+:{holder.pid}, which makes abc"), RunLock(
            folder, wait=False):
        pass
    holder.send_signal(signal.SIGSTOP)  # its heart does not beat, but it lives
    with pytest.raises(Busy), RunLock(folder, wait=False):
        pass
    holder.kill()
    holder.wait()
    assert json.loads((folder / OWNER).read_text())["pid"] == holder.pid
    with RunLock(folder, wait=False) as mine:
        assert mine and owner(folder).endswith(f":{os.getpid()}")


def test_who_waits_gets_it_when_the_other_has_done(folder):
    order = []

    def other():
        with RunLock(folder) as mine:
            order.append(("other", mine))

    with RunLock(folder):
        waiting = threading.Thread(target=other)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", ("other", True)]


def test_who_waits_for_what_gets_done_makes_nothing(folder):
    found, done = [], []

    def other():
        with RunLock(folder, lambda: bool(done)) as mine:
            found.append(mine)

    with RunLock(folder):
        waiting = threading.Thread(target=other)
        waiting.start()
        time.sleep(0.3)
        done.append(True)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    waiting.join(10)
    assert found == [False] and not folder.exists()


def test_nothing_is_made_where_all_is_done(folder):
    with RunLock(folder, lambda: True) as mine:
        assert not mine
    assert not folder.exists()


def test_the_lock_on_a_file_that_was_removed_is_none(folder, monkeypatch):
    """Between opening the lock and taking it, its owner finished and removed the folder."""
    real, removed = fcntl.flock, []

    def slow(file, how):
        if not removed:
            removed.append(shutil.rmtree(folder))
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with RunLock(folder) as mine:
        assert mine and (folder / LOCK).exists() and removed


@pytest.mark.parametrize(("silence", "free"), [(0, False), (SILENT - 30, False), (SILENT + 30, True)])
def test_another_host_lives_as_long_as_its_heart_beats(folder, silence, free):
    """Where locks do not pass between hosts, the kernel here gives the lock."""
    folder.mkdir()
    (folder / OWNER).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(folder / OWNER, (time.time() - silence,) * 2)
    if free:
        with RunLock(folder, wait=False) as mine:
            assert mine
    else:
        with pytest.raises(Busy, match="waiting for elsewhere:1"), RunLock(folder, wait=False):
            pass


def test_the_heart_beats_while_the_lock_is_held(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with RunLock(folder):
        os.utime(folder / OWNER, (0, 0))
        for _ in range(200):
            if (folder / OWNER).stat().st_mtime:
                break
            time.sleep(0.02)
        assert time.time() - (folder / OWNER).stat().st_mtime < 60
    assert not (folder / OWNER).exists()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"host": 3}'])
def test_a_damaged_owner_is_none(folder, damaged):
    folder.mkdir()
    (folder / OWNER).write_text(damaged)
    assert owner(folder) == "another process"
    with RunLock(folder, wait=False) as mine:
        assert mine


def test_on_a_file_system_without_locks_the_heartbeat_alone_counts(folder, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    with RunLock(folder) as mine, pytest.raises(Busy), RunLock(folder, wait=False):
        assert mine
    assert not (folder / OWNER).exists()
    (folder / OWNER).write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1}))
    with pytest.raises(Busy), RunLock(folder, wait=False):
        pass
    os.utime(folder / OWNER, (time.time() - SILENT - 1,) * 2)  # of a process that was killed
    with RunLock(folder, wait=False) as mine:
        assert mine
