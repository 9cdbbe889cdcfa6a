"""The published benchmarks of the SIT paper (arXiv 2405.15155), with their real test splits and its
prompt.

CIFAR stays at 32 pixels, Tiny ImageNet and EuroSAT at 64; the model resizes further as it needs.
Every class is `template` with its name, in training, test and held-out sets; a training image's
caption is the same text."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clstudy.data.benchmarks.datasets import about_classes, fingerprint, load
from clstudy.data.benchmarks.photographs import SIT_HELD_OUT, SIT_PROMPT, Ordered, Template
from clstudy.data.types import BenchmarkData, Labelled


@dataclass
class SitBenchmark(Ordered):
    """One published set."""

    prompt: ClassVar[str] = SIT_PROMPT

    held_out: Sequence[str] = SIT_HELD_OUT  # published sets that are classified zero-shot
    template: Template = SIT_PROMPT  # prompt, with {} for the class

    def load(self) -> BenchmarkData:
        self.require()
        about, source = about_classes(self.of), fingerprint(self.of)
        names, place = self.ordered()
        train, test = (load(self.of, split, self.size, source) for split in ("train", "test"))
        train, test = (Labelled(images, place[labels], names, self.template)
                       for images, labels in (train, test))
        position = dict(zip(about["classes"], place.tolist(), strict=True))
        groups = {group: tuple(position[key] for key in members)
                  for group, members in about.get("groups", {}).items()}
        return BenchmarkData(self.of, train, test, train.prompts(), groups,
                             self.held_out_sets(self.template))


@dataclass
class Cifar10(SitBenchmark):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 10 classes, 32 × 32. Groups:
    vehicles, animals."""

    title: ClassVar[str] = "CIFAR-10"
    source: ClassVar[str] = "Krizhevsky 2009"
    of: ClassVar[str] = "cifar10"


@dataclass
class Cifar100(SitBenchmark):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 100 classes, 32 × 32. Groups: the 20
    superclasses.

    order: "icarl" or "seed1993". The test split is the real one; SIT's released code evaluates on
    training images."""

    title: ClassVar[str] = "CIFAR-100"
    source: ClassVar[str] = "Krizhevsky 2009"
    of: ClassVar[str] = "cifar100"


@dataclass
class TinyImageNet(SitBenchmark):
    """Tiny ImageNet (CS231n, Stanford 2015): 100,000 and 10,000 images of 200 classes, 64 × 64.

    order: "continual-clip". Test is the published validation split, as everywhere: the labels of
    its test split were never published."""

    title: ClassVar[str] = "Tiny ImageNet"
    source: ClassVar[str] = "CS231n, Stanford 2015"
    of: ClassVar[str] = "tiny_imagenet"


@dataclass
class ImageNetR(SitBenchmark):
    """ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241): 30,000 renditions of 200 classes,
    resized to `size`.

    80 % train, 20 % test at random, torch's generator with seed 0 over the sorted files: image by
    image the split of SIT's released code. order: "seed1993"."""

    title: ClassVar[str] = "ImageNet-R"
    source: ClassVar[str] = "Hendrycks et al. 2021, arXiv 2006.16241"
    of: ClassVar[str] = "imagenet_r"
