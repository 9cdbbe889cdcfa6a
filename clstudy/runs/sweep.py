"""Sweeps: many runs or notebooks, planned before the first starts, with their state on disk.

    made = sweep({"method": ["sit", "finetune"], "seed": "0..4"}, workers=2)       made.runs, made.failed, made.code
    print(plan({"method": ["sit", "finetune"], "seed": "0..4"}))                   shows only what would be done

Finished runs are reused, so a sweep that was stopped goes on when it is started again. Exit codes:
0 all is made, 1 something failed, 2 the grid is impossible and nothing was started, 130
interrupted."""
import hashlib
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from clstudy.runs import grid as grids
from clstudy.runs import store
from clstudy.runs import workers as processes
from clstudy.runs.grid import Task
from clstudy.runs.lock import Busy
from clstudy.runs.run import Runs, find
from clstudy.runs.status import DONE, FAILED, INTERRUPTED, Board, alive, by, first_line, read
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.progress import reporting
from clstudy.utils.validation import at_least

BUSY = "somebody else makes it"
Engine = Callable[[Callable, Sequence[Task]], Iterator[tuple[Task, Any]]]


@dataclass(frozen=True)
class Failure:
    """Why one failed, and the file with all that is known."""

    error: str
    log: str


@dataclass(frozen=True)
class Work:
    """What a worker does with a task; returns its seconds, or a Failure: errors of all kinds travel
    as text."""

    folder: Path  # of the sweep
    runs: Path
    keep_model: bool = False
    probes: tuple[str, ...] = ()
    timeout: float | None = None  # of a notebook, in seconds
    wait: bool = False  # for another process that makes the same run; otherwise the outcome is BUSY

    def __call__(self, task: Task) -> float | Failure | str:
        started = time.perf_counter()
        try:
            with reporting(self.folder / "now" / f"{task.id}.json"):
                task.make(self)
        except Busy:
            return BUSY
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", self.log(task))
        return time.perf_counter() - started

    def log(self, task: Task) -> str:
        """Write down the error at hand; where."""
        log = self.folder / f"{task.id}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(
                f"{task.label}\non {platform.node()}, {time.ctime()}\n\n{traceback.format_exc()}")
        except OSError as error:
            return f"no log: {error}"
        return str(log)


# ---- planning


@dataclass
class Plan:
    """What a sweep would do. Printed, it is a text."""

    tasks: list[Task]
    work: Work
    workers: int
    name: str
    made: set[str]  # ids of what exists

    @property
    def todo(self) -> list[Task]:
        return [task for task in self.tasks if task.id not in self.made]

    def __str__(self) -> str:
        lines = [
            f"sweep {self.name}: {len(self.tasks)} in all, {len(self.made)} exist, {len(self.todo)} to do, "
            f"{by(self.workers)}"
        ]
        for task in self.tasks:
            lines.append(f"  {task.label:50}  {'exists' if task.id in self.made else 'to do'}")
        return "\n".join(lines)


def plan(grid: Mapping[str, Any] | Sequence, *, workers: int | None = None,
         runs: Path | None = None, name: str | None = None, keep_model: bool = False,
         probes: Sequence[str] = (), timeout: float | None = None) -> Plan:
    """Check everything and look what exists; nothing is started.

    grid: a dict of choices (see `clstudy.runs.grid`), several of them, or RunConfigs. workers:
    default one per core, or one where a GPU computes. ValueError, OSError: impossible settings,
    missing data, an unknown probe."""
    store._check_probes(probes)
    return arrange(_tasks(grid), workers=workers, runs=runs, name=name, keep_model=keep_model,
                   probes=probes, timeout=timeout)


def _tasks(grid: Mapping[str, Any] | Sequence) -> list[Task]:
    if isinstance(grid, Mapping):
        return grids.run_tasks([grid])
    if all(isinstance(one, RunConfig) for one in grid):
        return grids.from_configs(grid)
    return grids.run_tasks(grid)


def arrange(tasks: list[Task], *, workers: int | None = None, runs: Path | None = None,
            name: str | None = None, keep_model: bool = False, probes: Sequence[str] = (),
            timeout: float | None = None) -> Plan:
    """A plan of tasks that are checked already."""
    runs = (runs or paths.RUNS).absolute()
    at_least("workers", workers or 1, 1)
    name = name or hashlib.sha256(json.dumps(sorted(task.id
                                                    for task in tasks)).encode()).hexdigest()[:8]
    if not name.replace("-", "").replace("_", "").replace(".",
                                                          "").isalnum() or name.startswith("."):
        raise ValueError(f"name={name!r}: letters, digits, - _ and . only, for it names a folder")
    work = Work(runs / "sweeps" / name, runs, keep_model, tuple(probes), timeout)
    made = {task.id for task in tasks if task.made(work)}
    todo = [task for task in tasks if task.id not in made]
    return Plan(tasks, work, workers or _default(todo), name, made)


def _default(tasks: Sequence[Task]) -> int:
    """A notebook divides the cores among its own runs."""
    configs = [task.config for task in tasks if task.config]
    return processes.default(configs) if configs else 1


# ---- doing


@dataclass
class Sweep:
    """How a sweep ended."""

    plan: Plan
    failed: dict[str, Failure] = field(default_factory=dict)  # by label
    code: int = DONE

    @property
    def runs(self) -> Runs:
        """The runs that are there, in the order of the grid."""
        found = [find(task.config, self.plan.work.runs) for task in self.plan.tasks if task.config]
        return Runs(run for run in found if run)

    def __str__(self) -> str:
        made = len(self.plan.tasks) - len(self.failed)
        lines = [
            f"sweep {self.plan.name}: {made} of {len(self.plan.tasks)} are there, {len(self.failed)} failed"
        ]
        for label, failure in self.failed.items():
            lines += [f"  FAILED {label}", f"         {first_line(failure.error)}",
                      f"         {failure.log}"]
        return "\n".join(lines)


def sweep(grid: Mapping[str, Any] | Sequence, *, engine: Engine | None = None, show: bool = True,
          **options) -> Sweep:
    """Plan (see `plan` for the options) and carry out. Failures stop nothing; they are in what is
    returned."""
    return carry_out(plan(grid, **options), engine, show)


def carry_out(planned: Plan, engine: Engine | None = None, show: bool = True) -> Sweep:
    """Make what is to do. engine: `workers.local` by default, or another with its form."""
    made = Sweep(planned)
    if not planned.todo:
        return made
    planned.work = replace(planned.work, folder=_free(planned.work.folder))
    engine = engine or partial(processes.local, workers=planned.workers)
    with Board(planned.work.folder, planned.tasks, planned.made, planned.workers, show) as board:
        try:
            with closing(_outcomes(engine, planned.work, planned.todo)) as outcomes:
                for task, outcome in outcomes:
                    if isinstance(outcome, float):
                        board.done(task.id, outcome)
                    else:
                        made.failed[task.label] = failure = _failure(outcome)
                        board.failed(task.id, failure.error, failure.log)
            made.code = board.code = FAILED if made.failed else DONE
        except KeyboardInterrupt:
            board.code = INTERRUPTED
            raise
    return made


def _outcomes(engine: Engine, work: Work, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
    """First what nobody else makes; then, waited for, what others were at: they may be killed
    before they are done."""
    later = []
    with closing(engine(work, tasks)) as found:
        for task, outcome in found:
            if isinstance(outcome, str):
                later.append(task)
            else:
                yield task, outcome
    if later:
        with closing(engine(replace(work, wait=True), later)) as found:
            yield from found


def _failure(outcome: Any) -> Failure:
    """A worker that died has written nothing itself."""
    if isinstance(outcome, Failure):
        return outcome
    said = f"{type(outcome).__name__}: {outcome}"
    if type(outcome).__name__ in ("BrokenProcessPool", "KilledWorker"):
        said = f"its worker process died, killed or out of memory ({said})"
    return Failure(said, "no log, for the worker could write none")


def _free(folder: Path) -> Path:
    """`folder`, or the next to it that no other living sweep writes to."""
    for number in range(2, 1000):
        if not alive(read(folder / "state.json")):
            return folder
        folder = folder.with_name(f"{folder.name.rpartition('~')[0] or folder.name}~{number}")
    return folder
