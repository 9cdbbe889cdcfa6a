"""Figures of streams with a small memory: over its size, class by class, domain by domain. Tables: `small_memory.py`,
`estimates.py`. Style, palette and saving are those of `plots.py`."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import plots
from .metrics import interval
from .plots import Figure

# What is drawn here alone: the other looks are those of `plots.LOOKS`.
LOOKS = {"joint": ("joint training (ceiling)", "#595959", (4, 1.5))}
CREST = ["#0072B2", "#009E73", "#E69F00", "#D55E00", "#595959", "#CC79A7"]


def look(label: str) -> tuple[str, str, tuple | str]:
    """Name, colour and dash of a method. Of GCL and GDRO (arXiv 2605.03866) the name says what they are here."""
    name, colour, dash = LOOKS.get(label) or plots.LOOKS[label]
    return (f"{name} (reconstruction)" if label in ("gcl", "gdro") else name), colour, dash


def sizes(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """A metric a panel over the size of the memory: columns panel, method, x, mean, half_width.

    Sizes stand at equal distances. What needs no memory (x is NaN) is a line across with its interval as a bar at the
    right end; a method at one size alone is a point. The means fill a panel: long bars run out of it."""
    panels, steps = list(dict.fromkeys(table.panel)), sorted(table.x.dropna().unique())
    down = -(-len(panels) // 2)
    figure, axes = plots._figure(plots.TWO_COLUMNS, 0.9 + 2.1 * down, down, min(len(panels), 2))
    methods = list(dict.fromkeys(table.method))
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for i, method in enumerate(methods):
            rows, (name, colour, dash) = table[(table.panel == panel) & (table.method == method)], look(method)
            shift = (i - (len(methods) - 1) / 2) * 0.03  # bars do not hide each other
            if rows.empty:  # a metric that this method does not have
                continue
            if rows.x.isna().all():
                row = rows.iloc[0]
                axis.axhline(row["mean"], color=colour, lw=0.9, label=name, dashes=dash or (None, None), zorder=1)
                axis.errorbar(len(steps) - 0.6 + shift, row["mean"], row.half_width, color=colour, elinewidth=0.7)
                continue
            rows = rows.sort_values("x")
            places = [steps.index(x) + shift for x in rows.x]
            line = axis.errorbar(places, rows["mean"], rows.half_width, color=colour, label=name, lw=1.1, ms=3,
                                 marker=plots.MARKERS[dash], elinewidth=0.7)
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
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(columns, len(found)),
                  frameon=False)


def class_weights(weights: pd.DataFrame, ages: pd.DataFrame) -> Figure:
    """Left: the weight of each class at each step of the first seed, classes in their order of arrival, white before.
    Right: the mean weight of old and of new classes, a thin line per seed and a bold one for the mean.

    weights, ages: as `small_memory.class_weights` and `by_age` make them."""
    figure, axes = plots._figure(plots.TWO_COLUMNS, 2.7, 1, 2)
    left, right = axes[0]
    one = weights[weights.seed == weights.seed.iloc[0]]
    wide = one.pivot(index="class", columns="step", values="weight")
    wide = wide.loc[one.groupby("class").step.min().sort_values(kind="stable").index]
    top = max(float(wide.max().max()), 1.01)
    shown = left.pcolormesh(wide.columns, np.arange(len(wide)), wide, cmap="crest", vmin=0, vmax=top, shading="nearest",
                            rasterized=True)
    figure.colorbar(shown, ax=left)
    left.set(title="weight of every class, one seed (mean 1)", xlabel="optimiser step",
             ylabel="class, in order of arrival")
    left.invert_yaxis()
    for age, colour, dash in (("old", plots.PALETTE[0], ""), ("new", plots.PALETTE[1], (4, 1.5))):
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
    """A dot per class: what it gains over how well it was known before, with the line of least squares; a panel per
    comparison. Tables: `small_memory.class_changes`. The three classes that move most in each are named."""
    figure, axes = plots._figure(plots.TWO_COLUMNS, 2.9, 1, len(tables), sharey=True, sharex=True)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        axis.axhline(0, color="0.5", lw=0.6, zorder=0)
        axis.plot(table.before, table.difference, "o", color=plots.PALETTE[0], ms=3, alpha=0.6, mew=0)
        if table.before.nunique() > 1:
            slope, base = np.polyfit(table.before, table.difference, 1)
            ends = np.array([table.before.min(), table.before.max()])
            axis.plot(ends, base + slope * ends, color=plots.PALETTE[1], lw=1.1)
        largest = table.reindex(table.difference.abs().sort_values(ascending=False, kind="stable").index)[:3]
        for row in largest.itertuples():
            left = row.before > (table.before.min() + table.before.max()) / 2
            axis.annotate(row[1], (row.before, row.difference), xytext=(-4 if left else 4, 2), fontsize=6.5,
                          textcoords="offset points", ha="right" if left else "left")
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def estimates(table: pd.DataFrame) -> Figure:
    """How far moving averages are from the exact sum, over visits of an image: error left, bias right; a line per γ,
    mean over seeds with its 95 % interval. Columns seed, gamma, visit, error, bias."""
    figure, axes = plots._figure(plots.TWO_COLUMNS, 2.6, 1, 2)
    gammas = sorted(table.gamma.unique(), reverse=True)
    for axis, (column, title) in zip(axes[0], (("error", "root mean square of log u − log g"),
                                               ("bias", "mean of log u − log g")), strict=True):
        for i, gamma in enumerate(gammas):
            rows = table[table.gamma == gamma].groupby("visit")[column]
            found = [interval(values.tolist()) for _, values in rows]
            halves = np.nan_to_num([one.half_width for one in found])
            name = f"γ = {gamma:g}" + (" (the batch alone)" if gamma == 1 else "")
            axis.errorbar(list(rows.groups), [one.mean for one in found], halves, lw=1.1, ms=3, label=name,
                          color=CREST[i % len(CREST)], marker="osD^vP"[i % 6], elinewidth=0.7)
        axis.set(title=title, xlabel="visits of an image")
        axis.set_xticks(sorted(table.visit.unique()))
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].axhline(0, color="0.2", lw=0.6, zorder=0)
    _legend(figure, axes)
    return figure


def hands(pictures: np.ndarray, things: Sequence[str], names: Sequence[str]) -> Figure:
    """A row per thing, a column per domain, as `small_memory.in_every_domain` gives them."""
    top = 0.25 + 0.037 * max(map(len, names))  # inches for the slanted names, which else push the columns apart
    height = top + 0.6 * len(things)
    figure, axes = plots._figure(plots.TWO_COLUMNS, height, len(things), len(names))
    figure.get_layout_engine().set(rect=(0, 0, 0.96, 1 - top / height))
    for axis, picture in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=6.5, rotation=38, ha="left", x=0.2).set_in_layout(False)
    for axis, thing in zip(axes[:, 0], things, strict=True):
        axis.set_ylabel(thing, rotation=0, ha="right", va="center")
    return figure


def domains(means: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Figure:
    """Matrices of domains (`small_memory.domain_means`), up to four beside each other: a row per stage, the first
    before training. Numbers are accuracies in percent, colours their change against the first row.

    names: the domains in their order of arrival, where it is the same for all runs."""
    columns = len(means) if len(means) <= 4 else 3
    count, rows = len(next(iter(means.values()))), -(-len(means) // columns)
    height = (0.75 + 0.2 * count + 0.45 * bool(names)) * rows
    figure, axes = plots._figure(plots.TWO_COLUMNS, height, rows, columns, sharey=True)
    most = max(1e-9, *(100 * float(np.abs(R - R[0]).max()) for R in means.values()))
    for axis in axes.flat[len(means):]:
        axis.axis("off")
    for i, (label, R) in enumerate(means.items()):
        axis, places = axes.flat[i], np.arange(R.shape[1])
        shown = axis.pcolormesh(100 * (R - R[0]), cmap="vlag_r", vmin=-most, vmax=most)
        for (row, column), value in np.ndenumerate(100 * R):
            dark = abs(value - 100 * R[0, column]) > 0.7 * most
            axis.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "0.15")
        axis.axhline(1, color="0.15", lw=1)
        axis.set(title=look(label)[0], ylim=(len(R), 0), ylabel="after stage" if i % columns == 0 else "")
        axis.set_yticks(np.arange(len(R)) + 0.5, ["before", *range(1, len(R))])
        slant = {"rotation": 38, "ha": "right"} if names else {}
        axis.set_xticks(places + 0.5, names or places + 1, **slant)
    figure.colorbar(shown, ax=axes, label="change, points", shrink=0.9)
    if not names:
        figure.supxlabel("domain, in order of arrival", fontsize=8)
    return figure


def gains(table: pd.DataFrame) -> Figure:
    """The change of domains against before training, after each stage; a panel for those that have come and one for
    the others, as `small_memory.domain_gains` gives them. The means fill a panel: long bars run out of it."""
    panels, methods = list(dict.fromkeys(table.panel)), list(dict.fromkeys(table.method))
    figure, axes = plots._figure(plots.TWO_COLUMNS, 2.7, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for i, method in enumerate(methods):
            rows, (name, colour, dash) = table[(table.panel == panel) & (table.method == method)], look(method)
            line = axis.errorbar(rows.x + (i - (len(methods) - 1) / 2) * 0.06, rows["mean"], rows.half_width, lw=1.1,
                                 ms=3, color=colour, label=name, marker=plots.MARKERS[dash], elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        axis.axhline(0, color="0.2", lw=0.6, zorder=0)
        axis.set(title=f"domains that {panel}", xlabel="after stage")
        axis.set_xticks(sorted(table.x[table.panel == panel].unique()))
    low, high = min(0.0, table["mean"].min()), max(0.0, table["mean"].max())
    room = max(0.35 * (high - low), 1)
    axes[0, 0].set(ylim=(low - room, high + room), ylabel="change, points")
    _legend(figure, axes, [look(method)[0] for method in methods])
    return figure
