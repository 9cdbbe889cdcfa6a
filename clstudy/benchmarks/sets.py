"""Published sets of photographs: where each lies on disk, how it is read, which names its classes have.

They are looked for in the folder CLSTUDY_DATA, else in data/cache/downloads, laid out as torchvision lays them out;
only `clstudy data get NAME` writes there. Names and orders of classes stand in data/classes/, with their sources."""
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from .. import cache
from ..cache import DamagedError, Pictures
from ..config import DATA, choose

NAMES = DATA / "classes"


@dataclass(frozen=True)
class Archive:
    """A file to fetch, and the folder that it is unpacked in. inner: an archive in it that is to be unpacked too."""

    url: str
    md5: str
    into: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Opened:
    """What a reader makes of a split: (picture, label) by position, the key of each label in data/classes, and which
    positions belong to the split, in order."""

    pictures: Any  # torchvision's sets are no Sequence
    keys: Sequence[str]
    keep: Sequence[int]


@dataclass(frozen=True)
class Set:
    """One published set."""

    folder: str  # below root()
    marks: tuple[str, ...]  # what must lie in it
    read: Callable[[Path, str], Opened]  # (root, split)
    images: dict[str, int]  # how many there are in each split
    width: int | None  # pixels of all its pictures; None: they differ, and are resized to what is asked for
    archives: tuple[Archive, ...]
    megabytes: int  # to fetch, about


def root() -> Path:
    return Path(os.environ.get("CLSTUDY_DATA") or DATA / "cache" / "downloads").expanduser()


@lru_cache
def about_classes(name: str) -> dict:
    """data/classes/<name>.json: "classes" (key on disk → name in prompts, in the set's order), "orders", "groups"."""
    return json.loads((NAMES / f"{name}.json").read_text())


def missing(name: str, place: Path | None = None) -> list[str]:
    """Paths of a set that are not there."""
    one = SETS[name]
    return [path for path in (f"{one.folder}/{mark}" for mark in one.marks) if not ((place or root()) / path).exists()]


def require(names: Iterable[str], advice: str = "") -> None:
    """FileNotFoundError: one of the sets is not there; says what was looked for and where, and how to get it."""
    absent = {name: missing(name) for name in names if missing(name)}
    if absent:
        looked = "; ".join(f"{name} ({', '.join(paths)})" for name, paths in absent.items())
        size = sum(SETS[name].megabytes for name in absent) / 1000
        raise FileNotFoundError(f"not in {root()}: {looked}. `clstudy data get {' '.join(absent)}` fetches about "
                                f"{size:.1f} GB; CLSTUDY_DATA names another folder{advice}")


def load(name: str, split: str, width: int, source: str | None = None
         ) -> tuple[UInt8[Tensor, "images 3 _ _"], Int[ndarray, " images"]]:
    """Images and labels (positions in data/classes) of a split, decoded at the first call. source: fingerprint(name),
    if it is known already. DamagedError: a file cannot be read, or pictures are missing."""
    width = SETS[name].width or width
    return cache.decoded(f"{name}-{split}-{width}", source or fingerprint(name), width, lambda: _open(name, split))


def fingerprint(name: str) -> str:
    return cache.fingerprint(root() / SETS[name].folder, cache.VERSION, list(about_classes(name)["classes"]))


def _open(name: str, split: str) -> Pictures:
    one, place = SETS[name], root() / SETS[name].folder
    cure = f"`clstudy data get {name}` fetches it again once {place} is moved away"
    try:
        opened = one.read(root(), split)
    except Exception as error:
        raise DamagedError(f"{name}: {place} cannot be read ({type(error).__name__}: {error}). {cure}") from error
    if len(opened.keep) != one.images[split]:
        count = f"{len(opened.keep):,} {split} images, not {one.images[split]:,}"
        raise DamagedError(f"{name}: {place} has {count}. {cure}")
    position = {key: i for i, key in enumerate(about_classes(name)["classes"])}

    def read(i: int) -> tuple[Image.Image, int]:
        picture, label = opened.pictures[opened.keep[i]]
        if opened.keys[label] not in position:
            raise ValueError(f"class {opened.keys[label]!r} is not one of {name}")
        return picture, position[opened.keys[label]]

    return Pictures(len(opened.keep), read, lambda i: _file(opened.pictures, opened.keep[i]), cure)


def _file(pictures: Any, i: int) -> str:
    """The file of a picture, for messages; torchvision gives it under several names."""
    for name in ("samples", "_image_files", "_images"):
        if hasattr(pictures, name):
            found = getattr(pictures, name)[i]
            return str(found[0] if isinstance(found, tuple) else found)
    if hasattr(pictures, "categories"):  # Caltech101
        return str(Path(pictures.root, "101_ObjectCategories", pictures.categories[pictures.y[i]],
                        f"image_{pictures.index[i]:04d}.jpg"))
    return f"picture {i}"


def _all(pictures: Any, keys: Sequence[str]) -> Opened:
    return Opened(pictures, keys, range(len(pictures)))


# --- readers: torchvision's, where it has one; imported here, because that takes a second ----------------------------


def _cifar(kind: str, root: Path, split: str) -> Opened:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    known = getattr(datasets, kind)
    for file, md5 in [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]:
        path = root / known.base_folder / file
        if not check_integrity(path, md5):
            raise ValueError(f"{path} is not the published file: its md5 is not {md5}")
    found = known(root, train=split == "train")
    return _all(found, found.classes)


def _cifar10(root: Path, split: str) -> Opened:
    return _cifar("CIFAR10", root, split)


def _cifar100(root: Path, split: str) -> Opened:
    return _cifar("CIFAR100", root, split)


def _tiny_imagenet(root: Path, split: str) -> Opened:
    """Test is the published validation split: labels of its test split were never published."""
    from torchvision.datasets import ImageFolder

    place = root / "tiny-imagenet-200"
    if split == "train":
        found = ImageFolder(place / "train")
        return _all(found, found.classes)
    path = place / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"{path}: a line is not `file, wnid, box`, separated by tabs")
    keys = sorted({row[1] for row in rows})
    return _all(_Listed([(place / "val" / "images" / row[0], keys.index(row[1])) for row in sorted(rows)]), keys)


class _Listed:
    """Pictures of a list of (file, label)."""

    def __init__(self, samples: list[tuple[Path, int]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        with Image.open(self.samples[i][0]) as picture:
            return picture.convert("RGB"), self.samples[i][1]


def _imagenet_r(root: Path, split: str) -> Opened:
    """The set has no splits: 80 % train, drawn by torch's generator with seed 0 over the sorted files, as in SIT's
    released code."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(root / "imagenet-r")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    first = int(len(found) * 0.8)
    part = order[:first] if split == "train" else order[first:]
    return Opened(found, found.classes, part.sort().values.tolist())


def _food101(root: Path, split: str) -> Opened:
    from torchvision.datasets import Food101

    found = Food101(root, split=split)
    return _all(found, found.classes)


def _caltech101(root: Path, split: str) -> Opened:
    """All pictures (there is no published split) but those of the background and of `Faces_easy`, which shows the same
    people as `Faces`."""
    from torchvision.datasets import Caltech101

    found, known = Caltech101(root), about_classes("caltech101")["classes"]
    return Opened(found, found.categories, [i for i, y in enumerate(found.y) if found.categories[y] in known])


def _eurosat(root: Path, split: str) -> Opened:
    """All pictures: there is no published split."""
    from torchvision.datasets import EuroSAT

    found = EuroSAT(root)
    return _all(found, found.classes)


def _flowers102(root: Path, split: str) -> Opened:
    from torchvision.datasets import Flowers102

    return _all(Flowers102(root, split=split), [str(number) for number in range(1, 103)])


def _oxford_pets(root: Path, split: str) -> Opened:
    from torchvision.datasets import OxfordIIITPet

    found = OxfordIIITPet(root, split=split)
    return _all(found, found.classes)


_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
SETS = {
    "cifar10": Set("cifar-10-batches-py", ("batches.meta", "data_batch_1", "test_batch"), _cifar10,
                   {"train": 50_000, "test": 10_000}, 32,
                   (Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                            "c58f30108f718f92721af3b95e74349a"),), 170),
    "cifar100": Set("cifar-100-python", ("meta", "train", "test"), _cifar100, {"train": 50_000, "test": 10_000}, 32,
                    (Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                             "eb9058c3a382ffc7106e4002c42a8d85"),), 169),
    "tiny_imagenet": Set("tiny-imagenet-200", ("wnids.txt", "train", "val/val_annotations.txt", "val/images"),
                         _tiny_imagenet, {"train": 100_000, "test": 10_000}, 64,
                         (Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                                  "90528d7ca1a48142e341f4ef8d21d0de"),), 248),
    "imagenet_r": Set("imagenet-r", ("n01443537",), _imagenet_r, {"train": 24_000, "test": 6_000}, None,
                      (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                               "a61312130a589d0ca1a8fca1f2bd3337"),), 2191),
    "food101": Set("food-101", ("meta/test.json", "images"), _food101, {"test": 25_250}, None,
                   (Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                            "85eeb15f3717b99a5da872d97d918f87"),), 4996),
    "caltech101": Set("caltech101", ("101_ObjectCategories",), _caltech101, {"test": 8_242}, None,
                      (Archive("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                               "3138e1922a9193bfa496528edbbc45d0", "caltech101",
                               "caltech-101/101_ObjectCategories.tar.gz"),), 137),
    "eurosat": Set("eurosat", ("2750",), _eurosat, {"test": 27_000}, 64,
                   (Archive("https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                            "c8fa014336c82ac7804f0398fcb19387", "eurosat"),), 94),
    "flowers102": Set("flowers-102", ("jpg", "imagelabels.mat", "setid.mat"), _flowers102, {"test": 6_149}, None,
                      (Archive(f"{_FLOWERS}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
                       Archive(f"{_FLOWERS}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
                       Archive(f"{_FLOWERS}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102")), 345),
    "oxford_pets": Set("oxford-iiit-pet", ("images", "annotations/test.txt"), _oxford_pets, {"test": 3_669}, None,
                       (Archive(f"{_PETS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
                        Archive(f"{_PETS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet")),
                       811),
}
SIDE = ("food101", "caltech101", "eurosat", "flowers102", "oxford_pets")  # those of the SIT paper


def check_side(side: Sequence[str]) -> None:
    """ValueError: not a list of names of sets."""
    if isinstance(side, str):
        raise ValueError(f"side={side!r}: must be a list of names, such as {[side]}")
    for name in side:
        choose("side", name, SETS)
