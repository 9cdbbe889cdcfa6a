"""Figures of gradients and of what follows from them."""
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.style import LOOKS, PALETTE, TWO_COLUMNS, _figure, _legend, _order


def bands(table: pd.DataFrame, ylabel: str | None = None, sharey: bool = False,
          zero: bool = False) -> Figure:
    """Quantities over the stream: columns panel, method, seed, images_seen, value, and part (other
    dashes) or not.

    A bold line per method and part, the mean over seeds (runs read by linear interpolation at 40
    points), and a thin one per seed: with three seeds an interval at every point would hide what it
    is about."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(panels), sharey=sharey)
    parts = list(dict.fromkeys(table.part)) if "part" in table else [None]
    for axis, panel in zip(axes[0], panels, strict=True):
        mine = table[table.panel == panel]
        for method in _order(mine.method):
            for part, dash in zip(parts, ("", (4, 1.5), (1, 1)), strict=False):
                rows = mine[(mine.method == method) & (True if part is None else mine.part == part)]
                label = LOOKS[method][0] + (f", {part}" if part else "")
                _mean_line(axis, rows, color=LOOKS[method][1], label=label, dashes=dash
                           or (None, None))
        if zero:
            axis.axhline(0, color="0.2", lw=0.6, zorder=0)
        axis.set(title=panel, xlabel="images of the stream seen")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def _mean_line(axis, rows: pd.DataFrame, points: int = 40, **line) -> None:
    runs = [run.sort_values("images_seen") for _, run in rows.groupby("seed")]
    grid = np.linspace(max(r.images_seen.iloc[0] for r in runs),
                       min(r.images_seen.iloc[-1] for r in runs), points)
    values = np.array([np.interp(grid, run.images_seen, run.value) for run in runs])
    axis.plot(grid, values.mean(0), lw=1.5, **line)
    for run in runs if len(runs) > 1 else ():
        axis.plot(run.images_seen, run.value, lw=0.4, alpha=0.5, color=line["color"])


def by_block(table: pd.DataFrame, ylabel: str) -> Figure:
    """Means over a run per block of each tower, with the runs as dots: columns panel, block,
    method, seed, value."""
    panels = sorted(set(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.3, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        order = sorted(
            set(rows.block), key=lambda block: (not block.isdigit(), int(block)
                                                if block.isdigit() else 0))
        for i, method in enumerate(_order(rows.method)):
            for place, block in enumerate(order):
                values = rows[(rows.method == method) & (rows.block == block)].value
                x = place + (i - 0.5) * 0.3
                axis.plot([x] * len(values), values, ".", color=LOOKS[method][1], ms=3, alpha=0.6)
                axis.plot([x - 0.12, x + 0.12], [values.mean()] * 2, color=LOOKS[method][1], lw=1.6,
                          label=LOOKS[method][0])
        axis.set(title=panel, xlabel="block (0 is nearest to the input)")
        axis.set_xticks(range(len(order)), order)
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def scatter(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """A dot per row, coloured by method, a panel per method."""
    methods = _order(table.method)
    figure, axes = _figure(TWO_COLUMNS, 2.6, 1, len(methods), sharey=True, sharex=True)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = table[table.method == method]
        axis.plot(rows[x], rows[y], ".", color=LOOKS[method][1], ms=4, alpha=0.6)
        axis.axhline(0, color="0.7", lw=0.6, zorder=0)
        axis.set(title=LOOKS[method][0], xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def anatomy(table: pd.DataFrame, title: str | None = None) -> Figure:
    """One step, class by class: attraction to the left, repulsion to the right. Columns class,
    present, method, attraction, repulsion (norms); classes in the batch stand above those that are
    absent."""
    methods, order = _order(table.method), table.sort_values("present", ascending=False)
    names = list(dict.fromkeys(order["class"]))
    figure, axes = _figure(TWO_COLUMNS, 0.9 + 0.13 * len(names), 1, len(methods), sharey=True,
                           sharex=True)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = table[table.method == method].set_index("class").reindex(names)
        places = np.arange(len(names))
        axis.barh(places, -rows.attraction, color=PALETTE[2], label="attraction")
        axis.barh(places, rows.repulsion, color=PALETTE[1], label="repulsion")
        axis.axvline(0, color="0.2", lw=0.6)
        axis.set(title=LOOKS[method][0], xlabel="norm of the pull on the class's text")
        axis.axhline(
            order.drop_duplicates("class").present.sum() - 0.5, color="0.5", lw=0.6, ls=":")
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=5.5)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, fontsize=8.5)
    _legend(figure, axes)
    return figure
