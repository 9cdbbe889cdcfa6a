"""Figures of accuracy: over the stream, as matrices, and against a setting or another metric."""
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clstudy.plots.style import (
    LOOKS,
    MARKERS,
    ONE_COLUMN,
    PALETTE,
    TWO_COLUMNS,
    Look,
    _figure,
    _legend,
    _line,
    _order,
    _panels,
)
from clstudy.utils.validation import choose

matplotlib.set_loglevel("warning")

Roles = str | Sequence[str]


def roles(table: pd.DataFrame, **columns: Roles) -> pd.DataFrame:
    """Return the table with the columns that a figure asks for; several columns become one, their
    values joined by a comma.

    ValueError: a column that the table does not have."""
    for role, names in columns.items():
        several = [names] if isinstance(names, str) else list(names)
        for name in several:
            choose(f"{role}: column", name, table.columns)
        values = table[several[0]]
        if len(several) > 1:
            values = table[several].astype(str).agg(", ".join, axis=1)
        table = table.assign(**{role: values})
    return table


def _in_every(table: pd.DataFrame, panel: str, hue: str) -> pd.DataFrame:
    """Return the table with frozen CLIP in every panel: it belongs to no tuner, so it has no panel
    of its own."""
    frozen = table[hue] == "frozen"
    alone = frozen & ~table[panel].isin(table[panel][~frozen])
    panels = table[panel][~alone].drop_duplicates()
    if panels.empty or not alone.any():
        return table
    return pd.concat([table[~alone], *(table[alone].assign(**{panel: one}) for one in panels)])


def _look(label: str, place: int) -> Look:
    """Return the look of a method; another label has the colour of its place in the palette."""
    return LOOKS.get(label, (label, PALETTE[place % len(PALETTE)], ""))


def _matrix(axis, R: np.ndarray, title: str | None, row_names=None, column_names=None,
            top: float = 100, colorbar=True):
    rows = row_names or ["before", *(str(stage) for stage in range(1, len(R)))]
    columns = column_names or range(1, R.shape[1] + 1)
    sns.heatmap(100 * R, vmin=0, vmax=top, cmap="crest", ax=axis, annot=R.shape[1] <= 10, fmt=".0f",
                annot_kws={"size": 6.5}, yticklabels=rows, xticklabels=columns, cbar=colorbar,
                cbar_kws={"label": "accuracy, %"})
    axis.axhline(1, color="white", lw=3)
    axis.set(title=title, xlabel="task", ylabel="after stage")
    axis.tick_params(axis="y", rotation=0)


def matrix(R: np.ndarray, title: str | None = None, row_names: Sequence[str] | None = None,
           column_names: Sequence[str] | None = None) -> Figure:
    """Draw an accuracy matrix: a row per stage (the first is the model before training), a column
    per task."""
    figure, axes = _figure(1.6 + 0.42 * max(R.shape[1], 4), 1.0 + 0.26 * max(len(R), 3))
    _matrix(axes[0, 0], R, title, row_names, column_names)
    return figure


def accuracy_matrices(means: Mapping[str, np.ndarray]) -> Figure:
    """Draw accuracy matrices side by side (`curves.matrices`)."""
    top = 100 * max(np.nanmax(R) for R in means.values())
    height = 0.7 + 0.21 * len(next(iter(means.values())))
    figure, axes = _figure(TWO_COLUMNS, height, 1, len(means))
    for i, (label, R) in enumerate(means.items()):
        _matrix(axes[0, i], R, _look(label, i)[0], top=top, colorbar=i == len(means) - 1)
        if i:
            axes[0, i].set_ylabel("")
    return figure


def live(lines: Mapping[tuple[int, str], Sequence[tuple[float, float]]]) -> Figure:
    """Draw one run as `widgets.live_training` shows it: (panel, name) → points, with panel 1 for
    loss terms over steps, 2 for accuracy over the stream, 3 for the drift of features."""
    figure, axes = _figure(TWO_COLUMNS, 2.7, 1, 3)
    labels = (("optimiser step", "loss"), ("images of the stream seen", "accuracy, %"),
              ("optimiser step", "1 − cosine to the start"))
    for number, (axis, (xlabel, ylabel)) in enumerate(zip(axes[0], labels, strict=True), 1):
        mine = {name: points for (panel, name), points in lines.items() if panel == number}
        for i, (name, points) in enumerate(mine.items()):
            axis.plot(*zip(*points, strict=True), color=PALETTE[i % len(PALETTE)], label=name,
                      lw=1.2, dashes=((), (4, 1.5), (1, 1))[i // len(PALETTE) % 3],
                      marker="" if number == 1 else ".", ms=4)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if mine:
            axis.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(.5, -.28))
    return figure


def _cross(axis, x: float, y: float, x_half: float | None, y_half: float | None, label: str,
           **more) -> None:
    """Draw a point with its intervals; frozen CLIP becomes the dotted lines through it."""
    name, colour, dash = LOOKS[label]
    if label == "frozen":
        if not np.isnan(x):
            axis.axvline(x, color=colour, ls=":", lw=0.8)
        axis.axhline(y, color=colour, ls=":", lw=0.8, label=name)
    elif not np.isnan(x):
        axis.errorbar(x, y, y_half, x_half, fmt=MARKERS[dash], ms=4, color=colour, label=name,
                      **more)


def series(table: pd.DataFrame, xlabel: str, ylabel: str, logx: bool = False, *,
           panel: Roles = "panel", x: str = "x", hue: str = "method") -> Figure:
    """Draw a value against a setting: columns mean and half_width (`tables.points`), and those of
    the panel, the setting (x) and the colour; 95 % intervals as bars.

    logx: the settings stand on a logarithmic axis, each with its value."""
    figure, axes, panels = _panels(roles(table, panel=panel, x=x, method=hue), 2.5, sharey=True)
    for axis, title, rows in panels:
        step = 0 if logx else 0.01 * (rows.x.max() - rows.x.min())  # bars do not hide each other
        for i, method in enumerate(_order(rows.method)):
            mine = rows[rows.method == method].sort_values("x")
            _line(axis, mine.x + (i - 1) * step, mine["mean"], mine.half_width, LOOKS[method],
                  marker="o")
        axis.set(title=title, xlabel=xlabel)
        if logx:
            values = sorted(set(rows.x))
            axis.set_xscale("log")
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def stream_curves(table: pd.DataFrame, ylabel: str = "accuracy on seen classes, %", *,
                  hue: str = "method", row: str | None = None, column: str | None = None) -> Figure:
    """Draw accuracy over the stream (`curves.over_stream`): a panel for each row and column, a line
    with its 95 % interval for each hue. Frozen CLIP is drawn in every column unless other rows
    share its own."""
    table = roles(table.assign(none=""), _row=row or "none", _column=column or "none", _hue=hue)
    table = _in_every(table, "_column", "_hue")
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("_row", "_column"))
    wide = TWO_COLUMNS if len(columns) > 1 or len(rows) > 1 else ONE_COLUMN + 0.9
    figure, axes = _figure(wide, 0.5 + 2.0 * len(rows), len(rows), len(columns), sharey="row",
                           sharex="row")
    for (at_row, at_column), part in table.groupby(["_row", "_column"], sort=False):
        axis = axes[rows.index(at_row), columns.index(at_column)]
        for i, label in enumerate(_order(part["_hue"])):
            line, (name, colour, dash) = part[part["_hue"] == label], _look(label, i)
            axis.plot(line.images_seen, line["mean"], color=colour, label=name,
                      dashes=dash or (None, None))
            if (line.high > line.low).any():
                axis.fill_between(line.images_seen, line.low, line.high, color=colour, alpha=0.12,
                                  lw=0)
        title = ", ".join(name for name in (at_row, at_column) if name)
        axis.set(title=title, xlabel="images of the stream seen")
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    _legend(figure, axes)
    return figure
