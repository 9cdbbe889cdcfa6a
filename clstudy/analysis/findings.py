"""Titles: what a table of `compare` found, in one line.

    finding(found, {"sit": "SIT", "finetune": "asymmetric tuning"})
    "SIT ends higher than asymmetric tuning in 3 of 4 settings; 1 is inconclusive"

Only verdicts speak, so a rerun changes the title with its verdicts, and a number can never make it
false."""
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pandas as pd

from clstudy.analysis.verdicts import FOUND, INCONCLUSIVE, UNDECIDED, UNMEASURED
from clstudy.utils.validation import choose

LONGEST = 90  # characters of a title
ENDS = ("A_last", "seen classes", "all classes")  # metrics of the model at the end of its stream
ORDER = ("higher", "lower", "equal", INCONCLUSIVE, UNDECIDED, UNMEASURED, "undecided")


def finding(found: pd.DataFrame, labels: Mapping[Any, str] = MappingProxyType({})) -> str:
    """Write the verdicts of a table of `compare` as a title of at most 90 characters.

    labels: what to call a value of a setting, or a metric. A title that would be longer leaves out
    the metric, then the sentence, then the names. ValueError: the table lacks a column of
    `compare`, or has no row."""
    for name in ("base", "metric", "verdict"):
        choose("finding: column", name, found.columns)
    if found.empty:
        raise ValueError("finding: the table has no row; it takes what compare returns")
    between = [name for name in found if name not in FOUND][-1]
    ours, theirs, metric = (_one(found[name], labels) for name in (between, "base", "metric"))
    ends = set(found.metric) <= set(ENDS)
    counts = Counter(verdict.split(",")[0] for verdict in found.verdict)
    close = [verdict.rpartition("by less than ")[2] for verdict in found.verdict
             if "by less than " in verdict]
    if ours and theirs and close and counts["higher"] + counts["lower"] == len(close) and all(
            word in ("higher", "lower") or word.startswith("equal") for word in counts):
        where = "" if len(found) == 1 else f" in all {len(found)} settings"
        about = "" if ends or not metric else f"{metric}: "
        said = f"{about}{ours} and {theirs} differ by less than {close[0]}{where}"
        return said[0].upper() + said[1:]
    forms = [_counted(counts, f" with {theirs}"), _counted(counts, "")]
    if ours and theirs:
        about = "" if ends or not metric else f"{metric}: "
        said = _told(counts, ours, theirs, "ends" if ends else "is",
                     "settings" if metric else "comparisons")
        forms = [about + said, said, _counted(counts, f" of {ours} with {theirs}"), *forms]
    elif not theirs:
        forms = forms[1:]
    title = next((form for form in forms if len(form) <= LONGEST), forms[-1])
    return title[0].upper() + title[1:]


def span(counts: pd.Series) -> str:
    """Write the smallest and the largest of some numbers: "8", or "2 to 5"."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _one(values: pd.Series, labels: Mapping[Any, str]) -> str:
    """Return what to call the only value there is; "" where there are several."""
    first, *others = values.unique()
    return "" if others else str(labels.get(first, first))


def _ordered(counts: Counter) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: ORDER.index(item[0].split(" within")[0]))


def _told(counts: Counter, ours: str, theirs: str, verb: str, cases: str) -> str:
    """Write the most telling verdict as a sentence, and the others behind it."""
    (word, count), *others = _ordered(counts)
    if word in ("higher", "lower"):
        said = f"{ours} {verb} {word} than {theirs}"
    elif word.startswith("equal"):
        said = f"{ours} equals {theirs}{word.removeprefix('equal')}"
    else:
        said = f"{ours} against {theirs} is {word}"
    every = counts.total()
    if every > 1:
        said += f" in {f'{count} of' if others else 'all'} {every} {cases}"
    for word, count in others:
        states = word in ("lower", "higher") or word.startswith("equal")
        short = word.split(" within")[0]
        said += f"; {short} in {count}" if states else f"; {count} {_are(count)} {word}"
    return said


def _counted(counts: Counter, base: str) -> str:
    """Write how many comparisons have each verdict, in few words."""
    short = Counter()
    for word, count in counts.items():
        open_ = word in (UNDECIDED, UNMEASURED)
        short["undecided" if open_ else word.split(" within")[0]] += count
    (word, count), *others = _ordered(short)
    every = counts.total()
    if not others and every > 1:
        return f"all {every} comparisons{base} are {word}"
    said = f"of {every} comparison{'s' * (every > 1)}{base}, {count} {_are(count)} {word}"
    return said + "".join(f", {count} {word}" for word, count in others)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
