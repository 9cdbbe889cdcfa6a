"""A sweep on workers elsewhere, by dask.distributed: `pip install clstudy[cluster]`.

    with connect(scheduler="local", workers=2) as (engine, workers): carry_out(plan, engine)

"local" starts a scheduler and workers on this machine, which divide its cores. An address is that
of a scheduler whose workers were started with
`dask worker ADDRESS --nthreads CORES --resources run=1`. A TOML file holds the options of
`dask_jobqueue.SLURMCluster`, and `jobs`. All machines share one folder of runs. Each worker has one
of the resource `run`, and so does one task (run or notebook) at a time: torch has one random
generator per process, which two runs would share. When a worker dies, another one resumes the run
from its last saved state; after the third death the run counts as failed."""
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
from clstudy.utils import paths
from clstudy.utils.validation import at_least

RUN = {"run": 1}
JOBS = 1  # Slurm jobs, where the file gives no number
WAIT = 10  # seconds for a scheduler to answer


@contextmanager
def connect(scheduler: str | None = None, slurm: Path | None = None, workers: int | None = None
            ) -> Iterator[tuple[Callable, int]]:
    """Yield an engine (see `workers.local`) and the number of its workers.

    ValueError: neither or both given, nobody answers, or no worker takes runs. ImportError: the
    extra is missing."""
    if (scheduler is None) == (slurm is None):
        raise ValueError("name either a scheduler or a Slurm file")
    distributed, cluster, count = _distributed(), None, None
    if slurm:
        cluster, count = slurm_cluster(slurm)
    elif scheduler == "local":
        count = workers or cores()
        cluster = distributed.LocalCluster(
            n_workers=count, threads_per_worker=max(cores() // count, 1), processes=True,
            memory_limit=0,  # it would see neither the kernel of a notebook nor shared pages
            resources=RUN, dashboard_address=None, silence_logs=logging.CRITICAL)
    try:
        with _client(distributed, cluster or scheduler) as client:
            yield partial(on_dask, client=client), count or _count_takers(client, scheduler)
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


def _count_takers(client: Any, scheduler: str) -> int:
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    takers = sum(worker["resources"].get("run", 0) >= 1 for worker in known)
    if not takers:
        raise ValueError(
            f"the scheduler at {scheduler} has {len(known)} workers, and none that takes runs. "
            "Start some in the folder of the repository: "
            f"dask worker {scheduler} --nthreads CORES --resources run=1")
    return takers


def slurm_cluster(file: Path) -> tuple[Any, int]:
    """Return the cluster of a TOML file, after asking for its jobs, and the number of its workers.

    ValueError: an option that does not fit, or a job that Slurm refuses."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ImportError("this needs dask-jobqueue: pip install 'clstudy[cluster]'") from None
    try:
        options = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: {error}") from None
    jobs = options.pop("jobs", JOBS)
    at_least(f"{file}: jobs", jobs, 1)
    extra = [*options.pop("worker_extra_args", []), "--resources", "run=1"]
    try:
        cluster = SLURMCluster(**options, worker_extra_args=extra)
    except (TypeError, ValueError) as error:  # its message names the option
        raise ValueError(f"{file}: {error}") from None
    try:
        allowed(cluster.job_script(), file)
    except ValueError:
        cluster.close()
        raise
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # replaces a job that ends
    return cluster, jobs * options.get("processes", 1)


def allowed(script: str, file: Path) -> None:
    """Raise a ValueError if Slurm would refuse this job, which dask would send again and again."""
    try:
        asked = subprocess.run(["sbatch", "--test-only"], input=script, text=True,
                               capture_output=True)
    except FileNotFoundError:
        raise ValueError("there is no `sbatch` here: start this where jobs can be sent, as on a "
                         "login node") from None
    if asked.returncode:
        raise ValueError(f"{file}: Slurm refuses the job: {' '.join(asked.stderr.split())}")


def on_dask(function: Callable, items: Sequence, client: Any) -> Iterator[tuple[Any, Any]]:
    """Do as `workers.local` on the workers of `client`. If the loop is left early, cancel the
    rest."""
    from distributed import as_completed

    call = partial(_alone, function, paths.variables())
    out = {client.submit(call, item, pure=False, resources=RUN, priority=-number): item
           for number, item in enumerate(items)}
    try:
        for future in as_completed(list(out), loop=client.loop):  # a default client is not set
            error = future.exception()
            yield out.pop(future), future.result() if error is None else error
    finally:
        client.cancel(list(out), force=True)


def _alone(function: Callable, variables: dict[str, str], item: Any) -> Any:
    """Call the function in a worker, with all its cores; dask itself sets OMP_NUM_THREADS=1."""
    import torch
    from distributed import get_worker

    threads = get_worker().state.nthreads
    own = {paths.QUIET: "1", paths.CORES: str(threads), "OMP_NUM_THREADS": str(threads)}
    os.environ |= variables | own
    torch.set_num_threads(threads)
    return function(item)
