"""Kinds of things in drawings not trained on: the embedded world of the main questions."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge

from clstudy.data.benchmarks.emoji import (
    UNSEEN,
    EmojiWorld,
    Groups,
    ValidationShare,
    captioned,
    captions_of,
    drawn_by_all,
    groups_of,
    kept_sets,
    labelled,
    reference,
    table,
    untouched,
    updated,
)
from clstudy.data.types import BenchmarkData, Captioned, Labelled

LEAST = 10  # test images of a class
Families = Sequence[Literal[UNSEEN]]


def twice(rows: pd.DataFrame) -> pd.Series:
    """Return which rows have a picture that another row has, too."""
    return rows.image.map(lambda cell: cell["bytes"]).duplicated(keep=False)


@dataclass
class EmojiKinds(EmojiWorld):
    """Kinds of things (mammal, aircraft, musical instrument, …): all concepts train, in some styles,
    and test in others.

    Good for: the main questions, since tuning can gain here, much can be forgotten, and 1,500
    images test (`docs/worlds.md` has the numbers). Not for: concepts never trained on; photographs;
    other weights. `icon-clip` was pretrained on these class names.

    Classes are the subgroups of the object groups with at least ten test images, 47 of 49: not
    "amphibian" and "hotel item". The test drawings of `validation_share` of the concepts are
    validation, their other drawings train. With train_drawings, so many random drawings of each
    concept train and its others test, whichever of the families drew them; each family is then a
    domain that trains and tests.

    Held-out sets: kinds of the groups that are not updated, in drawings like those that test
    ("other classes"), faces and people, symbols, flags; in test runs on request also the validation
    images ("validation", "validation, other classes"). Retrieval: the last unseen family that
    neither trains nor tests, `streamline-emojis`. No image is in two of these sets; drawings equal
    to another, such as two discs, are left out."""

    title: ClassVar[str] = "Emoji kinds"

    validation_share: ValidationShare = 0.1  # of the concepts of each class; these do not test
    train_families: Families = ("noto", "fluent-emoji")
    test_families: Families = ("twemoji", "fluent-emoji-flat")
    train_drawings: Annotated[int, Ge(1)] | None = None  # of each concept; None: by train_families
    update: Groups = None  # object groups that the stream has; None: all
    held_out: Sequence[str] | None = None  # held-out sets to keep; None: all but validation

    @property
    def families(self) -> tuple[str, ...]:
        """The families that train or test."""
        return *self.train_families, *self.test_families

    def check(self) -> None:
        super().check()
        for name in ("train_families", "test_families"):
            if not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: needs at least one family; "
                                 f"choices: {', '.join(UNSEEN)}")
        both = set(self.train_families) & set(self.test_families)
        if both:
            raise ValueError(f"train_families and test_families share {', '.join(sorted(both))}; "
                             "a family trains or tests, but for train_drawings")
        most = len(self.families) - 1
        if self.train_drawings and self.train_drawings > most:
            raise ValueError(f"train_drawings={self.train_drawings!r}: must be at most {most}; "
                             f"{most + 1} families draw each concept, and one drawing must test")

    def load(self) -> BenchmarkData:
        rows, train = self._rows()
        here, shown = updated(rows, self.update), ~train & self.shown(rows)
        hidden = ~train & ~shown & (self.split == "test")

        def part(which: pd.Series) -> Labelled:
            names = rows.kind[here if which[here].any() else ~here].unique()
            return labelled(rows[which], "kind", names, families=self.families)

        other, more = ({name: part(which) for name, which in named.items() if which.any()}
                       for named in ({"other classes": ~here & shown},
                                     {"validation": here & hidden,
                                      "validation, other classes": ~here & hidden}))
        sets = other | untouched(self.test_families, self._shown_once)
        kept = kept_sets(sets | more, list(sets) if self.held_out is None else self.held_out)
        return BenchmarkData("emoji_kinds", part(here & train), part(here & shown),
                             captions_of(rows[here & train]), groups_of(rows[here], "kind"), kept,
                             self._pairs(), reference)

    def _pairs(self) -> dict[str, Captioned]:
        others = [family for family in UNSEEN if family not in self.families]
        rows = table(others[-1:] or None)
        return captioned(rows[self._shown_once(rows)]) if others else {}

    def _shown_once(self, rows: pd.DataFrame) -> pd.Series:
        return self.shown(rows) & ~twice(rows)

    def _rows(self) -> tuple[pd.DataFrame, pd.Series]:
        """Return the drawings of all kinds that are large enough, and which of them train."""
        rows = drawn_by_all(self.families)
        rows = rows[~twice(rows)]
        if self.train_drawings is None:
            train = rows.family.isin(self.train_families)
        else:
            drawn = np.random.default_rng(self.split_seed).permutation(len(rows))
            places = pd.Series(drawn, rows.index).groupby(rows.hexcode).rank()
            train = places <= self.train_drawings
        tests = rows.kind[~train & ~self.validating(rows)].value_counts()
        kept = rows.kind.isin(tests.index[tests >= LEAST])
        if not kept.any():
            raise ValueError(f"validation_share={self.validation_share!r} leaves no kind with "
                             f"{LEAST} test images; must be smaller")
        return rows[kept], train[kept]
