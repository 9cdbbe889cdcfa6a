"""The figure of the map: which choices each method takes."""
import pandas as pd
from matplotlib.figure import Figure

from clstudy.analysis.design_space import CHOICES
from clstudy.plots.style import FAMILIES, TWO_COLUMNS, _figure

INK, EMPTY, NEW = "#222222", "#D5D5D5", FAMILIES["contrastive"]


def design_space_map(marks: pd.DataFrame, title: str = "") -> Figure:
    """Draw a row per method of `design_space.marks` and a column per value of each choice: a large
    dot where the method takes it, a small one where it does not. New points are squares in a colour
    of their own."""
    labels = list(dict.fromkeys(marks.label))
    places, heads = {}, []
    for name, values in CHOICES.items():
        start = len(places) + len(heads) * 0.8  # a gap between two choices
        places |= {(name, value): start + i for i, value in enumerate(values)}
        heads.append((start, name.replace("_", " ")))
    figure, axes = _figure(TWO_COLUMNS, 1.35 + 0.23 * len(labels))
    axis, new = axes[0, 0], dict(zip(marks.label, marks.new, strict=True))
    for y in range(len(labels)):
        axis.axhline(y, color="0.93", lw=0.8, zorder=0)
        axis.plot(list(places.values()), [y] * len(places), "o", ms=2, mew=0, color=EMPTY)
    for (label, is_new), mine in marks.groupby(["label", "new"], sort=False):
        at = [places[key] for key in zip(mine.choice, mine.value, strict=True)]
        axis.plot(at, [labels.index(label)] * len(at), "s" if is_new else "o", ms=7, mew=0,
                  color=NEW if is_new else INK)
    for start, head in heads:
        axis.annotate(head, (start - 0.3, 1), xycoords=axis.get_xaxis_transform(), xytext=(0, 46),
                      textcoords="offset points", fontweight="bold", annotation_clip=False)
    axis.set_xticks(list(places.values()), [value for _, value in places], rotation=45, ha="left",
                    rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    for tick, label in zip(axis.get_yticklabels(), labels, strict=True):
        tick.set_color(NEW if new[label] else INK)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure
