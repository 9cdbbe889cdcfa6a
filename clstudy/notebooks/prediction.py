"""Predict, then run: the reader writes a guess before the result is shown and compares it after.

    ahead = guess("Which ends higher?", ["asymmetric", "symmetric", "no difference"], mine=2)
    ahead.turned_out("symmetric")  # after the figure

A notebook never waits for an answer: it also runs to its end without one.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from clstudy.analysis.intervals import Interval
from clstudy.utils.validation import choose


@dataclass(frozen=True)
class Guess:
    """A question, the choices and the reader's guess, None if there is none."""

    question: str
    choices: tuple[str, ...]
    mine: str | None

    def turned_out(self, found: str | Interval | pd.DataFrame) -> bool | None:
        """Print whether the guess was right and return it; without a guess None.

        found: one of the choices, the interval of a difference, or the one row that `compare`
        gives. Above zero ("higher") means the first choice, below zero ("lower") the second, all
        else the third."""
        if isinstance(found, pd.DataFrame):
            side = found.verdict.iloc[0].partition(",")[0]
            answer = self._side(*{"higher": (1, 1), "lower": (-1, -1)}.get(side, (0, 0)))
        elif isinstance(found, Interval):
            answer = self._side(found.mean - found.half_width, found.mean + found.half_width)
        else:
            answer = choose("found", found, self.choices)
        if self.mine is None:
            print(f"{self.question} You wrote no guess. Write one into the cell above and run both "
                  "cells again.")
            return None
        right = answer == self.mine
        more = "" if right else " What did you expect that did not happen?"
        print(f"{self.question} Your guess: {self.mine}. It turned out: {answer}.{more}")
        return right

    def _side(self, low: float, high: float) -> str:
        if len(self.choices) != 3:
            needed = "an interval needs three choices, the last for no difference"
            raise ValueError(f"choices={list(self.choices)!r}: {needed}")
        return self.choices[0 if low > 0 else 1 if high < 0 else 2]  # one seed: NaN, so the third


def guess(question: str, choices: Sequence[str], mine: str | int | None = None) -> Guess:
    """Ask and keep the answer. mine: a choice, or its number from 1. ValueError: no such choice."""
    if isinstance(mine, int):
        if not 1 <= mine <= len(choices):
            raise ValueError(f"mine={mine!r}: must be a number from 1 to {len(choices)}")
        mine = choices[mine - 1]
    elif mine is not None:
        choose("mine", mine, choices)
    listed = " · ".join(f"{number} {choice}" for number, choice in enumerate(choices, 1))
    how = "To guess, write mine=1 or another number into the call."
    print(f"{question}\n{listed}\n{f'Your guess: {mine}.' if mine else how}")
    return Guess(question, tuple(choices), mine)
