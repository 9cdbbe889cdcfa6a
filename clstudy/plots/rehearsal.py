"""Figures of streams with a small memory: over its size, class by class, domain by domain. Tables:
`small_memory.py`, `estimates.py`. Style, palette and saving are those of `plots.py`."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.evaluation.metrics import interval
from clstudy.methods import METHODS
from clstudy.plots import style
from clstudy.plots.accuracy import Roles, roles

# What is drawn here alone: the other looks are those of `plots.LOOKS`.
LOOKS = {"joint": ("joint training (ceiling)", "#595959", (4, 1.5))}
CREST = ["#0072B2", "#009E73", "#E69F00", "#D55E00", "#595959", "#CC79A7"]


def look(label: str) -> tuple[str, str, tuple | str]:
    """Name, colour and dash of a method. Of GCL and GDRO (arXiv 2605.03866) the name says that they
    are reconstructed."""
    name, colour, dash = LOOKS.get(label) or style.LOOKS[label]
    rebuilt = label in METHODS and METHODS[label].reconstructed
    return (f"{name} (reconstruction)" if rebuilt else name), colour, dash


def sizes(table: pd.DataFrame, xlabel: str, ylabel: str, *, panel: Roles = "panel", x: str = "x",
          hue: str = "method") -> Figure:
    """A metric a panel over the size of the memory: columns mean and half_width (`tables.points`),
    and those of the panel, the size (x) and the colour.

    Sizes stand at equal distances. What needs no memory (x is NaN) is a line across with its
    interval as a bar at the right end; a method at one size alone is a point. The means fill a
    panel: long bars run out of it."""
    table = roles(table, panel=panel, x=x, method=hue)
    panels, steps = list(dict.fromkeys(table.panel)), sorted(table.x.dropna().unique())
    down = -(-len(panels) // 2)
    figure, axes = style._figure(style.TWO_COLUMNS, 0.9 + 2.1 * down, down, min(len(panels), 2))
    methods = list(dict.fromkeys(table.method))
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for i, method in enumerate(methods):
            rows, (name, colour,
                   dash) = table[(table.panel == panel) & (table.method == method)], look(method)
            shift = (i - (len(methods) - 1) / 2) * 0.03  # bars do not hide each other
            if rows.empty:  # a metric that this method does not have
                continue
            if rows.x.isna().all():
                row = rows.iloc[0]
                axis.axhline(row["mean"], color=colour, lw=0.9, label=name, dashes=dash
                             or (None, None), zorder=1)
                axis.errorbar(
                    len(steps) - 0.6 + shift, row["mean"], row.half_width, color=colour,
                    elinewidth=0.7)
                continue
            rows = rows.sort_values("x")
            places = [steps.index(x) + shift for x in rows.x]
            line = axis.errorbar(places, rows["mean"], rows.half_width, color=colour, label=name,
                                 lw=1.1, ms=3, marker=style.MARKERS[dash], elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        low, high = (getattr(table["mean"][table.panel == panel], end)() for end in ("min", "max"))
        room = max(0.35 * (high - low), 1)
        axis.set(title=panel, xlim=(-0.4, len(steps) - 0.3), ylim=(low - room, high + room))
        axis.set_xticks(range(len(steps)), [f"{x:g}" for x in steps])
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    _legend(figure, axes, [look(method)[0] for method in methods])
    return figure


def _legend(figure: Figure, axes: np.ndarray, order: Sequence[str] = (), columns: int = 4) -> None:
    """One legend above all panels, each label once, in the order given."""
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {label: handle for pair in pairs for handle, label in zip(*pair, strict=True)}
    found = {label: found[label] for label in order} or found
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(
        columns, len(found)), frameon=False)


def class_weights(weights: pd.DataFrame, ages: pd.DataFrame) -> Figure:
    """Left: the weight of each class at each step of the first seed, classes in their order of
    arrival, white before. Right: the mean weight of old and of new classes, a thin line per seed
    and a bold one for the mean.

    weights, ages: as `small_memory.class_weights` and `by_age` make them."""
    figure, axes = style._figure(style.TWO_COLUMNS, 2.7, 1, 2)
    left, right = axes[0]
    one = weights[weights.seed == weights.seed.iloc[0]]
    wide = one.pivot(index="class", columns="step", values="weight")
    wide = wide.loc[one.groupby("class").step.min().sort_values(kind="stable").index]
    top = max(float(wide.max().max()), 1.01)
    shown = left.pcolormesh(wide.columns, np.arange(len(wide)), wide, cmap="crest", vmin=0,
                            vmax=top, shading="nearest", rasterized=True)
    figure.colorbar(shown, ax=left)
    left.set(title="weight of every class, one seed (mean 1)", xlabel="optimiser step",
             ylabel="class, in order of arrival")
    left.invert_yaxis()
    for age, colour, dash in (("old", style.PALETTE[0], ""), ("new", style.PALETTE[1], (4, 1.5))):
        mine = ages[ages.age == age].pivot(index="step", columns="seed", values="weight")
        right.plot(mine.index, mine.mean(axis=1), color=colour, lw=1.5, dashes=dash or (None, None),
                   label=f"{age} classes")
        for seed in mine if mine.shape[1] > 1 else ():
            right.plot(mine.index, mine[seed], color=colour, lw=0.4, alpha=0.5)
    right.axhline(1, color="0.2", lw=0.6, zorder=0)
    right.set(title="mean over old and over new classes", xlabel="optimiser step", ylabel="weight")
    for axis in (left, right):
        axis.locator_params(axis="x", integer=True)
    _legend(figure, axes)
    return figure


def payers(tables: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """A dot per class: what it gains over how well it was known before, with the line of least
    squares; a panel per comparison. Tables: `small_memory.class_changes`. The three classes that
    move most in each are named."""
    figure, axes = style._figure(style.TWO_COLUMNS, 2.9, 1, len(tables), sharey=True, sharex=True)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        axis.axhline(0, color="0.5", lw=0.6, zorder=0)
        axis.plot(table.before, table.difference, "o", color=style.PALETTE[0], ms=3, alpha=0.6,
                  mew=0)
        if table.before.nunique() > 1:
            slope, base = np.polyfit(table.before, table.difference, 1)
            ends = np.array([table.before.min(), table.before.max()])
            axis.plot(ends, base + slope * ends, color=style.PALETTE[1], lw=1.1)
        largest = table.reindex(table.difference.abs().sort_values(ascending=False,
                                                                   kind="stable").index)[:3]
        for row in largest.itertuples():
            left = row.before > (table.before.min() + table.before.max()) / 2
            axis.annotate(row[1], (row.before, row.difference), xytext=(-4 if left else 4, 2),
                          fontsize=6.5, textcoords="offset points", ha="right" if left else "left")
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def estimates(table: pd.DataFrame) -> Figure:
    """How far moving averages are from the exact sum, over visits of an image: error left, bias
    right; a line per γ, mean over seeds with its 95 % interval. Columns seed, gamma, visit, error,
    bias."""
    figure, axes = style._figure(style.TWO_COLUMNS, 2.6, 1, 2)
    gammas = sorted(table.gamma.unique(), reverse=True)
    for axis, (column, title) in zip(axes[0], (("error", "root mean square of log u − log g"),
                                               ("bias", "mean of log u − log g")), strict=True):
        for i, gamma in enumerate(gammas):
            rows = table[table.gamma == gamma].groupby("visit")[column]
            found = [interval(values.tolist()) for _, values in rows]
            halves = np.nan_to_num([one.half_width for one in found])
            name = f"γ = {gamma:g}" + (" (the batch alone)" if gamma == 1 else "")
            axis.errorbar(list(
                rows.groups), [one.mean for one in found], halves, lw=1.1, ms=3, label=name,
                          color=CREST[i % len(CREST)], marker="osD^vP"[i % 6], elinewidth=0.7)
        axis.set(title=title, xlabel="visits of an image")
        axis.set_xticks(sorted(table.visit.unique()))
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].axhline(0, color="0.2", lw=0.6, zorder=0)
    _legend(figure, axes)
    return figure
