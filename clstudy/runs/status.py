"""How a sweep stands: its state on disk, the lines on the screen, and what `clstudy status` says.

    runs/sweeps/NAME/state.json   what there is to do, and how each ended; written anew at every change
    runs/sweeps/NAME/now/ID.json  how far a running one is; written by its worker, gone when it ends
    runs/sweeps/NAME/ID.log       why one failed"""
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, RLock, Thread

from clstudy.utils import paths
from clstudy.utils.progress import clock
from clstudy.utils.files import write_json

DONE, FAILED, INTERRUPTED = 0, 1, 130
BEAT = 5  # seconds between two signs of life of whoever drives a sweep
STATE = {"name", "host", "pid", "started", "finished", "code", "workers", "beat", "tasks"}  # what a state has
NOW = {"host", "pid", "share", "left"}
SILENT = 60  # seconds without one, after which its driver counts as dead


class Board:
    """Keeps state.json, and shows a line for each worker with the time left, as long as the block lasts."""

    def __init__(self, folder: Path, tasks: dict[str, dict], workers: int, show: bool):
        """tasks: by id, of each its label, whether it exists, and the seconds it may take."""
        self.folder, self.code, self.lock = folder, None, RLock()
        self.screen = _Screen() if show else None
        entries = {id: {"label": one["label"], "state": "exists" if one["exists"] else "waiting", "seconds": None,
                        "guess": one["guess"], "error": None, "log": None} for id, one in tasks.items()}
        self.state = {"name": folder.name, "host": platform.node(), "pid": os.getpid(), "started": time.time(),
                      "finished": None, "code": None, "workers": workers, "beat": time.time(), "left": None,
                      "tasks": entries}
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
        self._set(id, f"made   {self.label(id)}  {clock(seconds)}", state="done", seconds=round(seconds, 1))

    def failed(self, id: str, error: str, log: str) -> None:
        self._set(id, f"FAILED {self.label(id)}  {first_line(error)}", state="failed", error=error, log=log)

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
                    self.screen.show([_headline(self.state), *_running(self.state, running)])

    def _save(self) -> None:
        """Where the disk is full, the sweep goes on and its state stays as it was."""
        self.state["beat"] = time.time()
        with suppress(OSError):
            write_json(self.folder / "state.json", self.state)


class _Screen:
    """Lines that are written over in a terminal and in a notebook; elsewhere they come every 20 seconds."""

    def __init__(self):
        self.live, self.lines, self.last, self.handle = sys.stderr.isatty(), 0, time.monotonic(), None
        self.quiet = bool(os.environ.get("CLSTUDY_QUIET"))
        if "ipykernel" in sys.modules and not os.environ.get("CLSTUDY_HEADLESS"):
            from IPython.display import display

            self.handle = display({"text/plain": "starting"}, raw=True, display_id=True)

    def show(self, lines: list[str]) -> None:
        if self.handle:
            self.handle.update({"text/plain": "\n".join(lines)}, raw=True)
        elif self.live:
            self._clear()
            self._write(lines)
            self.lines = len(lines)
        elif time.monotonic() - self.last >= 20:
            self.last = time.monotonic()
            self._write(lines)

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.handle:
            self._clear()
            self._write([line])

    def close(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self.live and self.lines:
            sys.stderr.write(f"\x1b[{self.lines}F\x1b[J")
            self.lines = 0

    def _write(self, lines: list[str]) -> None:
        if not self.quiet:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1 if self.live else 200
            sys.stderr.write("".join(f"{line[:max(width, 20)]}\n" for line in lines))
            sys.stderr.flush()


# ---- looking


def now(folder: Path) -> dict[str, dict]:
    """What the workers of a sweep are at: id → host, pid, share, left, time."""
    found = {path.stem: read(path) for path in sorted((folder / "now").glob("*.json"))}
    return {id: about for id, about in found.items() if about}


def left(state: dict, running: Mapping[str, dict]) -> float | None:
    """Seconds until all is done: what past runs took, corrected by what those of this sweep took. None: unknown."""
    tasks = state["tasks"]
    done = [one for one in tasks.values() if one["seconds"] is not None]
    guessed = [one for one in done if one["guess"]]
    factor = sum(one["seconds"] for one in guessed) / sum(one["guess"] for one in guessed) if guessed else 1.0
    mean = sum(one["seconds"] for one in done) / len(done) if done else None
    each = []
    for id, one in tasks.items():
        if one["state"] != "waiting":
            continue
        whole = one["guess"] * factor if one["guess"] else mean
        about = running.get(id, {})
        each.append(about["left"] if about.get("left") is not None else
                    None if whole is None else whole * (1 - (about.get("share") or 0)))
    known = [seconds for seconds in each if seconds is not None]
    if not each:
        return 0.0
    return max(sum(known) / len(known) * len(each) / state["workers"], *known) if known else None


def _headline(state: dict) -> str:
    count = {kind: sum(one["state"] == kind for one in state["tasks"].values())
             for kind in ("exists", "done", "failed")}
    text = f"{state['name']}: {count['exists'] + count['done']} of {len(state['tasks'])} there"
    return text + (f", {count['failed']} failed" if count["failed"] else "") + f", {clock(state['left'])} left"


def _running(state: dict, running: Mapping[str, dict]) -> list[str]:
    """A line for each worker."""
    lines = []
    for id, about in sorted(running.items(), key=lambda pair: (pair[1]["host"], pair[1]["pid"])):
        label = state["tasks"].get(id, {}).get("label", id)
        share = ("starting" if about["share"] is None else "last evaluation" if about["share"] >= 1
                 else f"{about['share']:4.0%}, {clock(about['left'])} left")
        lines.append(f"  {about['host']}:{about['pid']}  {label}  {share}")
    return lines


def alive(state: dict | None) -> bool:
    """Whether somebody drives the sweep: by its process, if it is of this machine, and by its signs of life."""
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
    """A sweep in words, the latest if none is named: what is done, running (and where), waiting, failed; time left.
    ValueError: there is none of that name."""
    runs = runs or paths.RUNS
    known = states(runs)
    if not known:
        return f"no sweep in {runs}: start one with `clstudy sweep`"
    if name and name not in {one["name"] for one in known}:
        raise ValueError(f"no sweep {name!r}. Choices: {', '.join(one['name'] for one in known)}")
    state = next(one for one in reversed(known) if name in (None, one["name"]))
    lives = alive(state)
    running = now(runs / "sweeps" / state["name"]) if lives else {}
    lines = [_headline(state) if lives else _headline(state).rpartition(",")[0],
             f"started {_when(state['started'])} on {state['host']}, {by(state['workers'])}; {_ending(state, lives)}"]
    lines += ["running:", *_running(state, running)] if running else []
    for kind in ("failed", "waiting", "done", "exists"):
        lines += _of_kind(state, kind, running, runs)
    others = [one for one in known if one is not state]
    lines += ["other sweeps: " + ", ".join(f"{one['name']} ({_ending(one, alive(one))})" for one in others)] * bool(
        others)
    return "\n".join(lines)


def _of_kind(state: dict, kind: str, running: Mapping[str, dict], runs: Path) -> list[str]:
    """Its lines. What waits although its result is there was made by somebody else."""
    chosen = {id: one for id, one in state["tasks"].items() if one["state"] == kind and id not in running}
    lines = [f"{kind}: {len(chosen)}"] if chosen else []
    for id, one in chosen.items():
        if kind == "failed":
            lines += [f"  {one['label']}", f"    {first_line(one['error'])}", f"    {one['log']}"]
        elif kind == "waiting":
            lines.append(f"  {one['label']}" + ("  (is there)" if (runs / id / "result.json").exists() else ""))
    return lines


def _ending(state: dict, lives: bool) -> str:
    if lives:
        return "running"
    if not state["finished"]:
        return "stopped without a word: start it again to go on"
    words = {DONE: "all made", FAILED: "ended with failures", INTERRUPTED: "interrupted: start it again to go on"}
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
