"""dask: real scheduler and worker processes, one of them killed in the middle of a run; job scripts
without Slurm, and a real Slurm where one answers."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from clstudy import RunConfig
from clstudy.runs import dask_workers, status, sweep
from clstudy.runs.store import load_or_train
from clstudy.utils.paths import REPOSITORY

distributed = pytest.importorskip("distributed",
                                  reason="needs the extra: pip install clstudy[cluster]")
ROOT = REPOSITORY


def threads_and_pid(_: int) -> tuple[int, int, str]:
    import torch

    return torch.get_num_threads(), os.getpid(), os.environ["CLSTUDY_CORES"]


def refused(item: int) -> int:
    if item == 1:
        raise ValueError("one is refused")
    return item


@pytest.fixture
def ended():
    """Processes that end with the test."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def dask(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
                            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scheduler(tmp_path: Path, ended: list) -> str:
    """A scheduler in a process of its own; its address."""
    about = tmp_path / "scheduler.json"
    ended.append(
        dask("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(about)))
    for _ in range(600):
        time.sleep(0.05)
        if about.exists() and about.stat().st_size:
            return json.loads(about.read_text())["address"]
    pytest.fail("no scheduler after half a minute")


@pytest.mark.slow
def test_a_local_cluster_divides_the_threads_and_tells_errors(monkeypatch):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    monkeypatch.setenv("CLSTUDY_CORES", "1")
    with dask_workers.connect("local", workers=2) as (engine, workers):
        assert workers == 2
        found = dict(engine(threads_and_pid, range(4)))
        assert set(found) == set(range(4)) and {one[0] for one in found.values()} == {1}
        assert {one[2] for one in found.values()
                } == {"1"} and os.getpid() not in {one[1] for one in found.values()}
        outcomes = dict(engine(refused, [0, 1, 2]))
        assert isinstance(outcomes.pop(1), ValueError) and outcomes == {0: 0, 2: 2}
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle_of_a_run_and_nothing_is_lost(toy_model, tmp_path, ended):
    config = RunConfig(benchmark_args={"families": ["streamline-emojis"]}, model=str(toy_model),
                       tuner="lora", method="sit", stream_args={"tasks": 4}, batch_size=16,
                       device="cpu")
    whole = load_or_train(config, tmp_path / "alone")
    address = scheduler(tmp_path, ended)
    with pytest.raises(ValueError, match=r"0 workers, and none that takes runs.*--resources run=1"):
        with dask_workers.connect(address):
            pass
    runs = tmp_path / "runs"
    options = (address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--resources", "run=1",
               "--local-directory", str(tmp_path))
    ended += [dask("dask_worker", *options), dask("dask_worker", *options)]
    wait_for_workers(address, 2)
    killed = []

    def watched(function, items):
        """The engine, beside a thread that kills whoever has saved a state."""
        Thread(target=kill, args=(runs / "sweeps/mine", killed), daemon=True).start()
        yield from engine(function, items)

    with dask_workers.connect(address) as (engine, workers):
        made = sweep.sweep([config], runs=runs, name="mine", engine=watched, workers=workers,
                           show=False)
    assert workers == 2
    assert killed and made.code == 0, made
    assert made.runs[0].result["resumed"]  # not made anew
    assert made.runs[0].evals.equals(whole.evals) and made.runs[0].steps.equals(whole.steps)


def wait_for_workers(address: str, count: int) -> None:
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def kill(folder: Path, killed: list, how=lambda pid: os.kill(pid, signal.SIGKILL)) -> None:
    for _ in range(6000):
        time.sleep(0.01)
        for id, about in status.now(folder).items():
            if list((folder.parent.parent / f"{id}.draft").glob("state-*.pt")):
                how(about["pid"])
                killed.append(about["pid"])
                return


def test_nobody_answers_and_wrong_choices_are_told(monkeypatch):
    monkeypatch.setattr(dask_workers, "WAIT", 0.2)
    with pytest.raises(ValueError, match="no scheduler answers at tcp://127.0.0.1:9"):
        with dask_workers.connect("tcp://127.0.0.1:9"):
            pass
    for both in ({}, {"scheduler": "local", "slurm": Path("x.toml")}):
        with pytest.raises(ValueError, match="either a scheduler or a Slurm file"):
            with dask_workers.connect(**both):
                pass


def test_without_the_extra_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'clstudy\[cluster\]'"):
        with dask_workers.connect("local"):
            pass


# ---- Slurm


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """Makes a cluster of a file's text; no job is sent."""
    jobqueue = pytest.importorskip("dask_jobqueue",
                                   reason="needs the extra: pip install clstudy[cluster]")
    asked, made = [], []
    monkeypatch.setattr(dask_workers, "allowed", lambda script, file: None)
    monkeypatch.setattr(jobqueue.SLURMCluster, "adapt", lambda self, **jobs: asked.append(jobs))

    def make(text: str):
        (tmp_path / "slurm.toml").write_text(text)
        found, workers = dask_workers.slurm_cluster(tmp_path / "slurm.toml")
        made.append(found)
        return found.job_script(), workers, asked[-1]

    yield make
    for one in made:
        one.close()


def test_the_job_script_has_the_options_and_one_run_per_worker(slurm):
    script, workers, asked = slurm(
        'queue = "gpu"\ncores = 8\nprocesses = 2\nmemory = "32GB"\nwalltime = "02:00:00"\n'
        'jobs = 3\njob_extra_directives = ["--gres=gpu:1"]\n'
        'job_script_prologue = ["module load cuda"]\ninterface = "lo"\n')
    for line in ("#SBATCH -p gpu", "#SBATCH -t 02:00:00", "#SBATCH --gres=gpu:1",
                 "#SBATCH --cpus-per-task=8", "module load cuda"):
        assert line in script.splitlines()
    command = script.splitlines()[-1]
    assert "--nworkers 2" in command and "--nthreads 4" in command and "--resources run=1" in command
    assert sys.executable in command and workers == 6
    assert asked == {"minimum_jobs": 3, "maximum_jobs": 3}  # always so many: who ends is replaced


@pytest.mark.parametrize(("text", "complaint"), [
    ("cores = ", "slurm.toml"), ('cores = 1\nmemory = "1GB"\njobs = 0', "jobs=0: must be a whole number"),
    ('cores = 1\nmemory = "1GB"\nqeue = "gpu"', "slurm.toml: .*qeue"), ('memory = "1GB"', "slurm.toml: .*cores")])
def test_a_wrong_file_is_told_with_its_name(slurm, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        slurm(text)


def test_a_job_that_slurm_refuses_is_told_before_it_is_sent(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="needs the extra: pip install clstudy[cluster]")
    (tmp_path
     / "slurm.toml").write_text('cores = 1\nmemory = "1GB"\ninterface = "lo"\nqueue = "night"')
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no `sbatch` here"):
        dask_workers.slurm_cluster(tmp_path / "slurm.toml")
    sbatch = tmp_path / "sbatch"  # as the real one does
    sbatch.write_text(
        "#!/bin/sh\n[ $1 = --test-only ] || exit 0\nwhile read line; do case $line in *'-p night'*) "
        "echo 'allocation failure:\nInvalid partition name' >&2; exit 1; esac; done")
    sbatch.chmod(0o755)
    with pytest.raises(
            ValueError,
            match=r"slurm\.toml: Slurm refuses the job: allocation failure: Invalid partition"):
        dask_workers.slurm_cluster(tmp_path / "slurm.toml")


def slurm_answers() -> bool:
    try:
        return "up" in subprocess.run(["sinfo", "-h", "-o", "%a"], capture_output=True, text=True,
                                      timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.slow
def test_a_job_is_killed_in_the_middle_of_a_run_and_another_takes_it_up(
        toy_model, tmp_path, monkeypatch):
    if not slurm_answers(
    ):  # asked here and not at collection: a controller that is down takes its time
        pytest.skip("no Slurm answers: slurmctld, slurmd and munge of one node are enough")
    monkeypatch.chdir(tmp_path)  # where jobs write what they say
    config = RunConfig(benchmark_args={"families": ["streamline-emojis"]}, model=str(toy_model),
                       tuner="lora", method="sit", stream_args={"tasks": 4}, batch_size=16,
                       device="cpu")
    whole = load_or_train(config, tmp_path / "alone")
    (tmp_path /
     "slurm.toml").write_text(f'''cores = 1\nmemory = "2GB"\nwalltime = "00:20:00"\ninterface = "lo"
        log_directory = "{tmp_path}"\njob_name = "clstudy-test"
        job_script_prologue = ["export PYTHONPATH={ROOT}"]''')
    runs, killed, end = tmp_path / "runs", [], [
        "scancel", "--signal=KILL", "--full", "--name=clstudy-test"
    ]

    def watched(function, items):
        Thread(target=kill, args=(runs / "sweeps/mine", killed, lambda _: subprocess.run(end)),
               daemon=True).start()
        yield from engine(function, items)

    with dask_workers.connect(slurm=tmp_path / "slurm.toml") as (engine, workers):
        made = sweep.sweep([config], runs=runs, name="mine", engine=watched, workers=workers,
                           show=False)
    assert killed and made.code == 0 and workers == 1, made  # the only job died
    assert made.runs[0].result["resumed"] and made.runs[0].evals.equals(whole.evals)
