"""Saved states of a run: a run that was killed resumes from the last one, and ends with the same
tables.

    state-7.pt   a zip, written by `torch.save`, with the environment it was made in (`about.json`)

A state holds what changes while a run goes on: parameters that may have moved and buffers, all
attributes of the method, optimiser, probes, random generators, position in the stream, and rows so
far. It is written under another name, and renamed once it is on the disk. The newest two are kept:
where the newest is damaged, the run resumes from the one before.
"""
import hashlib
import inspect
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clstudy.models.clip import Clip
from clstudy.training.serialization import Baseline, StateFormat, restore, verify
from clstudy.utils import paths

GRACE = 25.0  # seconds for a state after SIGTERM; Slurm sends SIGKILL after 30
BUDGET = 0.05  # share of the time that saving may take; slow states are saved less often
# the folders on which the numbers of a run can depend: this one and those below it
ROOMS = ("utils", "data", "models", "probes", "losses", "evaluation", "methods", "training")


@dataclass
class Position:
    """Where a run is in its stream, and what it has found so far."""

    stage: int = 0  # stages that are done
    epoch: int = 0  # epochs of the next one that are done
    batch: int = 0  # batches of that epoch that are done
    images: int = 0  # of the stream, in all
    order: np.ndarray | None = None  # of the images in this epoch
    seen: list[int] = field(default_factory=list)  # classes, in order of their first appearance
    # tower → whether its weights or its buffers have moved so far
    moving: dict[str, bool] = field(default_factory=lambda: {"image": False, "text": False})
    evals: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    correct: list[dict] = field(default_factory=list)  # which images were right at stage ends

    @property
    def inside(self) -> bool:
        """Whether the run is in the middle of a stage."""
        return self.epoch + self.batch > 0


class Saver:
    """Saves the state of one run in a folder, and restores it. Without a folder it does nothing.

    every: seconds between two states; 0: at stage ends only. environment: what the numbers depend
    on besides the settings; a state of another environment is not used."""

    def __init__(self, folder: Path | None = None, every: float = 60.0,
                 environment: Mapping[str, Any] | None = None):
        self.folder, self.every, self.environment = folder, every, dict(environment or {})
        self.number = 0  # of the newest state
        self.taken_up, self.seconds = 0, 0.0  # times resumed; seconds before this process
        self.started = self.latest = time.monotonic()
        self.took = 0.0  # seconds of the last save
        self.warned = self.stopping = False
        self.kept = ""  # a sentence about the newest state

    @contextmanager
    def open(self, clip: Clip, shared: dict[str, Any], **parts: Any) -> Iterator[None]:
        """Restore the newest state; while open, end at the next step after Ctrl-C or SIGTERM.

        shared: what a state may refer to, the same in every process. parts: what is saved, and
        restored in place."""
        self.parts, self.optimizer, self.saved_optimizer = parts, None, None
        weights = [*clip.named_parameters(), *clip.named_buffers()]
        shared = shared | parts | {"clip": clip} | {f"clip.{name}": w for name, w in weights}
        package = type(parts["method"]).__module__.partition(".")[0]
        self.baseline = Baseline(clip)
        self.format = StateFormat(shared, self.baseline, () if package == "clstudy" else (package,))
        self.latest = time.monotonic()
        if self.folder is None:
            yield
            return
        self._resume()
        with interruptible(self):
            yield

    def resumed(self, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
        """Return the optimiser of a stage, in its saved state if the stage was interrupted."""
        self.optimizer, saved, self.saved_optimizer = optimizer, self.saved_optimizer, None
        groups = optimizer.param_groups if optimizer else ()
        trained = {id(p) for group in groups for p in group["params"]}
        self.baseline.moved |= {name for name, p in self.baseline.model.named_parameters()
                                if id(p) in trained}
        if optimizer and saved:
            optimizer.load_state_dict(saved)
        return optimizer

    def due(self) -> bool:
        """Return whether to save now: it is time, or somebody wants to stop."""
        waited = time.monotonic() - self.latest
        return self.stopping or (self.folder is not None and 0 < self.every <= waited
                                 and self._affordable())

    def save(self) -> None:
        """Write a state. Where the disk is full, warn once and go on.

        KeyboardInterrupt: somebody wants to stop."""
        if self.folder is not None and (self.stopping or self._affordable()):
            begun = time.monotonic()
            try:
                self._write()
            except OSError as error:
                self._tell(error)
            self.latest = time.monotonic()
            self.took = self.latest - begun
        if self.stopping:
            none = "No state is saved. The same call starts from the beginning."
            said = f"The run stopped. {self.kept or none}"
            print(f"\nclstudy: {said}", file=sys.stderr)
            raise KeyboardInterrupt(said)

    def _affordable(self) -> bool:
        """Return whether saving keeps to its share of the time: a model can be large."""
        return self.took <= 1 or time.monotonic() - self.latest >= self.took / BUDGET

    def _tell(self, error: OSError) -> None:
        """Warn, the first time, that the disk did not take a state."""
        for draft in self.folder.glob("state-*.new"):
            draft.unlink(missing_ok=True)
        if not self.warned:
            start = "resumes from the state before" if self.kept else "starts again"
            warnings.warn(f"The state of the run could not be saved in {self.folder}: {error}. "
                          f"The run goes on. If it is killed, the next call {start}.", stacklevel=3)
        self.warned = True

    def _write(self) -> None:
        at, device = self.parts["at"], self.baseline.model.device
        state = {name: _state(part) for name, part in self.parts.items()}
        inside = at.inside and self.optimizer is not None
        state["optimizer"] = self.optimizer.state_dict() if inside else None
        state["random"] = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(device)
        about = {"environment": self.environment, "taken_up": self.taken_up, "images": at.images,
                 "seconds": self.seconds + time.monotonic() - self.started}
        file = self.folder / f"state-{self.number + 1}.pt"
        draft = file.with_suffix(".new")
        self.format.write(draft, state, about)
        draft.replace(file)
        self.number += 1
        place = f"{'in' if at.inside else 'at the end of'} stage {at.stage + at.inside}"
        self.kept = (f"Its state after {at.images:,} images, {place}, is saved in {self.folder}. "
                     "The same call resumes from there.")
        for old in states(self.folder)[2:]:
            old.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Restore the newest undamaged state; remove all of them if its environment was another."""
        for file in states(self.folder):
            try:
                about = verify(file)
                other = self._different(about["environment"])
                whole = None if other else self.format.read(file)
            except Exception as error:  # damage can raise anything
                warnings.warn(f"{file} is damaged: {error}. The run resumes from the state before.",
                              stacklevel=3)
                continue
            if other:
                warnings.warn("The run starts from the beginning, because its saved state was made "
                              f"with another {other}.", stacklevel=3)
                return self.clear()
            self._restore(whole)
            self.number = int(file.stem.removeprefix("state-"))
            self.taken_up, self.seconds = about["taken_up"] + 1, about["seconds"]
            return
        if states(self.folder):
            warnings.warn(f"All states in {self.folder} are damaged. The run starts from the "
                          "beginning.", stacklevel=3)
        self.clear()

    def _different(self, there: dict[str, Any]) -> str:
        """Return the first difference between the environment of a state and ours, or ""."""
        here = json.loads(json.dumps(self.environment))
        other = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        return f"{other[0]}: {there.get(other[0])!r}, not {here.get(other[0])!r}" if other else ""

    def _restore(self, whole: dict[str, Any]) -> None:
        model, state = self.baseline.model, whole["value"]
        try:
            restore(model, whole["model"])
            for name, part in self.parts.items():
                _restore(part, state[name])
        except Exception:  # it would fail again at every call
            self.clear()
            raise
        self.saved_optimizer = state["optimizer"]
        self.baseline.moved |= whole["model"]["tensors"].keys()
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], model.device)

    def clear(self) -> None:
        """Remove all states, also those that are half written."""
        for file in self.folder.glob("state-*"):
            file.unlink(missing_ok=True)


def states(folder: Path) -> list[Path]:
    """Return the states of a folder, the newest first."""
    numbers = {path: path.stem.removeprefix("state-") for path in folder.glob("state-*.pt")}
    found = [path for path, number in numbers.items() if number.isdigit()]
    return sorted(found, key=lambda path: int(numbers[path]), reverse=True)


@contextmanager
def interruptible(saver: Saver) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask the run to save and stop; a second one stops it at once.

    After SIGTERM the process ends in the usual way, at the latest after `GRACE` seconds. A signal
    that has another handler is left alone (workers ignore Ctrl-C), and so are runs outside of the
    main thread."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    ours = {number: handler for number, handler in usual.items()
            if signal.getsignal(number) is handler}
    came = []

    def ask(number: int, *_) -> None:
        saver.stopping = True
        came.append(number)
        signal.signal(number, usual[number])
        if number == signal.SIGTERM:
            late = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGTERM))
            late.daemon = True
            late.start()

    for number in ours:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if signal.SIGTERM in came:
            signal.raise_signal(signal.SIGTERM)


def code(method: type) -> str:
    """Return the sha256 of the sources that a number can depend on, as they were at import."""
    if method.__module__.startswith("clstudy."):
        return SOURCES
    try:
        own = inspect.getsource(method)
    except (OSError, TypeError):  # it was written where no source is kept
        own = method.__qualname__
    return hashlib.sha256((SOURCES + own).encode()).hexdigest()


def _sources() -> str:
    found = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (paths.PACKAGE / room).rglob("*.py")):
        found.update(path.relative_to(paths.PACKAGE).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


SOURCES = _sources()  # now: files may change later, but not the code that was imported


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state() if hasattr(part, "restore") else vars(part)


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    elif hasattr(part, "restore"):
        part.restore(state)
    else:
        vars(part).update(state)
