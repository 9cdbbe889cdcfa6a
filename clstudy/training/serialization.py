"""The file of a saved state: `torch.save` writes it, `torch.load(weights_only=True)` reads it.

    form = StateFormat(shared, baseline)          form.write(path, value, about)
    about = verify(path)                          value = form.read(path)["value"]

Reading runs no code of the file. Numbers come back to the bit, objects that stand in two places
come back as one, and tensors share memory again. Three things are stored in a form of our own:

    what every process has (parameters, stages, prompts)    its name; it is recognised by identity,
                                                            a tensor also by its memory
    the model and copies of it                              what differs from the model as loaded
    random generators, arrays of numbers                    tensors

The file is a zip. torch does not look at its checksums, so `verify` does. `about` is JSON in the
same zip, and is read before anything else.
"""
import json
import os
import pickle
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor, nn

ALLOWED = (set, complex, Counter, OrderedDict, torch.Size, torch.device, torch.dtype)  # by torch
ADDED = (list, dict, int, float, frozenset, deque, defaultdict)  # by us
HOMES = ("torch", "torch._utils", "torch.storage", "_codecs", __name__)  # of makers
OURS = tuple(f"clstudy.{room}" for room in ("data", "losses", "methods", "models"))
ABOUT = "archive/about.json"  # torch calls the folder in its zip "archive"
READING = threading.Lock()  # torch keeps one list of what a file may hold, for all threads


class Unstorable(TypeError):
    """A value cannot be saved; the message says where it stands."""


class Baseline:
    """The model as it was loaded. A file holds only what has changed since, in it and its copies.

    moved: names of parameters that were trained; those that require a gradient always count."""

    def __init__(self, model: nn.Module):
        self.model, self.moved = model, set()
        self.versions = {name: p._version for name, p in model.named_parameters()}

    def differences(self, model: nn.Module) -> dict[str, Any]:
        """Return what `restore` needs to make this model of the one that was loaded.

        torch counts a version with each change of a tensor; a fused optimiser does not raise it, so
        `moved` counts too. A copy begins at version 0, and has all that had changed before."""
        changed = self.moved | {name for name, p in self.model.named_parameters()
                                if p._version != self.versions[name]}
        start = self.versions if model is self.model else dict.fromkeys(self.versions, 0)
        named = dict(model.named_parameters())
        parts = {name: p for name, p in named.items()
                 if name in changed or p.requires_grad or p._version != start[name]}
        parts |= dict(model.named_buffers())
        # detached: `Reducer` would write a name for a tensor that is shared itself
        return {"tensors": {name: part.detach() for name, part in parts.items()},
                "attributes": attributes(model),
                "free": [name for name, p in named.items() if p.requires_grad],
                "training": model.training}

    def copy(self, differences: dict[str, Any]) -> nn.Module:
        """Return a copy of the model with these differences."""
        return restore(deepcopy(self.model), differences)


@torch.no_grad()
def restore(model: nn.Module, differences: dict[str, Any]) -> nn.Module:
    """Make these differences in a model, in place."""
    parts = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in differences["tensors"].items():
        parts[name].copy_(value)
    for name, p in model.named_parameters():
        p.requires_grad_(name in differences["free"])
    for name, value in differences["attributes"].items():
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, value)
    return model.train(differences["training"])


def attributes(model: nn.Module) -> dict[str, Any]:
    """Return the numbers, words and tensors that modules keep as attributes, by dotted name.

    A prompt pool keeps the number of its open prompt so."""
    kinds = (type(None), bool, int, float, str)
    return {f"{name}.{key}".lstrip("."): value for name, module in model.named_modules()
            for key, value in vars(module).items() if not key.startswith("_") and key != "training"
            and (type(value) in kinds or isinstance(value, Tensor))}


def verify(path: Path) -> dict[str, Any]:
    """Check the checksums of a file, and return what it says about itself.

    ValueError: a checksum is wrong. Other errors: the file cannot be read at all."""
    with ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise ValueError(f"the checksum of {wrong} is wrong")
        return json.loads(archive.read(ABOUT))


@dataclass
class StateFormat:
    """Writes and reads files that refer to these shared objects and this baseline.

    packages: a file may hold objects of their classes, beside those of clstudy's data, losses,
    methods and models."""

    shared: Mapping[str, Any] = field(default_factory=dict)
    baseline: Baseline | None = None
    packages: tuple[str, ...] = ()

    def write(self, path: Path, value: Any, about: dict[str, Any]) -> None:
        """Write a file, and wait until it is on the disk.

        Unstorable: a value cannot be saved. OSError: the disk fails."""
        model = self.baseline and self.baseline.differences(self.baseline.model)
        stored = {id(each) for each in model["tensors"].values()} if model else set()
        reduce = staticmethod(Reducer(self, value, stored))
        pickler = type("Pickler", (pickle.Pickler,), {"reducer_override": reduce})
        module = SimpleNamespace(__name__="pickle", Pickler=pickler)
        try:
            with open(path, "w+b") as file:
                torch.save({"model": model, "value": value}, file, module)
                with ZipFile(file, "a") as archive:
                    archive.writestr(ABOUT, json.dumps(about))
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch closes its zip after an OSError, which fails in turn
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    def read(self, path: Path) -> dict[str, Any]:
        """Return the "value" of a file, and under "model" the differences for `restore`.

        Errors of many kinds: the file is damaged, or refers to what is not here."""
        here = [(self.shared.__getitem__, f"{__name__}.shared_object")]
        if self.baseline:
            here.append((self.baseline.copy, f"{__name__}.model_copy"))
        allowed = [*here, *MAKERS, *ADDED, *self.classes()]
        with READING, torch.serialization.safe_globals(allowed):
            return torch.load(path, weights_only=True)

    def classes(self) -> set[type]:
        """Return the classes whose objects a file may hold."""
        homes = tuple(f"{package}." for package in (*OURS, *self.packages))
        modules = [(name, module) for name, module in list(sys.modules.items())
                   if f"{name}.".startswith(homes)]
        return {kind for name, module in modules for kind in vars(module).values()
                if isinstance(kind, type) and kind.__module__ == name
                and kind.__reduce__ is object.__reduce__}


class Reducer:
    """Tells pickle by which function and arguments a file makes each object of a value.

    stored: ids of the model's tensors, which the file holds although they are shared."""

    def __init__(self, form: StateFormat, value: Any, stored: set[int]):
        self.value, self.stored = value, stored
        self.baseline, self.classes = form.baseline, form.classes()
        self.names = {id(each): name for name, each in form.shared.items()}
        self.owners = {memory(each): each for each in form.shared.values()
                       if isinstance(each, Tensor) and each.numel()}

    def __call__(self, value: Any) -> Any:
        """Return a function and its arguments; NotImplemented leaves it to pickle and torch."""
        kind = type(value)
        if id(value) in self.names:
            return shared_object, (self.names[id(value)],)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, torch.Generator):
            return generator, (str(value.device), value.get_state())
        if isinstance(value, np.random.Generator):
            return numpy_generator, (value.bit_generator.state,)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            number = isinstance(value, np.generic)
            return array, (torch.from_numpy(np.array(value, order="C")), number)
        if kind is deque:
            return deque, (list(value), value.maxlen)
        if kind is defaultdict:
            return defaultdict, (value.default_factory, dict(value))
        if kind in (*ALLOWED, frozenset) or kind in self.classes or self.makes_values(value):
            return NotImplemented
        raise self.unstorable(value, f"{kind.__module__}.{kind.__qualname__}",
                              "plain values, tensors, or objects of the method's own classes")

    def makes_values(self, value: Any) -> bool:
        """Return whether this is a class or function by which a file makes values."""
        return callable(value) and (getattr(value, "__module__", None) in HOMES
                                    or value in (*ALLOWED, *ADDED) or value in self.classes)

    def tensor(self, value: Tensor) -> Any:
        if value.requires_grad and not value.is_leaf:
            raise self.unstorable(value, "tensor with its graph", "it detached")
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            what = f"{type(value).__name__} ({value.layout})"
            raise self.unstorable(value, what, "a plain tensor")
        owner = self.owners.get(memory(value)) if type(value) is Tensor and value.numel() else None
        if owner is None or id(value) in self.stored:
            return NotImplemented
        layout = value.shape, value.stride(), value.storage_offset()
        return view, (owner, value.dtype, *layout, value.requires_grad)

    def module(self, value: nn.Module) -> Any:
        model = self.baseline and self.baseline.model
        if type(value) is not type(model) or value.state_dict().keys() != model.state_dict().keys():
            what = f"{type(value).__name__} and no copy of the run's model"
            raise self.unstorable(value, what, "its tensors")
        return model_copy, (self.baseline.differences(value),)

    def unstorable(self, value: Any, what: str, advice: str) -> Unstorable:
        where = place(self.value, value, "state", set()) or "something in the state"
        return Unstorable(f"{where} is a {what}, which cannot be saved: keep {advice}")


def place(whole: Any, thing: Any, path: str, seen: set[int]) -> str | None:
    """Return where a thing stands in a whole, such as "state.rules[1]"."""
    if whole is thing:
        return path
    if id(whole) in seen:
        return None
    seen.add(id(whole))
    if isinstance(whole, list | tuple | set | frozenset | deque):
        parts = {f"[{i}]": each for i, each in enumerate(whole)}
    else:
        named = whole if isinstance(whole, dict) else getattr(whole, "__dict__", {})
        parts = {f".{key}" if isinstance(key, str) else f"[{key!r}]": each
                 for key, each in named.items()}
    found = (place(each, thing, path + step, seen) for step, each in parts.items())
    return next(filter(None, found), None)


# ---- by what a file makes an object


def shared_object(name: str) -> Any:
    """Stand for an object that every process has; `read` puts it in its place."""
    raise NotImplementedError


def model_copy(differences: dict[str, Any]) -> nn.Module:
    """Stand for a copy of the model; `read` makes it."""
    raise NotImplementedError


def view(owner: Tensor, dtype: torch.dtype, shape: torch.Size, stride: tuple[int, ...], offset: int,
         free: bool) -> Tensor:
    """Return a tensor in the memory of another."""
    made = torch.empty(0, dtype=dtype, device=owner.device)
    return made.set_(owner.untyped_storage(), offset, shape, stride).requires_grad_(free)


def array(value: Tensor, number: bool) -> np.ndarray | np.generic:
    return value.numpy()[()] if number else value.numpy()


def generator(device: str, state: Tensor) -> torch.Generator:
    return torch.Generator(device).set_state(state)


def numpy_generator(state: dict[str, Any]) -> np.random.Generator:
    made = np.random.Generator(getattr(np.random, state["bit_generator"])())
    made.bit_generator.state = state
    return made


def memory(tensor: Tensor) -> tuple[str, int, int]:
    """Return what identifies the memory of a tensor."""
    storage = tensor.untyped_storage()
    return str(tensor.device), storage.data_ptr(), storage.nbytes()


MAKERS = (view, array, generator, numpy_generator)
