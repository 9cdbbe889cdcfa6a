"""The same sweep on workers elsewhere, by dask.distributed: `pip install clstudy[cluster]`.

    with connect(scheduler="local", workers=2) as (engine, workers): carry_out(plan, engine)

"local" starts a scheduler and workers on this machine, with the cores divided; an address is a
scheduler that runs, whose workers are started with
`dask worker ADDRESS --nthreads CORES --resources run=1`; a TOML file holds the options of
`dask_jobqueue.SLURMCluster`, and `jobs`. All machines see the same folder of runs. A task is one
run or notebook. A worker has one of the resource `run` and so one task at a time: torch has one
random generator per process, and two runs in one would disturb each other. A worker that dies loses
what its run made since its last saved state; the run goes on elsewhere, and after the third death
it is a failure."""
import logging
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clstudy.runs.workers import cores

RUN = {"run": 1}
JOBS = 1  # Slurm jobs, where the file says nothing
WAIT = 10  # seconds for a scheduler to answer


@contextmanager
def connect(scheduler: str | None = None, slurm: Path | None = None, workers: int | None = None
            ) -> Iterator[tuple[Callable, int]]:
    """An engine (see `workers.local`) and the number of its workers, as long as the block lasts.

    ValueError: neither or both given, nobody answers, or no worker takes runs. ImportError: the
    extra is missing."""
    if (scheduler is None) == (slurm is None):
        raise ValueError("name either a scheduler or a Slurm file")
    distributed = _distributed()
    if slurm:
        cluster, count = slurm_cluster(slurm)
    elif scheduler == "local":
        count = workers or cores()
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=max(cores() // count, 1),
            processes=True,
            resources=RUN,
            memory_limit=0,  # it would see neither the kernel of a notebook nor shared pages
            dashboard_address=None,
            silence_logs=logging.CRITICAL)
    else:
        cluster, count = None, 0
    try:
        with _client(distributed, cluster or scheduler) as client:
            yield partial(on_dask, client=client), count or _takers(client, scheduler)
    finally:
        if cluster:
            cluster.close()


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ImportError("this needs dask.distributed: pip install 'clstudy[cluster]'") from None
    return distributed


def _client(distributed: Any, where: Any) -> Any:
    try:
        return distributed.Client(where, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no scheduler answers at {where}: {error}") from None


def _takers(client: Any, scheduler: str) -> int:
    """How many workers take runs."""
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    takers = sum(worker["resources"].get("run", 0) >= 1 for worker in known)
    if not takers:
        raise ValueError(
            f"the scheduler at {scheduler} has {len(known)} workers, and none that takes runs. Start some "
            f"in the folder of the repository: dask worker {scheduler} --nthreads CORES --resources run=1"
        )
    return takers


def slurm_cluster(file: Path) -> tuple[Any, int]:
    """The cluster of a TOML file, its jobs asked for; and how many workers that are."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ImportError("this needs dask-jobqueue: pip install 'clstudy[cluster]'") from None
    try:
        options = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: {error}") from None
    jobs = options.pop("jobs", JOBS)
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"{file}: jobs={jobs!r}: must be a whole number, at least 1")
    extra = [*options.pop("worker_extra_args", []), "--resources", "run=1"]
    try:
        cluster = SLURMCluster(**options, worker_extra_args=extra)
    except (TypeError, ValueError) as error:  # its own words name the option
        raise ValueError(f"{file}: {error}") from None
    try:
        allowed(cluster.job_script(), file)
    except ValueError:
        cluster.close()
        raise
    cluster.adapt(minimum_jobs=jobs,
                  maximum_jobs=jobs)  # a job that ends, as at its time limit, is asked for again
    return cluster, jobs * options.get("processes", 1)


def allowed(script: str, file: Path) -> None:
    """Ask Slurm whether it would take this job: dask would send it again and again. ValueError: it
    would not."""
    try:
        asked = subprocess.run(["sbatch", "--test-only"], input=script, text=True,
                               capture_output=True)
    except FileNotFoundError:
        raise ValueError(
            "there is no `sbatch` here: start this where jobs can be sent, as on a login node"
        ) from None
    if asked.returncode:
        raise ValueError(f"{file}: Slurm refuses the job: {' '.join(asked.stderr.split())}")


def on_dask(function: Callable, items: Sequence, client: Any) -> Iterator[tuple[Any, Any]]:
    """As `workers.local`, on the workers of `client`. Leaving the loop early takes back what
    waits."""
    from distributed import as_completed

    settings = {name: value for name, value in os.environ.items() if name.startswith("CLSTUDY_")}
    out = {
        client.submit(_alone, function, item, settings, pure=False, resources=RUN, priority=-number): item
        for number, item in enumerate(items)
    }
    try:
        for future in as_completed(list(out), loop=client.loop):  # a default client is not set
            error = future.exception()
            yield out.pop(future), future.result() if error is None else error
    finally:
        client.cancel(list(out), force=True)


def _alone(function: Callable, item: Any, settings: dict[str, str]) -> Any:
    """In a worker: the cores that it was given are one run's. dask itself sets
    OMP_NUM_THREADS=1."""
    import torch
    from distributed import get_worker

    threads = get_worker().state.nthreads
    os.environ.update(settings, CLSTUDY_QUIET="1", CLSTUDY_CORES=str(threads),
                      OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)
    return function(item)
