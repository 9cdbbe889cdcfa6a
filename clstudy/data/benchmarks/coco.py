"""The data of VR-LwF (Ding et al. 2022, arXiv 2207.09248): objects cut out of COCO, and EuroSAT
with its split.

    coco/annotations/instances_train2014.json  instances_val2014.json  coco/train2014/  coco/val2014/
    karpathy/dataset_coco.json  dataset_flickr30k.json
    flickr30k/flickr30k-images/  tiered-imagenet/test/<WordNet id>/

lie where all published sets lie (see sets.py). Facts on splits and prompts: the released code,
github.com/yxding95/CL-CLIP (data_preprocess/coco_process.py, data.py, methods/base.py).

Departures. The released code cuts the boxes out with a program that is not released: here a box is
widened to whole pixels. It resizes to 256 and crops 224 at random in training; here each crop is
stored once, at `size` (shorter side, bicubic, then the middle square), and what moves is left to
the augmentation of the run. Its pictures for the zero-shot task are not published: here, 50 of each
test class of tieredImageNet."""
import json
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from clstudy.data import image_store
from clstudy.data.benchmarks.datasets import about_classes, again, fingerprint, load, missing, require
from clstudy.data.benchmarks.photographs import Count, Photographs, Template
from clstudy.data.image_store import DamagedError, Pictures
from clstudy.data.types import BenchmarkData, Captioned, Labelled
from clstudy.utils.paths import downloads

SCENE = "this is a photo of {} in the scene ."
SHORT = "this is a photo of {} ."  # of the zero-shot task, and in a review of the paper that of the crops too
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

    held_out: Sequence[str] = HELD_OUT  # published sets classified zero-shot, with the prompt SHORT
    retrieval: Sequence[Literal[tuple(RETRIEVAL)]] = tuple(RETRIEVAL)  # images and captions to find

    def require(self) -> None:
        super().require()
        asked = [name for one in self.retrieval for name in RETRIEVAL[one].sets]
        there = [
            one for one in self.retrieval if not any(missing(name) for name in RETRIEVAL[one].sets)
        ]
        advice = f'; or leave it out: benchmark_args={{"retrieval": {json.dumps(there)}}}'
        require(dict.fromkeys(asked), advice=advice)

    def together(self, name: str, train: Labelled, test: Labelled, about: dict) -> BenchmarkData:
        """The parts as one benchmark; about: keys and groups of its classes."""
        prompts = [train.template.format(one) for one in train.class_names]
        keys = list(about["classes"])
        groups = {
            group: tuple(keys.index(key) for key in members)
            for group, members in about["groups"].items()
        }
        return BenchmarkData(
            name, train, test, tuple(prompts[label] for label in train.labels), groups,
            self.held_out_sets(SHORT), {one: _pairs(one, self.size) for one in self.retrieval})


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
    prompt: ClassVar[str] = SCENE

    per_class: Count = None  # at most so many boxes of each class; None: all
    test_per_class: Count = None  # the same for testing
    template: Template = SCENE  # prompt, with {} for the class

    def own(self) -> Sequence[str]:
        return ("coco",)

    def require(self) -> None:
        require(("coco", "karpathy"))
        super().require()

    def load(self) -> BenchmarkData:
        self.require()
        about = about_classes("coco")
        names = tuple(about["classes"].values())
        train, test = (_crops(split, count, self.size, names, self.template)
                       for split, count in (("train", self.per_class), ("test",
                                                                        self.test_per_class)))
        return self.together("coco_crops", train, test, about)


@dataclass
class EuroSat(ObjectsOfVrLwf):
    """EuroSAT (Helber et al. 2019, arXiv 1709.00029) as in VR-LwF's released code: 27,000 images,
    10 classes, 64 × 64.

    Test: the last 500 images of each class, by name. Groups: five phases of two classes, by name.
    The classes are named as the folders, in small letters (the held-out set `eurosat` has CLIP's
    names, and all images)."""

    title: ClassVar[str] = "EuroSAT"
    source: ClassVar[str] = "Helber et al. 2019, arXiv 1709.00029"
    prompt: ClassVar[str] = SATELLITE

    template: Template = SATELLITE  # prompt, with {} for the class

    def own(self) -> Sequence[str]:
        return ("eurosat",)

    def load(self) -> BenchmarkData:
        self.require()
        about, source = about_classes("eurosat"), fingerprint("eurosat")
        keys = list(about["classes"])
        names = tuple(re.sub("(?<=.)(?=[A-Z])", " ", key).lower() for key in keys)
        train, test = (Labelled(*load("eurosat", split, self.size, source), names, self.template)
                       for split in ("but500", "last500"))
        groups = {f"phase {i // 2 + 1}": keys[i:i + 2] for i in range(0, len(keys), 2)}
        return self.together("eurosat", train, test, {**about, "groups": groups})


# --- boxes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """An object in a picture. bounds: left, top, right, bottom in pixels, as annotated."""

    file: str
    bounds: tuple[float, float, float, float]
    label: int


def _crops(split: str, per_class: int | None, size: int, names: tuple[str, ...],
           template: str) -> Labelled:
    year = "train2014" if split == "train" else "val2014"
    listed = downloads() / "coco" / "annotations" / f"instances_{year}.json"
    kept = downloads() / RETRIEVAL["coco 5k"].listed if split == "test" else None
    images = downloads() / "coco" / year
    source = image_store.fingerprint(images, image_store.VERSION, _stamp(listed), kept
                                     and _stamp(kept))

    def pictures() -> Pictures:
        boxes = _boxes(listed)
        if kept:
            files = {one["filename"] for one in _karpathy(kept)}
            boxes = [box for box in boxes if box.file in files]
        return _Crops(images, _some(boxes, per_class)).pictures()

    name = f"coco_crops-{split}{per_class or ''}-{size}"
    return Labelled(*image_store.decoded(name, source, size, pictures), names, template)


def _stamp(file: Path) -> list:
    """Size and time of change: contents of hundreds of megabytes are not read at each start."""
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _boxes(listed: Path) -> list[Box]:
    """All boxes that are large enough, those of one picture together. DamagedError: another form,
    other categories."""
    try:
        found = json.loads(listed.read_text(), object_hook=_without_outlines)
        files = {one["id"]: one["file_name"] for one in found["images"]}
        categories = {str(one["id"]): one["name"] for one in found["categories"]}
        known = about_classes("coco")["classes"]
        if categories != known:
            other = sorted(set(categories.items()) ^ set(known.items()))
            raise ValueError(f"its categories are not those of COCO: {other[:3]}")
        place = {int(key): i for i, key in enumerate(known)}
        boxes = []
        for one in sorted(found["annotations"], key=lambda one: one["image_id"]):
            left, top, width, height = one["bbox"]
            if width > SMALLEST and height > SMALLEST:
                bounds = (left, top, left + width, top + height)
                if not all(map(math.isfinite, bounds)) or not isinstance(
                        files[one["image_id"]], str):
                    raise ValueError(
                        f"a box that is none: {one['bbox']} in {files[one['image_id']]!r}")
                boxes.append(Box(files[one["image_id"]], bounds, place[one["category_id"]]))
        return boxes
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise DamagedError(
            f"{listed} cannot be read ({type(error).__name__}: {error}). {again('coco')}"
        ) from error


def _without_outlines(one: dict) -> dict:
    """The outlines of the objects are most of the file; without them it fits in memory many
    times."""
    one.pop("segmentation", None)
    return one


def _some(boxes: list[Box], per_class: int | None) -> list[Box]:
    """At most `per_class` boxes of each class, drawn with seed 0, in their order."""
    if per_class is None:
        return boxes
    labels, rng = np.array([box.label for box in boxes], dtype=int), np.random.default_rng(0)
    keep = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)
    ]
    return [boxes[i] for i in sorted(np.concatenate(keep))] if keep else []


class _Crops:
    """What is inside of boxes. Those of one picture stand together, and each thread keeps the
    picture it read last, so a picture is decoded once (or twice, where the share of a thread ends
    inside it)."""

    def __init__(self, images: Path, boxes: list[Box]):
        self.images, self.boxes, self.last = images, boxes, threading.local()

    def pictures(self) -> Pictures:
        return Pictures(len(self.boxes), self.read, lambda i: str(self.images / self.boxes[i].file),
                        again("coco"))

    def read(self, i: int) -> tuple[Image.Image, int]:
        box = self.boxes[i]
        if getattr(self.last, "file", None) != box.file:
            with Image.open(self.images / box.file) as picture:
                self.last.picture, self.last.file = picture.convert("RGB"), box.file
        return self.last.picture.crop(_whole(box.bounds, self.last.picture.size)), box.label


def _whole(bounds: tuple[float, float, float, float],
           size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box widened to whole pixels, inside the picture."""
    left, top, right, bottom = bounds
    return (max(math.floor(left), 0), max(math.floor(top), 0), min(math.ceil(right), size[0]),
            min(math.ceil(bottom), size[1]))


# --- pictures with captions --------------------------------------------------------------------------------------


def _pairs(name: str, size: int) -> Captioned:
    """Karpathy's test images in his order, each with its first five captions."""
    one = RETRIEVAL[name]
    listed, images = downloads() / one.listed, downloads() / one.images
    rows = _karpathy(listed)
    captions = [[sentence["raw"] for sentence in row["sentences"][:one.captions]] for row in rows]
    few = [
        row["filename"] for row, said in zip(rows, captions, strict=True)
        if len(said) < one.captions
    ]
    if len(rows) != one.count or few:
        what = f"{few[0]} has not {one.captions} captions" if few else f"{len(rows):,} test images, not {one.count:,}"
        raise DamagedError(f"{name}: {listed}: {what}. {again('karpathy')}")

    def read(i: int) -> tuple[Image.Image, int]:
        with Image.open(images / rows[i]["filename"]) as picture:
            return picture.convert("RGB"), i

    source = image_store.fingerprint(images, image_store.VERSION, _stamp(listed))
    stored, _ = image_store.decoded(
        f"{name.replace(' ', '_')}-test-{size}", source, size, lambda: Pictures(
            len(rows), read, lambda i: str(images / rows[i]["filename"]), again(one.sets[0])))
    return Captioned(stored, tuple(text for said in captions for text in said),
                     np.repeat(np.arange(len(rows)), one.captions), folds=one.folds)


def _karpathy(listed: Path) -> list[dict]:
    """The test images of one of Karpathy's files. DamagedError: another form."""
    try:
        rows = [one for one in json.loads(listed.read_text())["images"] if one["split"] == "test"]
        texts = [
            text for one in rows
            for text in (one["filename"], *(said["raw"] for said in one["sentences"]))
        ]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a file name or a caption is no text")
        return rows
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"{listed} cannot be read ({type(error).__name__}: {error}). {again('karpathy')}"
        ) from error
