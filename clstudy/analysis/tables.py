"""From runs to the numbers of a paper: the metrics of a run, their mean and interval over seeds,
and paired differences."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis.scores import Groups, cost, grouped, metrics_of
from clstudy.evaluation import metrics
from clstudy.evaluation.metrics import interval


def points(runs: Groups, metrics: str | Sequence[str], by: Sequence[str],
           change: bool = False) -> pd.DataFrame:
    """Mean and half width of the 95 % interval over the runs of each group: columns *by, metric,
    mean, half_width, n.

    change: of the metric's change from before training to the end, in points. With one run the half
    width is 0, so that no bar is drawn."""
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    rows = []
    for key, group in grouped(runs, by).items():
        found = pd.DataFrame([metrics_of(run) for run in group])
        for metric in metrics:
            values = found[metric] - (found[f"{metric} before"] if change else 0)
            rows.append({
                **dict(zip(by, key, strict=True)), "metric": metric,
                **_point(values.tolist()), "n": len(group)
            })
    return pd.DataFrame(rows)


def pairs(runs: Groups, x: str, y: str, by: Sequence[str]) -> pd.DataFrame:
    """Two metrics of each group with the half widths of their intervals: columns *by, x, x_half, y,
    y_half."""
    wide = [
        points(runs, metric, by).drop(columns=["metric", "n"]).rename(
            columns={"mean": name, "half_width": f"{name}_half"})
        for name, metric in (("x", x), ("y", y))
    ]
    return pd.concat([wide[0], wide[1][["y", "y_half"]]], axis=1)


def table(runs: Groups | pd.DataFrame, metrics: Sequence[str], by: Sequence[str],
          sort: str | None = None) -> pd.DataFrame:
    """A row per group, a column per metric: "mean ± half width" of the 95 % interval over its runs
    (Student t). The values of `by` are text; "-" where a group has none, or has not the metric.

    runs: or a table with a row per run and the metrics in columns, as `scores` gives it. metrics:
    of runs also "parameters", "images/s" and the others of `scores.cost`. sort: the metric whose
    highest mean comes first; None: groups in order of first appearance."""
    groups = _metrics_by_group(runs, by)
    if sort:
        groups = dict(sorted(groups.items(), key=lambda group: -group[1][sort].mean()))
    costs = {} if isinstance(
        runs, pd.DataFrame) else {key: cost(group) for key, group in grouped(runs, by).items()}
    rows = {
        tuple(map(_name, key)): {
            name: _text(interval(found[name].tolist())) if name in found else costs[key][name]
            for name in metrics
        } for key, found in groups.items()
    }
    made = pd.DataFrame.from_dict(rows, orient="index")
    made.index = pd.MultiIndex.from_tuples(list(rows), names=list(by))
    return made.replace("nan", "-")


def _name(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metrics_by_group(runs: Groups | pd.DataFrame, by: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    if isinstance(runs, pd.DataFrame):
        return dict(list(runs.groupby(list(by), sort=False, dropna=False)))
    return {key: pd.DataFrame([metrics_of(run) for run in group])
            for key, group in grouped(runs, by).items()}


def _text(found: metrics.Interval) -> str:
    return f"{found.mean:.1f}" if np.isnan(
        found.half_width) else f"{found.mean:.1f} ± {found.half_width:.1f}"


def _point(values: Sequence[float]) -> dict[str, float]:
    """Mean and half width of the 95 % interval, as plots take them: with one value there is no
    bar."""
    found = metrics.interval(values)
    return {
        "mean": found.mean, "half_width": 0.0 if np.isnan(found.half_width) else found.half_width
    }


def readings(runs: Groups, stage: int, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy on the tasks up to `stage`, after it, under each choice of candidates (own, seen,
    all): columns *by, candidates, mean, half_width. A task without test images is left out."""
    rows = []
    for key, group in grouped(runs, by).items():
        for candidates in ("own", "seen", "all"):
            values = [
                100 * float(np.nanmean(run.matrix(candidates)[stage, :stage])) for run in group
            ]
            rows.append(
                {**dict(zip(by, key, strict=True)), "candidates": candidates, **_point(values)})
    return pd.DataFrame(rows)
