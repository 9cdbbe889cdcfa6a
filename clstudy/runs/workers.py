"""Many things at once: worker processes of this machine, with the cores divided among them.

    for item, outcome in local(function, items, workers=2): ...      outcome: what was returned, or the exception

`cluster.on_dask` has the same form, for workers elsewhere."""
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from threading import Lock, Thread, Timer
from typing import Any

from clstudy.utils import paths
from clstudy.runs.lock import Busy
from clstudy.training.config import RunConfig
from clstudy.utils.progress import bar
from clstudy.runs.run import Run, Runs, find
from clstudy.runs.store import _check_probes, _usable, load_or_train


def many(configs: Sequence[RunConfig], workers: int | None = None, runs: Path | None = None,
         keep_model: bool = False, probes: Sequence[str] = ()) -> list[Run]:
    """`load_or_train` for each, in worker processes with the cores divided among them; finished runs are read.

    workers: default one per core, or one where a GPU computes. A run that another process makes is waited for when the
    others are done. One run that fails stops no other; the first error is raised when all others are done. The
    processes stay for the next call, with what they have loaded: for two minutes, since each holds up to 2 GB. They end
    with this one; an interrupt ends them at once."""
    runs = runs or paths.RUNS
    _check_probes(probes)
    todo = {config.run_id: config for config in configs if not _usable(find(config, runs), keep_model, probes)}
    work = _Make(runs, keep_model, tuple(probes))
    errors = []
    with bar(total=len(configs), initial=len(configs) - len(todo), desc="runs", unit="run") as shown:
        with closing(local(work, todo.values(), workers or default(configs))) as outcomes:
            for _, outcome in outcomes:
                errors += [outcome] if isinstance(outcome, BaseException) and not isinstance(outcome, Busy) else []
                shown.update()
    if errors:
        raise errors[0]
    return [load_or_train(config, runs, keep_model, probes=probes) for config in configs]


def train_all(configs: Sequence[RunConfig], **options: Any) -> Runs:
    """`many`, whose runs can be chosen by their settings."""
    return Runs(many(configs, **options))


class _Make:
    """What a worker of `many` does with a configuration. The tables stay on disk: only success is sent back."""

    def __init__(self, runs: Path, keep_model: bool, probes: tuple[str, ...]):
        self.runs, self.keep_model, self.probes = runs, keep_model, probes

    def __call__(self, config: RunConfig) -> None:
        load_or_train(config, self.runs, self.keep_model, None, self.probes, wait=False)


def cores() -> int:
    """The cores that this process may use. CLSTUDY_CORES is the share of a notebook that runs beside others."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("CLSTUDY_CORES", "")
    return min(mine, int(given)) if given.isdigit() and int(given) else mine


def default(configs: Sequence[RunConfig]) -> int:
    """One worker for each core, or one where a GPU computes."""
    import torch

    return 1 if torch.cuda.is_available() and any(config.device != "cpu" for config in configs) else cores()


# ---- the engine


def local(function: Callable, items: Iterable, workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (item, what `function(item)` returned or the exception it raised), in the order in which they end.

    As many items as workers are out at a time. A process that dies (out of memory, killed) takes the others of its
    pool with it: those that were out are tried again, one after the other, and one that then dies alone is the
    culprit, whose outcome is BrokenProcessPool. Leaving the loop early ends the processes."""
    waiting, suspects, out = deque(items), deque(), {}
    workers = max(1, min(workers, len(waiting)))
    threads = max(cores() // workers, 1)
    pool = _pool(workers, threads) if waiting else None
    try:
        while waiting or suspects or out:
            room = (0 if out else 1) if suspects else workers - len(out)
            for _ in range(min(room, len(suspects or waiting))):
                item = (suspects or waiting).popleft()
                try:
                    future = pool.submit(function, item)
                except BrokenProcessPool:  # died between two items
                    future = Future()
                    future.set_exception(BrokenProcessPool("a worker process died"))
                out[future] = item
            died = None
            for future in wait(out, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    died = error
                else:
                    yield out.pop(future), error if error else future.result()
            if died:
                close_pool()
                pool = _pool(workers, threads)
                lost = list(out.values())
                out.clear()
                if len(lost) == 1:
                    yield lost[0], died
                else:
                    suspects.extend(lost)
    except BaseException:
        close_pool()
        raise
    if pool:
        _end_when_idle()


IDLE = 120  # seconds that worker processes wait for the next call
_CALLS, _LOCK = [0], Lock()
_POOL: dict[tuple, ProcessPoolExecutor] = {}  # the one of the last call


def _pool(workers: int, threads: int) -> ProcessPoolExecutor:
    """Worker processes: those of the last call, where neither code, surroundings nor numbers have changed since."""
    code = max(path.stat().st_mtime_ns for path in paths.PACKAGE.rglob("*.py"))
    key = (workers, threads, code, *sorted(item for item in os.environ.items() if item[0].startswith("CLSTUDY_")))
    with _LOCK:
        _CALLS[0] += 1
        if key not in _POOL:
            close_pool()
            _POOL[key] = ProcessPoolExecutor(workers, get_context("spawn"), _worker, (threads, os.getpid()))
        return _POOL[key]


def _end_when_idle() -> None:
    """Several notebooks that stay open would fill the memory with workers that have nothing to do."""
    call = _CALLS[0]

    def end() -> None:
        with _LOCK:
            if _CALLS[0] == call:
                close_pool()

    timer = Timer(IDLE, end)
    timer.daemon = True
    timer.start()


def close_pool() -> None:
    """End the worker processes; what a run has made since its last saved state is lost."""
    for pool in _POOL.values():
        running = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
    _POOL.clear()


def _worker(threads: int, parent: int) -> None:
    """What each worker process does first. Two processes with all threads each would be five times slower."""
    import torch

    from clstudy.training.checkpoint import GRACE

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)  # the parent was killed: nobody wants the runs that are waiting, and of
        time.sleep(GRACE + 5)  # the one that runs its state is saved first
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its workers
    os.environ["CLSTUDY_QUIET"] = "1"
    os.environ["CLSTUDY_CORES"] = str(threads)
    torch.set_num_threads(threads)
