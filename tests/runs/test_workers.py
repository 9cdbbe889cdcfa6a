"""Worker processes of this machine: what they make, how they end, and what one that dies leaves."""
import os
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from clstudy import RunConfig
from clstudy.runs import workers
from clstudy.runs.run import find
from clstudy.runs.store import load_or_train
from clstudy.runs.workers import train_all
from clstudy.utils import paths


def test_train_all_reads_what_is_finished_in_the_order_asked_for(tiny, runs, no_training):
    configs = [tiny, tiny.replace(seed=1)]
    made = [load_or_train(config, runs) for config in configs]
    no_training()
    assert [run.folder for run in train_all([*configs, tiny], runs=runs)] == [
        run.folder for run in (*made, made[0])
    ]


@pytest.mark.slow
def test_runs_are_made_in_another_process_and_one_error_stops_no_other(toy_model, runs):
    """Spawned processes know no toy benchmark: a small part of the embedded one."""
    good = RunConfig(benchmark_args={"families": ["streamline-emojis"]}, model=str(toy_model),
                     tuner="none", method="frozen", stream="joint")
    bad = good.replace(stream="disjoint", stream_args={"tasks": 1000})
    with pytest.raises(ValueError, match="tasks=1000"):
        train_all([bad, good], workers=1, runs=runs)
    assert [path.name for path in runs.iterdir()] == [good.run_id]
    assert find(good, runs).evals.value.between(0, 1).all()


class Here(Executor):
    """Worker processes that are this process, which knows the toy benchmark."""

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done

    _processes = {}

    def shutdown(self, **_):
        pass


def test_the_runs_have_the_probes_that_are_asked_for(monkeypatch, tiny, runs, no_training):
    monkeypatch.setattr(workers, "_pool", lambda workers: Here())
    configs = [tiny, tiny.replace(seed=1)]
    plain = load_or_train(configs[0], runs).evals
    made = train_all(configs, runs=runs, keep_model=True, probes=("drift",))
    assert [len(run.probe("drift")) for run in made] == [18, 18]
    assert all((run.folder / "model.safetensors").exists() for run in made)
    assert made[0].evals.equals(plain) and not made[0].probe("drift").equals(made[1].probe("drift"))
    no_training()
    train_all(configs, runs=runs, probes=["drift"])
    with pytest.raises(AssertionError, match="trained again"):
        train_all(configs, runs=runs, probes=["classes"])


def test_an_unknown_probe_is_refused_before_any_process_starts(tiny, runs, monkeypatch):
    monkeypatch.setattr(workers, "_pool", None)
    with pytest.raises(ValueError, match="probes='gradient' is unknown"):
        train_all([tiny], runs=runs, probes=["drift", "gradient"])
    assert not runs.exists()


# ---- worker processes


@pytest.fixture
def own_pool():
    """Processes of this test, and none after it."""
    workers._end(workers._pool(1))
    yield workers
    workers._end(workers._pool(1))


@pytest.fixture
def light_pool(own_pool, monkeypatch):
    """The same, of processes that import nothing of ours as they begin: they start in a moment."""
    monkeypatch.setattr(workers, "_begin", "".format)
    return own_pool


def test_the_processes_stay_for_the_next_call_and_change_with_the_surroundings(
        own_pool, monkeypatch):
    first = own_pool._pool(1)
    pid = first.submit(os.getpid).result()
    assert own_pool._pool(1) is first and own_pool._pool(1).submit(os.getpid).result() == pid
    monkeypatch.setenv("CLSTUDY_DATA", "elsewhere")
    other = own_pool._pool(1)
    assert other is not first and other.submit(os.getpid).result() != pid and not alive(pid)
    assert other.submit(os.getenv, "CLSTUDY_DATA").result() == "elsewhere"
    assert other.submit(os.getenv, "CLSTUDY_QUIET").result() == "1"
    assert other.submit(torch.get_num_threads).result() == 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert own_pool._pool(1)._initargs[0] == own_pool.cores()


def test_the_processes_change_with_the_code(own_pool, monkeypatch, tmp_path):
    first = own_pool._pool(1)
    (tmp_path / "new.py").touch()
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    assert own_pool._pool(1) is not first


def test_processes_without_work_end_and_the_next_call_has_others(light_pool, monkeypatch):
    monkeypatch.setattr(light_pool, "IDLE", 2)
    assert dict(light_pool.local(abs, [-1], 1)) == {-1: 1}
    pool = light_pool._pool(1)
    [pid] = pool._processes
    time.sleep(1)
    assert dict(light_pool.local(abs, [-2], 1)) == {-2: 2} and list(
        pool._processes) == [pid] and alive(pid)
    until(lambda: not alive(pid))
    assert dict(light_pool.local(abs, [-3], 1)) == {-3: 3} and pid not in pool._processes


def test_an_interrupt_ends_the_processes(own_pool, monkeypatch, tiny, runs):
    begun = []

    def interrupted(*_, **__):
        begun.extend(own_pool._pool(1)._processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(own_pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_all([tiny], workers=1, runs=runs)
    assert len(begun) == 1
    until(lambda: not alive(begun[0]))


def test_leaving_early_kills_nobody_who_is_still_saving(light_pool, tmp_path):
    """The process that ends first takes no other with it."""
    saving = (
        "__import__('signal').signal(15, lambda *_: (__import__('time').sleep({wait}), "
        "open({path!r}, 'w').close(), __import__('os')._exit(0))), open({path!r} + '.begun', 'w').close(), "
        "__import__('time').sleep(60)")
    tasks = [saving.format(wait=wait, path=str(tmp_path / str(wait))) for wait in (0.1, 1.5)]
    outcomes = light_pool.local(eval, [*tasks, "1 + 1"], 3)
    assert next(outcomes) == ("1 + 1", 2)
    until(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    outcomes.close()
    until(lambda: (tmp_path / "0.1").exists() and (tmp_path / "1.5").exists())


def test_an_error_and_the_death_of_a_process_are_outcomes_and_stop_no_other(light_pool):
    death = "__import__('os')._exit(3)"
    found = list(light_pool.local(eval, ["1 + 1", death, "1 / 0", "2 + 2", "3 + 3"], workers=2))
    outcomes = dict(found)
    assert len(found) == 5 and isinstance(outcomes.pop(death), BrokenProcessPool)
    assert isinstance(outcomes.pop("1 / 0"), ZeroDivisionError)
    assert outcomes == {"1 + 1": 2, "2 + 2": 4, "3 + 3": 6}


def test_the_cores_are_divided_and_a_share_is_kept(monkeypatch):
    whole = workers.cores()
    monkeypatch.setenv("CLSTUDY_CORES", "1")
    assert workers.cores() == 1
    monkeypatch.setenv("CLSTUDY_CORES", str(10 * whole))
    assert workers.cores() == whole


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import os, time\nfrom clstudy.runs import workers\n"
        "if __name__ == '__main__':\n"
        "    print(workers._pool(1).submit(os.getpid).result(), flush=True)\n    time.sleep(60)\n")
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                              cwd=Path(__file__).parents[2],
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until(lambda: not alive(worker))


def until(there) -> None:
    """Wait for something, at most ten seconds."""
    end = time.monotonic() + 10
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
