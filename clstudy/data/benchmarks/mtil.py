"""MTIL (ZSCL, Zheng et al. 2023, arXiv 2303.06628): eleven published sets, one after the other.

One benchmark holds the classes of all sets, and its groups are the sets: a disjoint stream with
tasks="groups" is the sequence of the paper, and its accuracies are those with the candidates "own"
(the set is known at test).

Each set has its own prompt, the first of its list in ZSCL's released code. So a class name here is
a `Prompted`: the text "dtd: banded", which tables and figures show, carries its prompt, and the
template "{.prompt}" asks for it. The names are those of CLIP, as everywhere in data/classes. Where
two sets have a class of the same prompt (a butterfly is in CIFAR-100 and in Caltech101), no model
can separate them once both compete: look at the candidates "own".

Splits, as in the released code: those that the sets publish (without their validation images), and
for Caltech101, EuroSAT and SUN397 80 % train, drawn with seed 42. Departures: Caltech101 is without
`Faces_easy`; SUN397 is drawn over the sorted files, as the released order is that of a disk; one
prompt is used in evaluation too, where the released code averages over the list. All images are
stored at one size."""
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

import numpy as np

from clstudy.data import image_store
from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.benchmarks.datasets import (
    DRAWN,
    about_classes,
    fingerprint,
    missing,
    pictures,
    require,
)
from clstudy.data.benchmarks.photographs import Pixels, class_digests
from clstudy.data.image_store import Pictures
from clstudy.data.types import BenchmarkData, Labelled

TEMPLATES = {
    "aircraft": "a photo of a {}, a type of aircraft.",
    "caltech101": "a photo of a {}.",
    "cifar100": "a photo of a {}.",
    "dtd": "a photo of a {} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "flowers102": "a photo of a {}, a type of flower.",
    "food101": "a photo of a {}, a type of food.",
    "mnist": 'a photo of the number: "{}".',
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}, a type of car.",
    "sun397": "a photo of a {}.",
}
ORDERS = {
    "I": tuple(TEMPLATES),  # the alphabet's
    "II": ("stanford_cars", "food101", "mnist", "oxford_pets", "flowers102", "sun397", "aircraft",
           "caltech101", "dtd", "eurosat", "cifar100"),
}
SPLITS = {"caltech101": DRAWN, "eurosat": DRAWN}


class Prompted(str):
    """A class name that carries its own prompt, for templates that ask for it: "{.prompt}"."""

    prompt: str

    @classmethod
    def of(cls, place: str, name: str) -> "Prompted":
        made = cls(f"{place}: {name}")
        made.prompt = TEMPLATES[place].format(name)
        return made


@dataclass
class Mtil(Benchmark):
    """MTIL (Zheng et al. 2023, arXiv 2303.06628): eleven published sets as groups of classes, 1,200
    in all.

    The sets come in the paper's order; all together take 48 GB at 224 pixels for training, 15 GB
    for testing."""

    title: ClassVar[str] = "MTIL"
    source: ClassVar[str] = "Zheng et al. 2023, arXiv 2303.06628"
    prompt: ClassVar[str] = "{.prompt}"

    order: Literal[tuple(ORDERS)] = "I"  # of the paper
    sets: Sequence[Literal[tuple(TEMPLATES)]] | None = None  # those to take; None: all
    size: Pixels = 224  # shorter side, bicubic, then the middle square

    def check(self) -> None:
        if self.sets is not None and not self.sets:
            raise ValueError(f"sets={self.sets!r}: must be a list of one name or more, "
                             "such as ['dtd'], or None for all")

    def chosen(self) -> tuple[str, ...]:
        """Return the sets asked for, in the order asked for."""
        return tuple(name for name in ORDERS[self.order] if self.sets is None or name in self.sets)

    def require(self) -> None:
        there = [name for name in self.chosen() if not missing(name)]
        advice = f'; or take what is there: benchmark_args={{"sets": {there}}}' if there else ""
        require(self.chosen(), advice=advice)

    def fingerprint(self) -> list[str]:
        return class_digests(self.sets or sorted(TEMPLATES))

    def load(self) -> BenchmarkData:
        self.require()
        names, groups = [], {}
        for one in self.chosen():
            own = [Prompted.of(one, name) for name in about_classes(one)["classes"].values()]
            groups[one] = tuple(range(len(names), len(names) + len(own)))
            names += own
        train, test = (Labelled(*self._images(split, groups), tuple(names), "{.prompt}")
                       for split in ("train", "test"))
        return BenchmarkData("mtil", train, test, train.prompts(), groups)

    def _images(self, split: str, groups: dict[str, tuple[int, ...]]):
        """Return the images of all sets, and their labels. Both orders share one array on disk, in
        which the sets and their labels are sorted."""
        sets = sorted(groups)
        digest = image_store.digest
        source = digest([sets, digest([fingerprint(one) for one in sets])])
        images, found = image_store.decoded(f"mtil-{split}-{self.size}", source, self.size,
                                            lambda: _together(sets, split))
        return images, np.concatenate([groups[one] for one in sets])[found]


def _together(sets: Sequence[str], split: str) -> Pictures:
    """Return the pictures of one split of all sets as if they were one set."""
    parts = [pictures(one, SPLITS.get(one, {}).get(split, split)) for one in sets]
    counts = [len(about_classes(one)["classes"]) for one in sets]
    starts = list(accumulate(counts, initial=0))  # of the labels of each set
    at = [(number, i) for number, part in enumerate(parts) for i in range(part.count)]

    def read(i: int):
        number, position = at[i]
        picture, label = parts[number].read(position)
        return picture, starts[number] + label

    def where(i: int) -> str:
        number, position = at[i]
        return f"{parts[number].where(position)} of {sets[number]}"

    return Pictures(len(at), read, where,
                    "`clstudy data get` fetches a set again once its folder is moved away")
