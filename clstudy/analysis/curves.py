"""Curves over the stream and accuracy matrices, each the mean over runs with its interval."""
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clstudy.analysis.intervals import interval
from clstudy.analysis.scores import Groups, grouped
from clstudy.runs.run import Run

POINTS = 25  # of a curve


def over_stream(runs: Groups, by: Sequence[str] = ("label",), name: str = "seen classes",
                metric: str = "accuracy") -> pd.DataFrame:
    """Return the accuracy on a set over the stream, in percent: columns *by, images_seen, mean,
    low, high (95 %, cut to 0 … 100).

    Groups in which a run was not measured on the set are left out."""
    tables = []
    for key, group in grouped(runs, by).items():
        if (found := band(group, name, metric)) is not None:
            columns = dict(zip(("images_seen", "mean", "low", "high"), found, strict=True))
            tables.append(pd.DataFrame({**dict(zip(by, key, strict=True)), **columns}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*by, "mean"])


def band(runs: Sequence[Run], name: str = "seen classes", metric: str = "accuracy"
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return images seen, the mean over runs, and the ends of its 95 % interval; None where a run
    was not measured on the set.

    Stages end at other images for other seeds, so each run's curve is read, by linear
    interpolation, at `POINTS` points from the latest first checkpoint to the end."""
    curves = [run.curve(name, metric) for run in runs]
    if any(curve.empty for curve in curves):
        return None
    first, last = (max(curve.images_seen.iloc[i] for curve in curves) for i in (0, -1))
    points = np.linspace(first, last, POINTS)
    values = np.array([np.interp(points, curve.images_seen, 100 * curve.value) for curve in curves])
    mean = values.mean(0)
    half = np.nan_to_num([interval(column).half_width for column in values.T])  # one run: 0
    return points, mean, np.clip(mean - half, 0, 100), np.clip(mean + half, 0, 100)


def matrices(runs: Groups, by: str = "label", candidates: str = "all") -> dict[str, np.ndarray]:
    """Return the mean accuracy matrix of each group (0 to 1): a row per stage, the first before
    training."""
    means = {}
    for (key,), group in grouped(runs, [by]).items():
        every = np.ma.masked_invalid([run.matrix(candidates) for run in group])
        means[key] = every.mean(0).filled(np.nan)
    return means


def together(runs: Groups, names: Sequence[str], by: Sequence[str] = ("label",)) -> pd.DataFrame:
    """Return the accuracies on several sets at each evaluation at which a run has all of them, in
    percent: a row per run and evaluation, columns *by, seed, images_seen and the names."""
    tables = []
    for key, group in grouped(runs, by).items():
        for run in group:
            values = {name: 100 * run.curve(name).set_index("images_seen").value for name in names}
            both = pd.DataFrame(values).dropna().reset_index()
            known = {**dict(zip(by, key, strict=True)), "seed": run.config.seed}
            tables.append(both.assign(**known)[[*known, "images_seen", *names]])
    return pd.concat(tables, ignore_index=True)
