"""Means and intervals of metrics over groups of runs, as numbers and as text."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis.comparisons import matched, with_settings
from clstudy.analysis.intervals import interval
from clstudy.analysis.scores import (
    Groups,
    cost,
    flattened,
    grouped,
    listed,
    metrics_of,
    settings,
)
from clstudy.utils.validation import choose


def points(runs: Groups | pd.DataFrame, metrics: str | Sequence[str], by: Sequence[str],
           change: bool = False) -> pd.DataFrame:
    """Return the mean of each metric over the runs of each group, with its 95 % interval: columns
    *by, metric, mean, half_width, n.

    runs: finished runs, or a table with a row per run and the metrics in columns. change: take the
    change of the metric from before training to the end, in points. With one run the half width is
    0, so that a figure has no bar."""
    rows = []
    for key, found in _by_group(runs, by).items():
        for metric in listed(metrics):
            values = found[metric] - (found[f"{metric} before"] if change else 0)
            rows.append({**dict(zip(by, key, strict=True)), "metric": metric, **spread(values),
                         "n": len(values)})
    return pd.DataFrame(rows)


def pairs(runs: Groups | pd.DataFrame, x: str, y: str, by: Sequence[str]) -> pd.DataFrame:
    """Return two metrics of each group with the half widths of their intervals: columns *by, x,
    x_half, y, y_half."""
    one, other = (points(runs, metric, by) for metric in (x, y))
    return one[list(by)].assign(x=one["mean"], x_half=one.half_width, y=other["mean"],
                                y_half=other.half_width)


def paired(runs: Groups | pd.DataFrame, metric: str | Sequence[str], between: str = "method",
           base: Any = "finetune", by: Sequence[str] = (), free: Sequence[str] = ()
           ) -> pd.DataFrame:
    """Return the differences behind the rows of `compare`, which takes the same arguments: a row
    per pair and metric, with the columns of `by`; `between`; base; metric; difference; and the seeds
    of the pair, as far as runs have them (seed, stream_seed)."""
    metrics, by, rows = listed(metric), list(by), []
    every = with_settings(runs, metrics, [between, *by], free)
    seeds = [name for name in ("seed", "stream_seed") if name in every and name not in by]
    for here, pairs in matched(every, metrics, between, base, by):
        ours, theirs = (every.loc[pairs[side]].reset_index(drop=True) for side in pairs)
        rows += [ours[seeds].assign(**here, base=base, metric=name,
                                    difference=(ours[name] - theirs[name]).astype(float))
                 for name in metrics]
    columns = [*by, between, "base", "metric", "difference", *seeds]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def within(table: pd.DataFrame, metric: str, by: Sequence[str], pair: str = "seed"
           ) -> pd.DataFrame:
    """Return the mean of a metric over the rows of each group, with the 95 % interval that is left
    when what all groups of one seed share is taken out: columns *by, mean, half_width, n.

    Seeds are paired: each seed's mean is moved to the mean of all, and the variance of G groups
    raised by G / (G − 1) (Cousineau 2005; Morey 2008, Tutorials in Quantitative Methods for
    Psychology 4). So groups that always differ by the same have no width, however far seeds are
    apart. ValueError: a seed that a group does not have."""
    for name in [metric, pair, *by]:
        choose("within: column", name, table.columns)
    wide = table.pivot_table(metric, pair, list(by), sort=False)
    if wide.isna().any(axis=None):
        lacks = wide.isna().stack(list(range(len(by))), future_stack=True)
        seed, *at = lacks[lacks].index[0]
        where = ", ".join(f"{name}={value}" for name, value in zip(by, at, strict=True))
        raise ValueError(f"within: {pair}={seed} has no {metric} at {where}; give all groups the "
                         f"same values of {pair}")
    count = wide.shape[1]
    level = wide.sub(wide.mean(axis=1), axis=0) + wide.to_numpy().mean()
    more = np.sqrt(count / (count - 1)) if count > 1 else 1.0
    rows = [{**spread(level[group]), "n": len(level)} for group in level]
    found = level.columns.to_frame(index=False).join(pd.DataFrame(rows))
    return found.assign(half_width=more * found.half_width)


def table(runs: Groups | pd.DataFrame, metrics: Sequence[str], by: Sequence[str],
          sort: str | None = None) -> pd.DataFrame:
    """Return a row per group and a column per metric as text: "mean ± half width" of the 95 %
    interval over its runs (Student t). The values of `by` are text, too; "-" where a group has none
    or lacks the metric.

    runs: as for `points`. metrics: of runs also "parameters", "images/s" and the others of
    `scores.cost`. sort: the metric whose highest mean comes first; None keeps the groups in order
    of appearance."""
    groups = _by_group(runs, by)
    costs = {} if isinstance(runs, pd.DataFrame) else grouped(runs, by)
    if sort:
        groups = dict(sorted(groups.items(), key=lambda group: -group[1][sort].mean()))
    rows = [[text(found[name]) if name in found else cost(costs[key])[name]
             for name in metrics] for key, found in groups.items()]
    index = pd.MultiIndex.from_tuples([tuple(map(_name, key)) for key in groups], names=list(by))
    return pd.DataFrame(rows, index, list(metrics)).replace("nan", "-")


def readings(runs: Groups, stage: int) -> pd.DataFrame:
    """Return a row per run, with its seed, each other setting that varies, and the mean accuracy
    (percent) on the tasks up to `stage`, after it, under each choice of candidates: own, seen, all.
    Tasks without test images are left out."""
    rows = [{candidates: 100 * np.nanmean(run.matrix(candidates)[stage, :stage])
             for candidates in ("own", "seen", "all")} for run in flattened(runs)]
    return settings(runs).join(pd.DataFrame(rows))


def spread(values: Sequence[float] | pd.Series) -> dict[str, float]:
    """Return the mean and the half width of the 95 % interval; with one value the half width is 0,
    so that a figure has no bar."""
    mean, half = interval(np.asarray(values))
    return {"mean": mean, "half_width": 0.0 if np.isnan(half) else half}


def text(values: Sequence[float] | pd.Series) -> str:
    """Write "mean ± half width" of the 95 % interval; of one value, the value."""
    mean, half = interval(np.asarray(values))
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _name(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_group(runs: Groups | pd.DataFrame, by: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    """Return the metrics of each group, a row per run."""
    if isinstance(runs, pd.DataFrame):
        return dict(list(runs.groupby(list(by), sort=False, dropna=False)))
    return {key: pd.DataFrame([metrics_of(run) for run in group])
            for key, group in grouped(runs, by).items()}
