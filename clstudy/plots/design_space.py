"""Figures of the map: where the methods stand, and how far a new point is from its neighbour."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.accuracy import Roles, roles
from clstudy.plots.style import PALETTE, TWO_COLUMNS, _figure, _panels

FILLED, NEW = "#DCE6EE", "#FBE3C9"  # light enough for words


def design_space_map(grid: pd.DataFrame) -> Figure:
    """Draw a cell per point of `design_space.grid`: columns are denominator and candidates, rows
    vocabulary and weights. Blue cells hold published methods, orange ones new points; the rest is
    empty."""
    columns = list(dict.fromkeys(zip(grid.denominator, grid.candidates, strict=True)))
    columns.sort(key=lambda pair: ("batch", "pairs", "moving").index(pair[0]))
    rows = list(dict.fromkeys(zip(grid.vocabulary, grid.class_weights, strict=True)))
    vocabularies = list(dict.fromkeys(grid.vocabulary))
    rows.sort(key=lambda pair: vocabularies.index(pair[0]))
    figure, axes = _figure(TWO_COLUMNS, 0.9 + 0.19 * len(rows))
    axis = axes[0, 0]
    for cell in grid.itertuples():
        x = columns.index((cell.denominator, cell.candidates))
        y = rows.index((cell.vocabulary, cell.class_weights))
        colour = NEW if cell.new else FILLED if cell.methods else "white"
        axis.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="0.8", lw=0.5))
        axis.text(x + 0.5, y + 0.5, cell.new or cell.methods, ha="center", va="center",
                  fontsize=6.5)
    for y in range(0, len(rows) + 1, grid.class_weights.nunique()):
        axis.axhline(y, color="0.2", lw=0.8)
    for x in range(1, len(columns)):
        if columns[x][0] != columns[x - 1][0]:
            axis.axvline(x, color="0.2", lw=0.8)
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axis.set_xticks(np.arange(len(columns)) + 0.5, ["\n".join(pair) for pair in columns])
    axis.set_yticks(np.arange(len(rows)) + 0.5, [" · ".join(pair) for pair in rows], fontsize=6.5)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.set_ylabel("vocabulary · class weights")
    axis.set_title("denominator, and candidates below it", pad=28)
    return figure


def differences(table: pd.DataFrame, xlabel: str = "points", *, panel: Roles = "metric",
                y: Roles = "label") -> Figure:
    """Draw a row per comparison and a panel per metric: the difference and its 95 % interval.
    Columns difference, low and high (`compare`), and those of the panel and the row."""
    table = roles(table, panel=panel, label=y)
    labels = list(dict.fromkeys(table.label))
    figure, axes, panels = _panels(table, 0.8 + 0.3 * len(labels), sharey=True)
    for axis, title, rows in panels:
        rows = rows.set_index("label").loc[labels]
        half = (rows.high - rows.difference).fillna(0)  # one run: no bar
        axis.axvline(0, color="0.5", lw=0.7, zorder=0)
        axis.errorbar(rows.difference, range(len(labels)), xerr=half, fmt="o", ms=4, elinewidth=0.9,
                      color=PALETTE[0])
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    return figure
