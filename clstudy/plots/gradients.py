"""Figures of gradients and of what follows from them."""
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.style import LOOKS, PALETTE, TWO_COLUMNS, _figure, _legend, _order, _panels


def bands(table: pd.DataFrame, ylabel: str | None = None, sharey: bool = False,
          zero: bool = False) -> Figure:
    """Draw quantities over the stream: columns panel, method, seed, images_seen, value, and
    optionally part (other dashes).

    A bold line per method and part, the mean over seeds (runs read by linear interpolation at 40
    points), and a thin one per seed: with three seeds an interval at every point would hide the
    lines."""
    figure, axes, panels = _panels(table, 2.5, sharey=sharey)
    parts = list(dict.fromkeys(table.part)) if "part" in table else [None]
    for axis, title, mine in panels:
        for method in _order(mine.method):
            name, colour, _ = LOOKS[method]
            for part, dash in zip(parts, ((None, None), (4, 1.5), (1, 1)), strict=False):
                rows = mine[mine.method == method]
                rows = rows if part is None else rows[rows.part == part]
                label = f"{name}, {part}" if part else name
                _mean_line(axis, rows, color=colour, label=label, dashes=dash)
        if zero:
            axis.axhline(0, color="0.2", lw=0.6, zorder=0)
        axis.set(title=title, xlabel="images of the stream seen")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def _mean_line(axis, rows: pd.DataFrame, **line) -> None:
    runs = [run.sort_values("images_seen") for _, run in rows.groupby("seed")]
    start = max(run.images_seen.iloc[0] for run in runs)
    end = min(run.images_seen.iloc[-1] for run in runs)
    points = np.linspace(start, end, 40)
    values = np.array([np.interp(points, run.images_seen, run.value) for run in runs])
    axis.plot(points, values.mean(0), lw=1.5, **line)
    for run in runs if len(runs) > 1 else ():
        axis.plot(run.images_seen, run.value, lw=0.4, alpha=0.5, color=line["color"])


def anatomy(table: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw one step, class by class: attraction to the left, repulsion to the right. Columns class,
    present, method, attraction, repulsion (norms); classes in the batch stand above those that are
    absent."""
    methods = _order(table.method)
    order = table.sort_values("present", ascending=False).drop_duplicates("class")
    names, places = list(order["class"]), np.arange(len(order))
    figure, axes = _figure(TWO_COLUMNS, 0.9 + 0.13 * len(names), 1, len(methods), sharey=True,
                           sharex=True)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = table[table.method == method].set_index("class").reindex(names)
        axis.barh(places, -rows.attraction, color=PALETTE[2], label="attraction")
        axis.barh(places, rows.repulsion, color=PALETTE[1], label="repulsion")
        axis.axvline(0, color="0.2", lw=0.6)
        axis.axhline(order.present.sum() - 0.5, color="0.5", lw=0.6, ls=":")
        axis.set(title=LOOKS[method][0], xlabel="norm of the pull on the class's text")
    axes[0, 0].set_yticks(places, names, fontsize=5.5)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, fontsize=8.5)
    _legend(figure, axes)
    return figure
