"""Many things at once: worker processes of this machine, with the cores divided among them.

    for item, outcome in local(function, items, workers=2): ...

An outcome is what the function returned, or the exception that it raised. `dask_workers.on_dask`
has the same form, for workers elsewhere."""
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from loky import get_reusable_executor

from clstudy.runs.lock import Busy
from clstudy.runs.run import Runs, find
from clstudy.runs.store import _check_probes, _usable, load_or_train
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.progress import bar

IDLE = 120  # seconds that worker processes wait for the next call
# loky replaces a worker that has grown by 300 MB; here that is what one run has loaded for the next
os.environ.setdefault("LOKY_MAX_MEMORY_LEAK_SIZE", "8e9")


def train_all(
    configs: Sequence[RunConfig],
    workers: int | None = None,
    runs: Path | None = None,
    keep_model: bool = False,
    probes: Sequence[str] = (),
) -> Runs:
    """`load_or_train` for each, in worker processes that divide the cores; finished runs are
    reused.

    workers: default one per core, or one where a GPU computes. A run that another process makes is
    waited for when the others are done. A run that fails stops no other; the first error is raised
    when all others are done. The processes stay for the next call, with what they have loaded: for
    two minutes, since each holds up to 2 GB. They end with this one; an interrupt ends them at
    once."""
    runs = runs or paths.RUNS
    _check_probes(probes)
    todo = {
        config.run_id: config for config in configs
        if not _usable(find(config, runs), keep_model, probes)
    }
    work = partial(load_or_train, runs=runs, keep_model=keep_model, probes=tuple(probes),
                   wait=False)
    errors = []
    with bar(total=len(configs), initial=len(configs) - len(todo), desc="runs",
             unit="run") as shown:
        with closing(local(work, todo.values(), workers or default(configs))) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, Busy):
                    errors.append(outcome)
                shown.update()
    if errors:
        raise errors[0]
    return Runs(load_or_train(config, runs, keep_model, probes=probes) for config in configs)


def cores() -> int:
    """The cores that this process may use. CLSTUDY_CORES is the share of a notebook that runs
    beside others."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("CLSTUDY_CORES", "")
    return min(mine, int(given)) if given.isdigit() and int(given) else mine


def default(configs: Sequence[RunConfig]) -> int:
    """One worker for each core, or one where a GPU computes."""
    import torch

    return 1 if torch.cuda.is_available() and any(config.device != "cpu"
                                                  for config in configs) else cores()


# ---- the engine


def local(function: Callable, items: Iterable, workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (item, what `function(item)` returned or the exception it raised), in the order in
    which they end.

    As many items as workers are out at a time. A process that dies (out of memory, killed) takes
    the others of its pool with it: those that were out are tried again, one after the other, and
    one that then dies alone is the culprit, whose outcome is BrokenProcessPool. Leaving the loop
    early ends the processes."""
    waiting, suspects, out = deque(items), deque(), {}
    if not waiting:
        return
    workers = max(1, min(workers, len(waiting)))
    pool = _pool(workers)
    try:
        while waiting or suspects or out:
            room = (0 if out else 1) if suspects else workers - len(out)
            for _ in range(min(room, len(suspects or waiting))):
                item = (suspects or waiting).popleft()
                out[_submit(pool, function, item)] = item
            died = None
            for future in wait(out, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    died = error
                else:
                    yield out.pop(future), error if error else future.result()
            if died:
                pool = _pool(workers)
                lost = list(out.values())
                out.clear()
                if len(lost) == 1:
                    yield lost[0], died
                else:
                    suspects.extend(lost)
    except BaseException:
        _end(pool)
        raise


def _pool(workers: int) -> Executor:
    """Worker processes: those of the last call, unless they died, or code, surroundings or numbers
    changed since."""
    threads = max(cores() // workers, 1)
    code = max(path.stat().st_mtime_ns for path in paths.PACKAGE.rglob("*.py"))
    settings = sorted(item for item in os.environ.items() if item[0].startswith("CLSTUDY_"))
    return get_reusable_executor(
        workers,
        "loky_init_main",  # what a program registers at its top, its workers know too
        IDLE,
        initializer=_begin,
        initargs=(threads, os.getpid(), code, settings),
    )


def _submit(pool: Executor, function: Callable, item: Any) -> Future:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:  # a process died between two items
        future = Future()
        future.set_exception(error)
        return future


def _end(pool: Executor) -> None:
    """End the worker processes. loky would kill them; here each saves the state of its run
    first."""
    processes = list(pool._processes.values())
    pool._processes.clear()
    pool.shutdown(kill_workers=True)
    for process in processes:
        process.terminate()


def _begin(threads: int, parent: int, *_) -> None:
    """What each worker process does first. Two processes with all threads each would be five times
    slower.

    Code and settings are among the arguments because processes stay as long as their arguments are
    equal."""
    import torch

    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its workers
    os.environ |= {"CLSTUDY_QUIET": "1", "CLSTUDY_CORES": str(threads)}
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """From now on this process ends when its parent is gone, and saves the state of its run
    first."""
    from clstudy.training.checkpoint import GRACE

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE + 5)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
