"""What the benchmarks of photographs share: size, prompt, held-out sets, orders and listings."""
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from annotated_types import Ge, Le
from pydantic import AfterValidator

from clstudy.data import image_store
from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.benchmarks.datasets import SETS, about_classes, again, load, require
from clstudy.data.image_shards import Shards, sharded
from clstudy.data.image_store import from_files
from clstudy.data.types import Labelled
from clstudy.utils.paths import downloads
from clstudy.utils.validation import choose

SIT_PROMPT = "a bad photo of a {}."
SIT_HELD_OUT = ("food101", "caltech101", "eurosat", "flowers102", "oxford_pets")


def with_one_place(template: str) -> str:
    """Return the template. ValueError: it has no place for a class name, or several."""
    if template.count("{}") != 1:
        raise ValueError("must hold {} once, where the class name goes")
    return template


Pixels = Annotated[int, Ge(8), Le(1024)]
Template = Annotated[str, AfterValidator(with_one_place)]
Count = Annotated[int, Ge(1)] | None


@dataclass
class Photographs(Benchmark):
    """A benchmark whose pictures lie among the published sets, or in a folder."""

    of: ClassVar[str | None] = None  # the published set that it is made of

    held_out: Sequence[str] = ()  # published sets that are classified zero-shot
    size: Pixels = 224  # shorter side, bicubic, then the middle square

    def check(self) -> None:
        for name in self.held_out:
            choose("held_out", name, [known for known, one in SETS.items() if "test" in one.images])

    def require(self) -> None:
        require([self.of])
        self.require_held_out()

    def require_held_out(self) -> None:
        """Raise a FileNotFoundError if a held-out set is missing."""
        require(self.held_out, advice='; or leave them out: benchmark_args={"held_out": []}')

    def held_out_sets(self, template: str) -> dict[str, Labelled]:
        """Return the test images of each held-out set, among the set's own classes."""
        found = {}
        for name in self.held_out:
            names = tuple(about_classes(name)["classes"].values())
            found[name] = Labelled(*load(name, "test", self.size), names, template)
        return found

    def fingerprint(self) -> list[str]:
        """Return digests of the class names and orders of its set and of its held-out sets.

        Their images are fixed by their publication, so that a run is known where the set is not."""
        return class_digests([*([self.of] if self.of else []), *self.held_out])


@dataclass
class Ordered(Photographs):
    """A benchmark whose classes can be put in an order of data/classes."""

    order: str | None = None  # of the classes, named in data/classes; for a stream with "given"

    def check(self) -> None:
        super().check()
        if self.order is not None:
            choose("order", self.order, about_classes(self.of).get("orders", {}))

    def ordered(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the class names in the order, and the new position of each label of the set."""
        about = about_classes(self.of)
        names = list(about["classes"].values())
        first = about["orders"][self.order] if self.order else range(len(names))  # new → old
        return tuple(names[old] for old in first), np.argsort(first)


def class_digests(names: Iterable[str]) -> list[str]:
    """Return digests of the class names and orders of published sets."""
    known = [about_classes(name) for name in names]
    return [image_store.digest({key: value for key, value in one.items() if key != "source"})
            for one in known]


@dataclass(frozen=True)
class Listing:
    """Picture files of a split of a published set, which may be too many for memory."""

    place: str  # their folder, below downloads()
    files: list[str]  # below the folder
    labels: np.ndarray  # int64, positions in data/classes

    def first(self, per_class: int | None) -> "Listing":
        """Keep only the first `per_class` of each label; None keeps all."""
        if per_class is None:
            return self
        keep = first_of_each(self.labels, per_class)
        return replace(self, files=[self.files[i] for i in keep], labels=self.labels[keep])

    def decoded(self, name: str, size: int) -> Shards:
        """Return the images; `name` names the files of the cache, and begins with the set's name.

        They are decoded again when a folder of theirs has changed: all files are too many to look
        at."""
        place = downloads() / self.place
        folders = sorted({file.rpartition("/")[0] for file in self.files})
        times = [os.stat(place / folder).st_mtime_ns for folder in folders]
        source = image_store.digest([image_store.VERSION, times, self.files])
        paths, cure = [place / file for file in self.files], again(name.partition("-")[0])
        return sharded(f"{name}-{size}", source, size, len(paths),
                       lambda: from_files(paths, self.labels, cure))


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the first `count` of each label, ascending.

    >>> first_of_each(np.array([7, 3, 7, 7, 3]), 2).tolist()
    [0, 1, 2, 4]
    """
    return np.flatnonzero(pd.Series(labels).groupby(labels).cumcount() < count)
