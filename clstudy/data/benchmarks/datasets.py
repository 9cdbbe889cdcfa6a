"""Published sets of photographs: where each lies on disk, how it is read, which names its classes
have.

They are looked for in the folder CLSTUDY_DATA, else in data/cache/downloads, laid out as
torchvision lays them out; only `clstudy data get NAME` writes there. Names and orders of classes
stand in data/classes/, with their sources."""
import json
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

from clstudy.data import image_store
from clstudy.data.image_store import DamagedError, Pictures
from clstudy.utils.paths import DATA, downloads

NAMES = DATA / "classes"
LAST = 500  # test pictures of each class of EuroSAT in VR-LwF's split
EACH = 50  # pictures of each class of tieredImageNet


@dataclass(frozen=True)
class Archive:
    """A file to fetch, and the folder that it is unpacked in. inner: an archive in it that is to be
    unpacked too."""

    url: str
    md5: str  # "": none is published; a zip holds checksums of its own
    into: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Opened:
    """What a reader makes of a split: (picture, label) by position, the key of each label in
    data/classes, and which positions belong to the split, in order."""

    pictures: Any  # torchvision's sets are no Sequence
    keys: Sequence[str]
    keep: Sequence[int]


@dataclass(frozen=True)
class Set:
    """One published set."""

    folder: str  # below downloads()
    marks: tuple[str, ...]  # what must lie in it
    read: Callable[[Path, str],
                   Opened] | None  # (root, split); None: a benchmark reads it in its own way
    images: dict[str,
                 int]  # how many there are in each split; a set with a split "test" can be held out
    width: int | None  # pixels of all its pictures; None: they differ, and are resized to what is asked for
    archives: tuple[Archive, ...]  # none: it cannot be fetched
    megabytes: int  # to fetch, about
    by_hand: str = ""  # why it cannot be fetched, and what is to be put where
    use: str = "held-out set"  # for the list, where it is no benchmark of the same name


@lru_cache
def about_classes(name: str) -> dict:
    """data/classes/<name>.json: "classes" (key on disk → name in prompts, in the set's order),
    "orders", "groups"."""
    return json.loads((NAMES / f"{name}.json").read_text())


def missing(name: str, place: Path | None = None) -> list[str]:
    """Paths of a set that are not there."""
    one = SETS[name]
    return [
        path for path in (f"{one.folder}/{mark}" for mark in one.marks)
        if not ((place or downloads()) / path).exists()
    ]


def require(names: Iterable[str], advice: str = "") -> None:
    """FileNotFoundError: one of the sets is not there; says what was looked for and where, and how
    to get it."""
    absent = {name: missing(name) for name in names if missing(name)}
    if absent:
        looked = "; ".join(f"{name} ({', '.join(paths)})" for name, paths in absent.items())
        raise FileNotFoundError(
            f"not in {downloads()}: {looked}. {how_to_get(absent)}; CLSTUDY_DATA names another folder{advice}"
        )


def how_to_get(names: Iterable[str]) -> str:
    """The command for the sets that it fetches, and what to do about each of the others."""
    fetched = [name for name in names if SETS[name].archives]
    size = sum(SETS[name].megabytes for name in fetched) / 1000
    said = [f"`clstudy data get {' '.join(fetched)}` fetches about {size:.2f} GB"]
    return ". ".join(said[:bool(fetched)]
                     + [f"{name}: {SETS[name].by_hand}" for name in names if name not in fetched])


def load(name: str, split: str, width: int, source: str | None = None
         ) -> tuple[UInt8[Tensor, "images 3 _ _"], Int[ndarray, " images"]]:
    """Images and labels (positions in data/classes) of a split, decoded at the first call. source:
    fingerprint(name), if it is known already. DamagedError: a file cannot be read, or pictures are
    missing."""
    width = SETS[name].width or width
    return image_store.decoded(
        f"{name}-{split}-{width}", source or fingerprint(name), width, lambda: pictures(name, split)
    )


def fingerprint(name: str) -> str:
    return image_store.fingerprint(
        downloads() / SETS[name].folder, image_store.VERSION, list(about_classes(name)["classes"])
    )


def again(name: str) -> str:
    """What to do about a set that is damaged."""
    one, place = SETS[name], downloads() / SETS[name].folder
    return f"`clstudy data get {name}` fetches it again once {place} is moved away" if one.archives else one.by_hand


def pictures(name: str, split: str) -> Pictures:
    """The pictures of a split as they lie on disk. DamagedError: the set cannot be read, or
    pictures are missing."""
    one, place, cure = SETS[name], downloads() / SETS[name].folder, again(name)
    try:
        opened = one.read(downloads(), split)
    except Exception as error:
        raise DamagedError(
            f"{name}: {place} cannot be read ({type(error).__name__}: {error}). {cure}") from error
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
    for name in ("samples", "_samples", "_image_files", "_images"):
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
    for file, md5 in [
            *known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])
    ]:
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
    return _all(
        _Listed([(place / "val" / "images" / row[0], keys.index(row[1])) for row in sorted(rows)]),
        keys)


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
    """The set has no splits: 80 % train, drawn by torch's generator with seed 0 over the sorted
    files, as in SIT's released code."""
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


def _part(count: int, split: str) -> list[int]:
    """Positions of a split of a set that has no published one: "test" is all of it; "train80" and
    "test20" are drawn by torch's generator with seed 42, as in ZSCL's released code."""
    if split == "test":
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(42))
    first = int(0.8 * count)
    return (order[:first] if split == "train80" else order[first:]).sort().values.tolist()


def _caltech101(root: Path, split: str) -> Opened:
    """All pictures, or a part of them, but those of the background and of `Faces_easy`, which shows
    the same people as `Faces`. The parts are drawn before `Faces_easy` is taken out, so that they
    hold the pictures that ZSCL's hold."""
    from torchvision.datasets import Caltech101

    found, known = Caltech101(root), about_classes("caltech101")["classes"]
    keep = [i for i in _part(len(found), split) if found.categories[found.y[i]] in known]
    return Opened(found, found.categories, keep)


def _eurosat(root: Path, split: str) -> Opened:
    """"last500": the last 500 pictures of each class, in order of their names; "but500": the
    others; as in VR-LwF's released code. Else all of it, or a part."""
    from torchvision.datasets import EuroSAT

    found = EuroSAT(root)
    if split not in ("but500", "last500"):
        return Opened(found, found.classes, _part(len(found), split))
    labels = torch.tensor(found.targets)
    last = {
        i for label in range(len(found.classes))
        for i in (labels == label).nonzero()[-LAST:, 0].tolist()
    }
    return Opened(found, found.classes,
                  [i for i in range(len(found)) if (i in last) == (split == "last500")])


def _flowers102(root: Path, split: str) -> Opened:
    from torchvision.datasets import Flowers102

    return _all(Flowers102(root, split=split), [str(number) for number in range(1, 103)])


def _oxford_pets(root: Path, split: str) -> Opened:
    from torchvision.datasets import OxfordIIITPet

    found = OxfordIIITPet(root, split="trainval" if split == "train" else split)
    return _all(found, found.classes)


def _aircraft(root: Path, split: str) -> Opened:
    from torchvision.datasets import FGVCAircraft

    found = FGVCAircraft(root, split=split)
    return _all(found, found.classes)


def _dtd(root: Path, split: str) -> Opened:
    """The first of its ten partitions."""
    from torchvision.datasets import DTD

    found = DTD(root, split=split)
    return _all(found, found.classes)


def _mnist(root: Path, split: str) -> Opened:
    from torchvision.datasets import MNIST

    found = MNIST(root, train=split == "train")
    return _all(found, found.classes)


def _stanford_cars(root: Path, split: str) -> Opened:
    from torchvision.datasets import StanfordCars

    return _all(StanfordCars(root, split=split), [str(number) for number in range(1, 197)])


def _sun397(root: Path, split: str) -> Opened:
    """80 % train, 20 % test, drawn over the sorted files: torchvision has neither the set's
    partitions nor an order."""
    from torchvision.datasets import SUN397

    found = SUN397(root)
    order = sorted(range(len(found)), key=lambda i: found._image_files[i].as_posix())
    part = _part(len(found), "train80" if split == "train" else "test20")
    return Opened(found, found.classes, [order[i] for i in part])


def _tiered_imagenet(root: Path, split: str) -> Opened:
    """The first EACH training pictures of each class, by name: all 206,209 would take longer to
    look at than a stage takes to train. Folders of other classes are passed over, so all of
    ImageNet does."""
    keys = list(about_classes("tiered_imagenet_test")["classes"])
    place = root / "tiered-imagenet" / "test"
    return _all(_Listed([(file, label) for label, key in enumerate(keys)
                         for file in sorted((place / key).glob(f"{key}_*.JPEG"))[:EACH]]), keys)


_COCO = "http://images.cocodataset.org"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_DOMAINNET = {  # pictures, and the cleaned lists of training and testing; md5 of each
    "clipart": {"groundtruth/{}.zip": "cd0d8f2d77a4e181449b78ed62bccf1e",
                "domainnet/txt/{}_train.txt": "b4349693a7f9c05c53955725c47ed6cb",
                "domainnet/txt/{}_test.txt": "f5ddbcfd657a3acf9d0f7da10db22565"},
    "infograph": {"{}.zip": "720380b86f9e6ab4805bb38b6bd135f8",
                  "domainnet/txt/{}_train.txt": "379b50054f4ac2018dca4f89421b92d9",
                  "domainnet/txt/{}_test.txt": "779626b50869edffe8ea6941c3755c71"},
    "painting": {"groundtruth/{}.zip": "1ae32cdb4f98fe7ab5eb0a351768abfd",
                 "domainnet/txt/{}_train.txt": "7db0e7ca73ad9982f6e1f7f3ef372c0a",
                 "domainnet/txt/{}_test.txt": "232b35dc53f26d414686ae579e38d9b5"},
    "quickdraw": {"{}.zip": "bdc1b6f09f277da1a263389efe0c7a66",
                  "domainnet/txt/{}_train.txt": "b732ced3939ac8efdd8c0a889dca56cc",
                  "domainnet/txt/{}_test.txt": "c1a828fdfe216fb109f1c0083a252c6f"},
    "real": {"{}.zip": "dcc47055e8935767784b7162e7c7cca6",
             "domainnet/txt/{}_train.txt": "8ebf02c2075fadd564705f0dc7cd6291",
             "domainnet/txt/{}_test.txt": "6098816791c3ebed543c71ffa11b9054"},
    "sketch": {"{}.zip": "658d8009644040ff7ce30bb2e820850f",
               "domainnet/txt/{}_train.txt": "1233bd18aa9a8a200bf4cecf1c34ef3e",
               "domainnet/txt/{}_test.txt": "d8a222e4672cfd585298aa14d02ea441"},
}
SETS = {
    "cifar10": Set("cifar-10-batches-py", ("batches.meta", "data_batch_1", "test_batch"), _cifar10,
                   {"train": 50_000, "test": 10_000}, 32,
                   (Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                            "c58f30108f718f92721af3b95e74349a"), ), 170),
    "cifar100": Set("cifar-100-python", ("meta", "train", "test"), _cifar100,
                    {"train": 50_000, "test": 10_000}, 32,
                    (Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                             "eb9058c3a382ffc7106e4002c42a8d85"), ), 169),
    "tiny_imagenet": Set("tiny-imagenet-200",
                         ("wnids.txt", "train", "val/val_annotations.txt", "val/images"),
                         _tiny_imagenet, {"train": 100_000, "test": 10_000}, 64,
                         (Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                                  "90528d7ca1a48142e341f4ef8d21d0de"), ), 248),
    "imagenet_r": Set("imagenet-r", ("n01443537", ), _imagenet_r, {"train": 24_000, "test": 6_000},
                      None, (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                                     "a61312130a589d0ca1a8fca1f2bd3337"), ), 2191),
    "food101": Set("food-101", ("meta/test.json", "images"), _food101,
                   {"train": 75_750, "test": 25_250}, None,
                   (Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                            "85eeb15f3717b99a5da872d97d918f87"), ), 4996),
    "caltech101": Set("caltech101", ("101_ObjectCategories", ), _caltech101,
                      {"test": 8_242, "train80": 6_593, "test20": 1_649}, None,
                      (Archive("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                               "3138e1922a9193bfa496528edbbc45d0", "caltech101",
                               "caltech-101/101_ObjectCategories.tar.gz"), ), 137),
    "eurosat": Set(
        "eurosat",
        ("2750", ), _eurosat,
        {"test": 27_000, "train80": 21_600, "test20": 5_400, "but500": 22_000, "last500": 5_000},
        64, (Archive(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "c8fa014336c82ac7804f0398fcb19387", "eurosat"), ), 94),
    "flowers102": Set(
        "flowers-102", ("jpg", "imagelabels.mat", "setid.mat"), _flowers102,
        {"train": 1_020, "test": 6_149}, None,
        (Archive(f"{_FLOWERS}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
         Archive(f"{_FLOWERS}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
         Archive(f"{_FLOWERS}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102")), 345),
    "oxford_pets": Set(
        "oxford-iiit-pet", ("images", "annotations/test.txt"), _oxford_pets,
        {"train": 3_680, "test": 3_669}, None,
        (Archive(f"{_PETS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
         Archive(f"{_PETS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f",
                 "oxford-iiit-pet")), 811),
    "aircraft": Set("fgvc-aircraft-2013b",
                    ("data/variants.txt", "data/images_variant_test.txt", "data/images"), _aircraft,
                    {"train": 3_334, "test": 3_333}, None,
                    (Archive(f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                             "d4acdd33327262359767eeaa97a4f732"), ), 2753),
    "dtd": Set("dtd", ("dtd/labels/train1.txt", "dtd/images"), _dtd,
               {"train": 1_880, "test": 1_880}, None,
               (Archive(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",
                        "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"), ), 625),
    "mnist": Set("MNIST", ("raw/train-images-idx3-ubyte", "raw/train-labels-idx1-ubyte",
                           "raw/t10k-images-idx3-ubyte", "raw/t10k-labels-idx1-ubyte"), _mnist,
                 {"train": 60_000, "test": 10_000}, 28,
                 (Archive(f"{_MNIST}/train-images-idx3-ubyte.gz",
                          "f68b3c2dcbeaaa9fbdd348bbdeb94873", "MNIST/raw"),
                  Archive(f"{_MNIST}/train-labels-idx1-ubyte.gz",
                          "d53e105ee54ea40749a09fcbcd1e9432", "MNIST/raw"),
                  Archive(f"{_MNIST}/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3",
                          "MNIST/raw"),
                  Archive(f"{_MNIST}/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c",
                          "MNIST/raw")), 12),
    "stanford_cars": Set(
        "stanford_cars", ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train",
                          "cars_test_annos_withlabels.mat", "cars_test"), _stanford_cars,
        {"train": 8_144, "test": 8_041}, None, (), 0,
        "its authors' site is gone; put its files into stanford_cars as torchvision's StanfordCars "
        "lays them out: devkit, cars_train, cars_test, cars_test_annos_withlabels.mat"),
    "sun397": Set("SUN397", ("ClassName.txt", "a/abbey"), _sun397,
                  {"train": 87_003, "test": 21_751}, None,
                  (Archive("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                           "8ca2778205c41d23104230ba66911c7a"), ), 37_000),
    "tiered_imagenet_test": Set(
        "tiered-imagenet", ("test", ), _tiered_imagenet, {"test": 160 * EACH}, None, (), 0,
        "ImageNet needs an account at image-net.org; put its training pictures (ILSVRC2012) "
        "of the test classes of tieredImageNet into tiered-imagenet/test/<WordNet id>"),
    "imagenet": Set(
        "imagenet", ("train", "val"), None, {}, None, (), 0,
        "ImageNet needs an account at image-net.org; put the pictures of ILSVRC2012 into imagenet/train/"
        "<WordNet id> and imagenet/val/<WordNet id>, or the latter flat into imagenet/val beside "
        "LOC_val_solution.csv or ILSVRC2012_devkit_t12"),
    "domainnet": Set(
        "domainnet",
        tuple(path for name in _DOMAINNET
              for path in (name, f"{name}_train.txt", f"{name}_test.txt")), None, {}, None,
        tuple(
            Archive(f"{_VISDA}/{file.format(name)}", md5, "domainnet")
            for name, sums in _DOMAINNET.items() for file, md5 in sums.items()), 17_560),
    "coco": Set("coco", ("annotations/instances_train2014.json",
                         "annotations/instances_val2014.json", "train2014", "val2014"), None, {},
                None,
                (Archive(f"{_COCO}/zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", "coco"),
                 Archive(f"{_COCO}/zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", "coco"),
                 Archive(f"{_COCO}/annotations/annotations_trainval2014.zip",
                         "0a379cfc70b0e71301e0f377548639bd", "coco")), 20_408, use="coco_crops"),
    "karpathy": Set(
        "karpathy",
        ("dataset_coco.json", "dataset_flickr30k.json"), None, {}, None,
        (Archive("http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip", "",
                 "karpathy"), ), 37, use="captions"),
    "flickr30k": Set(
        "flickr30k", ("flickr30k-images", ), None, {}, None, (), 0,
        "its pictures need a request form, https://shannon.cs.illinois.edu/DenotationGraph; put them into "
        "flickr30k/flickr30k-images (the captions are those of `clstudy data get karpathy`)",
        "retrieval"),
}
