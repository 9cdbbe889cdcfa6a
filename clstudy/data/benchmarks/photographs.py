"""What the benchmarks of photographs share: a size, a prompt, and published sets as held-out
sets."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AfterValidator

from clstudy.data import image_store
from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.benchmarks.datasets import NAMES, SETS, about_classes, load, require
from clstudy.data.types import Labelled
from clstudy.utils.validation import choose

SIT_PROMPT = "a bad photo of a {}."
SIT_HELD_OUT = ("food101", "caltech101", "eurosat", "flowers102", "oxford_pets")


def with_one_place(template: str) -> str:
    """The template. ValueError: it has no place for a class name, or several."""
    if template.count("{}") != 1:
        raise ValueError("must hold {} once, where the class name goes")
    return template


Pixels = Annotated[int, Ge(8), Le(1024)]
Template = Annotated[str, AfterValidator(with_one_place)]
Count = Annotated[int, Ge(1)] | None


@dataclass
class Photographs(Benchmark):
    """A benchmark whose pictures lie among the published sets, or in a folder."""

    held_out: Sequence[str] = ()  # published sets whose test images are classified zero-shot
    size: Pixels = 224  # shorter side, bicubic, then the middle square

    def own(self) -> Sequence[str]:
        """The published sets that it is made of."""
        return ()

    def check(self) -> None:
        for name in self.held_out:
            choose("held_out", name, [known for known, one in SETS.items() if "test" in one.images])

    def require(self) -> None:
        require(self.own())
        self.require_held_out()

    def require_held_out(self) -> None:
        """FileNotFoundError: a held-out set is missing."""
        require(self.held_out, advice='; or leave them out: benchmark_args={"held_out": []}')

    def held_out_sets(self, template: str) -> dict[str, Labelled]:
        """The test images of each held-out set, among the set's own classes."""
        found = {}
        for name in self.held_out:
            names = tuple(about_classes(name)["classes"].values())
            found[name] = Labelled(*load(name, "test", self.size), names, template)
        return found

    def fingerprint(self) -> list[str]:
        """Class names and orders of its sets and of its held-out sets.

        Their images are fixed by their publication, so that a run is known where the set is not."""
        return class_digests((*self.own(), *self.held_out))


def class_digests(names: Iterable[str]) -> list[str]:
    """Digests of the names and orders of the classes of published sets."""
    known = [about_classes(name) for name in names if (NAMES / f"{name}.json").is_file()]
    return [
        image_store.digest({key: value for key, value in one.items() if key != "source"})
        for one in known
    ]
