"""Predict, then run: a guess that is written down before the result is shown, and looked at again after it.

    ahead = guess("Which ends higher?", ["asymmetric", "symmetric", "no difference"], mine=None)  # a word or a number
    ahead.turned_out("symmetric")  # after the figure

Nothing waits for an answer: without one a notebook runs through.
"""
from collections.abc import Sequence
from dataclasses import dataclass

from clstudy.evaluation.metrics import Interval
from clstudy.utils.validation import choose


@dataclass(frozen=True)
class Guess:
    question: str
    choices: tuple[str, ...]
    mine: str | None

    def turned_out(self, found: str | Interval) -> bool | None:
        """Print whether the guess was right; None without one. found: one of the choices, or the interval of a
        difference, which means the first choice above zero, the second below, the third if it contains zero."""
        answer = self._told(found) if isinstance(found, Interval) else choose("found", found, self.choices)
        if self.mine is None:
            print(f"{self.question} No guess was written; put one into the cell above and run both again.")
            return None
        right = answer == self.mine
        print(f"{self.question} Your guess: {self.mine}. It turned out: {answer}."
              + ("" if right else " What did you expect that did not happen?"))
        return right

    def _told(self, found: Interval) -> str:
        if len(self.choices) != 3:
            raise ValueError(f"choices={list(self.choices)!r}: an interval needs three, the last for no difference")
        low, high = found.mean - found.half_width, found.mean + found.half_width
        return self.choices[0 if low > 0 else 1 if high < 0 else 2]  # NaN, of one seed, tells nothing


def guess(question: str, choices: Sequence[str], mine: str | int | None = None) -> Guess:
    """Ask, and keep the answer. mine: one of the choices, or its number from 1. ValueError: no such choice."""
    if isinstance(mine, int) and not 1 <= mine <= len(choices):
        raise ValueError(f"mine={mine!r}: must be a number from 1 to {len(choices)}")
    kept = choices[mine - 1] if isinstance(mine, int) else None if mine is None else choose("mine", mine, choices)
    listed = " · ".join(f"{number} {choice}" for number, choice in enumerate(choices, 1))
    print(f"{question}\n{listed}\n" + (f"noted: {kept}" if kept else "write mine=1 into the call, or another number"))
    return Guess(question, tuple(choices), kept)
