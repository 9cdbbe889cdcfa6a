"""Published sets of photographs: where each lies on disk, how it is read, and its class names.

They are looked for in the folder CLSTUDY_DATA, else in data/cache/downloads; only `clstudy data get
NAME` writes there. data/sets.toml says what each set consists of, data/classes/ names its classes,
both with their sources."""
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clstudy.data import image_store
from clstudy.data.image_store import DamagedError, Pictures
from clstudy.utils.paths import DATA, downloads

DRAWN = {"train": "train80", "test": "test20"}  # splits of sets that publish none
LAST = 500  # test pictures of each class of EuroSAT in VR-LwF's split
EACH = 50  # pictures of each class of tieredImageNet


@dataclass(frozen=True)
class Archive:
    """A file to fetch, the folder that it is unpacked in, and an archive in it to unpack too."""

    url: str
    md5: str  # "": none is published; a zip holds checksums of its own
    into: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Opened:
    """A split as a reader opens it."""

    pictures: Any  # (picture, label) by position; torchvision's sets are no Sequence
    keys: Sequence[str]  # of each label in data/classes
    keep: Sequence[int] | None = None  # positions that belong to the split, in order; None: all


@dataclass(frozen=True)
class Set:
    """One published set; data/sets.toml explains the fields."""

    folder: str
    marks: Sequence[str]
    read: Callable[[Path, str], Opened] | None  # (root, split); None: a benchmark reads it
    images: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None
    archives: Sequence[Archive] = ()
    megabytes: int = 0
    by_hand: str = ""
    use: str = "held-out set"


@lru_cache
def about_classes(name: str) -> dict:
    """Read data/classes/<name>.json: "classes" (key on disk → name in prompts, in the set's order),
    "orders", "groups"."""
    return json.loads((DATA / "classes" / f"{name}.json").read_text())


def missing(name: str, place: Path | None = None) -> list[str]:
    """Return the paths of a set that do not exist."""
    paths = [f"{SETS[name].folder}/{mark}" for mark in SETS[name].marks]
    return [path for path in paths if not ((place or downloads()) / path).exists()]


def require(names: Iterable[str], advice: str = "") -> None:
    """Raise a FileNotFoundError if a set is missing; it says what is missing, and how to get it."""
    refuse({name: missing(name) for name in names}, advice)


def refuse(absent: Mapping[str, list[str]], advice: str = "") -> None:
    """Raise a FileNotFoundError if paths of a set are absent."""
    absent = {name: paths for name, paths in absent.items() if paths}
    if absent:
        looked = "; ".join(f"{name} ({', '.join(paths)})" for name, paths in absent.items())
        raise FileNotFoundError(f"not in {downloads()}: {looked}. {how_to_get(absent)}; "
                                f"CLSTUDY_DATA names another folder{advice}")


def how_to_get(names: Iterable[str]) -> str:
    """Return the command that fetches the sets, and what to do about those that it cannot fetch."""
    fetched = [name for name in names if SETS[name].archives]
    said = [f"{name}: {SETS[name].by_hand}" for name in names if name not in fetched]
    if fetched:
        gigabytes = sum(SETS[name].megabytes for name in fetched) / 1000
        command = f"`clstudy data get {' '.join(fetched)}`"
        said.insert(0, f"{command} fetches about {gigabytes:.2f} GB")
    return ". ".join(said)


def again(name: str) -> str:
    """Return what to do about a set that is damaged."""
    one = SETS[name]
    place = downloads() / one.folder
    command = f"`clstudy data get {name}` fetches it again once {place} is moved away"
    return command if one.archives else one.by_hand


def load(name: str, split: str, width: int, source: str | None = None
         ) -> tuple[UInt8[Tensor, "images 3 _ _"], Int[ndarray, " images"]]:
    """Return images and labels (positions in data/classes) of a split, decoded at the first call.

    source: fingerprint(name), if it is known already. DamagedError: a file cannot be read, or
    pictures are missing."""
    width = SETS[name].width or width
    return image_store.decoded(f"{name}-{split}-{width}", source or fingerprint(name), width,
                               lambda: pictures(name, split))


def fingerprint(name: str) -> str:
    place, keys = downloads() / SETS[name].folder, list(about_classes(name)["classes"])
    return image_store.fingerprint(place, image_store.VERSION, keys)


def pictures(name: str, split: str) -> Pictures:
    """Open the pictures of a split. DamagedError: the set cannot be read, or lacks pictures."""
    one, cure = SETS[name], again(name)
    place = downloads() / one.folder
    try:
        opened = one.read(downloads(), split)
    except Exception as error:
        raise DamagedError.unreadable(f"{name}: {place}", error, cure) from error
    keep = range(len(opened.pictures)) if opened.keep is None else opened.keep
    if len(keep) != one.images[split]:
        count = f"{len(keep):,} {split} images, not {one.images[split]:,}"
        raise DamagedError(f"{name}: {place} has {count}. {cure}")
    position = {key: i for i, key in enumerate(about_classes(name)["classes"])}

    def read(i: int) -> tuple[Image.Image, int]:
        picture, label = opened.pictures[keep[i]]
        if opened.keys[label] not in position:
            raise ValueError(f"class {opened.keys[label]!r} is not one of {name}")
        return picture, position[opened.keys[label]]

    return Pictures(len(keep), read, lambda i: _file(opened.pictures, keep[i]), cure)


def _file(pictures: Any, i: int) -> str:
    """Return the file of a picture, for messages; torchvision stores it under several names."""
    for name in ("samples", "_samples", "_image_files", "_images"):
        if hasattr(pictures, name):
            found = getattr(pictures, name)[i]
            return str(found[0] if isinstance(found, tuple) else found)
    if hasattr(pictures, "categories"):  # Caltech101
        folder = Path(pictures.root, "101_ObjectCategories", pictures.categories[pictures.y[i]])
        return str(folder / f"image_{pictures.index[i]:04d}.jpg")
    return f"picture {i}"


# --- readers; torchvision is imported in them, because that takes a second ------------------------


SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}  # as torchvision is told them
FLAG = {"train": {"train": True}, "test": {"train": False}}
TRAINVAL = {**SPLIT, "train": {"split": "trainval"}}


def _by_torchvision(kind: str, splits: Mapping[str, dict] = SPLIT, numbered: int = 0) -> Callable:
    """Return a reader for a set whose published splits torchvision knows.

    numbered: how many classes there are, if their keys in data/classes are numbers from 1."""

    def read(root: Path, split: str) -> Opened:
        from torchvision import datasets

        found = getattr(datasets, kind)(root, **splits[split])
        return Opened(found, [str(i + 1) for i in range(numbered)] or found.classes)

    return read


def _cifar(kind: str) -> Callable:
    def read(root: Path, split: str) -> Opened:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        known = getattr(datasets, kind)
        meta = (known.meta["filename"], known.meta["md5"])
        for file, md5 in [*known.train_list, *known.test_list, meta]:  # torchvision names no file
            path = root / known.base_folder / file
            if not check_integrity(path, md5):
                raise ValueError(f"{path} is not the published file: its md5 is not {md5}")
        return _by_torchvision(kind, FLAG)(root, split)

    return read


class _Listed:
    """Pictures of a list of (file, label)."""

    def __init__(self, samples: Sequence[tuple[Path, int]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        file, label = self.samples[i]
        return Image.open(file).convert("RGB"), label


def _tiny_imagenet(root: Path, split: str) -> Opened:
    """Test is the published validation split: labels of its test split were never published."""
    from torchvision.datasets import ImageFolder

    place = root / "tiny-imagenet-200"
    if split == "train":
        found = ImageFolder(place / "train")
        return Opened(found, found.classes)
    told = pd.read_csv(place / "val" / "val_annotations.txt", sep="\t", header=None, usecols=[0, 1])
    told = told.sort_values(0)
    labels, keys = pd.factorize(told[1], sort=True)
    files = [place / "val" / "images" / file for file in told[0]]
    return Opened(_Listed(list(zip(files, labels.tolist(), strict=True))), list(keys))


def _tiered_imagenet(root: Path, split: str) -> Opened:
    """The first EACH training pictures of each class, by name: all 206,209 would take longer to
    evaluate than a stage takes to train. Folders of other classes are ignored, so all of ImageNet
    does."""
    keys = list(about_classes("tiered_imagenet_test")["classes"])
    place = root / "tiered-imagenet" / "test"
    return Opened(_Listed([(file, label) for label, key in enumerate(keys)
                           for file in sorted((place / key).glob(f"{key}_*.JPEG"))[:EACH]]), keys)


def _part(count: int, split: str, seed: int = 42) -> list[int]:
    """Return the positions of a split of a set that publishes none: "test" is all of it; "train80"
    and "test20" are drawn by torch's generator, with seed 42 as in ZSCL's released code."""
    if split == "test":
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = int(0.8 * count)
    return (order[:first] if split == "train80" else order[first:]).sort().values.tolist()


def _imagenet_r(root: Path, split: str) -> Opened:
    """80 % train, drawn with seed 0 over the sorted files, as in SIT's released code."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(root / "imagenet-r")
    return Opened(found, found.classes, _part(len(found), DRAWN[split], seed=0))


def _caltech101(root: Path, split: str) -> Opened:
    """All pictures, or a part of them, except the background and `Faces_easy`, which shows the same
    people as `Faces`. The parts are drawn before `Faces_easy` is taken out, as in ZSCL's code."""
    from torchvision.datasets import Caltech101

    found, known = Caltech101(root), about_classes("caltech101")["classes"]
    keep = [i for i in _part(len(found), split) if found.categories[found.y[i]] in known]
    return Opened(found, found.categories, keep)


def _eurosat(root: Path, split: str) -> Opened:
    """All pictures, a part, or the split of VR-LwF's released code: "last500" are the last 500
    pictures of each class by name, "but500" the others."""
    from torchvision.datasets import EuroSAT

    found = EuroSAT(root)
    if split not in ("but500", "last500"):
        return Opened(found, found.classes, _part(len(found), split))
    left = pd.Series(found.targets).groupby(found.targets).cumcount(ascending=False)
    chosen = left < LAST if split == "last500" else left >= LAST
    return Opened(found, found.classes, left.index[chosen].tolist())


def _sun397(root: Path, split: str) -> Opened:
    """80 % train, drawn over the sorted files: torchvision has neither the set's partitions nor an
    order."""
    from torchvision.datasets import SUN397

    found = SUN397(root)
    order = sorted(range(len(found)), key=lambda i: found._image_files[i].as_posix())
    return Opened(found, found.classes, [order[i] for i in _part(len(found), DRAWN[split])])


READERS = {
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "tiny_imagenet": _tiny_imagenet,
    "imagenet_r": _imagenet_r,
    "food101": _by_torchvision("Food101"),
    "caltech101": _caltech101,
    "eurosat": _eurosat,
    "flowers102": _by_torchvision("Flowers102", numbered=102),
    "oxford_pets": _by_torchvision("OxfordIIITPet", TRAINVAL),
    "aircraft": _by_torchvision("FGVCAircraft"),
    "dtd": _by_torchvision("DTD"),  # the first of its ten partitions
    "mnist": _by_torchvision("MNIST", FLAG),
    "stanford_cars": _by_torchvision("StanfordCars", numbered=196),
    "sun397": _sun397,
    "tiered_imagenet_test": _tiered_imagenet,
}


def _set(name: str, archives: Sequence[dict] = (), **about) -> Set:
    return Set(**about, read=READERS.get(name), archives=tuple(Archive(**one) for one in archives))


SETS = {name: _set(name, **about)
        for name, about in tomllib.loads((DATA / "sets.toml").read_text("utf-8")).items()}
