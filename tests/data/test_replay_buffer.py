"""Memories: who stays and with which probability, the budget, and that what comes out is what went
in."""
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from clstudy.data.replay_buffer import Policy, ReplayBuffer
from clstudy.data.streams import Stage
from clstudy.data.types import Batch

ONLINE = [policy for policy in get_args(Policy)
          if policy != "quota"]  # which take an image when it comes
PROMPTS, STAGE = torch.zeros(9, 3, dtype=torch.long), Stage(1, (0,), np.arange(1))


def arriving(ids, labels=None, replayed: int = 0) -> Batch:
    """Images of 2 × 2 pixels whose grey value is their id."""
    ids = tuple(ids)
    labels = tuple(labels) if labels is not None else (0,) * len(ids)
    image = torch.tensor(ids, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 255
    return Batch(image, labels, ids, tuple(dict.fromkeys(labels)), PROMPTS, STAGE, replayed)


def filled(size: int, policy: str, labels, batch: int = 4) -> ReplayBuffer:
    """A memory after a stream of images 0, 1, … with these labels, in batches."""
    memory = ReplayBuffer(size, policy)
    for start in range(0, len(labels), batch):
        end = min(start + batch, len(labels))
        memory.add(arriving(range(start, end), labels[start:end]))
    return memory


def excess(kept: Counter, images: list[int], runs: int, p: float) -> float:
    """Σ (observed − expected)² / variance over the images; about their number if each is kept with
    probability p."""
    return sum((kept[i] - runs * p) ** 2 for i in images) / (runs * p * (1 - p))


# ---- who stays


def test_a_reservoir_keeps_every_image_with_the_same_probability():
    torch.manual_seed(0)
    runs, kept = 2000, Counter()
    for _ in range(runs):
        memory = filled(5, "reservoir", [0] * 20)
        assert len(memory) == 5
        kept.update(memory.index)
    assert excess(kept, range(20), runs, 5 / 20) < 40  # mean 19, standard deviation 6


def test_a_reservoir_does_not_look_at_classes():
    torch.manual_seed(0)
    labels = [0] * 30 + [1] * 10
    share = np.mean([filled(8, "reservoir", labels).labels.count(1) for _ in range(500)])
    assert share == pytest.approx(8 * 10 / 40, abs=0.15)


@pytest.mark.parametrize(("counts", "size", "held"), [
    ([20, 20], 10, [5, 5]),
    ([20, 20, 20], 10, [3, 3, 4]),
    ([20, 20, 20, 20], 10, [2, 2, 3, 3]),
    ([20, 2, 20], 10, [2, 4, 4]),  # a class that has fewer keeps them all
    ([3, 3], 10, [3, 3]),
    ([1, 1, 1, 1], 2, [0, 0, 1, 1]),  # fewer places than classes
])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mixed", [False, True])
def test_a_balanced_memory_holds_equal_quotas(counts, size, held, seed, mixed):
    torch.manual_seed(seed)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    if mixed:
        labels = np.random.default_rng(seed).permutation(labels).tolist()
    memory = filled(size, "balanced", labels)
    found = Counter(memory.labels)
    assert sorted(found[label] for label in range(len(counts))) == held


@pytest.mark.parametrize("size", [6, 5])  # 5: the classes take turns in holding most
def test_a_balanced_memory_keeps_the_images_of_a_class_with_the_same_probability(size):
    """One class, then another, then both again: early, late and returning images have the same
    chance."""
    torch.manual_seed(0)
    labels = [0] * 10 + [1] * 10 + [0] * 6 + [1] * 6
    runs, kept = 1500, Counter()
    for _ in range(runs):
        kept.update(filled(size, "balanced", labels).index)
    for label in (0, 1):
        images = [i for i, other in enumerate(labels) if other == label]
        held = sum(kept[i] for i in images) / runs
        assert held == pytest.approx(size / 2, abs=0.05 if size % 2 == 0 else 0.5)
        assert excess(kept, images, runs, held / 16) < 32  # mean 15, standard deviation 5.5


def test_the_least_important_image_of_the_largest_class_makes_room():
    memory = ReplayBuffer(4, "balanced")
    memory.add(arriving([10, 11, 12, 20], [1, 1, 1, 2]))
    values = {10: 0.3, 11: -0.5, 12: 0.1, 20: -9.0, 21: 0.0, 22: 5.0, 13: 7.0}
    memory.add(arriving([21], [2]), importance=values)  # class 1 holds most
    assert memory.index == [10, 21, 12, 20]
    memory.add(arriving([22], [2]),
               importance=values)  # with the new one class 2 would: one of its own goes
    assert memory.index == [10, 21, 12, 22]
    memory.add(arriving([13, 30], [1, 3]),
               importance=values | {30: -99.0})  # a new class enters whatever its value
    assert memory.index == [10, 30, 13, 22]


# ---- the budget


@pytest.mark.parametrize("policy", ONLINE)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_budget_is_never_exceeded_and_ids_are_unique(policy, size):
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    memory, labels = ReplayBuffer(size, policy), rng.integers(0, 4, 200)
    for _ in range(20):
        ids = rng.choice(200, 9, replace=False)  # many come more than once
        memory.add(arriving(ids.tolist(), labels[ids].tolist()))
        assert len(memory) == len(memory.labels) == len(memory.image) == min(
            size, len(memory.arrived)) <= size
        assert len(set(memory.index)) == len(memory)
        assert [labels[i] for i in memory.index] == memory.labels


@pytest.mark.parametrize("policy", ONLINE)
def test_an_image_has_one_chance(policy):
    """A second pass over the stream changes nothing, draws nothing, and an image is never stored
    twice."""
    memory = filled(5, policy, [0, 1] * 10)
    before, generator = memory.state(), torch.get_rng_state()
    memory.add(arriving(range(20), [0, 1] * 10))
    after = memory.state()
    assert torch.equal(torch.get_rng_state(), generator)
    assert after["index"] == before["index"] and torch.equal(after["image"], before["image"])


def test_images_that_come_from_a_memory_are_not_added():
    memory = ReplayBuffer(10)
    memory.add(arriving([1, 2, 3, 7, 8], replayed=2))
    assert memory.index == [1, 2, 3] and len(memory.image) == 3


def test_size_zero_is_no_memory():
    memory, batch, generator = ReplayBuffer(0), arriving([1, 2]), torch.get_rng_state()
    memory.add(batch)
    assert memory.join(batch, 32) is batch
    image, labels, index = memory.draw(4)
    assert len(memory) == len(image) == 0 and labels == index == ()
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("given", "message"), [
    ({"size": -1}, "size=-1: must be at least 0 images"),
    ({"size": 5, "policy": "ring"}, "policy='ring' is unknown. Choices: balanced, quota, reservoir"),
])
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**given)


# ---- what comes out


@pytest.mark.parametrize("policy", ONLINE)
def test_what_is_drawn_is_what_arrived(policy):
    """Image, label and extra of every id, bit for bit, whatever was replaced before."""
    torch.manual_seed(0)
    memory = ReplayBuffer(7, policy)
    for start in range(0, 60, 6):
        ids = torch.arange(start, start + 6)
        memory.add(arriving(ids.tolist(), (ids % 3).tolist()),
                   logits=ids[:, None] * torch.ones(6, 2), squares=ids**2)
    image, labels, index = memory.draw(5)
    assert torch.equal(image, arriving(index).image) and image.dtype == torch.float32
    assert labels == tuple(i % 3 for i in index)
    assert torch.equal(memory.look_up("logits", index),
                       torch.tensor(index)[:, None] * torch.ones(5, 2))
    assert memory.look_up("squares", index).tolist() == [i**2 for i in index]
    assert memory.image.dtype == torch.uint8  # a quarter of the floats


def test_every_grey_value_survives():
    memory = ReplayBuffer(256)
    memory.add(arriving(range(256)))
    image, _, index = memory.draw(256)
    assert torch.equal(image, arriving(index).image)
    near = ReplayBuffer(256)
    near.add(replace(arriving(range(256)), image=(arriving(range(256)).image - 0.3 / 255).clamp(0)))
    assert torch.equal(near.image, memory.image)  # rounded, not cut


def test_a_draw_is_without_replacement_and_uniform():
    torch.manual_seed(0)
    memory = filled(10, "reservoir", [0] * 10)
    drawn = Counter()
    for _ in range(1000):
        _, _, index = memory.draw(4)
        assert len(set(index)) == 4
        drawn.update(index)
    assert excess(drawn, range(10), 1000, 0.4) < 27
    for count, expected in ((0, 0), (10, 10), (99, 10)):
        image, labels, index = memory.draw(count)
        assert len(image) == len(labels) == len(set(index)) == expected
    generator = torch.get_rng_state()
    memory.draw(0)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_balanced_draw_holds_each_class_equally_often():
    """40 images of class 0, 6 of class 1, 4 of class 2; nobody has fewer than the four that a draw
    of 11 takes."""
    torch.manual_seed(0)
    labels = [0] * 40 + [1] * 6 + [2] * 4
    memory, classes, images = ReplayBuffer(50, drawing="balanced"), Counter(), Counter()
    memory.add(arriving(range(50), labels))
    for _ in range(2000):
        _, drawn, index = memory.draw(11)
        assert len(set(index)) == 11 and drawn == tuple(labels[i] for i in index)
        assert sorted(Counter(drawn).values()) == [3, 4, 4]
        classes.update(drawn)
        images.update(index)
    assert all(classes[c] / 2000 == pytest.approx(11 / 3, abs=0.06) for c in range(3))
    # within a class every image has the same chance
    assert excess(images, range(40), 2000, 11 / 3 / 40) < 75


def test_a_balanced_draw_takes_others_where_a_class_has_no_more():
    torch.manual_seed(0)
    memory = ReplayBuffer(12, drawing="balanced")
    memory.add(arriving(range(12), [0] * 10 + [1, 2]))
    assert Counter(memory.draw(8)[1]) == {0: 6, 1: 1, 2: 1}
    assert Counter(memory.draw(2)[1]).most_common(1)[0][1] == 1
    assert sorted(memory.draw(99)[2]) == list(range(12))


def test_a_uniform_draw_follows_the_numbers_in_the_memory():
    torch.manual_seed(0)
    memory = ReplayBuffer(12)
    memory.add(arriving(range(12), [0] * 10 + [1, 2]))
    share = np.mean([memory.draw(3)[1].count(0) for _ in range(500)])
    assert share == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize("name", ["er", "clip_loss", "compose"])
def test_the_draw_is_an_option_of_methods(name):
    from clstudy.methods import METHODS

    assert METHODS[name](size=9, draw="balanced").memory.drawing == "balanced"
    assert METHODS[name](size=9).memory.drawing == "uniform"
    with pytest.raises(ValueError, match="draw='even' is unknown. Choices: balanced, uniform"):
        METHODS[name](size=9, draw="even")


def test_what_is_drawn_joins_at_the_end_of_the_batch():
    memory = filled(5, "reservoir", [0, 1, 1, 0, 1])
    batch = arriving([100, 101], [0, 1])
    assert ReplayBuffer(5).join(batch, 3) is batch  # empty still
    joined = memory.join(memory.join(batch, 3), 2)
    assert joined.replayed == 5 and joined.index[:2] == (100, 101)
    assert set(joined.index[2:]) <= set(range(5))
    assert len(set(joined.index[2:5])) == 3 and len(set(joined.index[5:])) == 2
    assert torch.equal(joined.image, arriving(joined.index).image)
    assert len(joined.target) == 7


def test_random_choices_are_torchs_and_repeat():
    def twice(seed):
        torch.manual_seed(seed)
        memory = filled(6, "balanced", [0, 1, 2] * 10)
        return memory.index, memory.draw(3)[2]

    assert twice(0) == twice(0) != twice(1)


# ---- killed and resumed


@pytest.mark.parametrize("policy", ONLINE)
def test_a_memory_continues_from_its_state(policy):
    torch.manual_seed(0)
    memory = ReplayBuffer(6, policy)
    stream = [arriving(range(start, start + 5), [start % 2, 1, 2, 0, 1])
              for start in range(0, 100, 5)]
    for batch in stream[:10]:
        memory.add(batch, twice=2.0 * torch.tensor(batch.index))
    state = memory.state()
    copied = deepcopy(state)
    assert all(isinstance(value, torch.Tensor | list | dict) for value in state.values())
    other = ReplayBuffer(6, policy)
    other.restore(state)
    generator = torch.get_rng_state()
    for one in (memory, other):
        torch.set_rng_state(generator)
        for batch in stream[10:]:
            one.add(batch, twice=2.0 * torch.tensor(batch.index))
        one.last = one.draw(4)
    assert memory.index == other.index != state["index"] and memory.labels == other.labels
    assert torch.equal(memory.image, other.image)
    assert torch.equal(memory.extra["twice"], other.extra["twice"])
    assert memory.last[2] == other.last[2]
    assert state["index"] == copied["index"]  # not changed since
    assert torch.equal(state["image"], copied["image"])


def test_an_empty_memory_has_a_state_too():
    other = ReplayBuffer(3)
    other.restore(ReplayBuffer(3).state())
    other.add(arriving([4]))
    assert other.index == [4]


# ---- an equal quota per class, filled at stage ends


def stage_of(labels, first: int = 0):
    """Batches of a stage with these labels; ids from `first`, each image of one colour, its id."""
    classes = tuple(dict.fromkeys(labels))
    for start in range(0, len(labels), 7):
        chunk = labels[start:start + 7]
        index = tuple(range(first + start, first + start + len(chunk)))
        image = torch.tensor(index).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255
        yield Batch(image, tuple(chunk), index, classes, torch.zeros(9, 3, dtype=torch.long),
                    Stage(1, classes, np.arange(len(labels))))


def held(memory) -> dict[int, int]:
    return dict(Counter(memory.labels))


@pytest.mark.parametrize("size", [0, 2, 7, 12, 100])
def test_a_quota_is_exact_after_every_stage_and_shrinks_as_classes_come(size):
    memory = ReplayBuffer(size, "quota")
    memory.refill(stage_of([3] * 10 + [5] * 9))
    assert held(memory) == {
        label: n for label, n in ((3, min(size // 2, 10)), (5, min(size // 2, 9))) if n
    }
    memory.refill(stage_of([1] * 8 + [2] * 8 + [3] * 2,
                           first=50))  # two images of an old class, too
    if size == 2:  # more classes than images: one of each of the first
        assert held(memory) == {3: 1, 5: 1}
    else:
        most = {3: 12, 5: 9, 1: 8, 2: 8}
        assert held(memory) == {label: min(size // 4, n) for label, n in most.items() if size // 4}
    assert len(memory) <= size and len(set(memory.index)) == len(memory)
    for label, i, image in zip(memory.labels, memory.index, memory.image if size else (),
                               strict=True):
        assert (image == i).all() and memory.arrived[i] == label
    assert memory.bytes == len(memory) * 3 * 4 * 4


def test_a_quota_takes_nothing_between_stages(batch):
    memory = ReplayBuffer(10, "quota")
    memory.add(batch)
    assert len(memory) == 0 and memory.join(batch, 4) is batch


def test_every_image_of_a_class_is_kept_with_the_same_probability_whenever_it_came():
    counts, trials = Counter(), 600
    for seed in range(trials):
        torch.manual_seed(seed)
        memory = ReplayBuffer(6, "quota")
        memory.refill(stage_of([0] * 6 + [1] * 4))
        memory.refill(stage_of([0] * 6 + [2] * 4, first=20))
        counts.update(i for label, i in zip(memory.labels, memory.index, strict=True) if label == 0)
    ids = [*range(6), *range(20, 26)]
    expected = trials * 2 / 12  # two of twelve
    assert set(counts) == set(ids)
    assert sum((counts[i] - expected)**2 / expected
               for i in ids) < 31.3  # chi-square, 11 degrees of freedom, p 0.001


def test_herding_takes_what_brings_the_mean_nearest(clip):
    images = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    one = Batch(images, (4,) * 9, tuple(range(9)), (4,), torch.zeros(9, 3, dtype=torch.long),
                Stage(1, (4,), np.arange(9)))
    memory = ReplayBuffer(4, "quota", "herding")
    memory.refill([one], clip.train())
    assert clip.training
    with torch.no_grad():
        features = clip.eval().encode_image((images * 255).round().to(torch.uint8)).double()
    chosen = []
    for _ in range(4):
        left = [i for i in range(9) if i not in chosen]
        gap = {i: float((features.mean(0) - features[[*chosen, i]].mean(0)).norm()) for i in left}
        chosen.append(min(gap, key=gap.get))
    assert memory.index == chosen
    other = replace(one, image=1 - images, labels=(7,) * 9, index=tuple(range(30, 39)),
                    classes=(4, 7))
    memory.refill([other], clip)
    assert memory.labels == [4, 4, 7, 7] and set(memory.index[:2]) <= set(chosen)


def test_a_quota_goes_on_from_its_state():
    ends = []
    for stop in (False, True):
        torch.manual_seed(0)
        memory = ReplayBuffer(6, "quota")
        memory.refill(stage_of([0] * 6 + [1] * 6))
        if stop:
            again = ReplayBuffer(6, "quota")
            again.restore(memory.state())
            memory = again
        memory.refill(stage_of([2] * 6, first=20))
        ends.append((memory.index, memory.labels, memory.keys))
    assert ends[0] == ends[1]


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="selection='best' is unknown. Choices: herding, random"):
        ReplayBuffer(3, "quota", "best")


def test_herding_goes_on_where_a_class_keeps_no_image(clip):
    memory = ReplayBuffer(2, "quota", "herding")
    memory.refill(stage_of([0, 0, 1, 1, 2, 2]), clip)
    memory.refill(stage_of([3, 3], first=10), clip)
    assert memory.labels == [0, 1]
