"""Figures of images and of their similarity to texts."""
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from clstudy.plots.style import ONE_COLUMN, PALETTE, TWO_COLUMNS, _figure


def pictures(images, titles: Sequence[str] | None = None, columns: int = 8,
             title: str | None = None) -> Figure:
    """A sheet of images, uint8 (n, 3, height, width)."""
    images = np.asarray(images.cpu() if hasattr(images, "cpu") else images).transpose(0, 2, 3, 1)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = (1.05 if titles else 0.9) * rows + 0.25 * bool(title)
    figure, axes = _figure(TWO_COLUMNS * columns / 8, height, rows, columns)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i], interpolation="nearest")
            if titles:
                axis.set_title(titles[i], fontsize=6.5)
    figure.suptitle(title)
    return figure


def similarity(values, row_names: Sequence[str], column_names: Sequence[str],
               title: str | None = None) -> Figure:
    """Images × texts as a heatmap with its numbers."""
    values = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    figure, axes = _figure(min(TWO_COLUMNS, 1.8 + 0.62 * len(column_names)),
                           0.9 + 0.3 * len(row_names))
    sns.heatmap(values, annot=True, fmt=".2f", cmap="crest", cbar=False,
                xticklabels=list(column_names), yticklabels=list(row_names), ax=axes[0, 0],
                annot_kws={"size": 7})
    axes[0, 0].set(title=title, xlabel="text", ylabel="image")
    axes[0, 0].tick_params(axis="x", rotation=35)
    for label in axes[0, 0].get_xticklabels():
        label.set_ha("right")
    return figure


def bars(values: Mapping[str, float], title: str | None = None,
         xlabel: str | None = None) -> Figure:
    """Horizontal bars, in the order given from the top."""
    figure, axes = _figure(ONE_COLUMN + 1.2, 0.7 + 0.22 * len(values))
    axes[0, 0].barh(list(values), list(values.values()), color=PALETTE[0])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(title=title, xlabel=xlabel)
    for place, value in enumerate(values.values()):
        axes[0, 0].annotate(f"{value:.2f}", (max(value, 0), place), xytext=(3, 0),
                            textcoords="offset points", va="center", fontsize=7)
    return figure
