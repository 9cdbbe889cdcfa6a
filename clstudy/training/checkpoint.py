"""A run that was killed goes on from its last saved state, and ends with the same tables.

    state-7.safetensors   the tensors        state-7.jsonl   first line: checksums; second line: everything else

Saved is what changes while a run goes on: parameters that may have moved and buffers, what the method holds (its
attributes, whatever they are), optimiser, probes, random generators, position in the stream, and rows so far. Both
files are written under another name and renamed, tensors first, so a state is there once its .jsonl is. The newest two
are kept: where the newest is damaged, the one before is taken.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clstudy.models.clip import Clip
from clstudy.training.serialization import Like, Rows, attributes, pack, unpack
from clstudy.utils import paths

GRACE = 25.0  # seconds for a state after SIGTERM; Slurm sends SIGKILL after 30
SHARE = 0.05  # of the time that saving may take; a state that takes longer is saved less often
# what the numbers of a run can depend on: this room and those below it
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
    moving: dict[str, bool] = field(default_factory=lambda: {"image": False, "text": False})  # towers trained so far
    evals: list[dict] = field(default_factory=Rows)
    steps: list[dict] = field(default_factory=Rows)
    correct: list[dict] = field(default_factory=Rows)  # which images were right at stage ends

    @property
    def inside(self) -> bool:
        """In the middle of a stage."""
        return self.epoch + self.batch > 0


class Saver:
    """Saves the state of one run in a folder, and puts it back. Without a folder it does nothing.

    every: seconds between two states; 0: at stage ends only. surroundings: what the numbers depend on besides the
    settings; a state that was made in others is not taken up."""

    def __init__(self, folder: Path | None = None, every: float = 60.0, surroundings: Mapping[str, Any] | None = None):
        self.folder, self.every, self.surroundings = folder, every, dict(surroundings or {})
        self.number, self.taken_up, self.seconds = 0, 0, 0.0  # of the newest state; how often; before this process
        self.started = self.latest = time.monotonic()
        self.took, self.warned, self.stopping, self.kept = 0.0, False, False, ""

    @contextmanager
    def open(self, clip: Clip, shared: dict[str, Any], **parts: Any) -> Iterator[None]:
        """Take up a saved state, if there is one; and while open, end at the next step where Ctrl-C or SIGTERM comes.

        shared: what a state may refer to, the same in every process. parts: what is saved, and put back in place."""
        self.like = Like(clip, set(), attributes(clip))
        self.parts, self.optimizer, self.saved_optimizer = parts, None, None
        self.shared = {**shared, **parts, "clip": clip, **{f"clip.{name}": p for name, p in clip.named_parameters()},
                       **{f"clip.{name}": buffer for name, buffer in clip.named_buffers()}}
        self.latest = time.monotonic()
        if self.folder is None:
            yield
            return
        self._take_up()
        with interruptible(self):
            yield

    def resumed(self, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
        """The optimiser of a stage that begins; of one that was interrupted, as it was then."""
        self.optimizer, saved, self.saved_optimizer = optimizer, self.saved_optimizer, None
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        self.like.moved |= {name for name, p in self.like.model.named_parameters() if id(p) in trained}
        if optimizer and saved:
            optimizer.load_state_dict(saved)
        return optimizer

    def due(self) -> bool:
        """Whether to save now: it is time, or somebody wants to stop."""
        return self.stopping or (self.folder is not None and 0 < self.every <= self._waited() and not self._dear())

    def save(self) -> None:
        """Write a state. A full disk is told once, and the run goes on without. KeyboardInterrupt: Ctrl-C came."""
        if self.folder is not None and (self.stopping or not self._dear()):
            self.attempt()
        if self.stopping:
            said = f"stopped. {self.kept or 'Nothing is saved'}. The same call goes on from there."
            print(f"\nclstudy: {said}", file=sys.stderr)
            raise KeyboardInterrupt(said)

    def _waited(self) -> float:
        return time.monotonic() - self.latest

    def _dear(self) -> bool:
        """Whether saving would take more than its share: stages can be short, and models large."""
        return self.took > 1 and self._waited() < self.took / SHARE

    def attempt(self) -> None:
        """Write a state, if the disk takes it."""
        begun = time.monotonic()
        try:
            self._write()
        except (OSError, SafetensorError) as error:
            for draft in self.folder.glob("state-*.new"):
                draft.unlink(missing_ok=True)
            if not self.warned:
                warnings.warn(f"no state could be saved in {self.folder} ({error}); the run goes on, and if it is "
                              f"killed, starts again {'from the last one' if self.kept else 'at the beginning'}",
                              stacklevel=2)
            self.warned = True
        self.latest = time.monotonic()
        self.took = self.latest - begun

    def _write(self) -> None:
        at = self.parts["at"]
        inside = at.inside and self.optimizer is not None
        whole = {"parts": {name: _state(part) for name, part in self.parts.items()},
                 "optimizer": self.optimizer.state_dict() if inside else None, "random": _random(self.like.model)}
        tree, tensors = pack(whole, self.shared, self.like)
        seconds = self.seconds + time.monotonic() - self.started
        second = json.dumps({"surroundings": self.surroundings, "seconds": seconds, "taken_up": self.taken_up,
                             "tree": tree})
        file = self.folder / f"state-{self.number + 1}.safetensors"
        draft = file.with_suffix(".safetensors.new")
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, draft)
        first = json.dumps({"tensors": _to_disk(draft, file), "tree": hashlib.sha256(second.encode()).hexdigest()})
        draft = file.with_suffix(".jsonl.new")
        draft.write_text(f"{first}\n{second}\n")
        _to_disk(draft, file.with_suffix(".jsonl"))
        self.number += 1
        place = f"{'in' if at.inside else 'to the end of'} stage {at.stage + at.inside}"
        self.kept = f"{at.images:,} images of the stream, {place}, are saved in {self.folder}"
        for old in states(self.folder)[2:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Put the newest whole state back, if it was made in the same surroundings; otherwise remove all of them."""
        for file in states(self.folder):
            try:
                about, tensors = read(file)
                break
            except Exception as error:  # whatever a damaged file brings about
                warnings.warn(f"{file} is damaged ({error}); the state before is taken", stacklevel=3)
        else:
            if states(self.folder):
                warnings.warn(f"no state in {self.folder} is whole; the run starts anew", stacklevel=3)
            return self.clear()
        there, here = about["surroundings"], json.loads(json.dumps(self.surroundings))
        other = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        if other:
            warnings.warn(f"the run starts anew, for its state was made with another {other[0]}: "
                          f"{there.get(other[0])!r}, not {here.get(other[0])!r}", stacklevel=3)
            return self.clear()
        try:
            self._put(about["tree"], tensors)
        except Exception:  # it would fail again at every call
            self.clear()
            raise
        self.number = int(file.stem.removeprefix("state-"))
        self.taken_up, self.seconds = about["taken_up"] + 1, about["seconds"]

    def _put(self, tree: dict, tensors: dict) -> None:
        whole, model = unpack(tree, tensors, self.shared, self.like), self.like.model
        for name, part in self.parts.items():
            _restore(part, whole["parts"][name])
        self.saved_optimizer = whole["optimizer"]
        self.like.moved |= set(tree["~model"]["names"])
        torch.set_rng_state(whole["random"]["cpu"])
        if "cuda" in whole["random"]:
            torch.cuda.set_rng_state(whole["random"]["cuda"], model.device)

    def clear(self) -> None:
        """Remove all states, whole or not."""
        for file in self.folder.glob("state-*"):
            file.unlink(missing_ok=True)


def states(folder: Path) -> list[Path]:
    """The states of a folder, the newest first."""
    found = [path for path in folder.glob("state-*.jsonl") if path.stem.removeprefix("state-").isdigit()]
    return sorted(found, key=lambda path: -int(path.stem.removeprefix("state-")))


def read(file: Path) -> tuple[dict, dict[str, Tensor]]:
    """A state as it was written. ValueError: a checksum is wrong; other errors where a file cannot be read at all."""
    first, second = file.read_text().splitlines()
    checks, weights = json.loads(first), file.with_suffix(".safetensors")
    if hashlib.sha256(second.encode()).hexdigest() != checks["tree"]:
        raise ValueError("its checksum is wrong")
    if _sha256(weights) != checks["tensors"]:
        raise ValueError(f"the checksum of {weights.name} is wrong")
    return json.loads(second), load_file(weights)


@contextmanager
def interruptible(saver: Saver) -> Iterator[None]:
    """While open, Ctrl-C and SIGTERM ask the run to stop when it has saved its state; a second one stops it at once.

    SIGTERM then ends the process as it does without us; and at the latest after `GRACE` seconds. Left alone are signals
    that somebody else handles (a worker is not to hear Ctrl-C), and runs outside of the main thread."""
    here = threading.current_thread() is threading.main_thread()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: known for number, known in usual.items() if here and signal.getsignal(number) is known}
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
        for number, known in ours.items():
            signal.signal(number, known)
        if signal.SIGTERM in came:
            signal.raise_signal(signal.SIGTERM)


def code(method: type) -> str:
    """sha256 of the sources that a number can depend on, as they were when this module was imported."""
    if method.__module__.startswith("clstudy."):
        return SOURCES
    try:
        own = inspect.getsource(method)
    except (OSError, TypeError):  # written where no source is kept
        own = method.__qualname__
    return hashlib.sha256((SOURCES + own).encode()).hexdigest()


def _sources() -> str:
    found = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (paths.PACKAGE / room).rglob("*.py")):
        found.update(path.relative_to(paths.PACKAGE).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


SOURCES = _sources()  # now: what is imported stays what it is, while files may change


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


def _random(clip: Clip) -> dict[str, Tensor]:
    """States of torch's global generators."""
    cuda = {"cuda": torch.cuda.get_rng_state(clip.device)} if clip.device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _to_disk(draft: Path, path: Path) -> str:
    """Rename a file once it is on the disk, and not only on its way there; its checksum."""
    with open(draft, "rb+") as file:
        os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
    draft.replace(path)
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
