"""The embedded world: Unicode emoji drawn by twelve icon families (`data/emoji.parquet`; sources
and licences in `data/README.md`).

Six families were used to pretrain `icon-clip`; the benchmarks are built from the other six, which
it never saw."""
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Lt
from PIL import Image

from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.benchmarks.datasets import about_classes
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
ValidationShare = Annotated[float, Ge(0), Lt(1)]
Split = Literal["test", "validation"]
Groups = Sequence[Literal[OBJECTS]] | None
COLUMNS = ("family", "hexcode", "label", "tags", "group", "subgroup", "image")
TEMPLATE = "a drawing of a {}."
REBUILD = "scripts/emoji/build_emoji.py rebuilds it."


def readable(subgroup: str) -> str:
    """Return the class name of a subgroup that stands in a prompt: `transport-air` → `aircraft`."""
    return about_classes("emoji")["classes"].get(subgroup, subgroup.replace("-", " "))


def decode(cells: Iterable[dict]) -> np.ndarray:
    """Decode image cells of the parquet file to RGBA, uint8 (n, 64, 64, 4)."""
    try:
        return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGBA"))
                         for cell in cells])
    except Exception as error:  # whatever a damaged file raises
        raise DamagedError.unreadable(f"a picture of {PATH.name}", error) from None


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay RGBA on white: uint8 (n, h, w, 4) → (n, 3, h, w)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))


def require() -> None:
    """Raise a FileNotFoundError if the file of the embedded world is missing."""
    if not PATH.exists():
        raise FileNotFoundError(f"{PATH} is missing: it comes with the repository. {REBUILD}")


@lru_cache(maxsize=1)
def _everything() -> pd.DataFrame:
    require()
    try:
        rows = pd.read_parquet(PATH)
        lacks = [name for name in COLUMNS if name not in rows]
        if lacks:
            raise ValueError(f"it lacks {', '.join(lacks)}")
        return rows.assign(kind=rows.subgroup.map(readable))
    except Exception as error:  # whatever a damaged file raises
        raise DamagedError.unreadable(PATH, error, REBUILD) from None


def table(families: Sequence[str] | None = None) -> pd.DataFrame:
    """Return rows of the embedded world: family, hexcode, emoji, label, tags, group, subgroup,
    icon, image, and kind, the subgroup made readable.

    families: None: all. ValueError: no family, or an unknown one, with the choices."""
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


def objects(families: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the object groups."""
    rows = table(families)
    return rows[rows.group.isin(OBJECTS)]


def drawn_by_all(families: Sequence[str]) -> pd.DataFrame:
    """Return the objects that every one of these families draws."""
    rows = objects(families)
    drawn_by = rows.groupby("hexcode").family.transform("nunique")
    return rows[drawn_by == rows.family.nunique()]


def _images(rows: pd.DataFrame) -> torch.Tensor:
    return torch.from_numpy(on_white(decode(rows.image)))


def labelled(rows: pd.DataFrame, by: str, names: Iterable[str] | None = None,
              template: str = TEMPLATE, families: Sequence[str] = ()) -> Labelled:
    """Return rows as images with a class, the value of column `by`.

    names: of the classes; None: those of the rows. families: the domains, if there are any."""
    names = pd.Index(rows[by].unique() if names is None else names)
    domains = pd.Index(families).get_indexer(rows.family) if families else None
    return Labelled(_images(rows), names.get_indexer(rows[by]), tuple(names), template,
                    domains, tuple(families), _concepts(rows))


def _concepts(rows: pd.DataFrame) -> np.ndarray:
    """Return what each row shows, by a number that is the same in all sets."""
    return pd.Index(sorted(_everything().hexcode.unique())).get_indexer(rows.hexcode)


def captions_of(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(f"{label}: {', '.join(tags)}" if len(tags) else label
                 for label, tags in zip(rows.label, rows.tags, strict=True))


def set_apart(rows: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Return which rows are of concepts set apart: `share` of the concepts of each subgroup, at
    least one where it has two. A share of 0: none."""
    rng, apart = np.random.default_rng(seed), []
    for _, concepts in rows.drop_duplicates("hexcode").groupby("subgroup").hexcode:
        count = max(int(round(share * len(concepts))), 1 if len(concepts) > 1 else 0)
        apart += rng.permutation(sorted(concepts))[:count if share else 0].tolist()
    return rows.hexcode.isin(apart)


def untouched(families: Sequence[str], shown: Callable[[pd.DataFrame], pd.Series]
              ) -> dict[str, Labelled]:
    """Return zero-shot sets of other groups, one drawing per concept by the first family that has
    it: no image of them, and no class name, occurs in a stream of objects.

    shown: says which rows may be taken."""
    rows, order = table(families), list(families)
    rows = rows[shown(rows)]
    rows = rows.sort_values("family", key=lambda column: column.map(order.index), kind="stable")
    rows = rows.drop_duplicates("hexcode")
    people = rows[rows.group.isin(("smileys-emotion", "people-body"))]
    flags = rows[rows.subgroup == "country-flag"]
    flags = flags.assign(label=flags.label.str.removeprefix("flag: "))
    sets = {
        "faces and people": (people, "kind"),
        "symbols": (rows[rows.group == "symbols"], "kind"),
        "flags": (flags, "label", None, "flag: {}"),
    }
    return {name: labelled(*one) for name, one in sets.items() if len(one[0])}


def captioned(rows: pd.DataFrame) -> dict[str, Captioned]:
    """Return one drawing per concept with two captions: its label, and its keywords."""
    rows = rows.drop_duplicates("hexcode")
    captions = [(i, text) for i, (label, tags) in enumerate(zip(rows.label, rows.tags, strict=True))
                for text in (label, ", ".join(tags)) if text]
    owner, texts = zip(*captions, strict=True)
    return {"drawings": Captioned(_images(rows), texts, np.array(owner, np.int64),
                                  concepts=_concepts(rows))}


@lru_cache(maxsize=1)
def reference() -> Captioned:
    """Return every drawing of the six pretraining families with its label and keywords: what CLIP
    itself was trained on."""
    rows = table(PRETRAINING)
    return Captioned(_images(rows), captions_of(rows), np.arange(len(rows)))


def kept_sets(sets: dict[str, Labelled], wanted: Sequence[str] | None) -> dict[str, Labelled]:
    return {choose("held_out", name, sets): sets[name]
            for name in (sets if wanted is None else wanted)}


def updated(rows: pd.DataFrame, update: Sequence[str] | None) -> pd.Series:
    """Return which rows are of the groups that the stream has."""
    here = rows.group.isin(OBJECTS if update is None else update)
    if not here.any():
        raise ValueError(
            f"update={update!r}: needs at least one group; choices: {', '.join(OBJECTS)}")
    return here


def groups_of(rows: pd.DataFrame, by: str) -> dict[str, tuple[int, ...]]:
    """Return the classes of each object group, in order of their appearance."""
    names = pd.Index(rows[by].unique())
    return {group: tuple(names.get_indexer(values.unique()).tolist())
            for group, values in rows.groupby("group", sort=False)[by]}


@dataclass
class EmojiWorld(Benchmark):
    """What the benchmarks of the embedded world share."""

    prompt: ClassVar[str] = TEMPLATE

    split: Split = "test"  # the images that test; training is the same
    validation_share: ValidationShare = 0.0  # of the concepts of each class; these do not test
    split_seed: int = 0

    def check(self) -> None:
        if self.split == "validation" and not self.validation_share:
            raise ValueError(f"validation_share={self.validation_share!r}: must be above 0 for "
                             "split='validation'")

    def validating(self, rows: pd.DataFrame) -> pd.Series:
        """Return which rows are of validation concepts, the same ones in every family."""
        world = _everything()
        apart = set_apart(world, self.validation_share, self.split_seed)
        return rows.hexcode.isin(world.hexcode[apart])

    def shown(self, rows: pd.DataFrame) -> pd.Series:
        """Return which rows the split shows: those of validation concepts, or all others."""
        return self.validating(rows) == (self.split == "validation")

    def require(self) -> None:
        require()

    def fingerprint(self) -> list[str]:
        return [fingerprint(PATH)] if PATH.exists() else []


def _divided(world: "Emoji | EmojiStyles", rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return which rows are of concepts set apart, and which of these the split shows."""
    tested = set_apart(rows, world.test_share, world.split_seed)
    validation = set_apart(rows[~tested], world.validation_share, world.split_seed)
    validation = validation.reindex(rows.index, fill_value=False)
    return tested | validation, validation if world.split == "validation" else tested


@dataclass
class Emoji(EmojiWorld):
    """Kinds of things: the 49 subgroups of the object groups (mammal, aircraft, musical instrument,
    …).

    Good for: a first look, quick runs, insurance against steps that are too large. Not for: what
    tuning can gain. No drawing of a test concept is trained on and the embedded model knows these
    classes, so joint training ends only 2 points above frozen CLIP; the test set is small (336
    images of 168 concepts) and "amphibian", a single concept, is never tested.

    Within each class, `test_share` of the *concepts* are test, in every family, and
    `validation_share` are validation; neither is tuned on. Held-out sets: the same classes in
    families outside the stream ("other styles"), faces and people, symbols, flags; "concepts" are
    the very test images once more, one by one among all object names, so it is a second reading of
    the test set and untouched by nothing. Retrieval: the first family's test concepts, test images
    again. The test concepts of groups that are not updated are a held-out set of their own ("other
    classes")."""

    title: ClassVar[str] = "Emoji"

    families: Sequence[str] = COLOUR  # whose drawings train and test
    test_share: Share = 0.2  # of the concepts of each class
    update: Groups = None  # object groups that the stream has; None: all
    held_out: Sequence[str] | None = None  # the held-out sets to keep; None: all

    def load(self) -> BenchmarkData:
        rows = objects(self.families)
        apart, tested = _divided(self, rows)
        here = updated(rows, self.update)
        names = rows.kind[here].unique()
        train, test, rest = rows[here & ~apart], rows[here & tested], rows[~here & tested]
        test_data = labelled(test, "kind", names)
        concepts = labelled(test, "label", rows.label.unique())
        sets, others = {}, [family for family in UNSEEN if family not in self.families]
        if others:
            foreign = table(others)
            foreign = foreign[foreign.hexcode.isin(test.hexcode)]
            sets["other styles"] = labelled(foreign, "kind", names)
        if len(rest):
            sets["other classes"] = labelled(rest, "kind")
        sets |= untouched(self.families, self.shown)
        sets["concepts"] = replace(concepts, images=test_data.images)  # encoded once for both
        kept = kept_sets(sets, self.held_out)
        return BenchmarkData("emoji", labelled(train, "kind", names), test_data, captions_of(train),
                             groups_of(rows[here], "kind"), kept, captioned(rows[tested]),
                             reference)


@dataclass
class EmojiStyles(EmojiWorld):
    """One world in several styles: the kinds of things of `emoji`, with the family that drew an
    image as its domain.

    For the stream `domains`, one icon family after the other. Good for: what the order of styles
    does. Not for: what tuning can gain, as `emoji`. Test and validation concepts as in `emoji`: no
    family's drawing of them is ever tuned on. Held-out sets: faces and people, symbols, flags.
    Retrieval: the first family's test concepts. families may be any of the twelve, but `icon-clip`
    saw six of them in pretraining."""

    title: ClassVar[str] = "Emoji styles"

    families: Sequence[str] = UNSEEN  # the domains
    test_share: Share = 0.2  # of the concepts of each class

    def load(self) -> BenchmarkData:
        rows = objects(self.families)
        names, (apart, tested) = rows.kind.unique(), _divided(self, rows)
        pixels = pd.Series([image.numpy().tobytes() for image in _images(rows)], rows.index)
        train = rows[~apart & ~pixels.isin(pixels[apart])]  # one family draws two discs alike
        test = rows[tested]
        train_data, test_data = (labelled(part, "kind", names, families=self.families)
                                 for part in (train, test))
        return BenchmarkData("emoji_styles", train_data, test_data, captions_of(train),
                             groups_of(rows, "kind"), untouched(self.families, self.shown),
                             captioned(test), reference)


@dataclass
class EmojiConcepts(EmojiWorld):
    """Single concepts (dog, sailboat, violin, …) of the object groups: some families train, others
    test.

    Good for: whether tuning gains, how much is forgotten and what it does to classes never updated
    (frozen 53.9, class means of features 79.3). Not for: anything about single classes, which have
    two test images each, and so no worst class.

    Classes are the concepts that all these families draw. All of them train; the test drawings of
    `validation_share` of them are validation, and no test. Held-out sets: the two unseen families
    that neither train nor test ("other styles"), faces and people, symbols, flags. Retrieval: the
    first test family. The concepts of groups that are not updated, drawn by the test families, are
    a held-out set of their own ("other classes")."""

    title: ClassVar[str] = "Emoji concepts"

    train_families: Sequence[str] = ("noto", "fluent-emoji")
    test_families: Sequence[str] = ("twemoji", "fluent-emoji-flat")
    update: Groups = None  # object groups that the stream has; None: all
    held_out: Sequence[str] | None = None  # the held-out sets to keep; None: all

    def check(self) -> None:
        super().check()
        both = set(self.train_families) & set(self.test_families)
        if both:
            raise ValueError(f"train_families and test_families share {', '.join(sorted(both))}; "
                             "a family trains or tests")

    def load(self) -> BenchmarkData:
        families = (*self.train_families, *self.test_families)
        rows = drawn_by_all(families if self.train_families and self.test_families else ())
        here, by_testers = updated(rows, self.update), rows.family.isin(self.test_families)
        names, shown = rows.label[here].unique(), by_testers & self.shown(rows)
        train, test, rest = rows[here & ~by_testers], rows[here & shown], rows[~here & shown]
        sets, others = {}, [family for family in UNSEEN if family not in families]
        if others:
            foreign = table(others)
            foreign = foreign[foreign.label.isin(names) & self.shown(foreign)]
            sets["other styles"] = labelled(foreign, "label", names)
        if len(rest):
            sets["other classes"] = labelled(rest, "label")
        kept = kept_sets(sets | untouched(self.test_families, self.shown), self.held_out)
        pairs = rows[shown & (rows.family == self.test_families[0])]
        return BenchmarkData("emoji_concepts", labelled(train, "label", names),
                             labelled(test, "label", names), captions_of(train),
                             groups_of(rows[here], "label"), kept, captioned(pairs), reference)
