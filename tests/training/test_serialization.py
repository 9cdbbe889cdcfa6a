"""What is saved comes back to the bit: numbers, tensors, what is shared, objects."""
import math
import os
import random
from collections import Counter, defaultdict, deque
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.losses.global_contrastive import Average
from clstudy.training.serialization import (
    Baseline,
    StateFormat,
    Unstorable,
    restore,
    verify,
)


class Pair(NamedTuple):
    one: int
    other: torch.Tensor


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "state-1.pt"


@pytest.fixture
def again(file):
    """The value as it comes back from the disk."""
    def through(value, shared=None, baseline=None):
        form = StateFormat(shared or {}, baseline, (__name__,))
        form.write(file, value, {})
        return form.read(file)["value"]
    return through


def stored(file: Path) -> list[int]:
    """Bytes of the tensors in a file."""
    with ZipFile(file) as archive:
        return sorted(each.file_size for each in archive.infolist() if "/data/" in each.filename)


@pytest.mark.parametrize("value", [
    None, True, 3, 2**70, 0.1, 1 / 3, -0.0, 5e-324, math.inf, "wörter", [], (), {}, [1, (2, [3])], {"a": {"b": None}},
    {1: "one", (2, "x"): 3, None: 4}, b"bytes", 1j, {1, 2, 3}, frozenset({"a"}), Counter("hello"), deque([1, 2], 5),
    defaultdict(list, {1: [2]}), np.float64(0.1), np.int32(7), torch.float16, torch.device("cpu"),
    np.bool_(True), torch.Size([2]),
], ids=repr)
def test_plain_values_and_containers(again, value):
    found = again(value)
    assert type(found) is type(value) and found == value and repr(found) == repr(value)


def test_orders_factories_and_bounds_stay(again):
    assert list(again({3: 0, 1: 0, 2: 0})) == [3, 1, 2]
    assert again(defaultdict(list))["new"] == [] and again(deque([1], 1)).maxlen == 1
    assert math.isnan(again(math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.long, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_tensors(again, dtype, shape):
    value = (100 * torch.randn(shape)).to(dtype)
    found = again({"x": value})["x"]
    assert found.dtype == dtype and found.shape == value.shape and torch.equal(found, value)


@pytest.mark.parametrize("change", [
    lambda x: x.T, lambda x: x[1:, ::2], lambda x: x[:1].expand(5, 6), lambda x: x.view(torch.int32)[2],
    lambda x: x.view(1, 4, 6, 1).to(memory_format=torch.channels_last),
])
def test_views_keep_their_layout(again, change):
    value = change(torch.arange(24.0).view(4, 6))
    found = again(value)
    assert torch.equal(found, value) and found.stride() == value.stride()
    assert found.storage_offset() == value.storage_offset()


def test_what_shares_memory_shares_it_again(again, file):
    whole = torch.zeros(6)
    found = again({"whole": whole, "part": whole[2:4], "same": whole, "other": torch.zeros(6)})
    found["part"] += 1
    assert found["whole"].tolist() == [0, 0, 1, 1, 0, 0] and found["same"] is found["whole"]
    assert found["other"].sum() == 0
    assert stored(file) == [24, 24]


def test_tensors_are_aligned_as_fresh_ones(again):
    found = again([torch.zeros(1, dtype=torch.uint8), *(torch.randn(n) for n in (1, 3, 5))])
    assert all(
        each.data_ptr() % 64 == 0 for each in found)  # the last digit of a product can depend on it


def test_lists_dicts_and_objects_that_are_met_twice_are_one(again):
    row, memory = [1], ReplayBuffer(3)
    found = again({"a": row, "b": [row, {"c": memory}], "d": memory, "e": [1]})
    assert found["b"][0] is found["a"] and found["e"] is not found["a"]
    assert found["b"][1]["c"] is found["d"] and type(found["d"]) is ReplayBuffer
    memory.self = memory
    assert (found := again(memory)).self is found
    ring = [1]
    ring.append(ring)
    found = again(ring)
    assert found[1] is found and found[0] == 1


def test_objects_are_all_their_attributes(again, batch):
    memory = ReplayBuffer(5, "balanced")
    memory.add(batch, logits=torch.randn(8, 2))
    found = again(
        {"memories": [memory], "average": Average(torch.randn(3)), "pair": Pair(1, torch.ones(2))})
    kept = found["memories"][0]
    assert {name
            for name in vars(kept)} == {name
                                        for name in vars(memory)} and kept.count == memory.count
    assert torch.equal(kept.image, memory.image) and torch.equal(kept.extra["logits"],
                                                                 memory.extra["logits"])
    assert kept.index == memory.index and kept.settled == memory.settled
    assert type(found["pair"]) is Pair and found["pair"].other.sum() == 2


def test_generators_go_on(again):
    made, other = torch.Generator().manual_seed(3), np.random.default_rng(4)
    torch.rand(5, generator=made), other.random(5)
    found = again({"a": made, "b": other})
    assert torch.equal(torch.rand(9, generator=found["a"]), torch.rand(9, generator=made))
    assert (found["b"].permutation(9) == other.permutation(9)).all()
    array, point = np.arange(6).reshape(2, 3)[:, ::2], np.array(0.5)
    assert (again(array) == array).all() and again(point).shape == () and again(point) == point


def test_what_is_shared_is_not_stored_and_known_by_identity_or_memory(again, file):
    prompts, hook = torch.zeros(4, 2), test_generators_go_on
    shared = {"prompts": prompts, "hook": hook}
    found = again({"all": prompts, "row": prompts[1], "call": hook, "copy": prompts.clone()},
                  shared)
    assert stored(file) == [32]
    assert found["all"] is prompts and found["call"] is hook
    found["row"] += 1
    assert prompts[1].tolist() == [1, 1] and found["copy"].sum() == 0


def test_of_the_model_and_its_copies_differences_are_stored(clip, file):
    clip.requires_grad_(False)
    tuned = clip.model.visual.proj.requires_grad_()
    clip.model.opened = None
    baseline = Baseline(clip)
    teacher = deepcopy(clip).eval().requires_grad_(False)
    with torch.no_grad():
        tuned.add_(1)
        clip.model.text_projection.mul_(2)  # nobody said that it is trained
    clip.model.opened = 3
    expected, old = tuned.detach().clone(), teacher.model.visual.proj.clone()
    form = StateFormat({f"clip.{name}": p for name, p in clip.named_parameters()}, baseline)
    form.write(file, {"teacher": teacher, "start": {"proj": tuned}, "alias": tuned.detach()[0]}, {})
    buffers = [buffer.nbytes for buffer in clip.buffers()]
    assert stored(file) == sorted(2 * [tuned.nbytes, clip.model.text_projection.nbytes, *buffers])
    with torch.no_grad():
        tuned.zero_()
    clip.model.opened = 8
    whole = form.read(file)
    found, reached = whole["value"], clip.model.opened
    assert reached == 8 and not tuned.any()  # the model is not touched
    restore(clip, whole["model"])
    assert torch.equal(tuned,
                       expected) and found["start"]["proj"] is tuned and clip.model.opened == 3
    assert torch.equal(found["teacher"].model.visual.proj,
                       old) and found["teacher"].model.opened is None
    assert not found["teacher"].training and not any(p.requires_grad
                                                     for p in found["teacher"].parameters())
    assert found["alias"].data_ptr() == tuned.data_ptr() and tuned.requires_grad


@dataclass
class Holding:
    thing: object


@pytest.mark.parametrize(("value", "said"), [
    ({"rules": [1, lambda: 2]}, r"state.rules\[1\] is a builtins.function, which cannot be saved"),
    ({"held": Holding(iter([]))}, r"state.held.thing is a builtins.list_iterator"),
    ([torch.ones(2, requires_grad=True) * 2], r"state\[0\] is a tensor with its graph.*keep it detached"),
    ({"net": torch.nn.Linear(2, 2)}, "state.net is a Linear and no copy of the run's model"),
    (np.array(["words"]), "state is a numpy.ndarray"),
    ({"ids": torch.zeros(2, 2).to_sparse()}, "state.ids is a Tensor .torch.sparse_coo."),
], ids=["function", "iterator", "graph", "module", "words", "sparse"])
def test_what_cannot_be_saved_is_named(value, said, file):
    with pytest.raises(Unstorable, match=said):
        StateFormat(packages=(__name__,)).write(file, value, {})


class Elsewhere:
    pass


Elsewhere.__module__ = "elsewhere"


def test_objects_of_other_classes_are_refused_when_written_and_when_read(file):
    with pytest.raises(Unstorable, match=r"state.rule is a elsewhere.Elsewhere, which cannot be"):
        StateFormat(packages=(__name__,)).write(file, {"rule": Elsewhere()}, {})
    StateFormat(packages=(__name__,)).write(file, Holding(1), {})
    with pytest.raises(Exception, match="Unsupported global: .*Holding"):
        StateFormat().read(file)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_no_code_of_a_file_runs(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": None, "value": Harmful()}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        StateFormat(packages=(__name__,)).read(file)
    assert not (tmp_path / "harm").exists()


def test_no_flipped_bit_passes(file):
    """Either a checksum or the reader finds it, or it stands where nothing is read."""
    form, value = StateFormat(), {"a": torch.arange(100), "b": [torch.randn(3), "word"], "c": 0.1}
    form.write(file, value, {"number": 1})
    whole, chance = file.read_bytes(), random.Random(0)
    noticed = 0
    for place in chance.sample(range(len(whole)), 400):
        flipped = bytes([whole[place] ^ 1 << chance.randrange(8)])
        file.write_bytes(whole[:place] + flipped + whole[place + 1:])
        try:
            about, found = verify(file), form.read(file)["value"]
        except Exception:
            noticed += 1
            continue
        assert about == {"number": 1} and torch.equal(found["a"], value["a"]) and found["c"] == 0.1
        assert torch.equal(found["b"][0], value["b"][0]) and found["b"][1] == "word"
    assert noticed > 100
