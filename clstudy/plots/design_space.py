"""The figure of the map: where the methods stand."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.style import TWO_COLUMNS, _figure

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
