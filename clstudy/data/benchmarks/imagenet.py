"""ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1,281,167 and 50,000 images of 1,000
classes.

    imagenet/train/<WordNet id>/<picture>.JPEG
    imagenet/val/<WordNet id>/<picture>.JPEG    or flat: imagenet/val/<picture>.JPEG, with one of
    imagenet/LOC_val_solution.csv               Kaggle's, or
    imagenet/ILSVRC2012_devkit_t12/data/        the official ground truth, with meta.mat

Test is the published validation split, as everywhere. Class names are those of CLIP, in the order
of the WordNet ids, which is that of every published class number; two that CLIP uses twice are made
distinct (data/classes/imagenet.json). The pictures need not fit in memory: see `image_shards.py`. A
stream with tasks=10 has the usual stages of 100 classes."""
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from clstudy.data.benchmarks.datasets import about_classes, again, require
from clstudy.data.benchmarks.photographs import Count, Listing, Ordered, Template
from clstudy.data.image_store import DamagedError
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.paths import downloads

COUNTS = {"train": 1_281_167, "test": 50_000}
FOLDERS = {"train": "train", "test": "val"}
TEMPLATE = "a photo of a {}."
SOLUTION = "LOC_val_solution.csv"
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")


@dataclass
class ImageNet(Ordered):
    """ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1,281,167 and 50,000 images of 1,000
    classes.

    order: "seed1993"; class 0 is then the first of that order, and a stream with order="given"
    follows it. At 224 pixels the decoded images take 193 GB for training and 7.5 GB for testing."""

    title: ClassVar[str] = "ImageNet-1K"
    source: ClassVar[str] = "Russakovsky et al. 2015, arXiv 1409.0575"
    of: ClassVar[str] = "imagenet"
    prompt: ClassVar[str] = TEMPLATE

    per_class: Count = None  # only so many images of each class, the first by name; None: all
    template: Template = TEMPLATE  # prompt, with {} for the class

    def require(self) -> None:
        """Refuse missing data without a look into every folder."""
        require(["imagenet"])
        root, classes = downloads() / "imagenet", about_classes("imagenet")["classes"]
        for place in (root / folder for folder in FOLDERS.values()):
            there = {entry.name for entry in os.scandir(place) if entry.is_dir()}
            lacks = [key for key in classes if key not in there]
            if place.name == "val" and len(lacks) == len(classes):  # flat
                if not (root / SOLUTION).exists() and not (root / DEVKIT).exists():
                    raise FileNotFoundError(
                        f"{place} has no folders of classes, and neither {root / SOLUTION} nor "
                        f"{root / DEVKIT} tells the classes of its pictures")
            elif lacks:
                few = ", ".join(lacks[:3]) + (", …" if lacks[3:] else "")
                raise FileNotFoundError(f"{place} lacks {len(lacks)} of the {len(classes):,} "
                                        f"folders of classes ({few}). {again('imagenet')}")
        self.require_held_out()

    def load(self) -> BenchmarkData:
        self.require()
        names, place = self.ordered()
        # both listings, before hours of decoding
        listings = {split: listing(split, self.per_class) for split in COUNTS}
        train, test = (Labelled(one.decoded(f"imagenet-{split}", self.size), place[one.labels],
                                names, self.template) for split, one in listings.items())
        return BenchmarkData("imagenet", train, test, train.prompts(), {},
                             self.held_out_sets(self.template))


def listing(split: str, per_class: int | None = None) -> Listing:
    """List the pictures of a split. DamagedError: pictures or labels are missing."""
    folder = f"imagenet/{FOLDERS[split]}"
    place, classes = downloads() / folder, about_classes("imagenet")["classes"]
    label = {key: i for i, key in enumerate(classes)}
    if any((place / key).is_dir() for key in classes):
        files = [f"{key}/{name}" for key in classes if (place / key).is_dir()
                 for name in _names(place / key)]
        labels = np.array([label[file.partition("/")[0]] for file in files], np.int64)
    else:
        files = _names(place)
        labels = _flat_labels(place.parent, files, label)
    if per_class is None and len(files) != COUNTS[split]:
        raise DamagedError(f"imagenet: {place} has {len(files):,} pictures, not {COUNTS[split]:,}. "
                           f"{again('imagenet')}")
    return Listing(folder, files, labels).first(per_class)


def _names(place: Path) -> list[str]:
    return sorted(name for name in os.listdir(place)
                  if name.lower().endswith((".jpeg", ".jpg")) and name[0] != ".")


def _flat_labels(place: Path, files: list[str], label: Mapping[str, int]) -> np.ndarray:
    """Return the labels of validation pictures that lie in one folder. DamagedError: the file that
    should tell them does not."""
    told = place / SOLUTION if (place / SOLUTION).exists() else place / DEVKIT
    try:
        wnids = _solution(told) if told.name == SOLUTION else _devkit(told)
        return np.array([label[wnids[name.partition(".")[0]]] for name in files], np.int64)
    except Exception as error:
        raise DamagedError(
            f"imagenet: {told} does not tell the class of every picture in {place / 'val'} "
            f"({type(error).__name__}: {error})") from error


def _solution(file: Path) -> Mapping[str, str]:
    """Read rows `picture,wnid x y x y wnid …`: all boxes of a picture are of its one class."""
    boxes = pd.read_csv(file, index_col="ImageId")["PredictionString"]
    return boxes.str.split().str[0].to_dict()


def _devkit(place: Path) -> dict[str, str]:
    """Line n of the ground truth is the number, in meta.mat, of the class of picture n."""
    from scipy.io import loadmat

    synsets = loadmat(place / "meta.mat", squeeze_me=True)["synsets"]
    wnid = dict(zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True))
    lines = (place / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    return {f"ILSVRC2012_val_{n:08}": str(wnid[int(line)]) for n, line in enumerate(lines, 1)}
