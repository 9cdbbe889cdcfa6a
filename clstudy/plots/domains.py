"""Figures of streams of domains."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clstudy.plots import style
from clstudy.plots.rehearsal import _legend, look


def style_grid(pictures: np.ndarray, things: Sequence[str], names: Sequence[str]) -> Figure:
    """A row per thing, a column per domain, as `small_memory.in_every_domain` gives them."""
    top = 0.25 + 0.037 * max(map(
        len, names))  # inches for the slanted names, which else push the columns apart
    height = top + 0.6 * len(things)
    figure, axes = style._figure(style.TWO_COLUMNS, height, len(things), len(names))
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


def domain_matrices(means: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Figure:
    """Matrices of domains (`small_memory.domain_means`), up to four beside each other: a row per
    stage, the first before training. Numbers are accuracies in percent, colours their change
    against the first row.

    names: the domains in their order of arrival, where it is the same for all runs."""
    columns = len(means) if len(means) <= 4 else 3
    count, rows = len(next(iter(means.values()))), -(-len(means) // columns)
    height = (0.75 + 0.2 * count + 0.45 * bool(names)) * rows
    figure, axes = style._figure(style.TWO_COLUMNS, height, rows, columns, sharey=True)
    most = max(1e-9, *(100 * float(np.abs(R - R[0]).max()) for R in means.values()))
    for axis in axes.flat[len(means):]:
        axis.axis("off")
    for i, (label, R) in enumerate(means.items()):
        axis, places = axes.flat[i], np.arange(R.shape[1])
        shown = axis.pcolormesh(100 * (R - R[0]), cmap="vlag_r", vmin=-most, vmax=most)
        for (row, column), value in np.ndenumerate(100 * R):
            dark = abs(value - 100 * R[0, column]) > 0.7 * most
            axis.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center",
                      fontsize=6.5, color="white" if dark else "0.15")
        axis.axhline(1, color="0.15", lw=1)
        axis.set(title=look(label)[0], ylim=(len(R), 0),
                 ylabel="after stage" if i % columns == 0 else "")
        axis.set_yticks(np.arange(len(R)) + 0.5, ["before", *range(1, len(R))])
        slant = {"rotation": 38, "ha": "right"} if names else {}
        axis.set_xticks(places + 0.5, names or places + 1, **slant)
    figure.colorbar(shown, ax=axes, label="change, points", shrink=0.9)
    if not names:
        figure.supxlabel("domain, in order of arrival", fontsize=8)
    return figure


def domain_gains(table: pd.DataFrame) -> Figure:
    """The change of domains against before training, after each stage; a panel for those that have
    come and one for the others, as `small_memory.domain_gains` gives them. The means fill a panel:
    long bars run out of it."""
    panels, methods = list(dict.fromkeys(table.panel)), list(dict.fromkeys(table.method))
    figure, axes = style._figure(style.TWO_COLUMNS, 2.7, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for i, method in enumerate(methods):
            rows, (name, colour,
                   dash) = table[(table.panel == panel) & (table.method == method)], look(method)
            line = axis.errorbar(rows.x + (i - (len(methods) - 1) / 2) * 0.06, rows["mean"],
                                 rows.half_width, lw=1.1, ms=3, color=colour, label=name,
                                 marker=style.MARKERS[dash], elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        axis.axhline(0, color="0.2", lw=0.6, zorder=0)
        axis.set(title=f"domains that {panel}", xlabel="after stage")
        axis.set_xticks(sorted(table.x[table.panel == panel].unique()))
    low, high = min(0.0, table["mean"].min()), max(0.0, table["mean"].max())
    room = max(0.35 * (high - low), 1)
    axes[0, 0].set(ylim=(low - room, high + room), ylabel="change, points")
    _legend(figure, axes, [look(method)[0] for method in methods])
    return figure
