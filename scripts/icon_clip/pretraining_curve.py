"""The curve of pretraining."""
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots.style import ONE_COLUMN, PALETTE, _figure


def pretraining(curve: pd.DataFrame, families: Sequence[str], column: str = "top1",
                title: str | None = None) -> Figure:
    """Zero-shot accuracy of each family over the images that pretraining has seen; a thin line
    where a stage ended (the last image of each value of `stage`)."""
    figure, axes = _figure(ONE_COLUMN + 1.6, 2.6)
    for i, family in enumerate(families):
        values = 100 * curve[f"{family}/{column}"]
        axes[0, 0].plot(curve.images / 1e6, values, color=PALETTE[i % 7], label=family, marker="o",
                        ms=2)
    for end in curve.groupby("stage").images.max().iloc[:-1]:
        axes[0, 0].axvline(end / 1e6, color="0.6", lw=0.8, zorder=0)
    axes[0, 0].set(xlabel="drawings seen in pretraining, millions", ylabel="zero-shot accuracy, %",
                   title=title)
    axes[0, 0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
