"""Figures are functions of tables. One palette, one style, one `save`; nothing here computes a result."""
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from clstudy.evaluation.metrics import interval
from clstudy.plots.style import LOOKS, MARKERS, ONE_COLUMN, PALETTE, TWO_COLUMNS, _figure, _legend, _order
from clstudy.runs.run import Run


def _matrix(axis, R: np.ndarray, title: str | None, row_names=None, column_names=None, top: float = 100, colorbar=True):
    rows = row_names or ["before", *(str(s) for s in range(1, len(R)))]
    sns.heatmap(100 * R, vmin=0, vmax=top, cmap="crest", ax=axis, cbar=colorbar, annot=R.shape[1] <= 10, fmt=".0f",
                annot_kws={"size": 6.5}, yticklabels=rows, xticklabels=column_names or range(1, R.shape[1] + 1),
                cbar_kws={"label": "accuracy, %"})
    axis.axhline(1, color="white", lw=3)
    axis.set(title=title, xlabel="task", ylabel="after stage")
    axis.tick_params(axis="y", rotation=0)


def matrix(R: np.ndarray, title: str | None = None, row_names: Sequence[str] | None = None,
           column_names: Sequence[str] | None = None) -> Figure:
    """An accuracy matrix: a row per stage (the first is the model before training), a column per task."""
    figure, axes = _figure(1.6 + 0.42 * max(R.shape[1], 4), 1.0 + 0.26 * max(len(R), 3))
    _matrix(axes[0, 0], R, title, row_names, column_names)
    return figure


def _band(axis, runs: Sequence[Run], set_name: str, metric: str, **line) -> None:
    """Mean over seeds with its 95 % interval, cut to 0 … 100. Stages end at other images for other seeds, so each run's
    curve is read, by linear interpolation, at 25 points from the latest first checkpoint to the end."""
    curves = [run.curve(set_name, metric) for run in runs]
    first, last = (max(curve.images_seen.iloc[i] for curve in curves) for i in (0, -1))
    points = np.linspace(first, last, 25)
    values = np.array([np.interp(points, curve.images_seen, 100 * curve.value) for curve in curves])
    axis.plot(points, values.mean(0), **line)
    if len(runs) > 1:
        low, high = zip(*((m - h, m + h) for m, h in map(interval, values.T)), strict=True)
        low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)
        axis.fill_between(points, low, high, color=line.get("color"), alpha=0.12, lw=0)


def curves(runs: Mapping[str, Sequence[Run]], set: str = "seen classes", metric: str = "accuracy",
           ylabel: str | None = None, title: str | None = None) -> Figure:
    """Accuracy over the stream, a line per label: mean over seeds and 95 % interval."""
    figure, axes = _figure(ONE_COLUMN + 0.9, 2.5)
    for i, (label, group) in enumerate(runs.items()):
        name, colour, dash = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
        _band(axes[0, 0], group, set, metric, color=colour, label=name, dashes=dash or (None, None))
    axes[0, 0].set(xlabel="images of the stream seen", ylabel=ylabel or f"{metric} on {set}, %", title=title)
    axes[0, 0].legend(frameon=False)
    return figure


def losses(runs: Mapping[str, Run]) -> Figure:
    """Each loss term over the optimiser's steps; the vertical lines are stage ends."""
    figure, axes = _figure(ONE_COLUMN + 0.9, 2.3)
    for i, (label, run) in enumerate(runs.items()):
        for term, rows in run.steps.groupby("term"):
            name, colour, _ = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
            axes[0, 0].plot(rows.step, rows.value, lw=0.9, color=colour, label=f"{name}: {term}")
        for end in run.steps.groupby("stage").step.max()[:-1]:
            axes[0, 0].axvline(end, color="0.85", lw=0.6, zorder=0)
    axes[0, 0].set(xlabel="optimiser step", ylabel="loss")
    axes[0, 0].legend(frameon=False)
    return figure


def live(lines: Mapping[tuple[int, str], Sequence[tuple[float, float]]]) -> Figure:
    """One run as `widgets.live_training` shows it: (panel, name) → points, with panels 1 for loss terms over steps, 2
    for accuracy over the stream, 3 for the drift of features."""
    figure, axes = _figure(TWO_COLUMNS, 2.7, 1, 3)
    about = (("optimiser step", "loss"), ("images of the stream seen", "accuracy, %"),
             ("optimiser step", "1 − cosine to the start"))
    for column, (x, y) in enumerate(about, 1):
        axis = axes[0, column - 1]
        mine = [(name, points) for (panel, name), points in lines.items() if panel == column]
        for i, (name, points) in enumerate(mine):
            axis.plot(*zip(*points, strict=True), color=PALETTE[i % len(PALETTE)], label=name, lw=1.2,
                      dashes=((), (4, 1.5), (1, 1))[i // len(PALETTE) % 3], marker="" if column == 1 else ".", ms=4)
        axis.set(xlabel=x, ylabel=y)
        if mine:
            axis.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(.5, -.28))
    return figure


def curve_grid(groups: Mapping[tuple[str, str, str], Sequence[Run]], set: str = "seen classes") -> Figure:
    """Panels stream × tuner (or method), a line per method (or tower): keys of `groups` are (row, column, line)."""
    streams, tuners = (list(dict.fromkeys(key[i] for key in groups)) for i in (0, 1))
    figure, axes = _figure(TWO_COLUMNS, 0.5 + 2.0 * len(streams), len(streams), len(tuners), sharey="row", sharex="row")
    for (stream, tuner, method), runs in groups.items():
        axis = axes[streams.index(stream), tuners.index(tuner)]
        name, colour, dash = LOOKS[method]
        _band(axis, runs, set, "accuracy", color=colour, label=name, dashes=dash or (None, None))
        axis.set(title=f"{stream} stream, {tuner}", xlabel="images of the stream seen")
    for row in axes:
        row[0].set_ylabel(f"accuracy on {set}, %")
    _legend(figure, axes)
    return figure


def matrices(groups: Mapping[str, Sequence[Run]], candidates: str = "all") -> Figure:
    """Accuracy matrices side by side, each the mean over its runs."""
    means = {label: np.nanmean([run.matrix(candidates) for run in runs], axis=0) for label, runs in groups.items()}
    top = 100 * max(np.nanmax(R) for R in means.values())
    figure, axes = _figure(TWO_COLUMNS, 0.7 + 0.21 * len(next(iter(means.values()))), 1, len(means))
    for i, (label, R) in enumerate(means.items()):
        _matrix(axes[0, i], R, LOOKS.get(label, (label,))[0], top=top, colorbar=i == len(means) - 1)
        if i:
            axes[0, i].set_ylabel("")
    return figure


def changes(table: pd.DataFrame, ylabel: str = "change against before, points") -> Figure:
    """Bars with 95 % intervals: columns `panel`, `set`, `method`, `mean`, `half_width` (as `tables.changes` makes
    it)."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        sets, methods = list(dict.fromkeys(rows["set"])), _order(rows.method)
        for i, method in enumerate(methods):
            mine = rows[rows.method == method].set_index("set").loc[sets]
            place = np.arange(len(sets)) + (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axis.bar(place, mine["mean"], 0.8 / len(methods), yerr=mine.half_width, color=LOOKS[method][1],
                     label=LOOKS[method][0], error_kw={"lw": 0.8})
        axis.axhline(0, color="0.2", lw=0.7)
        axis.set_title(panel)
        axis.set_xticks(range(len(sets)), sets, rotation=38, ha="right")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def trade(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Two metrics against each other with their 95 % intervals: columns panel, label, x, x_half, y, y_half.

    Rows whose label is "frozen" become the dotted lines: above is gained, below is lost."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharex=True, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row in table[table.panel == panel].itertuples():
            name, colour, dash = LOOKS[row.label]
            if row.label == "frozen":
                axis.axvline(row.x, color=colour, ls=":", lw=0.8)
                axis.axhline(row.y, color=colour, ls=":", lw=0.8, label=name)
            else:
                axis.errorbar(row.x, row.y, row.y_half, row.x_half, fmt=MARKERS[dash], ms=4, lw=0.9, color=colour,
                              label=name)
        axis.set(title=panel, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def frontier(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Two metrics against each other, a line per method through its weights: columns label, weight, x, x_half, y and
    y_half.

    Above and to the right is better, so methods are compared at their best and not at one weight. The smallest and the
    largest weight of each line are written beside it. "frozen" becomes the dotted cross; a row without a weight is a
    single point."""
    figure, axes = _figure(TWO_COLUMNS, 3.6)
    axis = axes[0, 0]
    for label in _order(table.label):
        rows, (name, colour, dash) = table[table.label == label].sort_values("weight"), LOOKS[label]
        if label == "frozen":
            axis.axvline(rows.x.iloc[0], color=colour, ls=":", lw=0.8)
            axis.axhline(rows.y.iloc[0], color=colour, ls=":", lw=0.8, label=name)
            continue
        line = axis.errorbar(rows.x, rows.y, rows.y_half, rows.x_half, color=colour, label=name, lw=1.1, ms=4,
                             marker=MARKERS[dash], elinewidth=0.5)
        line[0].set_dashes(dash or (None, None))
        for row in rows.iloc[[0, -1]].itertuples() if len(rows) > 1 else ():
            axis.annotate(f"{row.weight:g}", (row.x, row.y), xytext=(4, 4), textcoords="offset points", fontsize=6.5,
                          color=colour, zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def series(table: pd.DataFrame, xlabel: str, ylabel: str, logx: bool = False) -> Figure:
    """A value against a setting: columns panel, method, x, mean, half_width; 95 % intervals as bars.

    logx: the settings stand at equal distances on a logarithmic axis, each with its value."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        for i, method in enumerate(_order(rows.method)):
            mine, (name, colour, dash) = rows[rows.method == method].sort_values("x"), LOOKS[method]
            shift = 0 if logx else (i - 1) * 0.01 * (rows.x.max() - rows.x.min())  # bars do not hide each other
            line = axis.errorbar(mine.x + shift, mine["mean"], mine.half_width, color=colour, label=name, lw=1.1, ms=3,
                                 marker="o", elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        axis.set(title=panel, xlabel=xlabel)
        if logx:
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(rows.x)), [f"{x:g}" for x in sorted(set(rows.x))])
            axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


matplotlib.set_loglevel("warning")
