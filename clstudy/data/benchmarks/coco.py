"""The data of VR-LwF (Ding et al. 2022, arXiv 2207.09248): objects cut out of COCO, and EuroSAT
with its split.

    coco/annotations/instances_train2014.json  instances_val2014.json
    coco/train2014/  coco/val2014/
    karpathy/dataset_coco.json  dataset_flickr30k.json
    flickr30k/flickr30k-images/  tiered-imagenet/test/<WordNet id>/

lie where all published sets lie (see datasets.py). Facts on splits and prompts: the released code,
github.com/yxding95/CL-CLIP (data_preprocess/coco_process.py, data.py, methods/base.py).

Departures. The released code cuts the boxes out with a program that is not released: here a box is
widened to whole pixels. It resizes to 256 and crops 224 at random in training; here each crop is
stored once, at `size` (shorter side, bicubic, then the middle square), and random moves are left to
the augmentation of the run. Its pictures for the zero-shot task are not published: here, 50 of each
test class of tieredImageNet."""
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from PIL import Image

from clstudy.data import image_store
from clstudy.data.benchmarks.datasets import (
    about_classes,
    again,
    fingerprint,
    load,
    missing,
    require,
)
from clstudy.data.benchmarks.photographs import Count, Photographs, Template
from clstudy.data.image_store import DamagedError, Pictures, from_files
from clstudy.data.types import BenchmarkData, Captioned, Labelled
from clstudy.utils.paths import downloads

SCENE = "this is a photo of {} in the scene ."
SHORT = "this is a photo of {} ."  # of the zero-shot task; in a review of the paper of crops too
SATELLITE = "this is a satellite photo of {} ."
HELD_OUT = ("tiered_imagenet_test",)
SMALLEST = 4  # pixels; a box that is not wider and higher is left out


@dataclass(frozen=True)
class Pairs:
    """A retrieval set: Karpathy's test split of a set of pictures."""

    sets: tuple[str, ...]  # that it needs
    listed: str  # of the images with their captions, below downloads()
    images: str  # folder of the pictures
    count: int
    folds: int = 1
    captions: int = 5  # the first of each image; some images of COCO have six or seven


RETRIEVAL = {
    "coco 5k": Pairs(("coco", "karpathy"), "karpathy/dataset_coco.json", "coco/val2014", 5000,
                     folds=5),
    "flickr30k": Pairs(("flickr30k", "karpathy"), "karpathy/dataset_flickr30k.json",
                       "flickr30k/flickr30k-images", 1000)
}


@dataclass
class ObjectsOfVrLwf(Photographs):
    """What the two benchmarks of the paper share."""

    held_out: Sequence[str] = HELD_OUT  # published sets, classified zero-shot with the prompt SHORT
    retrieval: Sequence[Literal[tuple(RETRIEVAL)]] = tuple(RETRIEVAL)  # images and captions to find

    def require(self) -> None:
        super().require()
        needed = {one: RETRIEVAL[one].sets for one in self.retrieval}
        there = [one for one, sets in needed.items() if not any(missing(name) for name in sets)]
        advice = f'; or leave it out: benchmark_args={{"retrieval": {json.dumps(there)}}}'
        require(dict.fromkeys(sum(needed.values(), ())), advice=advice)

    def together(self, name: str, train: Labelled, test: Labelled,
                 groups: dict[str, Sequence[str]]) -> BenchmarkData:
        """Join the parts to a benchmark; groups: the keys of the classes in each group."""
        keys = list(about_classes(name.removesuffix("_crops"))["classes"])
        groups = {group: tuple(keys.index(key) for key in members)
                  for group, members in groups.items()}
        retrieval = {one: _pairs(one, self.size) for one in self.retrieval}
        return BenchmarkData(name, train, test, train.prompts(), groups,
                             self.held_out_sets(SHORT), retrieval)


@dataclass
class CocoCrops(ObjectsOfVrLwf):
    """COCO-2014 objects (VR-LwF, arXiv 2207.09248): each ground-truth box is an image of one of 80
    classes.

    Train: boxes of train2014; test: those of val2014 images that are in Karpathy's test split.
    Groups: eight phases of ten classes, in the order of COCO's categories. Boxes are drawn once for
    all; all of them are some 600,000, which take 90 GB at 224 pixels. SHORT is the other template
    that is reported."""

    title: ClassVar[str] = "COCO crops"
    source: ClassVar[str] = "Ding et al. 2022, arXiv 2207.09248"
    of: ClassVar[str] = "coco"
    prompt: ClassVar[str] = SCENE

    per_class: Count = None  # at most so many boxes of each class; None: all
    test_per_class: Count = None  # the same for testing
    template: Template = SCENE  # prompt, with {} for the class

    def require(self) -> None:
        require(("coco", "karpathy"))
        super().require()

    def load(self) -> BenchmarkData:
        self.require()
        about = about_classes("coco")
        names = tuple(about["classes"].values())
        train, test = (Labelled(*_crops(split, count, self.size), names, self.template)
                       for split, count in (("train", self.per_class),
                                            ("test", self.test_per_class)))
        return self.together("coco_crops", train, test, about["groups"])


@dataclass
class EuroSat(ObjectsOfVrLwf):
    """EuroSAT (Helber et al. 2019, arXiv 1709.00029) as in VR-LwF's released code: 27,000 images,
    10 classes, 64 × 64.

    Test: the last 500 images of each class, by name. Groups: five phases of two classes, by name.
    The classes are named as the folders, in small letters (the held-out set `eurosat` has CLIP's
    names, and all images)."""

    title: ClassVar[str] = "EuroSAT"
    source: ClassVar[str] = "Helber et al. 2019, arXiv 1709.00029"
    of: ClassVar[str] = "eurosat"
    prompt: ClassVar[str] = SATELLITE

    template: Template = SATELLITE  # prompt, with {} for the class

    def load(self) -> BenchmarkData:
        self.require()
        keys, source = list(about_classes("eurosat")["classes"]), fingerprint("eurosat")
        names = tuple(re.sub("(?<=.)(?=[A-Z])", " ", key).lower() for key in keys)
        train, test = (Labelled(*load("eurosat", split, self.size, source), names, self.template)
                       for split in ("but500", "last500"))
        groups = {f"phase {i + 1}": keys[2 * i:2 * i + 2] for i in range(len(keys) // 2)}
        return self.together("eurosat", train, test, groups)


# --- boxes ----------------------------------------------------------------------------------------


def _crops(split: str, per_class: int | None, size: int):
    """Return images and labels of the boxes of a split."""
    year = "train2014" if split == "train" else "val2014"
    listed = downloads() / "coco" / "annotations" / f"instances_{year}.json"
    kept = downloads() / RETRIEVAL["coco 5k"].listed if split == "test" else None
    images = downloads() / "coco" / year
    source = image_store.fingerprint(images, image_store.VERSION, _stamp(listed),
                                     kept and _stamp(kept))

    def pictures() -> Pictures:
        boxes = _boxes(listed)
        if kept:
            boxes = boxes[boxes.file.isin([one["filename"] for one in _karpathy(kept)])]
        return _cut_out(images, _some(boxes, per_class))

    name = f"coco_crops-{split}{per_class or ''}-{size}"
    return image_store.decoded(name, source, size, pictures)


def _stamp(file: Path) -> list:
    """Return size and time of change: hundreds of megabytes take too long to read at each start."""
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _boxes(listed: Path) -> pd.DataFrame:
    """Read all boxes that are large enough, those of one picture together: file, label, and left,
    top, right, bottom in pixels, as annotated. DamagedError: another form, other categories."""
    try:
        found = json.loads(listed.read_text(), object_hook=_without_outlines)
        files = {one["id"]: one["file_name"] for one in found["images"]}
        categories = {str(one["id"]): one["name"] for one in found["categories"]}
        known = about_classes("coco")["classes"]
        if categories != known:
            other = sorted(set(categories.items()) ^ set(known.items()))
            raise ValueError(f"its categories are not those of COCO: {other[:3]}")
        place = {int(key): i for i, key in enumerate(known)}
        rows = []
        for one in sorted(found["annotations"], key=lambda one: one["image_id"]):
            left, top, width, height = one["bbox"]
            bounds = (left, top, left + width, top + height)
            if width > SMALLEST and height > SMALLEST:
                file = files[one["image_id"]]
                if not all(map(math.isfinite, bounds)) or not isinstance(file, str):
                    raise ValueError(f"{one['bbox']} in {file!r} is no box")
                rows.append((file, place[one["category_id"]], *bounds))
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise DamagedError.unreadable(listed, error, again("coco")) from error
    return pd.DataFrame(rows, columns=["file", "label", "left", "top", "right", "bottom"])


def _without_outlines(one: dict) -> dict:
    """Drop the outlines of an object, which are most of the file and fill the memory."""
    one.pop("segmentation", None)
    return one


def _some(boxes: pd.DataFrame, per_class: int | None) -> pd.DataFrame:
    """Keep at most `per_class` boxes of each class, drawn with seed 0, in their order."""
    if per_class is None:
        return boxes
    rng, keep = np.random.default_rng(0), []
    for label in np.unique(boxes.label):
        keep += rng.permutation(np.flatnonzero(boxes.label == label))[:per_class].tolist()
    return boxes.iloc[sorted(keep)]


def _cut_out(images: Path, boxes: pd.DataFrame) -> Pictures:
    """Return what is inside each box, widened to whole pixels inside its picture."""
    boxes = list(boxes.itertuples(index=False))

    @lru_cache(maxsize=128)  # the boxes of one picture stand together; threads work side by side
    def opened(file: str) -> Image.Image:
        with Image.open(images / file) as picture:
            return picture.convert("RGB")

    def read(i: int) -> tuple[Image.Image, int]:
        file, label, *bounds = boxes[i]
        picture = opened(file)
        return picture.crop(_whole(bounds, picture.size)), label

    return Pictures(len(boxes), read, lambda i: str(images / boxes[i].file), again("coco"))


def _whole(bounds: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = bounds
    return (max(math.floor(left), 0), max(math.floor(top), 0),
            min(math.ceil(right), size[0]), min(math.ceil(bottom), size[1]))


# --- pictures with captions -----------------------------------------------------------------------


def _pairs(name: str, size: int) -> Captioned:
    """Return Karpathy's test images in his order, each with its first five captions."""
    one = RETRIEVAL[name]
    listed, images = downloads() / one.listed, downloads() / one.images
    rows = _karpathy(listed)
    captions = [[said["raw"] for said in row["sentences"][:one.captions]] for row in rows]
    few = [row["filename"] for row, said in zip(rows, captions, strict=True)
           if len(said) < one.captions]
    if few:
        raise DamagedError(f"{name}: {listed}: {few[0]} has not {one.captions} captions. "
                           f"{again('karpathy')}")
    if len(rows) != one.count:
        raise DamagedError(f"{name}: {listed}: {len(rows):,} test images, not {one.count:,}. "
                           f"{again('karpathy')}")
    files, owner = [images / row["filename"] for row in rows], np.arange(len(rows))
    source = image_store.fingerprint(images, image_store.VERSION, _stamp(listed))
    stored, _ = image_store.decoded(f"{name.replace(' ', '_')}-test-{size}", source, size,
                                    lambda: from_files(files, owner, again(one.sets[0])))
    texts = tuple(text for said in captions for text in said)
    return Captioned(stored, texts, np.repeat(owner, one.captions), one.folds)


def _karpathy(listed: Path) -> list[dict]:
    """Read the test images of one of Karpathy's files. DamagedError: another form."""
    try:
        rows = [one for one in json.loads(listed.read_text())["images"] if one["split"] == "test"]
        texts = [one["filename"] for one in rows]
        texts += [said["raw"] for one in rows for said in one["sentences"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a file name or a caption is no text")
        return rows
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError.unreadable(listed, error, again("karpathy")) from error
