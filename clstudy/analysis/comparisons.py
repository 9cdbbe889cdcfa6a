"""Compare two groups of runs: the difference, its interval, and whether it is more than chance.

    found = compare(runs, "A_last", between="method", base="finetune", by=["stream", "tuner"])
    print(tell(found))

Differences are paired: by seed, and by every other setting that both sides share."""
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from clstudy.analysis.intervals import interval
from clstudy.analysis.scores import Groups, grouped, listed, metrics_of, scores, settings
from clstudy.utils.validation import choose

UNDECIDED = "not decided by one run"
THAN = {"higher": "higher than", "lower": "lower than",
        "not significantly different": "not significantly different from",
        UNDECIDED: f"{UNDECIDED} against"}
FROM_ZERO = {"higher": "above zero", "lower": "below zero",
             "not significantly different": "not significantly different from zero",
             UNDECIDED: UNDECIDED}
FOUND = ("base", "metric", "mean", "base_mean", "difference", "low", "high", "p", "p_corrected",
         "n", "verdict")  # columns of `compare` that are no settings


def compare(runs: Groups | pd.DataFrame, metrics: str | Sequence[str], between: str = "method",
            base: Any = "finetune", by: Sequence[str] = ()) -> pd.DataFrame:
    """Compare each value of the setting `between` with `base`, within each combination of `by`.

    runs: finished runs, or a table with a row per run as `scores` returns it, with any metrics.
    Returns a row for each value, combination and metric, with the columns of `by`; `between`; base;
    metric; mean and base_mean (percent); difference, low, high (points, 95 %, Student t over the
    pairs); p (two-sided t test), p_corrected (Holm, over all rows); n (pairs); verdict ("higher",
    "lower", "not significantly different"). A run is paired with the run of `base` that has the
    same settings in everything that varies among the runs of `base`. ValueError: no run of `base`;
    several of it for one pair; runs that differ in a setting that is neither paired nor in `by`."""
    metrics, by = listed(metrics), list(by)
    table = _with_settings(runs, metrics, [between, *by])
    theirs = table[table[between] == base]
    if theirs.empty:
        values = [str(value) for value in table[between].unique()]
        choose(f"compare: base, a value of {between},", base, values)
    varying = _varying(theirs.drop(columns=[between, *metrics]))
    keys = [name for name in varying if name not in by]
    others = table[table[between] != base].groupby([between, *by], sort=False, dropna=False)
    rows = []
    for (value, *at), ours in others:
        here = dict(zip(by, at, strict=True))
        same = theirs
        for name in set(here) & set(varying):
            same = same[same[name].map(repr) == repr(here[name])]
        pairs = _pairs(ours, same, keys, {between: value, **here}, metrics)
        rows += [{**here, between: value, "base": base, "metric": metric,
                  **_paired(pairs[f"{metric} ours"], pairs[f"{metric} theirs"])}
                 for metric in metrics]
    if not rows:
        raise ValueError(f"compare: all runs have {between}={base}; give it others to compare with")
    return _corrected(pd.DataFrame(rows))


def changes(runs: Groups, metrics: str | Sequence[str], by: Sequence[str] = ()) -> pd.DataFrame:
    """Compare each metric after training with the same metric before, paired by run.

    Returns the columns of `compare`, a row for each combination of `by` and each metric."""
    rows = []
    for key, group in grouped(runs, by).items():
        found = pd.DataFrame([metrics_of(run) for run in group])
        rows += [{**dict(zip(by, key, strict=True)), "when": "after training", "base": "before",
                  "metric": metric, **_paired(found[metric], found[f"{metric} before"])}
                 for metric in listed(metrics)]
    return _corrected(pd.DataFrame(rows))


def _with_settings(runs: Groups | pd.DataFrame, metrics: list[str],
                   needed: list[str]) -> pd.DataFrame:
    """Return a row per run with its metrics, the settings that vary, and those needed."""
    if isinstance(runs, pd.DataFrame):
        table = constant = runs
    else:
        table, constant = scores(runs, metrics), settings(runs, constant=True)
    known = dict.fromkeys([*table.columns.drop(metrics), *constant.columns])
    for name in needed:
        choose("compare: setting", name, known)
    return table.assign(**{name: constant[name] for name in needed if name not in table})


def _varying(table: pd.DataFrame) -> list[str]:
    """Return the columns with more than one value; values may be lists, so their text is taken."""
    return [name for name in table if table[name].map(repr).nunique() > 1]


def _pairs(ours: pd.DataFrame, theirs: pd.DataFrame, keys: list[str], here: dict[str, Any],
           metrics: list[str]) -> pd.DataFrame:
    """Join both sides on `keys`: a row per pair, with the metrics of both."""
    where = ", ".join(f"{name}={value}" for name, value in here.items())
    if free := _varying(ours.drop(columns=[*here, *metrics, *keys])):
        raise ValueError(f"compare: the runs of {where} differ in {', '.join(free)}: name it in "
                         f"by=, or choose runs with where({free[0]}=…)")
    sides = []
    for side, name in ((ours, where), (theirs, "base")):
        pair = pd.Series([repr([row[key] for key in keys]) for row in side.to_dict("records")])
        if pair.duplicated().any():
            raise ValueError(f"compare: {name} has several runs for {', '.join(keys) or 'one pair'}"
                             f" = {pair[pair.duplicated()].iloc[0]}; choose among them with "
                             "where(…)")
        sides.append(side[metrics].set_axis(pair))
    pairs = sides[0].add_suffix(" ours").join(sides[1].add_suffix(" theirs"), how="inner")
    if pairs.empty:
        raise ValueError(
            f"compare: no run of base pairs with the runs of {where} in {', '.join(keys)}")
    return pairs


def _paired(ours: pd.Series, theirs: pd.Series) -> dict[str, Any]:
    """Return the statistics of `compare` for two series of equal length, one row per pair."""
    change = ours.to_numpy() - theirs.to_numpy()
    mean, half = interval(change)
    low, high = mean - half, mean + half
    return {"mean": ours.mean(), "base_mean": theirs.mean(), "difference": mean, "low": low,
            "high": high, "p": _p(change), "n": len(change), "verdict": verdict_of(low, high)}


def _p(change: np.ndarray) -> float:
    """Return p of the two-sided t test against zero; that of scipy warns where all are equal."""
    n, size = len(change), abs(change.mean())
    error = change.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    if error == 0:
        return 0.0 if size else np.nan
    return 2 * t.sf(size / error, n - 1)


def _corrected(found: pd.DataFrame) -> pd.DataFrame:
    """Insert p corrected for the number of comparisons (Holm) behind p; no p stays NaN."""
    from statsmodels.stats.multitest import multipletests  # costs a second

    holm = found.p.copy()
    if holm.notna().any():
        holm[holm.notna()] = multipletests(holm.dropna(), method="holm")[1]
    found.insert(found.columns.get_loc("p") + 1, "p_corrected", holm)
    return found


# ---- the English of a verdict is written here alone


def verdict_of(low: float, high: float) -> str:
    """Return what the interval of a difference allows to say."""
    if np.isnan(low):
        return UNDECIDED
    return "higher" if low > 0 else "lower" if high < 0 else "not significantly different"


def tell(found: pd.DataFrame, labels: Mapping[Any, str] = MappingProxyType({}),
         unit: str = " points", digits: int = 1, means: bool = False) -> str:
    """Write the rows of `compare` as sentences, one a line.

    labels: what to call a value of a setting. A setting that a run does not have is left out.
    means: also write the means of both sides."""
    *by, between = [name for name in found.columns if name not in FOUND]
    lines = []
    for row in found.to_dict("records"):
        here = [f"{labels.get(row[name], row[name])}, " for name in by if not pd.isna(row[name])]
        numbers = _number(row["difference"], row["low"], row["high"], row["n"], unit, digits)
        if means:
            sides = f"{row['mean']:.{digits}f} against {row['base_mean']:.{digits}f}"
            numbers = f"{sides}, {numbers}"
        ours, theirs = (labels.get(row[name], row[name]) for name in (between, "base"))
        lines.append(f"{''.join(here)}{row['metric']}: {ours} is {THAN[row['verdict']]} {theirs}: "
                     f"{numbers}.")
    return "\n".join(lines)


def above_zero(values: Mapping[str, Iterable[float]] | pd.DataFrame, unit: str = " points",
               digits: int = 1) -> str:
    """Write for each name whether its numbers are above or below zero, as a sentence.

    values: one number per run under each name; a table with a row per run is one, too."""
    lines = []
    for name, found in values.items():
        numbers = list(found)
        mean, half = interval(numbers)
        low, high = mean - half, mean + half
        said = _number(mean, low, high, len(numbers), unit, digits)
        lines.append(f"{name} is {FROM_ZERO[verdict_of(low, high)]}: {said}.")
    return "\n".join(lines)


def _number(mean: float, low: float, high: float, n: int, unit: str, digits: int) -> str:
    said = f"{mean:+.{digits}f}{unit}"
    if np.isnan(low):
        return said
    return f"{said} (95 % interval {low:+.{digits}f} to {high:+.{digits}f}, n = {n})"
