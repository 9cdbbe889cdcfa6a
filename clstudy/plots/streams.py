"""Figures of streams."""
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from clstudy.plots.style import TWO_COLUMNS, _figure


def arrivals(streams: Mapping[str, tuple[Sequence, np.ndarray]], points: int = 60) -> Figure:
    """What a stream looks like: the share of each class among the images that arrive, over the
    stream.

    streams: title → (stages, labels). Classes are stacked by their home stage and coloured by it;
    vertical lines are the ends of stages."""
    figure, axes = _figure(TWO_COLUMNS, 0.4 + 1.35 * len(streams), len(streams), 1)
    for axis, (title, (stages, labels)) in zip(axes[:, 0], streams.items(), strict=True):
        order = np.concatenate([labels[stage.index] for stage in stages])
        homes = [(label, number) for number, stage in enumerate(stages) for label in stage.classes]
        chunks = np.array_split(order, min(points, len(order)))
        shares = np.array([[np.mean(chunk == label) for chunk in chunks] for label, _ in homes])
        colours = sns.color_palette("crest", len(stages))
        centre = np.cumsum([len(chunk) for chunk in chunks]) - len(chunks[0]) / 2
        fill = [colours[number] for _, number in homes]
        axis.stackplot(centre, 100 * shares, colors=fill, lw=0.15, edgecolor="white")
        for end in np.cumsum([len(stage.index) for stage in stages])[:-1]:
            axis.axvline(end, color="0.15", lw=0.7)
        axis.set(title=title, xlim=(0, len(order)), ylim=(0, 100), ylabel="share, %")
    axes[-1, 0].set_xlabel("images of the stream")
    return figure
