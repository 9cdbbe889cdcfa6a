"""The status of sweeps: on disk, on the screen, and in the words of `clstudy status`.

    runs/sweeps/NAME/state.json   what there is to do, and how each task ended
    runs/sweeps/NAME/now/ID.json  how far a running task is; its worker writes and removes the file
    runs/sweeps/NAME/ID.log       why a task failed"""
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from clstudy.utils import paths
from clstudy.utils.files import write_json
from clstudy.utils.progress import clock
from clstudy.utils.validation import choose

DONE, FAILED, INTERRUPTED = 0, 1, 130
BEAT = 5  # seconds between two heartbeats of the process that drives a sweep
SILENT = 60  # seconds without a heartbeat, after which it counts as dead
LINES = 20  # seconds between two lines in a log
STATE = {"name", "host", "pid", "started", "finished", "code", "workers", "beat", "left", "tasks"}
NOW = {"host", "pid", "share", "left"}


class Board:
    """Keeps state.json of a sweep, and shows a row for each worker, until the block ends."""

    def __init__(self, folder: Path, tasks: Sequence[Any], made: Collection[str], workers: int,
                 show: bool):
        """tasks: with an id and a label (`grid.Task`); made: ids of those that are done."""
        self.folder, self.code, self.lock = folder, None, RLock()
        self.screen = _Screen() if show else None
        entries = {}
        for task in tasks:
            state = "exists" if task.id in made else "waiting"
            entries[task.id] = {"label": task.label, "state": state, "seconds": None, "error": None,
                                "log": None}
        self.state = {"name": folder.name, "host": platform.node(), "pid": os.getpid(),
                      "started": time.time(), "finished": None, "code": None, "workers": workers,
                      "beat": time.time(), "left": None, "tasks": entries}
        self.end, self.thread = Event(), Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Board":
        for old in (self.folder / "now").glob("*.json"):  # of a dead driver
            old.unlink(missing_ok=True)
        self._save()
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.end.set()
        self.thread.join()
        self.state |= {"finished": time.time(), "code": self.code, "left": None}
        self._save()
        if self.screen:
            self.screen.close()

    def done(self, id: str, seconds: float) -> None:
        self._set(id, "made  ", clock(seconds), state="done", seconds=round(seconds, 1))

    def failed(self, id: str, error: str, log: str) -> None:
        self._set(id, "FAILED", first_line(error), state="failed", error=error, log=log)

    def _set(self, id: str, word: str, said: str, **changes) -> None:
        with self.lock:
            task = self.state["tasks"][id]
            task |= changes
            self._save()
            if self.screen:
                self.screen.say(f"{word} {task['label']}  {said}")

    def _tick(self) -> None:
        beat = time.monotonic()
        while not self.end.wait(1):
            with self.lock:
                running = now(self.folder)
                self.state["left"] = left(self.state, running)
                if time.monotonic() - beat > BEAT:
                    beat = time.monotonic()
                    self._save()
                if self.screen:
                    self.screen.show(self.state, running)

    def _save(self) -> None:
        self.state["beat"] = time.time()
        with suppress(OSError):  # a full disk: the sweep goes on
            write_json(self.folder / "state.json", self.state)


class _Screen:
    """A table that changes, in a terminal or notebook; elsewhere lines, every `LINES` seconds."""

    def __init__(self):
        self.console = Console(stderr=True, quiet=paths.quiet(), force_jupyter=False,
                               highlight=False, markup=False)
        self.handle = self.live = None
        self.last = time.monotonic()
        if "ipykernel" in sys.modules and not paths.headless():
            from IPython.display import display

            self.handle = display(Table(title="starting"), display_id=True)
        elif self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()

    def show(self, state: dict, running: Mapping[str, dict]) -> None:
        if self.handle:
            self.handle.update(_table(state, running))
        elif self.live:
            self.live.update(_table(state, running), refresh=True)
        elif time.monotonic() - self.last >= LINES:
            self.last = time.monotonic()
            self._print("\n".join([_headline(state), *_running(state, running)]))

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if not self.handle:
            self._print(line)

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def _table(state: dict, running: Mapping[str, dict]) -> Table:
    table = Table(title=_headline(state), title_justify="left", box=None, show_header=False)
    for where, label, share, said in _rows(state, running):
        table.add_row(where, label, ProgressBar(1, min(share or 0, 1), width=20), said)
    return table


def _running(state: dict, running: Mapping[str, dict]) -> list[str]:
    return [f"  {where}  {label}  {said}" for where, label, _, said in _rows(state, running)]


def _rows(state: dict, running: Mapping[str, dict]) -> list[tuple[str, str, float | None, str]]:
    """Return for each worker: where it is, what it makes, the share done, and this in words."""
    rows = []
    for id, about in sorted(running.items(), key=lambda pair: (pair[1]["host"], pair[1]["pid"])):
        label, share = state["tasks"].get(id, {}).get("label", id), about["share"]
        said = ("starting" if share is None else "last evaluation" if share >= 1
                else f"{share:4.0%}, {clock(about['left'])} left")
        rows.append((f"{about['host']}:{about['pid']}", label, share, said))
    return rows


def _headline(state: dict, time_left: bool = True) -> str:
    count = Counter(task["state"] for task in state["tasks"].values())
    text = f"{state['name']}: {count['exists'] + count['done']} of {count.total()} exist"
    text += f", {count['failed']} failed" if count["failed"] else ""
    return text + f", {clock(state['left'])} left" if time_left else text


def now(folder: Path) -> dict[str, dict]:
    """Return what the workers of a sweep are at: id → host, pid, share, left."""
    found = {path.stem: read(path) for path in sorted((folder / "now").glob("*.json"))}
    return {id: about for id, about in found.items() if about}


def left(state: dict, running: Mapping[str, dict]) -> float | None:
    """Return the seconds until all is done, at the speed so far; None before anything is done."""
    todo = {id: task for id, task in state["tasks"].items() if task["state"] != "exists"}
    waiting = [id for id, task in todo.items() if task["state"] == "waiting"]
    begun = sum(running[id]["share"] or 0 for id in waiting if id in running)
    done = len(todo) - len(waiting) + begun
    return (time.time() - state["started"]) * (len(todo) - done) / done if done else None


# ---- `clstudy status`


def status(name: str | None = None, runs: Path | None = None) -> str:
    """Describe a sweep, by default the latest: what is done, running, waiting, failed; time left.

    ValueError: there is no sweep of that name."""
    runs = runs or paths.RUNS
    known = {state["name"]: state for state in states(runs)}
    if not known:
        return f"There is no sweep in {runs}. `clstudy sweep` starts one."
    state = known.pop(choose("sweep", name, known) if name else list(known)[-1])
    lives = alive(state)
    running = now(runs / "sweeps" / state["name"]) if lives else {}
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(state["started"]))
    lines = [_headline(state, time_left=lives),
             f"started {started} on {state['host']}, {by(state['workers'])}; {_ending(state)}"]
    if running:
        lines += ["running:", *_running(state, running)]
    for kind in ("failed", "waiting", "done", "exists"):
        tasks = {id: task for id, task in state["tasks"].items()
                 if task["state"] == kind and id not in running}
        if tasks:
            lines += [f"{kind}: {len(tasks)}", *_details(kind, tasks, runs)]
    if known:
        others = ", ".join(f"{other} ({_ending(state)})" for other, state in known.items())
        lines.append(f"other sweeps: {others}")
    return "\n".join(lines)


def _details(kind: str, tasks: Mapping[str, dict], runs: Path) -> list[str]:
    """Return a line for each task that waits, and three for each that failed."""
    lines = []
    for id, task in tasks.items():
        if kind == "failed":
            error = first_line(task["error"])
            lines += [f"  {task['label']}", f"    {error}", f"    {task['log']}"]
        elif kind == "waiting":  # if it exists all the same, somebody else made it
            exists = "  (exists)" if (runs / id / "result.json").exists() else ""
            lines.append(f"  {task['label']}{exists}")
    return lines


def _ending(state: dict) -> str:
    if alive(state):
        return "running"
    if not state["finished"]:
        return "killed; start it again to go on"
    words = {DONE: "all made", FAILED: "ended with failures",
             INTERRUPTED: "interrupted; start it again to go on"}
    seconds = state["finished"] - state["started"]
    return f"{words.get(state['code'], 'ended with an error')}, after {clock(seconds)}"


def by(workers: int) -> str:
    """Return "with 1 worker" or "with 2 workers"."""
    return f"with {workers} worker{'s' * (workers != 1)}"


def first_line(text: str) -> str:
    """Return the first line of a text, at most 300 characters of it."""
    return (text.splitlines() or [""])[0][:300]


# ---- states on disk


def alive(state: dict | None) -> bool:
    """Return whether a sweep has a living driver, by its process here, or by its heartbeats."""
    if not state or state["finished"]:
        return False
    if state["host"] == platform.node():
        try:
            os.kill(state["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return time.time() - state["beat"] < SILENT


def states(runs: Path | None = None) -> list[dict]:
    """Return the states of all sweeps of a folder, the latest last."""
    found = [read(path) for path in ((runs or paths.RUNS) / "sweeps").glob("*/state.json")]
    return sorted((state for state in found if state), key=lambda state: state["started"])


def read(path: Path) -> dict | None:
    """Return the content of a state file; None if it is missing or damaged."""
    needs = STATE if path.name == "state.json" else NOW
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and needs <= content.keys()
    return content if whole and isinstance(content.get("tasks", {}), dict) else None
