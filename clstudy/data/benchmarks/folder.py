"""Your own pictures: one folder for each class, and an optional small file with names, order,
prompt and captions.

    PATH/<class>/…/<picture>          a fifth of each class is drawn for testing; or
    PATH/train/<class>/…  PATH/test/<class>/…
    PATH/clstudy.json                 {"classes": {<class>: <name>}, "order": [<class>, …],
                                       "template": "a photo of a {}.", "captions": {"<path below PATH>": <text>},
                                       "groups": {<group>: [<class>, …]}}

Every key of clstudy.json may be left out. `benchmark="folder:PATH"` is short for this benchmark
with that path."""
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Gt, Lt
from PIL import Image, ImageOps

from clstudy.data import image_store
from clstudy.data.benchmarks.photographs import SIT_PROMPT, Photographs, Template
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.validation import choose

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ABOUT = "clstudy.json"
Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class Found:
    """What lies in the folder: samples are (file, class)."""

    path: Path
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    classes: list[str]  # names of the folders, in order
    about: dict  # clstudy.json, complete


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
        """What lies in the folder; no picture is opened.

        ValueError, FileNotFoundError: every fault of its form."""
        place = Path(self.path).expanduser().absolute()
        if not place.is_dir():
            raise FileNotFoundError(f"benchmark folder: {place} is not a folder")
        split = all(any(_folders(place / part)) for part in ("train", "test"))
        train = _samples(place / "train" if split else place)
        test = _samples(place / "test") if split else {}
        classes, about = _about(place, sorted(train), self.template)
        replace(self, template=about["template"])  # refuses one without a place for the name
        self.require_held_out()
        if set(test) - set(classes):
            more = ", ".join(sorted(set(test) - set(classes)))
            raise ValueError(f"{place}/test has classes that train has not: {more}")
        if not split:
            train, test = _divide(train, self.test_share, self.split_seed)
        parts = [[(file, i) for i, key in enumerate(classes) for file in part.get(key, [])]
                 for part in (train, test)]
        if not parts[1]:
            raise ValueError(f"{place}: no picture is left for testing; a class needs at least two")
        return Found(place, *parts, classes, about)

    def fingerprint(self) -> list[str]:
        """Names, sizes and times of change of all its files, and the names of the held-out sets."""
        place = Path(self.path)
        images = [image_store.fingerprint(place)] if place.is_dir() else []
        return images + super().fingerprint()

    def load(self) -> BenchmarkData:
        found = self.found()
        names = tuple(found.about["classes"][key] for key in found.classes)
        train, test = (_labelled(found, split, self.size, names) for split in ("train", "test"))
        said, captions = found.about["captions"], []
        for file, label in found.train:
            usual = train.template.format(names[label])
            captions.append(said.get(file.relative_to(found.path).as_posix(), usual))
        groups = {group: tuple(found.classes.index(key) for key in members)
                  for group, members in found.about["groups"].items()}
        held_out = self.held_out_sets(train.template)
        return BenchmarkData("folder", train, test, tuple(captions), groups, held_out)


def _labelled(found: Found, split: str, size: int, names: tuple[str, ...]) -> Labelled:
    samples = getattr(found, split)
    listed = [[file.relative_to(found.path).as_posix(), label] for file, label in samples]
    source = image_store.fingerprint(found.path, image_store.VERSION, listed)
    name = f"folder-{found.path.name}-{hashlib.sha256(str(found.path).encode()).hexdigest()[:6]}-{split}-{size}"
    images, labels = image_store.decoded(
        name, source, size, lambda: image_store.Pictures(
            len(samples), lambda i:
            (_upright(samples[i][0]), samples[i][1]), lambda i: str(samples[i][0])))
    return Labelled(images, labels, names, found.about["template"])


def _upright(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return ImageOps.exif_transpose(picture)  # cameras store which side is up beside the pixels


def _folders(place: Path) -> list[Path]:
    return sorted(
        p for p in place.iterdir() if p.is_dir() and p.name[0] != ".") if place.is_dir() else []


def _samples(place: Path) -> dict[str, list[Path]]:
    """Class → pictures, in order of their paths. ValueError: fewer than two classes, or an empty
    one."""
    found = {
        one.name: sorted(p for p in one.rglob("*")
                         if p.suffix.lower() in SUFFIXES and not _hidden(p, one))
        for one in _folders(place)
    }
    if len(found) < 2:
        raise ValueError(
            f"{place} has {len(found)} sub-folders; a benchmark needs two classes or more, each a folder "
            "of pictures")
    for name, pictures in found.items():
        if not pictures:
            raise ValueError(f"{place / name} holds no picture; known are {' '.join(SUFFIXES)}")
    return found


def _hidden(file: Path, above: Path) -> bool:
    return any(part[0] == "."
               for part in file.relative_to(above).parts)  # .ipynb_checkpoints, ._picture.jpg


def _divide(samples: dict[str, list[Path]], share: float, seed: int) -> tuple[dict, dict]:
    """Train and test pictures of each class: `share` is test, at least one where a class has
    two."""
    rng, train, test = np.random.default_rng(seed), {}, {}
    for key, pictures in samples.items():
        count = min(max(round(share * len(pictures)), 1), len(pictures) - 1)
        chosen = set(rng.permutation(len(pictures))[:count].tolist())
        train[key] = [picture for i, picture in enumerate(pictures) if i not in chosen]
        test[key] = [picture for i, picture in enumerate(pictures) if i in chosen]
    return train, test


def _about(place: Path, classes: list[str], template: str | None) -> tuple[list[str], dict]:
    """The classes in order, and clstudy.json with what it leaves out filled in. ValueError: what is
    wrong in it."""
    given, file = {}, place / ABOUT
    if file.exists():
        try:
            given = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
    about = {"classes": {}, "order": classes, "template": SIT_PROMPT, "captions": {}, "groups": {}}
    if not isinstance(given, dict):
        raise ValueError(f"{file}: must be an object with some of the keys {', '.join(about)}")
    for key, value in given.items():
        choose(f"{file}: key", key, about)
        if not isinstance(value, type(about[key])):
            kind = type(about[key]).__name__
            raise ValueError(
                f"{file}: {key!r} must be a {kind}, as clstudy/data/benchmarks/folder.py shows")
        inner = list(value.values()) if isinstance(
            value, dict) else [value] if key == "template" else value
        if key == "groups" and all(isinstance(one, list) for one in inner):
            inner = [name for one in inner for name in one]
        for one in inner:
            if not isinstance(one, str):
                raise ValueError(
                    f"{file}: {key!r} holds {one!r}, as clstudy/data/benchmarks/folder.py does not show"
                )
    about |= given | ({"template": template} if template is not None else {})
    for key, named in {
            "classes": about["classes"], "order": about["order"],
            "groups": [name for members in about["groups"].values() for name in members]
    }.items():
        _known(file, key, named, classes)
    if sorted(about["order"]) != classes:
        raise ValueError(
            f"{file}: 'order' must hold each of the {len(classes)} classes once; it lacks "
            f"{', '.join(sorted(set(classes) - set(about['order']))) or 'none, but repeats some'}")
    lost = [name for name in about["captions"] if not (place / name).is_file()]
    if lost:
        raise ValueError(f"{file}: 'captions' names {lost[0]!r}, which is no file below {place}")
    about["classes"] = {key: about["classes"].get(key, key.replace("_", " ")) for key in classes}
    names = list(about["classes"].values())
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"{place}: two classes are named {repeated!r}; no prompt could tell them apart")
    return list(about["order"]), about


def _known(file: Path, key: str, named: Iterable[str], classes: list[str]) -> None:
    for name in named:
        choose(f"{file}: {key!r}: class", name, classes)
