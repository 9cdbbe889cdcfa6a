"""Values as JSON and tensors, and back: what a saved state is made of. No pickle, so reading one runs no code.

    tree, tensors = pack(value, shared)            value = unpack(tree, tensors, shared)

Plain values, lists and dicts with words as keys stand in the tree as they are; all else is {"~kind": …}. Numbers come
back to the bit. A tensor is a view on a storage (shape, stride, offset), and a storage is kept once: what shared memory
shares it again, and so does a list, dict, set or object that is met twice. `shared` names what is not stored but there
on both sides (parameters of the model, stages, prompts); it is known by identity, and tensors also by their memory.
"""
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str)
FACTORIES = {kind.__name__: kind for kind in (int, float, list, dict, set)}  # of a defaultdict
GROUPS = {kind.__name__: kind for kind in (tuple, set, frozenset)}


class Unstorable(TypeError):
    """A value that cannot be packed; the message names where it stands."""


class Rows(list):
    """Rows of plain values: stored as they stand, without looking at each."""


@dataclass
class Like:
    """A model that is stored too, and of which other modules are copies: parameters that may have moved, and buffers.

    moved: names of parameters that were trained; those that require a gradient count without. start: `attributes` of
    the model before training."""

    model: nn.Module
    moved: set[str] = field(default_factory=set)
    start: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(init=False)

    def __post_init__(self):
        self.versions = {name: p._version for name, p in self.model.named_parameters()}

    def changed(self) -> set[str]:
        """Names of parameters that may be others than before training. (A fused optimiser raises no version.)"""
        return self.moved | {name for name, p in self.model.named_parameters() if p._version != self.versions[name]}

    def unmoved(self) -> dict[str, Any]:
        """Attributes that are as they were."""
        return {name: value for name, value in attributes(self.model).items()
                if type(value) in PLAIN and (type(value), value) == (type(self.start.get(name, self)),
                                                                     self.start.get(name, self))}


def pack(value: Any, shared: Mapping[str, Any] | None = None, like: Like | None = None, path: str = "state"
         ) -> tuple[Any, dict[str, Tensor]]:
    """A tree for JSON, and tensors by name. Unstorable: what cannot be kept; the message names its place."""
    packer = _Packer(shared or {}, like)
    model = {"~model": packer.module(like.model, "model")} if like else {}
    return {**model, "~value": packer.pack(value, path)}, packer.tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor], shared: Mapping[str, Any] | None = None,
           like: Like | None = None, path: str = "state") -> Any:
    """The value. The model is filled in place, before any copy of it is made."""
    unpacker = _Unpacker(tensors, shared or {}, like)
    if like:
        unpacker.fill(like.model, tree["~model"], "model")
    return unpacker.unpack(tree["~value"], path)


class _Packer:
    def __init__(self, shared: Mapping[str, Any], like: Like | None):
        self.like, self.tensors = like, {}
        self.unmoved, self.changed = (like.unmoved(), like.changed()) if like else ({}, set())
        self.known = {id(value): name for name, value in shared.items()}
        self.storages = {_memory(value): name for name, value in shared.items()
                         if isinstance(value, Tensor) and value.numel()}
        self.paths: dict[int, str] = {}  # where what may be met again was first met
        self.held: list = []  # so that no id is given away while we look

    def pack(self, value: Any, path: str) -> Any:
        if type(value) in PLAIN:
            return value
        if type(value) is Rows:
            return {"~rows": value}
        if id(value) in self.known:
            return {"~shared": self.known[id(value)]}
        if id(value) in self.paths:
            return {"~same": self.paths[id(value)]}
        self.held.append(value)
        if type(value) is not tuple:  # a tuple may hold itself nowhere, and two equal ones are as good as one
            self.paths[id(value)] = path
        return self.new(value, path)

    def new(self, value: Any, path: str) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return self.tensor(value, path)
        if isinstance(value, nn.Module):
            return {"~module": self.module(value, path)}
        if kind is list:
            return [self.pack(each, f"{path}[{i}]") for i, each in enumerate(value)]
        if kind.__name__ in GROUPS and kind is GROUPS[kind.__name__]:
            return {f"~{kind.__name__}": [self.pack(each, f"{path}[{i}]") for i, each in enumerate(value)]}
        if kind is dict and all(type(key) is str and not key.startswith("~") for key in value):
            return {key: self.pack(each, f"{path}.{key}") for key, each in value.items()}
        if kind in (dict, Counter):
            return {f"~{kind.__name__}": self.pairs(value, path)}
        if kind is defaultdict and getattr(value.default_factory, "__name__", "") in FACTORIES:
            return {"~defaultdict": [value.default_factory.__name__, self.pairs(value, path)]}
        if kind is deque:
            return {"~deque": [value.maxlen, [self.pack(each, f"{path}[{i}]") for i, each in enumerate(value)]]}
        return self.other(value, path)

    def other(self, value: Any, path: str) -> dict:
        if isinstance(value, torch.Generator):
            return {"~generator": [str(value.device), self.pack(value.get_state(), f"{path}.state")]}
        if isinstance(value, np.random.Generator):
            return {"~numpy generator": value.bit_generator.state}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return {"~array": self.pack(torch.from_numpy(np.ascontiguousarray(value)), f"{path}.array")}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return {"~number": [value.dtype.name, value.item()]}
        if isinstance(value, torch.device | torch.dtype):
            return {f"~{type(value).__name__}": str(value).removeprefix("torch.")}
        kind = type(value)
        home = [kind.__module__, kind.__qualname__]
        if isinstance(value, tuple) and hasattr(kind, "_fields") and _found(*home) is kind:
            return {"~named": [home, [self.pack(each, f"{path}.{name}") for name, each in
                                      zip(kind._fields, value, strict=True)]]}
        if _found(*home) is kind and kind.__module__ != "builtins" and hasattr(value, "__dict__") \
                and not callable(value) and kind.__reduce__ is object.__reduce__:
            return {"~object": [home, {name: self.pack(each, f"{path}.{name}") for name, each in vars(value).items()}]}
        raise Unstorable(f"{path} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved: keep plain "
                         "values, tensors, or objects of classes with a name of their own")

    def pairs(self, value: dict, path: str) -> list:
        return [[self.pack(key, f"{path} key {i}"), self.pack(each, f"{path}[{key!r}]")]
                for i, (key, each) in enumerate(value.items())]

    def tensor(self, value: Tensor, path: str) -> dict:
        if value.requires_grad and not value.is_leaf:
            raise Unstorable(f"{path} is a tensor with its graph, which cannot be saved: keep it detached")
        if value.layout != torch.strided or type(value) not in (Tensor, nn.Parameter):
            raise Unstorable(f"{path} is a {type(value).__name__} ({value.layout}), which cannot be saved")
        data = value.detach()
        place = _memory(data) if data.numel() else None
        name = self.storages.get(place)
        if name is None:
            name = path
            if place:
                self.storages[place] = name
            self.tensors[name] = data if data.is_contiguous() and place and place[2] == data.nbytes else _flat(data)
        free = "parameter" if isinstance(value, nn.Parameter) else "leaf" if value.requires_grad else ""
        return {"~tensor": [name, str(data.dtype).removeprefix("torch."), list(data.shape), list(data.stride()),
                            data.storage_offset(), str(data.device), free]}

    def module(self, value: nn.Module, path: str) -> dict:
        """What makes this copy of the model another one than the model as it was loaded."""
        like, named = self.like, dict(value.named_parameters())
        if like is None or type(value) is not type(like.model) or [*named] != [*dict(like.model.named_parameters())]:
            raise Unstorable(f"{path} is a {type(value).__name__} and no copy of the run's model: it cannot be saved")
        own = value is like.model  # the parameters of a copy are of version 0
        parts = {name: p for name, p in named.items() if name in self.changed or p.requires_grad
                 or p._version != (like.versions[name] if own else 0)}
        parts |= dict(value.named_buffers())
        for name, p in parts.items():
            self.tensors[f"{path}/{name}"] = p.detach().contiguous()
        noted = {name: self.pack(each, f"{path}/{name}") for name, each in attributes(value).items()
                 if name not in self.unmoved or self.unmoved[name] != each}
        return {"names": [*parts], "training": value.training, "attributes": noted,
                "free": [name for name, p in named.items() if p.requires_grad]}


class _Unpacker:
    def __init__(self, tensors: Mapping[str, Tensor], shared: Mapping[str, Any], like: Like | None):
        self.tensors, self.shared, self.like = tensors, shared, like
        self.storages: dict[str, Tensor] = {name: value for name, value in shared.items() if isinstance(value, Tensor)}
        self.made: dict[str, Any] = {}

    def unpack(self, tree: Any, path: str) -> Any:
        if type(tree) in PLAIN:
            return tree
        kind, content = next(iter(tree.items()), ("", None)) if isinstance(tree, dict) else ("", None)
        if not kind.startswith("~"):
            return self.plain(tree, path)
        if kind == "~shared":
            return self.shared[content]
        if kind == "~same":
            return self.made[content]
        if kind == "~object":  # stands before what it holds, which may hold it
            found = _found(*content[0])
            made = self.made[path] = object.__new__(found)
            vars(made).update({name: self.unpack(each, f"{path}.{name}") for name, each in content[1].items()})
            return made
        made = getattr(self, kind.replace("~", "of_").replace(" ", "_"))(content, path)
        self.made[path] = made
        return made

    def plain(self, tree: list | dict, path: str) -> list | dict:
        made = self.made[path] = type(tree)()
        if isinstance(tree, list):
            made.extend(self.unpack(each, f"{path}[{i}]") for i, each in enumerate(tree))
        else:
            made.update({key: self.unpack(each, f"{path}.{key}") for key, each in tree.items()})
        return made

    def of_rows(self, content: list, path: str) -> Rows:
        return Rows(content)

    def of_tuple(self, content: list, path: str) -> Any:
        return tuple(self.unpack(each, f"{path}[{i}]") for i, each in enumerate(content))

    def of_set(self, content: list, path: str) -> Any:
        return set(self.of_tuple(content, path))

    def of_frozenset(self, content: list, path: str) -> Any:
        return frozenset(self.of_tuple(content, path))

    def of_dict(self, content: list, path: str) -> Any:
        keys = [self.unpack(key, f"{path} key {i}") for i, (key, _) in enumerate(content)]
        return {key: self.unpack(each, f"{path}[{key!r}]") for key, (_, each) in zip(keys, content, strict=True)}

    def of_Counter(self, content: list, path: str) -> Counter:
        return Counter(self.of_dict(content, path))

    def of_defaultdict(self, content: list, path: str) -> Any:
        return defaultdict(FACTORIES[content[0]], self.of_dict(content[1], path))

    def of_deque(self, content: list, path: str) -> Any:
        return deque(self.of_tuple(content[1], path), content[0])

    def of_generator(self, content: list, path: str) -> torch.Generator:
        made = torch.Generator(content[0])
        made.set_state(self.unpack(content[1], f"{path}.state"))
        return made

    def of_numpy_generator(self, content: dict, path: str) -> np.random.Generator:
        made = np.random.Generator(getattr(np.random, content["bit_generator"])())
        made.bit_generator.state = content
        return made

    def of_array(self, content: dict, path: str) -> np.ndarray:
        return self.unpack(content, f"{path}.array").numpy()

    def of_number(self, content: list, path: str) -> np.generic:
        return np.dtype(content[0]).type(content[1])

    def of_device(self, content: str, path: str) -> torch.device:
        return torch.device(content)

    def of_dtype(self, content: str, path: str) -> torch.dtype:
        return getattr(torch, content)

    def of_named(self, content: list, path: str) -> Any:
        found = _found(*content[0])
        return found(*(self.unpack(each, f"{path}.{name}") for name, each in
                       zip(found._fields, content[1], strict=True)))

    def of_tensor(self, content: list, path: str) -> Tensor:
        name, dtype, shape, stride, offset, device, free = content
        if name not in self.storages:  # a copy: bytes of a file are not aligned, on which a last digit can depend
            self.storages[name] = self.tensors[name].to(device, copy=True)
        whole = self.storages[name].detach()
        flat = torch.as_strided(whole, (whole.untyped_storage().nbytes() // whole.element_size(),), (1,), 0)
        made = torch.as_strided(flat.view(getattr(torch, dtype)), shape, stride, offset)
        return nn.Parameter(made, made.is_floating_point()) if free == "parameter" else made.requires_grad_(bool(free))

    def of_module(self, content: dict, path: str) -> nn.Module:
        return self.fill(deepcopy(self.like.model), content, path)

    @torch.no_grad()
    def fill(self, made: nn.Module, content: dict, path: str) -> nn.Module:
        parts = dict(made.named_parameters()) | dict(made.named_buffers())
        for name in content["names"]:
            parts[name].copy_(self.tensors[f"{path}/{name}"])
        for name, p in made.named_parameters():
            p.requires_grad_(name in content["free"])
        for name, tree in content["attributes"].items():
            owner, _, key = name.rpartition(".")
            setattr(made.get_submodule(owner), key, self.unpack(tree, f"{path}/{name}"))
        return made.train(content["training"])


def attributes(model: nn.Module) -> dict[str, Any]:
    """Numbers, words and tensors that modules keep as plain attributes, by their dotted name: a pool's open prompt."""
    return {f"{name}.{key}".lstrip("."): value for name, module in model.named_modules()
            for key, value in vars(module).items()
            if not key.startswith("_") and key != "training" and (type(value) in PLAIN or isinstance(value, Tensor))}


def _memory(tensor: Tensor) -> tuple[str, int, int]:
    storage = tensor.untyped_storage()
    return str(tensor.device), storage.data_ptr(), storage.nbytes()


def _flat(tensor: Tensor) -> Tensor:
    """All of a tensor's storage."""
    return torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _found(module: str, name: str) -> type | None:
    """A class of a module that is imported already: nothing is imported because a file says so."""
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None
