"""Which of two groups of runs is ahead, by how much, and whether that is more than chance.

    found = compare(runs, "A_last", between="method", base="finetune", by=["stream", "tuner"])
    print(tell(found))

Differences are paired: by seed, and by every other setting that both sides share."""
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from clstudy.analysis.scores import Groups, grouped, metrics_of, scores, settings
from clstudy.evaluation.metrics import interval, paired_interval
from clstudy.utils.validation import choose

LEVEL = 0.95  # of the intervals


def compare(runs: Groups | pd.DataFrame, metrics: str | Sequence[str], between: str = "method",
            base: Any = "finetune", by: Sequence[str] = ()) -> pd.DataFrame:
    """Each value of the setting `between` against `base`: a row for each of them, each combination
    of `by`, and each metric. runs: or a table with a row per run as `scores` gives it, with metrics
    of any origin.

    Columns: those of `by`; `between`; base; metric; mean and base_mean (percent); difference, low,
    high (points, 95 %, Student t over the pairs); p (two-sided t test), p_corrected (Holm, over all
    rows); n (pairs); verdict ("higher", "lower", "not significantly different"). A run is paired
    with the run of `base` that has the same settings in everything that varies among the runs of
    `base`. ValueError: no run of `base`; several of it for one pair; runs that differ in a setting
    that is neither paired nor in `by`."""
    metrics, by = [metrics] if isinstance(metrics, str) else list(metrics), list(by)
    table = runs if isinstance(runs, pd.DataFrame) else scores(runs, metrics)
    constant = table if isinstance(runs, pd.DataFrame) else settings(runs, constant=True)
    for name in (between, *by):
        choose("compare: setting", name,
               dict.fromkeys([*table.columns.drop(metrics), *constant.columns]))
    table = table.assign(**{name: constant[name] for name in (between, *by) if name not in table})
    theirs = table[table[between] == base]
    if theirs.empty:
        choose(f"compare: base, a value of {between},", base,
               [str(value) for value in table[between].unique()])
    varying = [
        name for name in theirs.columns.drop([between, *metrics])
        if theirs[name].map(repr).nunique() > 1
    ]
    rows = []
    for (value, *at), ours in table[table[between] != base].groupby([between, *by], sort=False,
                                                                    dropna=False):
        shared = theirs
        for name, wanted in zip(by, at, strict=True):
            shared = shared[shared[name].map(repr) == repr(wanted)] if name in varying else shared
        pairs = _pairs(ours, shared, [name for name in varying if name not in by], between, by,
                       metrics)
        for metric in metrics:
            rows.append({
                **dict(zip(by, at, strict=True)), between: value, "base": base, "metric": metric,
                **_paired(pairs[f"{metric} ours"], pairs[f"{metric} theirs"])
            })
    if not rows:
        raise ValueError(f"compare: all runs have {between}={base}; give it others to compare with")
    return corrected(pd.DataFrame(rows))


def changes(runs: Groups, metrics: str | Sequence[str], by: Sequence[str] = ()) -> pd.DataFrame:
    """Each metric after training against the same before: the columns of `compare`, a row for each
    combination of `by` and each metric, paired by run."""
    metrics, by, rows = [metrics] if isinstance(metrics, str) else list(metrics), list(by), []
    for key, group in grouped(runs, by).items():
        found = pd.DataFrame([metrics_of(run) for run in group])
        for metric in metrics:
            rows.append({**dict(zip(by, key, strict=True)), "when": "after training",
                         "base": "before", "metric": metric,
                         **_paired(found[metric], found[f"{metric} before"])})
    return corrected(pd.DataFrame(rows))


def corrected(found: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with p corrected for their number (Holm), in a column behind p."""
    found.insert(found.columns.get_loc("p") + 1, "p_corrected", _holm(found.p))
    return found


def compare_values(table: pd.DataFrame, value: str, between: str = "method", base: Any = "finetune",
                   by: Sequence[str] = (), pair: str = "seed") -> pd.DataFrame:
    """`compare` for a column of any table with a row per run: columns `between`, `pair` and those
    of `by`."""
    for name in (value, between, pair, *by):
        choose("compare: column", name, table.columns)
    choose(f"compare: base, a value of {between},", base, table[between].unique().tolist())
    rows = []
    for at, part in table.groupby(list(by), sort=False) if by else [((), table)]:
        wide = part.pivot(index=pair, columns=between, values=value)
        for one in [name for name in part[between].unique() if name != base]:
            both = wide[[one, base]].dropna()
            rows.append({
                **dict(zip(by, at, strict=True)), between: one, "base": base, "metric": value,
                **_paired(both[one], both[base])
            })
    return corrected(pd.DataFrame(rows))


def _pairs(ours: pd.DataFrame, theirs: pd.DataFrame, keys: list[str], between: str, by: list[str],
           metrics: list[str]) -> pd.DataFrame:
    """One row for each pair, with the metrics of both sides."""
    where = ", ".join(f"{name}={ours[name].iloc[0]}" for name in (between, *by))
    free = [
        name for name in ours.columns.drop([between, *by, *metrics, *keys])
        if ours[name].map(repr).nunique() > 1
    ]
    if free:
        raise ValueError(
            f"compare: the runs of {where} differ in {', '.join(free)}: name it in by=, or choose runs with "
            f"where({free[0]}=…)")
    left, right = (side.assign(
        pair=[repr(tuple(row)) for row in side[keys].itertuples(index=False)])
                   for side in (ours, theirs))
    for side, name in ((left, where), (right, "base")):
        if side.pair.duplicated().any():
            raise ValueError(
                f"compare: {name} has several runs for {', '.join(keys) or 'one pair'} = "
                f"{side.pair[side.pair.duplicated()].iloc[0]}; choose among them with where(…)")
    pairs = left.merge(right, on="pair", suffixes=(" ours", " theirs"))
    if pairs.empty:
        raise ValueError(
            f"compare: no run of base pairs with the runs of {where} in {', '.join(keys)}")
    return pairs


def _paired(ours: pd.Series, theirs: pd.Series) -> dict[str, Any]:
    found = paired_interval(ours.tolist(), theirs.tolist(), LEVEL)
    low, high = found.mean - found.half_width, found.mean + found.half_width
    change = ours.to_numpy() - theirs.to_numpy()
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.nan
    size = abs(change.mean())
    p = 2 * t.sf(size / error,
                 len(change)
                 - 1) if error else 0.0 if size else np.nan  # ttest_rel warns where it is 0
    return {
        "mean": ours.mean(), "base_mean": theirs.mean(), "difference": found.mean, "low": low,
        "high": high, "p": p, "n": len(ours), "verdict": verdict_of(low, high)
    }


def _holm(p: pd.Series) -> np.ndarray:
    """Holm's correction over a family of tests; what has no p stays NaN."""
    from statsmodels.stats.multitest import multipletests  # costs a second

    corrected = np.full(len(p), np.nan)
    known = p.notna().to_numpy()
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


# ---- the English of a verdict stands here alone


def verdict_of(low: float, high: float) -> str:
    """What the interval of a difference allows to say."""
    if np.isnan(low):
        return "not decided by one run"
    return "higher" if low > 0 else "lower" if high < 0 else "not significantly different"


def tell(found: pd.DataFrame, labels: Mapping[Any, str] = MappingProxyType({}),
         unit: str = " points", digits: int = 1, means: bool = False) -> str:
    """The rows of `compare` as sentences. labels: what a value of a setting is called; a
    setting that a run does not have is left out. means: say the means of both sides, too."""
    fixed = ("base", "metric", "mean", "base_mean", "difference", "low", "high", "p", "p_corrected",
             "n", "verdict")
    *by, between = [name for name in found.columns if name not in fixed]
    lines = []
    for row in found.to_dict("records"):
        where = "".join(
            f"{labels.get(row[name], row[name])}, " for name in by if not pd.isna(row[name]))
        said = _number(row["difference"], row["low"], row["high"], row["n"], unit, digits)
        if means:
            said = f"{row['mean']:.{digits}f} against {row['base_mean']:.{digits}f}, {said}"
        ours, theirs = (labels.get(value, value) for value in (row[between], row["base"]))
        lines.append(
            f"{where}{row['metric']}: {ours} is {row['verdict']} than {theirs}: {said}.".replace(
                "different than", "different from").replace("is not decided by one run than",
                                                            "is not decided by one run against"))
    return "\n".join(lines)


def above_zero(values: Mapping[str, Iterable[float]] | pd.DataFrame, unit: str = " points",
               digits: int = 1) -> str:
    """Whether numbers are above or below zero, such as changes, as a sentence for each name.

    values: under each name one number per run; a table with a row per run is one, too."""
    lines = []
    for name, found in values.items():
        numbers = list(found)
        mean, half = interval(numbers)
        low, high = mean - half, mean + half
        verdict = verdict_of(low, high).replace("higher", "above zero").replace(
            "lower", "below zero")
        said = _number(mean, low, high, len(numbers), unit, digits)
        lines.append(f"{name} is {verdict.replace('different', 'different from zero')}: {said}.")
    return "\n".join(lines)


def _number(mean: float, low: float, high: float, n: int, unit: str, digits: int) -> str:
    said = f"{mean:+.{digits}f}{unit}"
    if np.isnan(low):
        return said
    return f"{said} (95 % interval {low:+.{digits}f} to {high:+.{digits}f}, n = {n})"


# ---- groups of runs by key
