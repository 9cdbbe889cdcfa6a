"""Figures of the leaderboard."""
from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.accuracy import _cross
from clstudy.plots.style import LOOKS, MARKERS, TWO_COLUMNS, _figure, _legend


def ranking(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw a dot and its 95 % interval per row of `leaderboard.standings`, a block per board, a
    panel per column. titles: column → label of its axis.

    A filled dot shares the first place; a hollow one is behind; a cross has one seed, so no
    interval and no place. The dotted line is frozen CLIP. Rows stand in the order of the table."""
    boards = dict(list(table.groupby("board", sort=False)))
    sizes = [len(board) for board in boards.values()]
    figure, axes = _figure(TWO_COLUMNS, 0.3 + sum(0.55 + 0.155 * size for size in sizes),
                           len(boards), len(titles), sharey="row", sharex="col",
                           height_ratios=[size + 1.5 for size in sizes])
    parts = product(boards.values(), titles.items())
    for axis, (board, (column, title)) in zip(axes.flat, parts, strict=True):
        for place, row in enumerate(board.to_dict("records")):
            mean, half = row[column], row[f"{column} ±"]
            _, colour, dash = LOOKS[row["look"]]
            alone, face = np.isnan(half), colour if row[f"{column} *"] else "white"
            axis.errorbar(mean, place, xerr=None if alone else half, color=colour, lw=1, ms=4,
                          fmt="x" if alone else MARKERS[dash], mfc=face)
            if row["look"] == "frozen":
                axis.axvline(mean, color=colour, ls=":", lw=0.8, zorder=0)
        axis.set_yticks(range(len(board)), [_name(row) for row in board.itertuples()], fontsize=6.5)
        axis.set_ylim(len(board) - 0.4, -0.6)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(title)
    for axis, name in zip(axes[:, 0], boards, strict=True):
        axis.set_title(name, loc="left")
    return figure


def _name(row) -> str:
    """Return what a row is: its method, its tuner where that says more, and its settings."""
    tuner = "" if row.tuner in ("none", row.method) else row.tuner
    return ", ".join(filter(None, (LOOKS[row.look][0], tuner, row.settings)))


def clouds(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """Draw two columns of `leaderboard.standings` against each other, with the intervals that there
    are: a panel per board, two in a row, each with axes of its own. A row without y is left out,
    and one without x; frozen CLIP without x is the line across."""
    boards = dict(list(table[table[y].notna()].groupby("board", sort=False)))
    down = -(-len(boards) // 2)
    figure, axes = _figure(TWO_COLUMNS, 0.5 + 2.5 * down, down, min(2, len(boards)))
    for axis, (name, board) in zip(axes.flat, boards.items(), strict=False):
        for row in board.to_dict("records"):
            x_half, y_half = (row.get(f"{column} ±", np.nan) for column in (x, y))
            _cross(axis, row[x], row[y], None if np.isnan(x_half) else x_half,
                   None if np.isnan(y_half) else y_half, row["look"], lw=0.7)
        axis.set_title(name, fontsize=7.5)
        axis.set(xlabel=xlabel, ylabel=ylabel)
    for axis in axes.flat[len(boards):]:
        axis.axis("off")
    _legend(figure, axes)
    return figure
