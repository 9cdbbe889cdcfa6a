"""Figures of streams with a small memory: over its size, class by class, and of its averages."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.analysis.tables import spread
from clstudy.methods import METHODS
from clstudy.plots import style
from clstudy.plots.accuracy import Roles, roles
from clstudy.plots.style import PALETTE, TWO_COLUMNS, Look, _figure, _legend, _line

# What is drawn here alone: the other looks are those of `plots.LOOKS`.
LOOKS = {"joint": ("joint training (ceiling)", "#595959", (4, 1.5))}
CREST = ["#0072B2", "#009E73", "#E69F00", "#D55E00", "#595959", "#CC79A7"]


def look(label: str) -> Look:
    """Return title, colour and dash of a method. The title of GCL and GDRO (arXiv 2605.03866) says
    that they are reconstructed."""
    name, colour, dash = LOOKS.get(label) or style.LOOKS[label]
    rebuilt = label in METHODS and METHODS[label].reconstructed
    return (f"{name} (reconstruction)" if rebuilt else name), colour, dash


def sizes(table: pd.DataFrame, xlabel: str, ylabel: str, *, panel: Roles = "panel", x: str = "x",
          hue: str = "method") -> Figure:
    """Draw metrics over the size of the memory: columns mean and half_width (`tables.points`), and
    those of the panel, the size (x) and the colour.

    Sizes stand at equal distances. What needs no memory (x is NaN) is a line across with its
    interval as a bar at the right end; a method at one size alone is a point. The means fill a
    panel: long bars run out of it."""
    table = roles(table, panel=panel, x=x, method=hue)
    panels, steps = list(dict.fromkeys(table.panel)), sorted(table.x.dropna().unique())
    methods = list(dict.fromkeys(table.method))
    down = -(-len(panels) // 2)
    figure, axes = _figure(TWO_COLUMNS, 0.9 + 2.1 * down, down, min(len(panels), 2))
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, title in zip(axes.flat, panels, strict=False):
        mine = table[table.panel == title]
        for i, method in enumerate(methods):
            rows = mine[mine.method == method]
            shift = (i - (len(methods) - 1) / 2) * 0.03  # bars do not hide each other
            _size(axis, rows.sort_values("x"), steps, shift, look(method))
        axis.set(title=title, xlim=(-0.4, len(steps) - 0.3), ylim=_room(mine["mean"]))
        axis.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    _legend(figure, axes, [look(method)[0] for method in methods])
    return figure


def _size(axis, rows: pd.DataFrame, steps: list, shift: float, shown: Look) -> None:
    """Draw one method over the size of its memory; no rows: it lacks the metric."""
    name, colour, dash = shown
    if len(rows) and rows.x.isna().all():
        row = rows.iloc[0]
        axis.axhline(row["mean"], color=colour, lw=0.9, label=name, dashes=dash or (None, None),
                     zorder=1)
        axis.errorbar(len(steps) - 0.6 + shift, row["mean"], row.half_width, color=colour,
                      elinewidth=0.7)
    elif len(rows):
        places = [steps.index(x) + shift for x in rows.x]
        _line(axis, places, rows["mean"], rows.half_width, shown)


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


def payers(tables: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """Draw a dot per class, what it gains over how well it was known before, with the line of least
    squares; a panel per comparison. Tables: `per_class.class_changes`. The three classes that move
    most in each are named."""
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(tables), sharey=True, sharex=True)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        x, y = table.before, table.difference
        axis.axhline(0, color="0.5", lw=0.6, zorder=0)
        axis.plot(x, y, "o", color=PALETTE[0], ms=3, alpha=0.6, mew=0)
        ends = np.array([x.min(), x.max()])
        if ends[1] > ends[0]:
            slope, base = np.polyfit(x, y, 1)
            axis.plot(ends, base + slope * ends, color=PALETTE[1], lw=1.1)
        largest = y.abs().sort_values(ascending=False, kind="stable").index[:3]
        for row in table.loc[largest].to_dict("records"):
            left = row["before"] > ends.mean()
            axis.annotate(row["class"], (row["before"], row["difference"]), fontsize=6.5,
                          xytext=(-4 if left else 4, 2), textcoords="offset points",
                          ha="right" if left else "left")
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def estimates(table: pd.DataFrame) -> Figure:
    """Draw how far moving averages are from the exact sum, over visits of an image: error left,
    bias right; a line per γ, mean over seeds with its 95 % interval. Columns seed, gamma, visit,
    error, bias (`moving_averages.of_runs`)."""
    figure, axes = _figure(TWO_COLUMNS, 2.6, 1, 2)
    titles = {"error": "root mean square of log u − log g", "bias": "mean of log u − log g"}
    gammas = sorted(table.gamma.unique(), reverse=True)
    for axis, (column, title) in zip(axes[0], titles.items(), strict=True):
        for i, gamma in enumerate(gammas):
            visits = table[table.gamma == gamma].groupby("visit")[column]
            found = pd.DataFrame([spread(values) for _, values in visits], list(visits.groups))
            name = f"γ = {gamma:g}" + (" (the batch alone)" if gamma == 1 else "")
            axis.errorbar(found.index, found["mean"], found.half_width, lw=1.1, ms=3, label=name,
                          color=CREST[i % len(CREST)], marker="osD^vP"[i % 6], elinewidth=0.7)
        axis.set(title=title, xlabel="visits of an image")
        axis.set_xticks(sorted(table.visit.unique()))
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].axhline(0, color="0.2", lw=0.6, zorder=0)
    _legend(figure, axes)
    return figure
