"""Figures are functions of tables. One palette, one style, one `save`; nothing here computes a
result."""
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from clstudy.plots.style import LOOKS, MARKERS, ONE_COLUMN, PALETTE, TWO_COLUMNS, _figure, _legend, _order
from clstudy.utils.validation import choose

Roles = str | Sequence[str]


def roles(table: pd.DataFrame, **columns: Roles) -> pd.DataFrame:
    """The table with columns for what a figure asks for; several columns become one, their values
    joined by a comma.

    ValueError: a column that the table does not have."""
    for role, names in columns.items():
        several = [names] if isinstance(names, str) else list(names)
        for name in several:
            choose(f"{role}: column", name, table.columns)
        values = table[several[0]] if len(several) == 1 else table[several].astype(str).agg(
            ", ".join, axis=1)
        table = table.assign(**{role: values})
    return table


def _in_every(table: pd.DataFrame, panel: str, hue: str) -> pd.DataFrame:
    """The table with frozen CLIP in every panel: it belongs to no tuner, so it has no panel of its
    own."""
    frozen = table[hue] == "frozen"
    alone = frozen & ~table[panel].isin(table[panel][~frozen])
    panels = table[panel][~alone].drop_duplicates()
    if panels.empty or not alone.any():
        return table
    return pd.concat([table[~alone], *(table[alone].assign(**{panel: one}) for one in panels)])


def _matrix(axis, R: np.ndarray, title: str | None, row_names=None, column_names=None,
            top: float = 100, colorbar=True):
    rows = row_names or ["before", *(str(s) for s in range(1, len(R)))]
    sns.heatmap(100 * R, vmin=0, vmax=top, cmap="crest", ax=axis, cbar=colorbar, annot=R.shape[1]
                <= 10, fmt=".0f", annot_kws={"size": 6.5}, yticklabels=rows,
                xticklabels=column_names or range(1, R.shape[1] + 1), cbar_kws={
                    "label": "accuracy, %"
                })
    axis.axhline(1, color="white", lw=3)
    axis.set(title=title, xlabel="task", ylabel="after stage")
    axis.tick_params(axis="y", rotation=0)


def matrix(R: np.ndarray, title: str | None = None, row_names: Sequence[str] | None = None,
           column_names: Sequence[str] | None = None) -> Figure:
    """An accuracy matrix: a row per stage (the first is the model before training), a column per
    task."""
    figure, axes = _figure(1.6 + 0.42 * max(R.shape[1], 4), 1.0 + 0.26 * max(len(R), 3))
    _matrix(axes[0, 0], R, title, row_names, column_names)
    return figure


def live(lines: Mapping[tuple[int, str], Sequence[tuple[float, float]]]) -> Figure:
    """One run as `widgets.live_training` shows it: (panel, name) → points, with panels 1 for loss
    terms over steps, 2 for accuracy over the stream, 3 for the drift of features."""
    figure, axes = _figure(TWO_COLUMNS, 2.7, 1, 3)
    about = (("optimiser step", "loss"), ("images of the stream seen", "accuracy, %"),
             ("optimiser step", "1 − cosine to the start"))
    for column, (x, y) in enumerate(about, 1):
        axis = axes[0, column - 1]
        mine = [(name, points) for (panel, name), points in lines.items() if panel == column]
        for i, (name, points) in enumerate(mine):
            axis.plot(*zip(*points, strict=True), color=PALETTE[i % len(PALETTE)], label=name,
                      lw=1.2, dashes=((), (4, 1.5), (1, 1))[i // len(PALETTE) % 3],
                      marker="" if column == 1 else ".", ms=4)
        axis.set(xlabel=x, ylabel=y)
        if mine:
            axis.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(.5, -.28))
    return figure


def changes(table: pd.DataFrame, ylabel: str = "change against before, points", *,
            panel: Roles = "panel", x: str = "set", hue: str = "method") -> Figure:
    """Bars with 95 % intervals: columns mean and half_width, and those of the panel, the place (x)
    and the colour."""
    table = roles(table, panel=panel, set=x, method=hue)
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        sets, methods = list(dict.fromkeys(rows["set"])), _order(rows.method)
        for i, method in enumerate(methods):
            mine = rows[rows.method == method].set_index("set").loc[sets]
            place = np.arange(len(sets)) + (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axis.bar(place, mine["mean"], 0.8 / len(methods), yerr=mine.half_width,
                     color=LOOKS[method][1], label=LOOKS[method][0], error_kw={"lw": 0.8})
        axis.axhline(0, color="0.2", lw=0.7)
        axis.set_title(panel)
        axis.set_xticks(range(len(sets)), sets, rotation=38, ha="right")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def trade(table: pd.DataFrame, xlabel: str, ylabel: str, *, panel: Roles = "panel",
          hue: str = "label") -> Figure:
    """Two metrics against each other with their 95 % intervals: columns x, x_half, y, y_half, and
    those of the panel and the colour (`tables.pairs`).

    Rows whose label is "frozen" become the dotted lines: above is gained, below is lost. They stand
    in every panel where they have none of their own with others."""
    table = _in_every(roles(table, panel=panel, label=hue), "panel", "label")
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharex=True, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row in table[table.panel == panel].itertuples():
            name, colour, dash = LOOKS[row.label]
            if row.label == "frozen":
                axis.axvline(row.x, color=colour, ls=":", lw=0.8)
                axis.axhline(row.y, color=colour, ls=":", lw=0.8, label=name)
            else:
                axis.errorbar(row.x, row.y, row.y_half, row.x_half, fmt=MARKERS[dash], ms=4, lw=0.9,
                              color=colour, label=name)
        axis.set(title=panel, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def frontier(table: pd.DataFrame, xlabel: str, ylabel: str, *, hue: str = "label",
             along: str = "weight") -> Figure:
    """Two metrics against each other, a line per method through its weights: columns x, x_half, y,
    y_half (`tables. pairs`), and those of the colour and of the weight.

    Above and to the right is better, so methods are compared at their best and not at one weight.
    The smallest and the largest weight of each line are written beside it. "frozen" becomes the
    dotted cross; a row without a weight is a single point."""
    table = roles(table, label=hue, weight=along)
    figure, axes = _figure(TWO_COLUMNS, 3.6)
    axis = axes[0, 0]
    for label in _order(table.label):
        rows, (name, colour, dash) = table[table.label == label].sort_values("weight"), LOOKS[label]
        if label == "frozen":
            axis.axvline(rows.x.iloc[0], color=colour, ls=":", lw=0.8)
            axis.axhline(rows.y.iloc[0], color=colour, ls=":", lw=0.8, label=name)
            continue
        line = axis.errorbar(rows.x, rows.y, rows.y_half, rows.x_half, color=colour, label=name,
                             lw=1.1, ms=4, marker=MARKERS[dash], elinewidth=0.5)
        line[0].set_dashes(dash or (None, None))
        for row in rows.iloc[[0, -1]].itertuples() if len(rows) > 1 else ():
            axis.annotate(f"{row.weight:g}", (row.x, row.y), xytext=(4, 4),
                          textcoords="offset points", fontsize=6.5, color=colour, zorder=5,
                          path_effects=[withStroke(linewidth=2, foreground="white")])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def series(table: pd.DataFrame, xlabel: str, ylabel: str, logx: bool = False, *,
           panel: Roles = "panel", x: str = "x", hue: str = "method") -> Figure:
    """A value against a setting: columns mean and half_width (`tables.points`), and those of the
    panel, the setting (x) and the colour; 95 % intervals as bars.

    logx: the settings stand at equal distances on a logarithmic axis, each with its value."""
    table = roles(table, panel=panel, x=x, method=hue)
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        for i, method in enumerate(_order(rows.method)):
            mine, (name, colour, dash) = rows[rows.method == method].sort_values("x"), LOOKS[method]
            shift = 0 if logx else (i - 1) * 0.01 * (rows.x.max()
                                                     - rows.x.min())  # bars do not hide each other
            line = axis.errorbar(mine.x + shift, mine["mean"], mine.half_width, color=colour,
                                 label=name, lw=1.1, ms=3, marker="o", elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        axis.set(title=panel, xlabel=xlabel)
        if logx:
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(rows.x)), [f"{x:g}" for x in sorted(set(rows.x))])
            axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def stream_curves(table: pd.DataFrame, ylabel: str = "accuracy on seen classes, %", *,
                  hue: str = "method", row: str | None = None, column: str | None = None) -> Figure:
    """Accuracy over the stream (`curves.over_stream`): a panel for each row and column, a line with
    its 95 % interval for each hue. Frozen CLIP stands in every column where it has none of its own
    with others."""
    table = table.assign(**{name: "" for name in ("_row", "_column")})
    table = _in_every(roles(table, _row=row or "_row", _column=column or "_column", _hue=hue),
                      "_column", "_hue")
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("_row", "_column"))
    wide = TWO_COLUMNS if len(columns) > 1 or len(rows) > 1 else ONE_COLUMN + 0.9
    figure, axes = _figure(wide, 0.5 + 2.0 * len(rows), len(rows), len(columns), sharey="row",
                           sharex="row")
    for (at_row, at_column), part in table.groupby(["_row", "_column"], sort=False):
        axis = axes[rows.index(at_row), columns.index(at_column)]
        for i, label in enumerate(_known_first(part["_hue"])):
            line = part[part["_hue"] == label]
            name, colour, dash = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
            axis.plot(line.images_seen, line["mean"], color=colour, label=name, dashes=dash
                      or (None, None))
            if (line.high > line.low).any():
                axis.fill_between(line.images_seen, line.low, line.high, color=colour, alpha=0.12,
                                  lw=0)
        axis.set(title=", ".join(part for part in (at_row, at_column) if part),
                 xlabel="images of the stream seen")
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def _known_first(labels: Iterable[str]) -> list[str]:
    """Methods in their usual order, then other labels as they come."""
    found = list(dict.fromkeys(labels))
    return sorted(found, key=lambda label: list(LOOKS).index(label)
                  if label in LOOKS else len(LOOKS))


def accuracy_matrices(means: Mapping[str, np.ndarray]) -> Figure:
    """Accuracy matrices side by side (`curves.matrices`)."""
    top = 100 * max(np.nanmax(R) for R in means.values())
    figure, axes = _figure(TWO_COLUMNS, 0.7 + 0.21 * len(next(iter(means.values()))), 1, len(means))
    for i, (label, R) in enumerate(means.items()):
        _matrix(axes[0, i], R, LOOKS.get(label, (label,))[0], top=top, colorbar=i == len(means) - 1)
        if i:
            axes[0, i].set_ylabel("")
    return figure


def loss_curves(table: pd.DataFrame, *, hue: str = "label") -> Figure:
    """Each loss term over the optimiser's steps (`curves.losses`); the vertical lines are stage
    ends."""
    figure, axes = _figure(ONE_COLUMN + 0.9, 2.3)
    for i, (label, steps) in enumerate(table.groupby(hue, sort=False)):
        name, colour, _ = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
        for term, rows in steps.groupby("term"):
            axes[0, 0].plot(rows.step, rows.value, lw=0.9, color=colour, label=f"{name}: {term}")
        for end in steps.groupby("stage").step.max()[:-1]:
            axes[0, 0].axvline(end, color="0.85", lw=0.6, zorder=0)
    axes[0, 0].set(xlabel="optimiser step", ylabel="loss")
    axes[0, 0].legend(frameon=False)
    return figure


matplotlib.set_loglevel("warning")
