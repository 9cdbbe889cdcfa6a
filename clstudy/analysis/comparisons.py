"""Compare two groups of runs: the difference, its interval, and whether it is more than chance.

    found = compare(runs, "A_last", between="method", base="finetune", by=["stream", "tuner"])
    print(tell(found))

Differences are paired: by seed, and by every other setting that both sides share. `intervals` says
what the interval is, `verdicts` what may be said of it."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis.intervals import two_way
from clstudy.analysis.replicates import differences
from clstudy.analysis.scores import (
    Groups,
    flattened,
    grouped,
    listed,
    metrics_of,
    scores,
    settings,
)
from clstudy.analysis.verdicts import MARGIN, above_zero, family, judged, tell, verdict_of
from clstudy.runs.run import Run
from clstudy.utils.validation import choose

__all__ = ["above_zero", "changes", "compare", "family", "tell", "verdict_of"]


def compare(runs: Groups | pd.DataFrame, metrics: str | Sequence[str], between: str = "method",
            base: Any = "finetune", by: Sequence[str] = (), margin: float | None = None,
            free: Sequence[str] = ()) -> pd.DataFrame:
    """Compare each value of the setting `between` with `base`, within each combination of `by`.

    runs: finished runs, or a table with a row per run as `scores` returns it, with any metrics.
    margin: differences within it count as equal; None: 2 points for runs, 0 for a table, whose unit
    is not known. free: settings in which the two sides of a pair may differ, such as a rate that was
    chosen for each (`chosen`). A run is paired with the run of `base` that has the same settings in
    everything that varies among the runs of `base`. Pairs with one class order (`stream_seed`, or
    `seed` where that is None) are averaged first: they are not independent.

    Returns a row for each value, combination and metric, with the columns of `by`; `between`; base;
    metric; mean and base_mean; difference, low, high (95 %); p, p_corrected (Holm, over all rows);
    n (class orders); verdict; seeds_needed, which would decide (inf: none); pairs; interval, over
    what low to high is: "seeds × concepts" where all runs hold which test images were right and the
    metric comes from these, else "seeds"; with one seed "concepts"; se, df; low_seeds and
    high_seeds (Student t over seeds alone); se_seeds, se_concepts (se² is the sum of their
    squares); concepts; comparisons (in the family); equal_within (the margin). ValueError: no run
    of `base`; several of it for one pair; runs that differ in a setting that is neither paired nor
    in `by`."""
    metrics, by = listed(metrics), list(by)
    table = with_settings(runs, metrics, [between, *by], free)
    every = None if isinstance(runs, pd.DataFrame) else flattened(runs)
    orders = _orders_of(table) if every is None else [_order(run) for run in every]
    margin = (0.0 if every is None else MARGIN) if margin is None else margin
    rows = []
    for here, pairs in matched(table, metrics, between, base, by):
        sides = [pairs[side].tolist() for side in ("ours", "theirs")]
        drawn = differences(*([every[number] for number in side] for side in sides),
                            {metric: metric for metric in metrics}) if every else {}
        rows += [{**here, "base": base, "metric": metric, "equal_within": margin,
                  **_paired(*(table.loc[side, metric] for side in sides),
                            [orders[number] for number in sides[0]], drawn.get(metric))}
                 for metric in metrics]
    if not rows:
        raise ValueError(f"compare: all runs have {between}={base}; give it others to compare with")
    return judged(pd.DataFrame(rows))


def matched(table: pd.DataFrame, metrics: Sequence[str], between: str, base: Any,
            by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the settings of each comparison of `compare` (by, between), and its pairs: the numbers
    of both rows of `table`, columns ours and theirs."""
    theirs = table[table[between] == base]
    if theirs.empty:
        values = [str(value) for value in table[between].unique()]
        choose(f"compare: base, a value of {between},", base, values)
    varying = _varying(theirs.drop(columns=[between, *metrics]))
    keys = [name for name in varying if name not in by]
    others = table[table[between] != base].groupby([between, *by], sort=False, dropna=False)
    for (value, *at), ours in others:
        here = dict(zip(by, at, strict=True))
        same = theirs
        for name in set(here) & set(varying):
            same = same[same[name].map(repr) == repr(here[name])]
        yield ({**here, between: value},
               _pairs(ours, same, keys, {between: value, **here}, metrics))


def changes(runs: Groups, metrics: str | Sequence[str], by: Sequence[str] = (),
            margin: float = MARGIN) -> pd.DataFrame:
    """Compare each metric after training with the same metric before, paired by run.

    Returns the columns of `compare`, a row for each combination of `by` and each metric."""
    before = {metric: f"{metric} before" for metric in listed(metrics)}
    rows = []
    for key, group in grouped(runs, by).items():
        found, orders = pd.DataFrame([metrics_of(run) for run in group]), list(map(_order, group))
        drawn = differences(group, group, before)
        rows += [{**dict(zip(by, key, strict=True)), "when": "after training", "base": "before",
                  "metric": metric, "equal_within": margin,
                  **_paired(found[metric], found[other], orders, drawn.get(metric))}
                 for metric, other in before.items()]
    return judged(pd.DataFrame(rows))


def with_settings(runs: Groups | pd.DataFrame, metrics: list[str],
                  needed: list[str], free: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per run with its metrics, the settings that vary, and those needed, without
    those that are `free`; its number is the index."""
    if isinstance(runs, pd.DataFrame):
        table = constant = runs.reset_index(drop=True)
    else:
        table, constant = scores(runs, metrics), settings(runs, constant=True)
    known = dict.fromkeys([*table.columns.drop(metrics), *constant.columns])
    for name in needed:
        choose("compare: setting", name, known)
    table = table.assign(**{name: constant[name] for name in needed if name not in table})
    return table.drop(columns=list(free), errors="ignore")


def _varying(table: pd.DataFrame) -> list[str]:
    """Return the columns with more than one value; values may be lists, so their text is taken."""
    return [name for name in table if table[name].map(repr).nunique() > 1]


def _order(run: Run) -> int:
    """Return what a run's class order was drawn from."""
    return run.config.seed if run.config.stream_seed is None else run.config.stream_seed


def _orders_of(table: pd.DataFrame) -> list:
    """Return the same of a table's rows; without seeds every row has its own."""
    seeds = table.seed if "seed" in table else pd.Series(table.index, table.index)
    return (table.stream_seed.where(table.stream_seed.notna(), seeds) if "stream_seed" in table
            else seeds).tolist()


def _pairs(ours: pd.DataFrame, theirs: pd.DataFrame, keys: list[str], here: dict[str, Any],
           metrics: list[str]) -> pd.DataFrame:
    """Join both sides on `keys`: a row per pair, with the numbers of both runs."""
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
        sides.append(pd.Series(side.index, pair))
    pairs = pd.concat(sides, axis=1, join="inner", keys=["ours", "theirs"])
    if pairs.empty:
        raise ValueError(
            f"compare: no run of base pairs with the runs of {where} in {', '.join(keys)}")
    return pairs


def _paired(ours: pd.Series, theirs: pd.Series, orders: list,
            replicates: tuple[np.ndarray, int] | None) -> dict[str, Any]:
    """Return the statistics of `compare` for two series of equal length, one row per pair.

    orders: the class order of each pair. replicates: as `differences` returns them."""
    codes = pd.factorize(np.array(orders, object))[0]
    mean = np.eye(codes.max() + 1)[codes]  # (pairs, class orders)
    mean /= mean.sum(axis=0)
    ours, theirs = (side.to_numpy(dtype=float) @ mean for side in (ours, theirs))
    drawn, concepts = replicates or (None, np.inf)
    found = two_way(ours - theirs, None if drawn is None else drawn @ mean, concepts)
    return {"mean": ours.mean(), "base_mean": theirs.mean(), **found._asdict(), "pairs": len(codes)}
