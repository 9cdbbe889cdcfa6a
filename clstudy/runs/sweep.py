"""Sweeps: many runs or notebooks, planned before the first starts, with their state on disk.

    grid = {"method": ["sit", "finetune"], "seed": "0..4"}
    print(plan(grid))                   what would be done
    made = sweep(grid, workers=2)       made.runs, made.failed, made.code

Finished runs are reused, so an interrupted sweep goes on when it is started again. Exit codes: 0
everything exists, 1 something failed, 2 the grid is impossible and nothing was started, 130
interrupted."""
import hashlib
import json
import platform
import re
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

BUSY = "another process makes it"
Engine = Callable[[Callable, Sequence[Task]], Iterator[tuple[Task, Any]]]


@dataclass(frozen=True)
class Failure:
    """Why a task failed, and the file with its traceback."""

    error: str
    log: str


@dataclass(frozen=True)
class Work:
    """What a worker does with a task. It returns seconds, BUSY, or any error as a Failure."""

    folder: Path  # of the sweep
    runs: Path
    keep_model: bool = False
    probes: tuple[str, ...] = ()
    timeout: float | None = None  # of a notebook, in seconds
    wait: bool = False  # for another process that makes the same run

    def __call__(self, task: Task) -> float | Failure | str:
        started = time.perf_counter()
        try:
            with reporting(self.folder / "now" / f"{task.id}.json"):
                task.make(self)
        except Busy:
            return BUSY
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}", self._log(task))
        return time.perf_counter() - started

    def _log(self, task: Task) -> str:
        """Write the current traceback into a file; return its path."""
        log = self.folder / f"{task.id}.log"
        where = f"on {platform.node()}, {time.ctime()}"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{task.label}\n{where}\n\n{traceback.format_exc()}")
        except OSError as error:
            return f"no log: {error}"
        return str(log)


# ---- planning


@dataclass
class Plan:
    """What a sweep would do; `print` shows it."""

    tasks: list[Task]
    work: Work
    workers: int
    name: str
    made: set[str]  # ids of the tasks that are done

    @property
    def todo(self) -> list[Task]:
        return [task for task in self.tasks if task.id not in self.made]

    def __str__(self) -> str:
        lines = [f"sweep {self.name}: {len(self.tasks)} in all, {len(self.made)} exist, "
                 f"{len(self.todo)} to do, {by(self.workers)}"]
        for task in self.tasks:
            lines.append(f"  {task.label:50}  {'exists' if task.id in self.made else 'to do'}")
        return "\n".join(lines)


def plan(grid: Mapping[str, Any] | Sequence, **options) -> Plan:
    """Check a sweep and look up which runs exist; start nothing.

    grid: a dict of choices (see `clstudy.runs.grid`), several of them, or RunConfigs. options: of
    `arrange`. ValueError, OSError: impossible settings, missing data."""
    if isinstance(grid, Mapping):
        tasks = grids.run_tasks([grid])
    elif all(isinstance(one, RunConfig) for one in grid):
        tasks = grids.from_configs(grid)
    else:
        tasks = grids.run_tasks(grid)
    return arrange(tasks, **options)


def arrange(tasks: list[Task], *, workers: int | None = None, runs: Path | None = None,
            name: str | None = None, keep_model: bool = False, probes: Sequence[str] = (),
            timeout: float | None = None) -> Plan:
    """Plan tasks that are checked already.

    workers: default one per core, or one where a GPU computes, or one for notebooks. name: of the
    sweep's folder; default a hash of its tasks. timeout: seconds for a notebook. ValueError: an
    unknown probe, or a name or number that does not fit."""
    store.check_probes(probes)
    at_least("workers", workers or 1, 1)
    ids = json.dumps(sorted(task.id for task in tasks))
    name = name or hashlib.sha256(ids.encode()).hexdigest()[:8]
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"name={name!r}: letters, digits, - _ and . only, for it names a folder")
    runs = (runs or paths.RUNS).absolute()
    work = Work(runs / "sweeps" / name, runs, keep_model, tuple(probes), timeout)
    made = {task.id for task in tasks if task.made(work)}
    configs = [task.config for task in tasks if task.config and task.id not in made]
    default = processes.default(configs) if configs else 1  # a notebook divides the cores itself
    return Plan(tasks, work, workers or default, name, made)


# ---- doing


@dataclass
class Sweep:
    """How a sweep ended; `print` shows it."""

    plan: Plan
    failed: dict[str, Failure] = field(default_factory=dict)  # by label
    code: int = DONE

    @property
    def runs(self) -> Runs:
        """The runs that exist, in the order of the grid."""
        found = [find(task.config, self.plan.work.runs) for task in self.plan.tasks if task.config]
        return Runs(run for run in found if run)

    def __str__(self) -> str:
        total = len(self.plan.tasks)
        lines = [f"sweep {self.plan.name}: {total - len(self.failed)} of {total} exist, "
                 f"{len(self.failed)} failed"]
        for label, failure in self.failed.items():
            lines += [f"  FAILED {label}", f"         {first_line(failure.error)}",
                      f"         {failure.log}"]
        return "\n".join(lines)


def sweep(grid: Mapping[str, Any] | Sequence, *, engine: Engine | None = None, show: bool = True,
          **options) -> Sweep:
    """Plan a sweep (see `plan`) and carry it out. A failure stops no other task."""
    return carry_out(plan(grid, **options), engine, show)


def carry_out(planned: Plan, engine: Engine | None = None, show: bool = True) -> Sweep:
    """Make what is to do. engine: `workers.local` by default, or another of its form."""
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
    """Yield tasks with their outcomes. Those that another process makes come last: it may be
    killed, and then the task is done here."""
    busy = []
    with closing(engine(work, tasks)) as found:
        for task, outcome in found:
            if outcome == BUSY:
                busy.append(task)
            else:
                yield task, outcome
    if busy:
        with closing(engine(replace(work, wait=True), busy)) as found:
            yield from found


def _failure(outcome: Any) -> Failure:
    """Return the Failure of a worker, or one for the exception of a worker that died."""
    if isinstance(outcome, Failure):
        return outcome
    said = f"{type(outcome).__name__}: {outcome}"
    if type(outcome).__name__ in ("BrokenProcessPool", "KilledWorker"):
        said = f"its worker process died, killed or out of memory ({said})"
    return Failure(said, "no log, for the worker could write none")


def _free(folder: Path) -> Path:
    """Return the folder, or NAME~2, NAME~3, … if another living sweep writes to it."""
    name, number = folder.name, 1
    while alive(read(folder / "state.json")):
        number += 1
        folder = folder.with_name(f"{name}~{number}")
    return folder
