"""What a comparison allows to say. The English of a verdict is written here alone.

    higher, lower     p is below 0.05 after the correction of Holm (1979, Scandinavian J.
                      Statistics 6) over the family of comparisons;
                      "higher, by less than 2 points" where the interval lies inside the margin, too
    equal within ±2   the 95 % interval lies inside the margin. Two one-sided tests at 5 %
                      (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15) ask this of the
                      90 % interval: ours is stricter, and not corrected for the family
    inconclusive      neither; with the number of seeds that would decide

Holm: sort the p of m comparisons; the i-th smallest is multiplied by m − i + 1, and no corrected p
is below that of a smaller one. The probability to call even one true zero higher or lower is then
at most 5 %, however the comparisons depend on each other. A family is what a reader would pick
from: all rows of one `compare`, or of several tables by `family`.

An inconclusive comparison would be decided, if its difference stayed, by the fewest seeds whose
interval (at Holm's level) is narrower than the difference, or (at 95 %) than what the difference
leaves of the margin. Where the part of the test concepts alone is wider, no number of seeds does
it. At that number the chance is about one in two; to plan a study use `power.seeds_for_power`."""
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis.intervals import Parts, two_way
from clstudy.analysis.power import seeds_for_width

MARGIN = 2.0  # points; a smaller difference does not matter
ALPHA = 0.05
UNDECIDED, INCONCLUSIVE, UNMEASURED = "not decided by one seed", "inconclusive", "not measured"
# columns of `compare` that are no settings
FOUND = ("base", "metric", "mean", "base_mean", "difference", "low", "high", "p", "p_corrected",
         "n", "verdict", "seeds_needed", "pairs", "interval", "se", "df", "low_seeds", "high_seeds",
         "se_seeds", "se_concepts", "concepts", "comparisons", "equal_within")


def verdict_of(low: float, high: float, p: float | None = None, margin: float = MARGIN) -> str:
    """Return what the interval of a difference allows to say.

    p: corrected for the family; None: the interval alone decides whether it is above or below zero;
    NaN: one seed. margin: points within which two sides count as equal; 0: only if all are."""
    if np.isnan(low) or p is not None and np.isnan(p):
        return UNDECIDED
    inside = -margin <= low and high <= margin
    apart = (low > 0 or high < 0) and (p is None or p < ALPHA)
    if apart:
        less = f", by less than {margin:g} points" if inside else ""
        return ("higher" if low > 0 else "lower") + less
    return f"equal within ±{margin:g}" if inside else INCONCLUSIVE


def family(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return tables of `compare` or `changes` with p corrected over all their rows together."""
    joint = judged(pd.concat([table[list(FOUND)] for table in tables], ignore_index=True))
    ends = np.cumsum([len(table) for table in tables])
    changed = ["p_corrected", "comparisons", "verdict", "seeds_needed"]
    return [table.assign(**joint[changed][end - len(table):end].set_axis(table.index))
            for table, end in zip(tables, ends, strict=True)]


def judged(found: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with p_corrected (Holm, over all rows that have a p), comparisons (their
    number), verdict and seeds_needed (inf: no number does; NaN: decided, or one seed)."""
    p = found.p
    corrected, factor = _holm(p)
    found = found.assign(p_corrected=corrected, comparisons=int(p.notna().sum()))
    verdicts, needed = [], []
    for row, times in zip(found.to_dict("records"), factor, strict=True):
        verdict = verdict_of(row["low"], row["high"], row["p_corrected"], row["equal_within"])
        verdicts.append(UNMEASURED if np.isnan(row["difference"]) else verdict)
        needed.append(_seeds_needed(row, times) if verdict == INCONCLUSIVE else np.nan)
    found = found.assign(verdict=verdicts, seeds_needed=needed)
    settings = [name for name in found if name not in FOUND]
    return found[settings + [name for name in FOUND if name in found]]


def _holm(p: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the corrected p, and by what each was multiplied; no p stays NaN."""
    from statsmodels.stats.multitest import multipletests  # costs a second

    known = p.dropna()
    corrected = pd.Series(multipletests(known, method="holm")[1] if len(known) else [], known.index,
                          dtype=float)
    factor = len(known) + 1 - known.rank(method="first")
    raised = (corrected / known).where((corrected < 1) & (known > 0), 1)  # by a smaller p
    return corrected.reindex(p.index), np.maximum(factor, raised).reindex(p.index)


def _seeds_needed(row: Mapping[str, Any], factor: float) -> float:
    size, count = abs(row["difference"]), row["concepts"]
    parts = Parts(row["n"] * row["se_seeds"]**2, row["se_concepts"]**2,
                  np.inf if np.isnan(count) else count)
    wanted = [(size, 1 - ALPHA / factor), (row["equal_within"] - size, 1 - ALPHA)]
    return min((seeds_for_width(width, parts, level) for width, level in wanted if width > 0),
               default=np.inf)


# ---- sentences


def tell(found: pd.DataFrame, labels: Mapping[Any, str] = MappingProxyType({}),
         unit: str = " points", digits: int = 1, means: bool = False) -> str:
    """Write the rows of `compare` as sentences, one a line.

    labels: what to call a value of a setting. A setting that a run does not have is left out.
    means: also write the means of both sides."""
    *by, between = [name for name in found.columns if name not in FOUND]
    lines = []
    for row in found.to_dict("records"):
        here = [f"{labels.get(row[name], row[name])}, " for name in by if not pd.isna(row[name])]
        numbers = _numbers(row, unit, digits)
        if means:
            sides = f"{row['mean']:.{digits}f} against {row['base_mean']:.{digits}f}"
            numbers = f"{sides}, {numbers}"
        ours, theirs = (labels.get(row[name], row[name]) for name in (between, "base"))
        claim = _claim(row["verdict"], ours, theirs, unit)
        lines.append(f"{''.join(here)}{row['metric']}: {claim}: {numbers}.")
    return "\n".join(lines)


def above_zero(values: Mapping[str, Iterable[float]] | pd.DataFrame, unit: str = " points",
               digits: int = 1, margin: float | None = None) -> str:
    """Write for each name whether its numbers are above or below zero, as a sentence; p is
    corrected over all of them.

    values: one number per run under each name; a table with a row per run is one, too. margin: None
    is 2 where the unit is points, else 0."""
    if margin is None:
        margin = MARGIN if unit == " points" else 0.0
    rows = [{"name": name, **two_way(list(found))._asdict(), "equal_within": margin}
            for name, found in values.items()]
    found = judged(pd.DataFrame(rows).assign(pairs=lambda table: table.n))
    return "\n".join(
        f"{_claim(row['verdict'], row['name'], 'zero', unit, 'above', 'below')}: "
        f"{_numbers(row, unit, digits)}." for row in found.to_dict("records"))


def _claim(verdict: str, ours: Any, theirs: Any, unit: str, higher: str = "higher than",
           lower: str = "lower than") -> str:
    word, comma, less = verdict.partition(",")
    if word in ("higher", "lower"):
        side = higher if word == "higher" else lower
        return f"{ours} is {side} {theirs}{comma}{less.replace(' points', unit)}"
    if word.startswith("equal"):
        return f"{ours} is equal to {theirs} {word.removeprefix('equal ')}{unit}"
    return f"{ours} against {theirs} is {verdict}"


def _numbers(row: Mapping[str, Any], unit: str, digits: int) -> str:
    said = f"{row['difference']:+.{digits}f}{unit}"
    if np.isnan(row["low"]):
        return said
    n = f"n = {row['n']}"
    if row["pairs"] != row["n"]:
        n += f" class order{'s' * (row['n'] > 1)}, {row['pairs']} pairs"
    inside = [f"95 % interval over {row['interval']} {row['low']:+.{digits}f} to "
              f"{row['high']:+.{digits}f}, {n}"]
    if row["verdict"] == INCONCLUSIVE:
        if row["p"] < ALPHA:
            inside.append(f"p = {row['p']:.2g}, corrected for {row['comparisons']} comparisons "
                          f"{row['p_corrected']:.2g}")
        inside.append(_needed(row["seeds_needed"], row["se_concepts"]))
    return f"{said} ({'; '.join(inside)})"


def _needed(seeds: float, se_concepts: float) -> str:
    if np.isinf(seeds):
        more = ", more test concepts are needed" if se_concepts else ""
        return f"no number of seeds decides{more}"
    return f"{'more than 1,000' if seeds > 1000 else f'some {seeds:.0f}'} seeds would decide"
