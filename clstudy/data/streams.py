"""Streams: which training images arrive in which stage, and in which order.

A stream is a dataclass of its options with one verb, `stages(labels, seed, domains)`. Each class
has exactly one *home* stage; in a blurred stream some of its images arrive elsewhere. Stages are
numbered from 1, as the rows of the accuracy matrix are (row 0 is the model before training)."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from clstudy.utils.options import Options

Percent = Annotated[float, Ge(0), Le(100)]
Order = Literal["random", "given"]


@dataclass(frozen=True, eq=False)  # eq=False: two arrays do not compare to one truth value
class Stage:
    """A stretch of time: `classes` have their home here, `index` lists the images in order."""

    number: int  # 1, 2, …
    classes: tuple[int, ...]  # empty where a stage of a blurred stream brings no class of its own
    index: np.ndarray  # int64 positions into the training labels; may be empty


@dataclass
class Stream(Options):
    """Which images arrive when."""

    needs_domains: ClassVar[bool] = False  # whether `stages` must be told the domain of each image

    def stages(self, labels: np.ndarray, seed: int,
               domains: np.ndarray | None = None) -> list[Stage]:
        """Return the stages in order.

        labels: one integer class per training image, shape (images,); domains: one integer per
        image, where the benchmark has them. ValueError: the options do not fit these labels."""
        raise NotImplementedError


@dataclass
class Disjoint(Stream):
    """Class-incremental: the classes are dealt out to stages, all images of a class arrive in its
    stage.

    tasks: a number of near-equal groups (the first ones get one class more where it does not
    divide), or the groups themselves, in order of arrival; groups must hold every class once, and a
    group may be empty. "groups" stands for the named groups of a run's benchmark. Given groups keep
    their order, so `order` does not touch them. Images are shuffled inside each stage.

    >>> found = Disjoint(tasks=2, order="given").stages(np.array([0, 0, 1, 2, 2]), seed=0)
    >>> [stage.classes for stage in found]
    [(0, 1), (2,)]
    """

    title: ClassVar[str] = "Disjoint"
    source: ClassVar[str] = (
        "the split-dataset protocol, e.g. iCaRL (Rebuffi et al. 2017, arXiv 1611.07725)")

    tasks: Annotated[int, Ge(1)] | Literal["groups"] | Sequence[Sequence[int]] = 10  # or the groups
    order: Order = "random"  # permute the classes before they are dealt out, or not

    def stages(self, labels: np.ndarray, seed: int,
               domains: np.ndarray | None = None) -> list[Stage]:
        labels, classes = _checked_labels(labels)
        rng = np.random.default_rng(seed)
        if self.tasks == "groups":
            raise ValueError("tasks='groups': only the benchmark of a run has named groups")
        if isinstance(self.tasks, int):
            _check_tasks(self.tasks, classes)
            dealt = rng.permutation(classes) if self.order == "random" else classes
            groups = np.array_split(dealt, self.tasks)
        else:
            groups = _checked_groups(self.tasks, classes)
        return _stages(groups, [rng.permutation(_images_of(labels, group)) for group in groups])


@dataclass
class Joint(Stream):
    """Everything at once: one stage with all classes and all images, shuffled. The usual upper
    reference."""

    title: ClassVar[str] = "Joint"

    def stages(self, labels: np.ndarray, seed: int,
               domains: np.ndarray | None = None) -> list[Stage]:
        labels, classes = _checked_labels(labels)
        return _stages([classes], [np.random.default_rng(seed).permutation(len(labels))])


@dataclass
class SiBlurry(Stream):
    """Si-Blurry: some classes arrive only in their stage, others leak a share of their images into
    any stage.

    Source: MVP, Moon et al. 2023, arXiv 2308.09303; official code github.com/moonjunyyy/Si-Blurry,
    `utils/online_sampler.py`, class OnlineSampler. SIT (arXiv 2405.15155) uses the defaults here,
    with the official sampler.

    1. The classes are permuted; the first N = `disjoint_share` % are disjoint, the others blurry.
    2. Both lists are cut into `tasks` pieces: stage i is the home of piece i of each. With
       `random_sizes` the cut points are random, so a stage may have no class; otherwise the pieces
       are near-equal.
    3. M = `blurry_share` % of the images of blurry classes leave home for a common pool. Each stage
       gives floor(M % of its own); with `random_sizes` the total b = floor(M % of them all) is cut
       at random into n_1 … n_T, and stage i gives n_i, or all it has if that is less.
    4. The pool is shuffled and handed back in equal shares; with `random_sizes` stage i gets n_i
       while the pool lasts (it runs short at the end when some stage had less than its n_i). An
       image may come back to its own home.
    5. Images are shuffled inside each stage.

    sampler: "official" repeats the released sampler index for index (torch's generator). It rounds
    the number of disjoint classes down to a multiple of `tasks`, then that of blurry classes;
    classes left over have no home and their images never arrive. With fixed sizes the pool's
    remainder (pool mod `tasks` images) never arrives either. Each stage gives away its first images
    in data set order, so in a class-sorted data set whole classes move. "random" draws the images
    that move at random, rounds the disjoint count to the nearest integer and drops neither classes
    nor images: every image arrives exactly once."""

    title: ClassVar[str] = "Si-Blurry"
    source: ClassVar[str] = "Moon et al. 2023, arXiv 2308.09303"

    tasks: Annotated[int, Ge(1)] = 5  # stages
    disjoint_share: Percent = 50  # N, percent of the classes
    blurry_share: Percent = 10  # M, percent of the images of the other classes
    random_sizes: bool = True  # of stages, and of what they give away
    sampler: Literal["random", "official"] = "random"  # official: as the released code draws

    def stages(self, labels: np.ndarray, seed: int,
               domains: np.ndarray | None = None) -> list[Stage]:
        labels, classes = _checked_labels(labels)
        _check_tasks(self.tasks, classes)
        official = self.sampler == "official"
        draws = _Draws(seed, official)

        def sizes(total: int) -> np.ndarray:
            cut = draws.cut if self.random_sizes else _near_equal
            return cut(total, self.tasks)

        order = draws.shuffled(classes)
        n_disjoint, n_blurry = self._class_counts(len(classes))
        disjoint = _pieces(order[:n_disjoint], sizes(n_disjoint))
        blurry = _pieces(order[n_disjoint:n_disjoint + n_blurry], sizes(n_blurry))
        staying = [_images_of(labels, home) for home in disjoint]
        movable = [_images_of(labels, home) for home in blurry]
        if not official:  # the released code moves the first images in data set order
            movable = [draws.shuffled(images) for images in movable]

        owned = np.array([len(images) for images in movable])
        if self.random_sizes:
            given = sizes(int(owned.sum() * self.blurry_share // 100))
        else:
            given = (owned * self.blurry_share // 100).astype(int)
        pool = np.concatenate([images[:n] for images, n in zip(movable, given, strict=True)])
        pool = draws.shuffled(pool)
        returned = given if self.random_sizes else sizes(len(pool))
        if official and not self.random_sizes:
            returned = np.full(self.tasks, len(pool) // self.tasks)

        parts = zip(staying, movable, given, _pieces(pool, returned), strict=True)
        arriving = [np.concatenate([stay, images[n:], guests]) for stay, images, n, guests in parts]
        homes = [np.concatenate(pair) for pair in zip(disjoint, blurry, strict=True)]
        return _stages(homes, [draws.shuffled(images) for images in arriving])

    def _class_counts(self, n: int) -> tuple[int, int]:
        """Return how many classes are disjoint and how many are blurry."""
        if self.sampler == "official":
            n_disjoint = int(n * self.disjoint_share // 100) // self.tasks * self.tasks
            return n_disjoint, (n - n_disjoint) // self.tasks * self.tasks
        n_disjoint = int(n * self.disjoint_share / 100 + 0.5)  # half up; round() takes 2.5 to 2
        return n_disjoint, n - n_disjoint


@dataclass
class Domains(Stream):
    """Domain-incremental: the same classes in one domain after the other (one place, one style a
    stage).

    The home of a class is the first stage that has an image of it, so later stages may have no
    class at home. Images are shuffled inside each stage.

    >>> found = Domains(order="given").stages(np.array([0, 1, 0, 2]), 0, np.array([1, 1, 0, 0]))
    >>> [stage.classes for stage in found]
    [(0, 2), (1,)]
    """

    title: ClassVar[str] = "Domains"
    source: ClassVar[str] = (
        "van de Ven and Tolias 2019, arXiv 1904.07734 (domain-incremental learning)")
    needs_domains: ClassVar[bool] = True

    order: Order = "random"  # permute the domains, or take them in ascending order

    def stages(self, labels: np.ndarray, seed: int,
               domains: np.ndarray | None = None) -> list[Stage]:
        labels, _ = _checked_labels(labels)
        domains = np.asarray(domains)
        if domains.shape != labels.shape:
            raise ValueError(f"domains: got shape {domains.shape}; "
                             f"must be one integer per image, {labels.shape}")
        rng = np.random.default_rng(seed)
        names = self.arrival(np.unique(domains), rng)
        images = [rng.permutation(np.flatnonzero(domains == name)) for name in names]
        homes, seen = [], set()
        for index in images:
            homes.append(sorted(set(labels[index].tolist()) - seen))
            seen.update(homes[-1])
        return _stages(homes, images)

    def arrival(self, names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return domains, given in ascending order, in the order in which they come."""
        return rng.permutation(names) if self.order == "random" else names


STREAMS: dict[str, type[Stream]] = {
    "disjoint": Disjoint,
    "joint": Joint,
    "si_blurry": SiBlurry,
    "domains": Domains,
}


class _Draws:
    """The random choices of Si-Blurry: numpy's, or torch's in the order of the official code."""

    def __init__(self, seed: int, official: bool) -> None:
        self.official, self.rng = official, np.random.default_rng(seed)
        if official:
            import torch  # here, so that importing the module stays light

            self.torch, self.rng = torch, torch.Generator().manual_seed(seed)

    def shuffled(self, items: np.ndarray) -> np.ndarray:
        if self.official:
            return items[self.torch.randperm(len(items), generator=self.rng).numpy()]
        return items[self.rng.permutation(len(items))]

    def cut(self, total: int, parts: int) -> np.ndarray:
        """Return the sizes of pieces between parts - 1 cut points, uniform on 0 … total - 1."""
        if total == 0:
            return np.zeros(parts, int)
        if self.official:
            points = self.torch.randint(0, total, (parts - 1,), generator=self.rng).numpy()
        else:
            points = self.rng.integers(0, total, parts - 1)
        return np.diff(np.sort(points), prepend=0, append=total)


def _near_equal(total: int, parts: int) -> np.ndarray:
    return total // parts + (np.arange(parts) < total % parts)


def _pieces(items: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Cut off consecutive pieces; a rest is left out, and late pieces may run short."""
    return np.split(items, np.cumsum(sizes))[:len(sizes)]


def _images_of(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isin(labels, classes))


def _stages(homes: Sequence[Sequence[int]], images: Sequence[np.ndarray]) -> list[Stage]:
    return [Stage(number, tuple(int(c) for c in classes), np.asarray(index, dtype=np.int64))
            for number, (classes, index) in enumerate(zip(homes, images, strict=True), start=1)]


def _checked_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the classes among them, ascending."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: got shape {labels.shape} of {labels.dtype}; "
                         "must be a 1-D array of integers with at least one image")
    return labels, np.unique(labels)


def _check_tasks(tasks: int, classes: np.ndarray) -> None:
    if tasks > len(classes):
        raise ValueError(f"tasks={tasks!r}: must be at most the number of classes, {len(classes)}")


def _checked_groups(groups: Sequence[Sequence[int]], classes: np.ndarray) -> list[np.ndarray]:
    flat, known = [c for group in groups for c in group], set(classes.tolist())
    faults = {
        "unknown": sorted(set(flat) - known),
        "in more than one group": sorted({c for c in flat if flat.count(c) > 1}),
        "in no group": sorted(known - set(flat)),
    }
    for fault, found in faults.items():
        if found:
            raise ValueError(f"tasks: classes {found} are {fault}; the groups must hold each of "
                             f"the {len(classes)} classes from {classes[0]} to {classes[-1]} once")
    return [np.asarray(group, dtype=np.int64) for group in groups]


def away_from_home(stages: list[Stage], labels: np.ndarray) -> float:
    """Return the share of images that arrive outside the home stage of their class, 0 to 1."""
    away = sum((~np.isin(labels[stage.index], stage.classes)).sum() for stage in stages)
    return float(away / sum(len(stage.index) for stage in stages))
