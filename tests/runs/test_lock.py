"""One process at a time makes a run: locks that end with their process, signs of life of other hosts."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clstudy.runs import lock
from clstudy.runs.lock import LOCK, OWNER, SILENT, Busy, claimed, owner

HOLD = ("import sys, time\nfrom pathlib import Path\nfrom clstudy.runs.lock import claimed\n"
        "with claimed(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    time.sleep(60)\n")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "abc.draft"


@pytest.fixture
def holder(folder):
    """Another process that has the claim."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": paths})
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_the_claim_of_a_living_process_is_respected_and_that_of_a_killed_one_is_free(folder, holder):
    with pytest.raises(Busy, match=rf"waiting for .+:{holder.pid}, which makes abc"), claimed(folder, wait=False):
        pass
    holder.send_signal(signal.SIGSTOP)  # it gives no sign, but it lives
    with pytest.raises(Busy), claimed(folder, wait=False):
        pass
    holder.kill()
    holder.wait()
    assert json.loads((folder / OWNER).read_text())["pid"] == holder.pid
    with claimed(folder, wait=False) as mine:
        assert mine and owner(folder).endswith(f":{os.getpid()}")


def test_who_waits_gets_it_when_the_other_has_done(folder):
    order = []

    def other():
        with claimed(folder) as mine:
            order.append(("other", mine))

    with claimed(folder):
        waiting = threading.Thread(target=other)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", ("other", True)]


def test_who_waits_for_what_gets_done_makes_nothing(folder):
    found, done = [], []

    def other():
        with claimed(folder, lambda: bool(done)) as mine:
            found.append(mine)

    with claimed(folder):
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
    with claimed(folder, lambda: True) as mine:
        assert not mine
    assert not folder.exists()


def test_a_file_that_was_removed_is_no_claim(folder, monkeypatch):
    """Between opening the lock and taking it, its owner finished and removed the folder."""
    real, stolen = lock._locked, []

    def slow(file):
        if not stolen:
            stolen.append((folder / LOCK).rename(folder / "gone"))
        return real(file)

    monkeypatch.setattr(lock, "_locked", slow)
    with claimed(folder) as mine:
        assert mine and (folder / LOCK).exists() and stolen


@pytest.mark.parametrize(("silence", "free"), [(0, False), (SILENT - 30, False), (SILENT + 30, True)])
def test_another_host_lives_as_long_as_it_gives_signs(folder, silence, free):
    """Where locks do not pass between hosts, the kernel here gives the lock."""
    folder.mkdir()
    (folder / OWNER).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(folder / OWNER, (time.time() - silence,) * 2)
    if free:
        with claimed(folder, wait=False) as mine:
            assert mine
    else:
        with pytest.raises(Busy, match="waiting for elsewhere:1"), claimed(folder, wait=False):
            pass


def test_signs_of_life_are_given(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with claimed(folder):
        os.utime(folder / OWNER, (0, 0))
        for _ in range(200):
            if (folder / OWNER).stat().st_mtime:
                break
            time.sleep(0.02)
        assert time.time() - (folder / OWNER).stat().st_mtime < 60
    assert not (folder / OWNER).exists()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"host": 3}'])
def test_a_damaged_sign_is_none(folder, damaged):
    folder.mkdir()
    (folder / OWNER).write_text(damaged)
    assert owner(folder) == "another process"
    with claimed(folder, wait=False) as mine:
        assert mine


def test_without_locks_the_signs_alone_count(folder, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with claimed(folder), pytest.raises(Busy), claimed(folder, wait=False):
        pass
    (folder / OWNER).write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1}))  # dead
    with claimed(folder, wait=False) as mine:
        assert mine
