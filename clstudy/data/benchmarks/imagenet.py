"""ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1,281,167 and 50,000 images of 1,000
classes.

    imagenet/train/<WordNet id>/<picture>.JPEG
    imagenet/val/<WordNet id>/<picture>.JPEG        or flat: imagenet/val/<picture>.JPEG, with one of
    imagenet/LOC_val_solution.csv                   Kaggle's, or
    imagenet/ILSVRC2012_devkit_t12/data/            the official ground truth, with meta.mat

Test is the published validation split, as everywhere. Class names are those of CLIP, in the order
of the WordNet ids, which is that of every published class number; two that CLIP uses twice are made
distinct (data/classes/imagenet.json). The pictures need not fit in memory: see `shards.py`. A
stream with tasks=10 has the usual stages of 100 classes."""
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from clstudy.data import image_store
from clstudy.data.benchmarks.datasets import about_classes, again, require
from clstudy.data.benchmarks.photographs import Count, Photographs, Template
from clstudy.data.image_shards import sharded
from clstudy.data.image_store import DamagedError, Pictures
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.paths import downloads
from clstudy.utils.validation import choose

COUNTS = {"train": 1_281_167, "test": 50_000}
FOLDERS = {"train": "train", "test": "val"}
TEMPLATE = "a photo of a {}."
SOLUTION = "LOC_val_solution.csv"
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")


@dataclass(frozen=True)
class Listing:
    """Files of a split, below its folder, with their classes; `times` of change of the folders they
    lie in."""

    files: list[str]
    labels: np.ndarray  # positions in data/classes
    times: list[int]


@dataclass
class ImageNet(Photographs):
    """ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1,281,167 and 50,000 images of 1,000
    classes.

    order: "seed1993"; class 0 is then the first of that order, and a stream with order="given"
    follows it. At 224 pixels the decoded images take 193 GB for training and 7.5 GB for testing."""

    title: ClassVar[str] = "ImageNet-1K"
    source: ClassVar[str] = "Russakovsky et al. 2015, arXiv 1409.0575"
    prompt: ClassVar[str] = TEMPLATE

    order: str | None = None  # of the classes, by its name in data/classes; with the stream's "given"
    per_class: Count = None  # only so many images of each class, the first by name; None: all
    template: Template = TEMPLATE  # prompt, with {} for the class

    def own(self) -> Sequence[str]:
        return ("imagenet",)

    def check(self) -> None:
        super().check()
        if self.order is not None:
            choose("order", self.order, about_classes("imagenet")["orders"])

    def require(self) -> None:
        """Refuse what can be seen without a look into every folder."""
        require(["imagenet"])
        place, classes = downloads() / "imagenet", about_classes("imagenet")["classes"]
        for folder in FOLDERS.values():
            there = {entry.name for entry in os.scandir(place / folder) if entry.is_dir()}
            flat = folder == "val" and not there & set(classes)
            lacks = [] if flat else [key for key in classes if key not in there]
            if lacks:
                few = ", ".join(lacks[:3]) + (", …" if lacks[3:] else "")
                raise FileNotFoundError(
                    f"{place / folder} lacks {len(lacks)} of the {len(classes):,} "
                    f"folders of classes ({few}). {again('imagenet')}")
            if flat and not (place / SOLUTION).exists() and not (place / DEVKIT).exists():
                raise FileNotFoundError(
                    f"{place / folder} has no folders of classes, and neither {place / SOLUTION} nor "
                    f"{place / DEVKIT} tells the classes of its pictures")
        self.require_held_out()

    def load(self) -> BenchmarkData:
        self.require()
        about = about_classes("imagenet")
        first = about["orders"][self.order] if self.order else list(range(len(
            about["classes"])))  # new position → old
        known, place = list(about["classes"].values()), np.argsort(
            first)  # place: old position → new
        names = tuple(known[old] for old in first)
        listings = {split: listing(split, self.per_class)
                    for split in COUNTS}  # both, before hours of decoding

        def labelled(split: str) -> Labelled:
            images = _images(split, listings[split], self.size)
            return Labelled(images, place[listings[split].labels], names, self.template)

        train, prompts = labelled("train"), [self.template.format(name) for name in names]
        captions = tuple(
            prompts[label] for label in train.labels.tolist())  # a thousand strings, not a million
        return BenchmarkData("imagenet", train, labelled("test"), captions, {},
                             self.held_out_sets(self.template))


def listing(split: str, per_class: int | None = None) -> Listing:
    """What lies in the folders of a split. DamagedError: other pictures than the published ones, or
    labels unread."""
    place = downloads() / "imagenet" / FOLDERS[split]
    keys = {key: label for label, key in enumerate(about_classes("imagenet")["classes"])}
    folders = [key for key in keys if (place / key).is_dir()]
    if folders:
        found = {
            key: sorted(name for name in os.listdir(place / key) if _picture(name))
            for key in folders
        }
        files = [f"{key}/{name}" for key in folders for name in found[key]]
        labels = np.repeat([keys[key] for key in folders], [len(found[key]) for key in folders])
    else:
        files = sorted(name for name in os.listdir(place) if _picture(name))
        labels = _told(place.parent, files, keys)
    if per_class is None and len(files) != COUNTS[split]:
        raise DamagedError(
            f"imagenet: {place} has {len(files):,} pictures, not {COUNTS[split]:,}. {again('imagenet')}"
        )
    if per_class is not None:
        keep = first_of_each(labels, per_class)
        files, labels = [files[i] for i in keep], labels[keep]
    return Listing(files, labels, [os.stat(place / key).st_mtime_ns for key in folders or ["."]])


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` of each label, ascending.

    >>> first_of_each(np.array([7, 3, 7, 7, 3]), 2).tolist()
    [0, 1, 2, 4]
    """
    order = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[order], labels[order])  # where the run of equal labels begins
    return np.sort(order[np.arange(len(labels)) - start < count])


def _picture(name: str) -> bool:
    return name.lower().endswith((".jpeg", ".jpg")) and name[0] != "."


def _told(place: Path, files: list[str], keys: dict[str, int]) -> np.ndarray:
    """Labels of flat validation pictures. DamagedError: the file that should tell them does not."""
    told = place / SOLUTION if (place / SOLUTION).exists() else place / DEVKIT
    try:
        wnids = _solution(told) if told.name == SOLUTION else _devkit(told)
        return np.array([keys[wnids[name.partition(".")[0]]] for name in files], np.int64)
    except Exception as error:
        raise DamagedError(
            f"imagenet: {told} does not tell the class of every picture in {place / 'val'} "
            f"({type(error).__name__}: {error})") from error


def _solution(file: Path) -> dict[str, str]:
    """Rows `picture,wnid x y x y wnid …`: all boxes of a picture are of its one class."""
    with open(file, newline="") as opened:
        return {
            row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(opened)
        }


def _devkit(place: Path) -> dict[str, str]:
    """Line n of the ground truth is the number, in meta.mat, of the class of picture n."""
    from scipy.io import loadmat

    synsets = loadmat(place / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {
        int(number): str(key)
        for number, key in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
    }
    lines = (place / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    return {f"ILSVRC2012_val_{n:08}": wnid[int(line)] for n, line in enumerate(lines, 1)}


def _images(split: str, found: Listing, size: int):
    place = downloads() / "imagenet" / FOLDERS[split]
    source = image_store.digest([image_store.VERSION, found.times, found.files])
    return sharded(f"imagenet-{split}-{size}", source, size, len(found.files), lambda: from_files(
        [place / file for file in found.files], again("imagenet")))


def from_files(files: list[Path], cure: str) -> Pictures:
    """Pictures whose labels are known otherwise."""

    def read(i: int) -> tuple[Image.Image, int]:
        with Image.open(files[i]) as picture:
            picture.load()
            return picture, 0

    return Pictures(len(files), read, lambda i: str(files[i]), cure)
