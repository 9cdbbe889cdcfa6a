"""The embedded world: Unicode emoji in twelve hands (`data/emoji.parquet`; sources and licences in
`data/README.md`).

Six families were used to pretrain `icon-clip`; the benchmarks are built from the other six, which
it never saw.
"""
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Gt, Lt
from PIL import Image

from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.image_store import DamagedError
from clstudy.data.types import BenchmarkData, Captioned, Labelled
from clstudy.utils.files import fingerprint
from clstudy.utils.paths import DATA
from clstudy.utils.validation import choose

PATH = DATA / "emoji.parquet"
PRETRAINING = ("openmoji", "noto-v1", "emojione", "emojione-v1", "emojione-monotone", "fxemoji")
COLOUR = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")
UNSEEN = (*COLOUR, "fluent-emoji-high-contrast", "streamline-emojis")
OBJECTS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
Share = Annotated[float, Gt(0), Lt(1)]
Groups = Sequence[Literal[OBJECTS]] | None
COLUMNS = ("family", "hexcode", "label", "tags", "group", "subgroup", "image")
TEMPLATE = "a drawing of a {}."
CLASS_NAMES = {
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-amphibian": "amphibian",
    "animal-reptile": "reptile", "animal-marine": "sea animal", "animal-bug": "insect or bug",
    "plant-flower": "flower", "plant-other": "plant", "food-fruit": "fruit",
    "food-vegetable": "vegetable", "food-prepared": "prepared meal", "food-asian": "asian food",
    "food-sweet": "sweet or dessert", "drink": "drink", "dishware": "dishware", "place-map": "map",
    "place-geographic": "landscape", "place-building": "building",
    "place-religious": "religious building", "place-other": "scenic place",
    "transport-ground": "land vehicle", "transport-water": "ship or boat",
    "transport-air": "aircraft", "hotel": "hotel item", "time": "clock",
    "sky-weather": "weather or sky", "event": "celebration", "award-medal": "award or medal",
    "sport": "sport", "game": "game or toy", "arts-crafts": "arts and crafts",
    "clothing": "clothing", "sound": "sound or loudspeaker", "music": "music",
    "musical-instrument": "musical instrument", "phone": "telephone", "computer": "computer",
    "light-video": "light or camera", "book-paper": "book or paper", "money": "money",
    "mail": "mail", "writing": "writing tool", "office": "office item", "lock": "lock or key",
    "tool": "tool or weapon", "science": "science instrument", "medical": "medical item",
    "household": "household item", "other-object": "other object"
}


def readable(subgroup: str) -> str:
    """`transport-air` → `aircraft`: the class name that stands in a prompt."""
    return CLASS_NAMES.get(subgroup, subgroup.replace("-", " "))


def decode(cells: Iterable[dict]) -> np.ndarray:
    """Image cells of the parquet file → RGBA, uint8 (n, 64, 64, 4)."""
    try:
        return np.stack(
            [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGBA")) for cell in cells])
    except Exception as error:  # whatever a damaged file brings about
        raise DamagedError(
            f"a picture of {PATH.name} cannot be read ({type(error).__name__}: {error})") from None


def on_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA on white: uint8 (n, h, w, 4) → (n, 3, h, w)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))


def require() -> None:
    """FileNotFoundError: the file of the embedded world is missing."""
    if not PATH.exists():
        raise FileNotFoundError(
            f"{PATH} is missing: it comes with the repository; scripts/emoji/build_emoji.py rebuilds it"
        )


@lru_cache(maxsize=1)
def _everything() -> pd.DataFrame:
    require()
    try:
        rows = pd.read_parquet(PATH)
        lacks = [name for name in COLUMNS if name not in rows]
        if lacks:
            raise ValueError(f"it lacks {', '.join(lacks)}")
        return rows
    except Exception as error:  # whatever a damaged file brings about
        raise DamagedError(
            f"{PATH} cannot be read ({type(error).__name__}: {error}); scripts/emoji/build_emoji.py rebuilds it"
        ) from None


def table(families: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of the embedded world: family, hexcode, emoji, label, tags, group, subgroup, icon,
    image.

    ValueError: no family, or an unknown one, with the choices."""
    rows = _everything()
    if families is None:
        return rows
    known = sorted(rows.family.unique())
    if not families:
        raise ValueError(f"no family is given; choices: {', '.join(known)}")
    for family in families:
        if family not in known:
            raise ValueError(f"family={family!r} is unknown; choices: {', '.join(known)}")
    return rows[rows.family.isin(families)].reset_index(drop=True)


def _labelled(rows: pd.DataFrame, names: Sequence[str], by: str, template: str = TEMPLATE,
              families: Sequence[str] = ()) -> Labelled:
    """Rows as images with a class; `by` is the column whose value, made readable, is the class
    name. families: those that are the domains."""
    place = {name: i for i, name in enumerate(names)}
    labels = np.array([place[readable(value) if by == "subgroup" else value] for value in rows[by]],
                      np.int64)
    hands = {family: i for i, family in enumerate(families)}
    drawn = {"domains": rows.family.map(hands).to_numpy(np.int64), "domain_names": tuple(hands)
             } if families else {}
    return Labelled(torch.from_numpy(on_white(decode(rows.image))), labels, tuple(names), template,
                    **drawn)


def _names(rows: pd.DataFrame, by: str) -> list[str]:
    return list(dict.fromkeys(readable(value) if by == "subgroup" else value for value in rows[by]))


def _captions(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(f"{label}: {', '.join(tags)}" if len(tags) else label
                 for label, tags in zip(rows.label, rows.tags, strict=True))


def _held_out(rows: pd.DataFrame, by: str, share: float, seed: int) -> set[str]:
    """Concepts (hexcodes) that are test: `share` of those of each class, at least one where a class
    has two."""
    rng, test = np.random.default_rng(seed), set()
    for _, concepts in sorted(rows.drop_duplicates("hexcode").groupby(by).hexcode):
        count = max(int(round(share * len(concepts))), 1 if len(concepts) > 1 else 0)
        test |= set(rng.permutation(sorted(concepts))[:count])
    return test


def _untouched(families: tuple[str, ...]) -> dict[str, Labelled]:
    """Zero-shot sets of other groups, one drawing per concept by the first family that has it: no
    image of them, and no class name, occurs in a stream of objects."""
    rows = table(families)
    rows = rows.sort_values("family", key=lambda column: column.map(families.index), kind="stable")
    rows = rows.drop_duplicates("hexcode")
    people = rows[rows.group.isin(("smileys-emotion", "people-body"))]
    flags = rows[rows.subgroup == "country-flag"].assign(
        label=lambda r: r.label.str.removeprefix("flag: "))
    signs = rows[rows.group == "symbols"]
    sets = {
        "faces and people": (people, "subgroup", TEMPLATE),
        "symbols": (signs, "subgroup", TEMPLATE), "flags": (flags, "label", "flag: {}")
    }
    return {name: _labelled(part, _names(part, by), by, template)  # not every family draws flags
            for name, (part, by, template) in sets.items() if len(part)}


def _retrieval(rows: pd.DataFrame) -> dict[str, Captioned]:
    """One drawing per concept with two captions: its label, and its keywords."""
    rows = rows.drop_duplicates("hexcode").reset_index(drop=True)
    captions, owner = [], []
    for i, (label, tags) in enumerate(zip(rows.label, rows.tags, strict=True)):
        captions += [label, ", ".join(tags)] if len(tags) else [label]
        owner += [i] * (2 if len(tags) else 1)
    images = torch.from_numpy(on_white(decode(rows.image)))
    return {"drawings": Captioned(images, tuple(captions), np.array(owner, np.int64))}


@lru_cache(maxsize=1)
def reference() -> Captioned:
    """Every drawing of the six pretraining families with its label and keywords: what CLIP itself
    was made of."""
    rows = table(PRETRAINING)
    images = torch.from_numpy(on_white(decode(rows.image)))
    return Captioned(images, _captions(rows), np.arange(len(rows)))


def _kept(sets: dict[str, Labelled], wanted: Sequence[str] | None) -> dict[str, Labelled]:
    return {
        choose("held_out", name, sets): sets[name] for name in (sets if wanted is None else wanted)
    }


def _updated(rows: pd.DataFrame, update: Sequence[str] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the groups that the stream has, and the others."""
    here = rows.group.isin(OBJECTS if update is None else update)
    if not here.any():
        raise ValueError(
            f"update={update!r}: needs at least one group; choices: {', '.join(OBJECTS)}")
    return rows[here], rows[~here]


def _groups(rows: pd.DataFrame, names: Sequence[str],
            by: str = "subgroup") -> dict[str, tuple[int, ...]]:
    """The classes of each object group, in order of their appearance."""
    return {group: tuple(names.index(name) for name in _names(part, by))
            for group, part in rows.groupby("group", sort=False)}


@dataclass
class EmojiWorld(Benchmark):
    """What the benchmarks of the embedded world share."""

    prompt: ClassVar[str] = TEMPLATE

    def require(self) -> None:
        require()

    def fingerprint(self) -> list[str]:
        return [fingerprint(PATH)] if PATH.exists() else []


@dataclass
class Emoji(EmojiWorld):
    """Kinds of things: the 49 subgroups of the object groups (mammal, aircraft, musical instrument,
    …).

    Within each class, `test_share` of the *concepts* are test, in every family: no drawing of a
    test concept is ever tuned on. Held-out sets: the test concepts one by one ("concepts", among
    all object names), the same classes in families that the stream has not ("other styles"), faces
    and people, symbols, flags. Retrieval: the first family's test concepts. The classes of groups
    that are not updated are a held-out set of their own ("other classes"): what was never
    updated."""

    title: ClassVar[str] = "Emoji"

    families: Sequence[str] = COLOUR  # whose drawings train and test
    test_share: Share = 0.2  # of the concepts of each class
    split_seed: int = 0
    update: Groups = None  # object groups that the stream has; None: all
    held_out: Sequence[str] | None = None  # the held-out sets to keep; None: all

    def load(self) -> BenchmarkData:
        rows = table(self.families)
        rows = rows[rows.group.isin(OBJECTS)]
        objects = _names(rows, "label")
        tests = rows[rows.hexcode.isin(_held_out(rows, "subgroup", self.test_share,
                                                 self.split_seed))]
        rows, _ = _updated(rows, self.update)
        names = _names(rows, "subgroup")
        test = rows.hexcode.isin(set(tests.hexcode)).to_numpy()
        others = tuple(family for family in UNSEEN if family not in self.families)
        tested = _labelled(rows[test], names, "subgroup")
        concepts = _labelled(rows[test], objects, "label")
        sets = {"concepts": replace(concepts, images=tested.images)}  # encoded once for both
        if others:
            foreign = table(others)
            foreign = foreign[foreign.hexcode.isin(set(rows.hexcode[test]))]
            sets["other styles"] = _labelled(foreign, names, "subgroup")
        rest = tests[~tests.group.isin(set(rows.group))]
        if len(rest):
            sets["other classes"] = _labelled(rest, _names(rest, "subgroup"), "subgroup")
        kept = _kept(sets | _untouched(tuple(self.families)), self.held_out)
        train = _labelled(rows[~test], names, "subgroup")
        return BenchmarkData("emoji", train, tested, _captions(rows[~test]), _groups(rows, names),
                             kept, _retrieval(tests), reference)


@dataclass
class EmojiStyles(EmojiWorld):
    """One world in several hands: the kinds of things of `emoji`, with the family that drew an
    image as its domain.

    For the stream `domains`, one hand after the other. Test concepts as in `emoji`: no family's
    drawing of them is ever tuned on. Held-out sets: faces and people, symbols, flags. Retrieval:
    the first family's test concepts. families may be any of the twelve; of the six that pretraining
    saw, only a model with other weights knows nothing."""

    title: ClassVar[str] = "Emoji styles"

    families: Sequence[str] = UNSEEN  # the domains
    test_share: Share = 0.2  # of the concepts of each class
    split_seed: int = 0

    def load(self) -> BenchmarkData:
        rows = table(self.families)
        rows = rows[rows.group.isin(OBJECTS)]
        names = _names(rows, "subgroup")
        test = rows.hexcode.isin(_held_out(rows, "subgroup", self.test_share,
                                           self.split_seed)).to_numpy()
        pixels = np.array([picture.tobytes() for picture in on_white(decode(rows.image))], object)
        free = ~test & ~np.isin(pixels, pixels[test])  # one hand draws two discs alike
        train, tested = (_labelled(rows[part], names, "subgroup", families=self.families)
                         for part in (free, test))
        return BenchmarkData("emoji_styles", train, tested, _captions(rows[free]),
                             _groups(rows, names), _untouched(tuple(self.families)),
                             _retrieval(rows[test]), reference)


@dataclass
class EmojiConcepts(EmojiWorld):
    """Single concepts (dog, sailboat, violin, …) of the object groups: some families train, others
    test.

    Classes are the concepts that all these families draw. Held-out sets: the two families that
    neither trains nor tests ("other styles"), faces and people, symbols, flags. Retrieval: the
    first test family. The concepts of groups that are not updated are a held-out set of their own
    ("other classes"), by the test families: what was never updated."""

    title: ClassVar[str] = "Emoji concepts"

    train_families: Sequence[str] = ("noto", "fluent-emoji")
    test_families: Sequence[str] = ("twemoji", "fluent-emoji-flat")
    update: Groups = None  # object groups that the stream has; None: all
    held_out: Sequence[str] | None = None  # the held-out sets to keep; None: all

    def check(self) -> None:
        both = set(self.train_families) & set(self.test_families)
        if both:
            raise ValueError(
                f"train_families and test_families share {', '.join(sorted(both))}; a family "
                "trains or tests")

    def load(self) -> BenchmarkData:
        families = (*self.train_families, *self.test_families)
        rows = table(families if self.train_families and self.test_families else ())
        rows = rows[rows.group.isin(OBJECTS)]
        drawn = rows.groupby("hexcode").family.nunique()
        rows = rows[rows.hexcode.isin(drawn[drawn == rows.family.nunique()].index)]
        pairs = rows[rows.family == self.test_families[0]]
        rows, rest = _updated(rows, self.update)
        names = _names(rows, "label")
        train = rows[rows.family.isin(self.train_families)]
        test = rows[rows.family.isin(self.test_families)]
        others = tuple(family for family in UNSEEN if family not in families)
        sets = {}
        if others:
            foreign = table(others)
            sets["other styles"] = _labelled(foreign[foreign.label.isin(names)], names, "label")
        rest = rest[rest.family.isin(self.test_families)]
        if len(rest):
            sets["other classes"] = _labelled(rest, _names(rest, "label"), "label")
        kept = _kept(sets | _untouched(tuple(self.test_families)), self.held_out)
        return BenchmarkData("emoji_concepts", _labelled(train, names, "label"),
                             _labelled(test, names, "label"), _captions(train),
                             _groups(rows, names, "label"), kept, _retrieval(pairs), reference)
