"""The published benchmarks of the SIT paper (arXiv 2405.15155), with their real test splits and its prompt.

Each takes the same options. side: sets of `sets.SETS` whose test images are looked at zero-shot; [] for none. order:
a name of "orders" in data/classes/<set>.json; class 0 is then the first of that order, and a stream with order="given"
follows it. size: pixels of the sets whose pictures differ in size (shorter side, bicubic, then the middle square);
CIFAR stays at 32, Tiny ImageNet and EuroSAT at 64. The model resizes further as it needs. Every class is `template`
with its name, in training, test and side sets; a training image's caption is the same text."""
from collections.abc import Sequence

import numpy as np

from clstudy.data.benchmarks.datasets import SIDE, about_classes, check_side, fingerprint, load, require
from clstudy.data.types import Benchmark, Labelled
from clstudy.utils.validation import choose

TEMPLATE = "a bad photo of a {}."


def check(name: str, order: str | None = None, side: Sequence[str] = SIDE, size: int = 224, template: str = TEMPLATE
          ) -> None:
    """What the benchmark of this name would refuse, before anything is decoded. ValueError, FileNotFoundError."""
    check_side(side)
    check_look(size, template)
    if order is not None:
        choose("order", order, about_classes(name).get("orders", {}))
    require([name])
    require(side, advice='; or leave them out: benchmark_args={"side": []}')


def check_look(size: int, template: str) -> None:
    if not isinstance(size, int) or not 8 <= size <= 1024:
        raise ValueError(f"size={size!r}: must be a number of pixels from 8 to 1024")
    if template.count("{}") != 1:
        raise ValueError(f"template={template!r}: must hold {{}} once, where the class name goes")


def side_sets(side: Sequence[str], size: int, template: str) -> dict[str, Labelled]:
    """The test images of each set, among the set's own classes."""
    return {name: Labelled(*load(name, "test", size), tuple(about_classes(name)["classes"].values()), template)
            for name in side}


def _benchmark(name: str, order: str | None, side: Sequence[str], size: int, template: str) -> Benchmark:
    check(name, order, side, size, template)
    about, source = about_classes(name), fingerprint(name)
    first = about["orders"][order] if order else list(range(len(about["classes"])))  # new position → old
    place = np.argsort(first)  # old position → new
    keys = list(about["classes"])
    names = tuple(about["classes"][keys[old]] for old in first)

    def labelled(split: str) -> Labelled:
        images, labels = load(name, split, size, source)
        return Labelled(images, place[labels], names, template)

    train = labelled("train")
    groups = {group: tuple(int(place[keys.index(key)]) for key in members)
              for group, members in about.get("groups", {}).items()}
    captions = tuple(template.format(names[label]) for label in train.labels)
    return Benchmark(name, train, labelled("test"), captions, groups, side_sets(side, size, template))


def cifar10(order: str | None = None, side: Sequence[str] = SIDE, size: int = 224, template: str = TEMPLATE
            ) -> Benchmark:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 10 classes, 32 × 32. Groups: vehicles, animals."""
    return _benchmark("cifar10", order, side, size, template)


def cifar100(order: str | None = None, side: Sequence[str] = SIDE, size: int = 224, template: str = TEMPLATE
             ) -> Benchmark:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 100 classes, 32 × 32. Groups: the 20 superclasses.

    order: "icarl" or "seed1993". The test split is the real one; SIT's released code evaluates on training images."""
    return _benchmark("cifar100", order, side, size, template)


def tiny_imagenet(order: str | None = None, side: Sequence[str] = SIDE, size: int = 224, template: str = TEMPLATE
                  ) -> Benchmark:
    """Tiny ImageNet (CS231n, Stanford 2015): 100,000 and 10,000 images of 200 classes, 64 × 64.

    order: "continual-clip". Test is the published validation split, as everywhere: the labels of its test split were
    never published."""
    return _benchmark("tiny_imagenet", order, side, size, template)


def imagenet_r(order: str | None = None, side: Sequence[str] = SIDE, size: int = 224, template: str = TEMPLATE
               ) -> Benchmark:
    """ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241): 30,000 renditions of 200 classes, resized to `size`.

    80 % train, 20 % test at random, torch's generator with seed 0 over the sorted files: image by image the split of
    SIT's released code. order: "seed1993"."""
    return _benchmark("imagenet_r", order, side, size, template)
