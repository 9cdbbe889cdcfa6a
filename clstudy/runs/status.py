"""How a sweep stands: its state on disk, the table on the screen, and what `clstudy status` says.

    runs/sweeps/NAME/state.json   what there is to do, and how each ended; written anew at every change
    runs/sweeps/NAME/now/ID.json  how far a running one is; written by its worker, gone when it ends
    runs/sweeps/NAME/ID.log       why one failed"""
import json
import os
import platform
import sys
import time
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

DONE, FAILED, INTERRUPTED = 0, 1, 130
BEAT = 5  # seconds between two signs of life of whoever drives a sweep
LINES = 20  # seconds between two lines where no screen is
STATE = {"name", "host", "pid", "started", "finished", "code", "workers", "beat",
         "tasks"}  # what a state has
NOW = {"host", "pid", "share", "left"}
SILENT = 60  # seconds without one, after which its driver counts as dead


class Board:
    """Keeps state.json, and shows a row for each worker with the time left, as long as the block
    lasts."""

    def __init__(self, folder: Path, tasks: Sequence[Any], made: Collection[str], workers: int,
                 show: bool):
        """tasks: things with an id and a label (`grid.Task`); made: ids of those that exist."""
        self.folder, self.code, self.lock = folder, None, RLock()
        self.screen = _Screen() if show else None
        entries = {
            task.id: {
                "label": task.label, "state": "exists" if task.id in made else "waiting",
                "seconds": None, "error": None, "log": None
            } for task in tasks
        }
        self.state = {"name": folder.name, "host": platform.node(), "pid": os.getpid(),
                      "started": time.time(), "finished": None, "code": None, "workers": workers,
                      "beat": time.time(), "left": None, "tasks": entries}
        self.end, self.thread = Event(), Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Board":
        for old in (self.folder / "now").glob("*.json"):  # of a driver that is dead
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
        self._set(id, f"made   {self.label(id)}  {clock(seconds)}", state="done", seconds=round(
            seconds, 1))

    def failed(self, id: str, error: str, log: str) -> None:
        self._set(id, f"FAILED {self.label(id)}  {first_line(error)}", state="failed", error=error,
                  log=log)

    def label(self, id: str) -> str:
        return self.state["tasks"][id]["label"]

    def _set(self, id: str, line: str, **changes) -> None:
        with self.lock:
            self.state["tasks"][id] |= changes
            self._save()
            if self.screen:
                self.screen.say(line)

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
        """Where the disk is full, the sweep goes on and its state stays as it was."""
        self.state["beat"] = time.time()
        with suppress(OSError):
            write_json(self.folder / "state.json", self.state)


class _Screen:
    """A table that is drawn anew in a terminal and in a notebook; elsewhere lines come every
    `LINES` seconds."""

    def __init__(self):
        quiet = bool(os.environ.get("CLSTUDY_QUIET"))
        self.console = Console(stderr=True, quiet=quiet, force_jupyter=False, highlight=False,
                               markup=False)
        self.handle = self.live = None
        self.last = time.monotonic()
        if "ipykernel" in sys.modules and not os.environ.get("CLSTUDY_HEADLESS"):
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
        """A line that stays."""
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


# ---- looking


def now(folder: Path) -> dict[str, dict]:
    """What the workers of a sweep are at: id → host, pid, share, left, time."""
    found = {path.stem: read(path) for path in sorted((folder / "now").glob("*.json"))}
    return {id: about for id, about in found.items() if about}


def left(state: dict, running: Mapping[str, dict]) -> float | None:
    """Seconds until all is done, if it goes on as it went so far. None: nothing was done so far."""
    todo = {id: one for id, one in state["tasks"].items() if one["state"] != "exists"}
    ended = sum(one["state"] != "waiting" for one in todo.values())
    begun = sum(running[id]["share"] or 0 for id, one in todo.items()
                if one["state"] == "waiting" and id in running)
    done = ended + begun
    return (time.time() - state["started"]) * (len(todo) - done) / done if done else None


def _headline(state: dict) -> str:
    count = {kind: sum(one["state"] == kind for one in state["tasks"].values())
             for kind in ("exists", "done", "failed")}
    text = f"{state['name']}: {count['exists'] + count['done']} of {len(state['tasks'])} there"
    return text + (f", {count['failed']} failed"
                   if count["failed"] else "") + f", {clock(state['left'])} left"


def _rows(state: dict, running: Mapping[str, dict]) -> list[tuple[str, str, float | None, str]]:
    """Of each worker: where it is, what it makes, the share done, and this in words."""
    rows = []
    for id, about in sorted(running.items(), key=lambda pair: (pair[1]["host"], pair[1]["pid"])):
        label, share = state["tasks"].get(id, {}).get("label", id), about["share"]
        said = ("starting" if share is None else "last evaluation" if share >= 1
                else f"{share:4.0%}, {clock(about['left'])} left")
        rows.append((f"{about['host']}:{about['pid']}", label, share, said))
    return rows


def _running(state: dict, running: Mapping[str, dict]) -> list[str]:
    """A line for each worker."""
    return [f"  {where}  {label}  {said}" for where, label, _, said in _rows(state, running)]


def alive(state: dict | None) -> bool:
    """Whether somebody drives the sweep: by its process, if it is of this machine, and by its signs
    of life."""
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
    """The sweeps of a folder, the latest last."""
    found = [read(path) for path in ((runs or paths.RUNS) / "sweeps").glob("*/state.json")]
    return sorted((state for state in found if state), key=lambda state: state["started"])


def status(name: str | None = None, runs: Path | None = None) -> str:
    """A sweep in words, the latest if none is named: what is done, running (and where), waiting,
    failed; time left. ValueError: there is none of that name."""
    runs = runs or paths.RUNS
    known = states(runs)
    if not known:
        return f"no sweep in {runs}: start one with `clstudy sweep`"
    if name and name not in {one["name"] for one in known}:
        raise ValueError(f"no sweep {name!r}. Choices: {', '.join(one['name'] for one in known)}")
    state = next(one for one in reversed(known) if name in (None, one["name"]))
    lives = alive(state)
    running = now(runs / "sweeps" / state["name"]) if lives else {}
    lines = [
        _headline(state) if lives else _headline(state).rpartition(",")[0],
        f"started {_when(state['started'])} on {state['host']}, {by(state['workers'])}; {_ending(state, lives)}"
    ]
    lines += ["running:", *_running(state, running)] if running else []
    for kind in ("failed", "waiting", "done", "exists"):
        lines += _of_kind(state, kind, running, runs)
    others = [one for one in known if one is not state]
    lines += [
        "other sweeps: " + ", ".join(f"{one['name']} ({_ending(one, alive(one))})"
                                     for one in others)
    ] * bool(others)
    return "\n".join(lines)


def _of_kind(state: dict, kind: str, running: Mapping[str, dict], runs: Path) -> list[str]:
    """Its lines. What waits although its result is there was made by somebody else."""
    chosen = {
        id: one for id, one in state["tasks"].items() if one["state"] == kind and id not in running
    }
    lines = [f"{kind}: {len(chosen)}"] if chosen else []
    for id, one in chosen.items():
        if kind == "failed":
            lines += [f"  {one['label']}", f"    {first_line(one['error'])}", f"    {one['log']}"]
        elif kind == "waiting":
            lines.append(f"  {one['label']}"
                         + ("  (is there)" if (runs / id / "result.json").exists() else ""))
    return lines


def _ending(state: dict, lives: bool) -> str:
    if lives:
        return "running"
    if not state["finished"]:
        return "stopped without a word: start it again to go on"
    words = {
        DONE: "all made", FAILED: "ended with failures",
        INTERRUPTED: "interrupted: start it again to go on"
    }
    return f"{words.get(state['code'], 'broke off')}, after {clock(state['finished'] - state['started'])}"


def by(workers: int) -> str:
    return f"with {workers} worker{'s' * (workers != 1)}"


def first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:300]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def read(path: Path) -> dict | None:
    """A state file; None where there is none, or one that is damaged."""
    needs = STATE if path.name == "state.json" else NOW
    try:
        content = json.loads(path.read_text())
        whole = isinstance(content, dict) and needs <= content.keys()
        return content if whole and isinstance(content.get("tasks", {}), dict) else None
    except (OSError, ValueError):
        return None
