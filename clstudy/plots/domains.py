"""Figures of streams of domains."""
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from clstudy.plots.rehearsal import look
from clstudy.plots.style import TWO_COLUMNS, _figure


def style_grid(pictures: np.ndarray, things: Sequence[str], names: Sequence[str]) -> Figure:
    """Draw a row per thing and a column per domain, as `domains.in_every_domain` gives them."""
    # inches for the slanted names, which would otherwise push the columns apart
    top = 0.15 + 0.042 * max(map(len, names))
    height = top + 0.6 * len(things)
    figure, axes = _figure(TWO_COLUMNS, height, len(things), len(names))
    figure.get_layout_engine().set(rect=(0, 0, 0.96, 1 - top / height))
    for axis, picture in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.text(0.4, 1.08, name, rotation=38, rotation_mode="anchor", ha="left", va="bottom",
                  transform=axis.transAxes, in_layout=False)  # a title would be laid out
    for axis, thing in zip(axes[:, 0], things, strict=True):
        axis.set_ylabel(thing, rotation=0, ha="right", va="center")
    return figure


def domain_matrices(means: Mapping[str, np.ndarray], names: Sequence[str] | None = None,
                    labels: Mapping[str, str] | None = None) -> Figure:
    """Draw matrices of domains (`domains.domain_means`), up to four side by side: a row per stage,
    the first before training. Numbers are accuracies in percent, colours their change against the
    first row.

    names: the domains in their order of arrival, where it is the same for all runs. labels: what to
    call a method."""
    labels = labels or {}
    columns = len(means) if len(means) <= 4 else 3
    count, rows = len(next(iter(means.values()))), -(-len(means) // columns)
    height = (0.75 + 0.2 * count + 0.45 * bool(names)) * rows
    figure, axes = _figure(TWO_COLUMNS, height, rows, columns, sharey=True)
    most = max(1e-9, *(100 * float(np.abs(R - R[0]).max()) for R in means.values()))
    for axis in axes.flat[len(means):]:
        axis.axis("off")
    for i, (axis, (label, R)) in enumerate(zip(axes.flat, means.items(), strict=False)):
        change, places = 100 * (R - R[0]), np.arange(R.shape[1])
        shown = axis.pcolormesh(change, cmap="vlag_r", vmin=-most, vmax=most)
        for (row, column), value in np.ndenumerate(100 * R):
            colour = "white" if abs(change[row, column]) > 0.7 * most else "0.15"
            axis.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center",
                      fontsize=6.5, color=colour)
        axis.axhline(1, color="0.15", lw=1)
        axis.set(title=labels.get(label, look(label)[0]), ylim=(len(R), 0))
        if i % columns == 0:
            axis.set_ylabel("after stage")
        axis.set_yticks(np.arange(len(R)) + 0.5, ["before", *range(1, len(R))])
        slant = {"rotation": 38, "ha": "right"} if names else {}
        axis.set_xticks(places + 0.5, names or places + 1, **slant)
    figure.colorbar(shown, ax=axes, label="change, points", shrink=0.9)
    if not names:
        figure.supxlabel("domain, in order of arrival", fontsize=8)
    return figure
