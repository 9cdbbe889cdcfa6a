"""Worker processes of this machine, which divide its cores among them.

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

from clstudy.runs import evidence
from clstudy.runs.lock import Busy
from clstudy.runs.run import Runs, note
from clstudy.runs.store import check_probes, is_usable, load_or_train
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.progress import bar

IDLE = 120  # seconds that worker processes wait for the next call
# loky replaces a worker that has grown by 300 MB; here that is what one run has loaded for the next
os.environ.setdefault("LOKY_MAX_MEMORY_LEAK_SIZE", "8e9")


def train_all(configs: Sequence[RunConfig], workers: int | None = None, runs: Path | None = None,
              keep_model: bool = False, probes: Sequence[str] = ()) -> Runs:
    """Call `load_or_train` for each configuration, in worker processes; reuse finished runs.

    workers: default one per core, or one where a GPU computes. Runs that another process makes are
    waited for at the end. A run that fails stops no other; the first error is raised when all
    others are done. The processes stay for two minutes, with what they have loaded, up to 2 GB
    each, for the next call. They end with this process, and an interrupt ends them at once.

    Where CLSTUDY_STORED names stored evidence, nothing is trained: the runs are taken from it.
    NotStored: a run is not there."""
    check_probes(probes)
    if stored := paths.stored():
        return evidence.take(configs, stored)
    runs = runs or paths.RUNS
    by_id = {config.run_id: config for config in configs}
    note(by_id)
    todo = [config for id, config in by_id.items() if not is_usable(runs / id, keep_model, probes)]
    work = partial(load_or_train, runs=runs, keep_model=keep_model, probes=tuple(probes),
                   wait=False)
    shown = bar(total=len(configs), initial=len(configs) - len(todo), desc="runs", unit="run")
    errors = []
    with shown, closing(local(work, todo, workers or default(configs))) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Busy):
                errors.append(outcome)
            shown.update()
    if errors:
        raise errors[0]
    return Runs(load_or_train(config, runs, keep_model, probes=probes) for config in configs)


def cores() -> int:
    """Return how many cores this process may use. CLSTUDY_CORES can lower the number."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(mine, paths.core_limit() or mine)


def default(configs: Sequence[RunConfig]) -> int:
    """Return the default number of workers: one for each core, or one where a GPU computes."""
    import torch

    on_gpu = torch.cuda.is_available() and any(config.device != "cpu" for config in configs)
    return 1 if on_gpu else cores()


def local(function: Callable, items: Iterable, workers: int) -> Iterator[tuple[Any, Any]]:
    """Yield (item, what `function(item)` returned or raised) for each item, as each one ends.

    There are at most as many items under way as workers. A process that dies (out of memory,
    killed) takes the others of its pool with it. The items that were under way are then tried again
    one by one; one whose process dies again has the outcome BrokenProcessPool. If the loop is left
    early, the processes end."""
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
    """Return worker processes: those of the last call, or new ones if these died, or if code,
    CLSTUDY_* variables or the number of workers changed since."""
    code = max(path.stat().st_mtime_ns for path in paths.PACKAGE.rglob("*.py"))
    threads = max(cores() // workers, 1)
    if (most := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # results depend on it: 1e-7
        threads = max(min(threads, int(most)), 1)
    arguments = (threads, os.getpid(), code, sorted(paths.variables().items()))
    # loky_init_main: the workers import the main program, and know what it registers at its top
    return get_reusable_executor(workers, "loky_init_main", IDLE, initializer=_begin,
                                 initargs=arguments)


def _submit(pool: Executor, function: Callable, item: Any) -> Future:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:  # a process died between two items
        future = Future()
        future.set_exception(error)
        return future


def _end(pool: Executor) -> None:
    """End the worker processes by SIGTERM, so that each saves its state; loky would kill them."""
    processes = list(pool._processes.values())
    pool._processes.clear()
    pool.shutdown(kill_workers=True)
    for process in processes:
        process.terminate()


def _begin(threads: int, parent: int, *_) -> None:
    """Set up a worker process. With all threads in each, two would be five times slower.

    Code and variables are among the arguments, because loky keeps processes as long as the
    arguments are equal."""
    import torch

    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its workers
    os.environ |= {paths.QUIET: "1", paths.CORES: str(threads)}
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """End this process, after saving the state of its run, when its parent has ended."""
    from clstudy.training.checkpoint import GRACE

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE + 5)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
