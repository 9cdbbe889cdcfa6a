"""Figures of the leaderboard."""
import math
from collections.abc import Mapping
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.style import LOOKS, MARKERS, TWO_COLUMNS, _figure, _legend


def ranking(table: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """A dot and its 95 % interval per entry, a block of rows per board, a panel per column: columns
    board, column, label, look, mean, half_width, first (as `leaderboard.dots` makes it). titles:
    column → label of its axis.

    A filled dot shares the first place; a hollow one is behind; a cross has one seed, so no
    interval and no place. The dotted line is frozen CLIP. Entries stand in the order of the
    table."""
    boards, columns = list(dict.fromkeys(table.board)), list(dict.fromkeys(table.column))
    sizes = [int((table.board == board).sum() / len(columns)) for board in boards]
    figure, axes = _figure(TWO_COLUMNS, 0.3 + sum(0.55 + 0.155 * size for size in sizes),
                           len(boards), len(columns), sharey="row", sharex="col",
                           height_ratios=[size + 1.5 for size in sizes])
    for (i, board), (j, column) in product(enumerate(boards), enumerate(columns)):
        rows, axis = table[(table.board == board) & (table.column == column)], axes[i, j]
        for place, row in enumerate(rows.itertuples()):
            colour, alone = LOOKS[row.look][1], math.isnan(row.half_width)
            axis.errorbar(row.mean, place, xerr=None if alone else row.half_width, color=colour,
                          lw=1, ms=4, fmt="x" if alone else MARKERS[LOOKS[row.look][2]],
                          mfc=colour if row.first else "white")
            if row.look == "frozen":
                axis.axvline(row.mean, color=colour, ls=":", lw=0.8, zorder=0)
        names = [
            ", ".join(filter(None, (LOOKS[row.look][0], row.label))) for row in rows.itertuples()
        ]
        axis.set_yticks(range(len(rows)), names, fontsize=6.5)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel((titles or {}).get(column, column))
    for i, board in enumerate(boards):
        axes[i, 0].set_title(board, loc="left")
    return figure


def clouds(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """`trade` for any number of panels, two in a row, each with axes of its own. A row without x is
    left out; "frozen" without x is the line across."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 0.5 + 2.5 * -(-len(panels) // 2), -(-len(panels) // 2),
                           min(2, len(panels)))
    for axis, panel in zip(axes.flat, panels, strict=False):
        for row in table[table.panel == panel].itertuples():
            name, colour, dash = LOOKS[row.label]
            if row.label == "frozen":
                axis.axhline(row.y, color=colour, ls=":", lw=0.8, label=name)
            if row.label == "frozen" and not math.isnan(row.x):
                axis.axvline(row.x, color=colour, ls=":", lw=0.8)
            if row.label != "frozen" and not math.isnan(row.x):
                axis.errorbar(row.x, row.y, row.y_half or None, row.x_half or None,
                              fmt=MARKERS[dash], ms=4, lw=0.7, color=colour, label=name)
        axis.set_title(panel, fontsize=7.5)
        axis.set(xlabel=xlabel, ylabel=ylabel)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    _legend(figure, axes)
    return figure
