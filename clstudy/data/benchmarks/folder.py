"""Your own pictures: one folder for each class, and an optional small file with names, order,
prompt and captions.

    PATH/<class>/…/<picture>          a fifth of each class is drawn for testing; or
    PATH/train/<class>/…  PATH/test/<class>/…
    PATH/clstudy.json                 {"classes": {<class>: <name>}, "order": [<class>, …],
                                       "template": "a photo of a {}.",
                                       "captions": {"<path below PATH>": <text>},
                                       "groups": {<group>: [<class>, …]}}

Every key of clstudy.json may be left out. `benchmark="folder:PATH"` is short for this benchmark
with that path."""
import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Gt, Lt
from PIL import ImageOps

from clstudy.data import image_store
from clstudy.data.benchmarks.photographs import SIT_PROMPT, Photographs, Template
from clstudy.data.image_store import from_files
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.options import Options, refuse_unknown
from clstudy.utils.validation import choose

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ABOUT = "clstudy.json"
Share = Annotated[float, Gt(0), Lt(1)]
Samples = dict[str, list[Path]]  # class → pictures, in order of their paths


@dataclass
class About(Options):
    """The keys of clstudy.json."""

    classes: dict[str, str] = field(default_factory=dict)  # class → its name in prompts
    order: list[str] | None = None
    template: Template = SIT_PROMPT
    captions: dict[str, str] = field(default_factory=dict)  # path below the folder → text
    groups: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What lies in the folder: samples are (file, class)."""

    path: Path
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    about: About  # complete: with all classes and their order


@dataclass
class Folder(Photographs):
    """Your own pictures: a folder of one folder for each class (see
    clstudy/data/benchmarks/folder.py for its form).

    Without train/ and test/, `test_share` of each class is drawn for testing with split_seed; a
    class of one picture trains only."""

    title: ClassVar[str] = "folder"
    prompt: ClassVar[str] = SIT_PROMPT

    path: str = field(kw_only=True)  # of the folder
    test_share: Share = 0.2  # of each class
    split_seed: int = 0
    template: Template | None = None  # beats that of clstudy.json; None: "a bad photo of a {}."

    def require(self) -> None:
        self.found()

    def found(self) -> Found:
        """List what lies in the folder; no picture is opened.

        ValueError, FileNotFoundError: every fault of its form."""
        place = Path(self.path).expanduser().absolute()
        if not place.is_dir():
            raise FileNotFoundError(f"benchmark folder: {place} is not a folder")
        split = all(any(_folders(place / part)) for part in ("train", "test"))
        train = _samples(place / "train" if split else place)
        about = _about(place, sorted(train))
        if self.template is not None:
            about = replace(about, template=self.template)
        self.require_held_out()
        if split:
            test = _samples(place / "test")
            more = sorted(set(test) - set(train))
            if more:
                raise ValueError(
                    f"{place}/test has classes that train has not: {', '.join(more)}")
        else:
            train, test = _divide(train, self.test_share, self.split_seed)
        label = {key: i for i, key in enumerate(about.order)}
        train, test = ([(file, label[key]) for key in label for file in part.get(key, [])]
                       for part in (train, test))
        if not test:
            raise ValueError(f"{place}: no picture is left for testing; a class needs at least two")
        return Found(place, train, test, about)

    def fingerprint(self) -> list[str]:
        """Return a digest of the names, sizes and times of change of all its files, and those of
        the held-out sets."""
        place = Path(self.path)
        images = [image_store.fingerprint(place)] if place.is_dir() else []
        return images + super().fingerprint()

    def load(self) -> BenchmarkData:
        found = self.found()
        about = found.about
        names = tuple(about.classes[key] for key in about.order)

        def labelled(split: str, samples: list[tuple[Path, int]]) -> Labelled:
            images = _images(found.path, split, samples, self.size)
            return Labelled(*images, names, about.template)

        train, test = labelled("train", found.train), labelled("test", found.test)
        files = [file.relative_to(found.path).as_posix() for file, _ in found.train]
        captions = tuple(about.captions.get(file, usual)
                         for file, usual in zip(files, train.prompts(), strict=True))
        groups = {group: tuple(about.order.index(key) for key in members)
                  for group, members in about.groups.items()}
        return BenchmarkData("folder", train, test, captions, groups,
                             self.held_out_sets(about.template))


def _images(path: Path, split: str, samples: list[tuple[Path, int]], size: int):
    """Return the images and labels of a split, upright: cameras store which side is up."""
    listed = [[file.relative_to(path).as_posix(), label] for file, label in samples]
    source = image_store.fingerprint(path, image_store.VERSION, listed)
    place = hashlib.sha256(str(path).encode()).hexdigest()[:6]
    files, labels = zip(*samples, strict=True)
    return image_store.decoded(f"folder-{path.name}-{place}-{split}-{size}", source, size,
                               lambda: from_files(files, labels, change=ImageOps.exif_transpose))


def _folders(place: Path) -> list[Path]:
    inside = place.iterdir() if place.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and path.name[0] != ".")


def _samples(place: Path) -> Samples:
    """List the pictures of each class. ValueError: fewer than two classes, or an empty one."""
    found = {one.name: sorted(path for path in one.rglob("*") if _is_picture(path, one))
             for one in _folders(place)}
    if len(found) < 2:
        raise ValueError(f"{place} has {len(found)} sub-folders; a benchmark needs two classes or "
                         "more, each a folder of pictures")
    for name, pictures in found.items():
        if not pictures:
            raise ValueError(f"{place / name} holds no picture; known are {' '.join(SUFFIXES)}")
    return found


def _is_picture(file: Path, above: Path) -> bool:
    """Whether a file is a picture, and not hidden (.ipynb_checkpoints, ._picture.jpg)."""
    hidden = any(part[0] == "." for part in file.relative_to(above).parts)
    return file.suffix.lower() in SUFFIXES and not hidden


def _divide(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Draw a share of the pictures of each class for testing, at least one where a class has two.
    Return those for training and those for testing."""
    rng, train, test = np.random.default_rng(seed), {}, {}
    for key, pictures in samples.items():
        count = min(max(round(share * len(pictures)), 1), len(pictures) - 1)
        chosen = set(rng.permutation(len(pictures))[:count].tolist())
        train[key] = [picture for i, picture in enumerate(pictures) if i not in chosen]
        test[key] = [picture for i, picture in enumerate(pictures) if i in chosen]
    return train, test


def _about(place: Path, classes: list[str]) -> About:
    """Read clstudy.json and fill in what it leaves out. ValueError: what is wrong in it."""
    file = place / ABOUT
    try:
        given = json.loads(file.read_text()) if file.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(given, dict):
        known = ", ".join(one.name for one in fields(About))
        raise ValueError(f"{file}: must be an object with some of the keys {known}")
    refuse_unknown(str(file), About, given)
    try:
        about = About(**given)
        _check(about, place, classes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = {key: about.classes.get(key, key.replace("_", " ")) for key in classes}
    for name in names.values():
        if list(names.values()).count(name) > 1:
            raise ValueError(f"{place}: two classes are named {name!r}; "
                             "their prompts would be the same")
    return replace(about, classes=names, order=about.order or classes)


def _check(about: About, place: Path, classes: list[str]) -> None:
    """Raise a ValueError if clstudy.json names classes or files that are not there."""
    order = classes if about.order is None else about.order
    in_groups = sum(about.groups.values(), [])
    for key, named in (("classes", about.classes), ("order", order), ("groups", in_groups)):
        for one in named:
            choose(f"{key!r}: class", one, classes)
    if sorted(order) != classes:
        lacks = ", ".join(sorted(set(classes) - set(order))) or "none, but repeats some"
        raise ValueError(f"'order' must hold each of the {len(classes)} classes once; "
                         f"it lacks {lacks}")
    for name in about.captions:
        if not (place / name).is_file():
            raise ValueError(f"'captions' names {name!r}, which is no file below {place}")
