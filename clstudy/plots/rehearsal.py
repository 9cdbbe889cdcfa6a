"""Figures of streams with a small memory: over its size, class by class, and of its averages."""
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.methods import METHODS
from clstudy.plots import style
from clstudy.plots.style import PALETTE, TWO_COLUMNS, Look, _figure

# What is drawn here alone: the other looks are those of `plots.LOOKS`.
LOOKS = {"joint": ("joint training (ceiling)", "#595959", (4, 1.5))}


def look(label: str) -> Look:
    """Return title, colour and dash of a method. The title of GCL and GDRO (arXiv 2605.03866) says
    that they are reconstructed."""
    name, colour, dash = LOOKS.get(label) or style.LOOKS[label]
    rebuilt = label in METHODS and METHODS[label].reconstructed
    return (f"{name} (reconstruction)" if rebuilt else name), colour, dash


def _room(means: Sequence[float] | pd.Series) -> tuple[float, float]:
    """Return the limits of an axis that the means fill, with a third of their range around."""
    known = np.asarray(means, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):  # not measured, such as the lowest fifth of classes with few tests
        return 0.0, 1.0
    low, high = known.min(), known.max()
    room = max(0.35 * (high - low), 1)
    return low - room, high + room


def class_weights(weights: pd.DataFrame, ages: pd.DataFrame, title: str = "") -> Figure:
    """Draw, left, the weight of each class at each step of the first seed, classes in their order
    of arrival, white before; right, the mean weight of old and of new classes, a thin line per seed
    and a bold one for the mean. Tables: `per_class.class_weights` and `by_age`."""
    figure, axes = _figure(TWO_COLUMNS, 2.7, 1, 2)
    left, right = axes[0]
    one = weights[weights.seed == weights.seed.iloc[0]]
    wide = one.pivot(index="class", columns="step", values="weight")
    wide = wide.loc[one.groupby("class").step.min().sort_values(kind="stable").index]
    shown = left.pcolormesh(wide.columns, np.arange(len(wide)), wide, cmap="crest", vmin=0,
                            vmax=max(float(wide.max().max()), 1.01), shading="nearest",
                            rasterized=True)
    figure.colorbar(shown, ax=left)
    left.set(title="weight of every class, one seed (mean 1)", xlabel="optimiser step",
             ylabel="class, in order of arrival")
    left.invert_yaxis()
    for age, colour, dash in (("old", PALETTE[0], (None, None)), ("new", PALETTE[1], (4, 1.5))):
        mine = ages[ages.age == age].pivot(index="step", columns="seed", values="weight")
        right.plot(mine.index, mine.mean(axis=1), color=colour, lw=1.5, dashes=dash,
                   label=f"{age} classes")
        for seed in mine if mine.shape[1] > 1 else ():
            right.plot(mine.index, mine[seed], color=colour, lw=0.4, alpha=0.5)
    right.axhline(1, color="0.2", lw=0.6, zorder=0)
    right.set(title="mean over old and over new classes", xlabel="optimiser step", ylabel="weight")
    for axis in (left, right):
        axis.locator_params(axis="x", integer=True)
    right.legend(frameon=False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure
