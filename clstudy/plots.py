"""Figures are functions of tables. One palette, one style, one `save`; nothing here computes a result."""
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from .metrics import interval
from .record import Run

FIGURES = Path(os.environ.get("CLSTUDY_FIGURES") or Path(__file__).parent.parent / "figures")
ONE_COLUMN, ONE_AND_A_HALF, TWO_COLUMNS = WIDTHS = (3.5, 5.2, 7.2)  # inches, the usual widths of a paper

# Okabe and Ito's colours and an indigo, told apart by colour-blind readers; a method keeps its colour, dash, name and
# place in a legend everywhere. Families share a colour.
METHODS = {
    "frozen": ("frozen CLIP", "#595959", (1, 1)),
    "finetune": ("asymmetric", "#D55E00", (4, 1.5)),
    "sit": ("symmetric (SIT)", "#0072B2", ""),
    "er": ("ER", "#009E73", (4, 1.5)),
    "derpp": ("DER++", "#009E73", ""),
    "clib": ("CLIB", "#009E73", (1, 1)),
    "er_balanced": ("ER (balanced)", "#009E73", (5, 1.5, 1, 1.5)),  # er with draw="balanced"
    "clip_loss": ("CLIP loss (memory)", "#332288", (4, 1.5)),
    "gcl": ("GCL", "#332288", ""),
    "gdro": ("GDRO", "#332288", (1, 1)),
    "compose": ("composed", "#332288", (5, 1.5, 1, 1.5)),
    "lwf": ("LwF", "#CC79A7", (4, 1.5)),
    "ewc": ("online EWC", "#CC79A7", ""),
    "agem": ("A-GEM", "#CC79A7", (1, 1)),
    "vr_lwf": ("VR-LwF", "#56B4E9", ""),
    "zscl": ("ZSCL", "#56B4E9", (4, 1.5)),
    "geodl": ("GeoDL", "#56B4E9", (1, 1)),
    "imm": ("IMM", "#000000", ""),
    "wise_ft": ("WiSE-FT", "#000000", (4, 1.5)),
    "l2p": ("L2P", "#E69F00", (4, 1.5)),
    "dualprompt": ("DualPrompt", "#E69F00", ""),
    "mvp": ("MVP", "#E69F00", (1, 1)),
}
TOWERS = {
    "image": ("image encoder", "#009E73", ""),
    "text": ("text encoder", "#E69F00", (4, 1.5)),
    "both": ("both encoders", "#0072B2", (1, 1)),
}
VOCABULARIES = {  # what is distilled on
    "nothing": ("nothing (fine-tuning)", "#D55E00", ""),
    "class names": ("class names (LwF)", "#CC79A7", (4, 1.5)),
    "random": ("random tokens (VR-LwF)", "#56B4E9", ""),
    "words": ("random words", "#0072B2", (4, 1.5)),
    "captions": ("captions", "#009E73", ""),
    "pairs": ("captions and images (ZSCL)", "#E69F00", (1, 1)),
    "subspace": ("no texts: subspaces (GeoDL)", "#000000", (1, 1)),
    "path": ("between CLIP and fine-tuned (WiSE-FT)", "#000000", ""),
    "path lora": ("the same, LoRA", "#000000", (4, 1.5)),
}
MEASURES = {
    "UT-Acc": ("UT-Acc (updated classes)", "#D55E00", ""),
    "ZS-Acc": ("ZS-Acc (never updated)", "#0072B2", (4, 1.5)),
}
LOOKS = METHODS | TOWERS | VOCABULARIES | MEASURES  # label → name, colour, dash
# Two of one colour have another dash, and so another marker.
MARKERS = {"": "o", (4, 1.5): "s", (1, 1): "^", (5, 1.5, 1, 1.5): "D"}
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959"]

# The font comes with matplotlib, so that a figure is the same on every machine.
STYLE = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8, "axes.titlesize": 8.5,
         "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
         "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
FILES = {"pdf.fonttype": 42,  # TrueType, embedded
         "pdf.compression": 6, "pdf.use14corefonts": False, "savefig.dpi": 220,
         "savefig.bbox": "standard", "savefig.facecolor": "white", "savefig.transparent": False}
HEAVY = 400_000  # bytes of a PNG


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """width: becomes the next of WIDTHS, so that a figure fits into the columns of a paper as it is."""
    sns.set_theme("paper", "ticks", rc=STYLE)
    width = next((fits for fits in WIDTHS if fits >= width), TWO_COLUMNS)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
    plt.close(figure)  # notebooks show what a cell returns, once
    return figure, axes


def save(figure: Figure, name: str, runs: Sequence[Run] = (), caption: str = "") -> Figure:
    """Write figures/NAME.png (to read), .pdf (for papers, TrueType fonts embedded) and .json: the caption, the runs
    behind it and their settings in short. The same figure gives the same bytes: no file holds a date or a version."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(FILES):
        figure.savefig(FIGURES / f"{name}.png", metadata={"Software": None})
        figure.savefig(FIGURES / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    _lighter(FIGURES / f"{name}.png")
    about = {"figure": name, "caption": caption, "settings": settings(runs), "runs": sorted({run.id for run in runs})}
    (FIGURES / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    return figure


def _lighter(path: Path) -> None:
    """A picture of more than HEAVY bytes keeps 256 colours, which makes it a third as large: it lies in the
    repository. The PDF has them all."""
    if path.stat().st_size > HEAVY:
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def settings(runs: Sequence[Run]) -> dict[str, list]:
    """What the runs of a figure are: their benchmarks, streams, tuners, methods and seeds, each once and in order."""
    found = {name: {getattr(run.config, name) for run in runs} for name in ("benchmark", "stream", "tuner", "seed")}
    return {name: sorted(values) for name, values in found.items()} | {
        "method": _order(sorted({run.config.method for run in runs}))} if runs else {}


def _order(labels: Iterable[str]) -> list[str]:
    """Each label once, in the order of LOOKS; others stay behind, as they come."""
    places = {label: place for place, label in enumerate(LOOKS)}
    return sorted(dict.fromkeys(labels), key=lambda label: places.get(label, len(places)))


def pictures(images, titles: Sequence[str] | None = None, columns: int = 8, title: str | None = None) -> Figure:
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


def similarity(values, row_names: Sequence[str], column_names: Sequence[str], title: str | None = None) -> Figure:
    """Images × texts as a heatmap with its numbers."""
    values = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    figure, axes = _figure(min(TWO_COLUMNS, 1.8 + 0.62 * len(column_names)), 0.9 + 0.3 * len(row_names))
    sns.heatmap(values, annot=True, fmt=".2f", cmap="crest", cbar=False, xticklabels=list(column_names),
                yticklabels=list(row_names), ax=axes[0, 0], annot_kws={"size": 7})
    axes[0, 0].set(title=title, xlabel="text", ylabel="image")
    axes[0, 0].tick_params(axis="x", rotation=35)
    for label in axes[0, 0].get_xticklabels():
        label.set_ha("right")
    return figure


def bars(values: Mapping[str, float], title: str | None = None, xlabel: str | None = None) -> Figure:
    """Horizontal bars, in the order given from the top."""
    figure, axes = _figure(ONE_COLUMN + 1.2, 0.7 + 0.22 * len(values))
    axes[0, 0].barh(list(values), list(values.values()), color=PALETTE[0])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(title=title, xlabel=xlabel)
    for place, value in enumerate(values.values()):
        axes[0, 0].annotate(f"{value:.2f}", (max(value, 0), place), xytext=(3, 0), textcoords="offset points",
                            va="center", fontsize=7)
    return figure


def _matrix(axis, R: np.ndarray, title: str | None, row_names=None, column_names=None, top: float = 100, colorbar=True):
    rows = row_names or ["before", *(str(s) for s in range(1, len(R)))]
    sns.heatmap(100 * R, vmin=0, vmax=top, cmap="crest", ax=axis, cbar=colorbar, annot=R.shape[1] <= 10, fmt=".0f",
                annot_kws={"size": 6.5}, yticklabels=rows, xticklabels=column_names or range(1, R.shape[1] + 1),
                cbar_kws={"label": "accuracy, %"})
    axis.axhline(1, color="white", lw=3)
    axis.set(title=title, xlabel="task", ylabel="after stage")
    axis.tick_params(axis="y", rotation=0)


def matrix(R: np.ndarray, title: str | None = None, row_names: Sequence[str] | None = None,
           column_names: Sequence[str] | None = None) -> Figure:
    """An accuracy matrix: a row per stage (the first is the model before training), a column per task."""
    figure, axes = _figure(1.6 + 0.42 * max(R.shape[1], 4), 1.0 + 0.26 * max(len(R), 3))
    _matrix(axes[0, 0], R, title, row_names, column_names)
    return figure


def _band(axis, runs: Sequence[Run], set_name: str, metric: str, **line) -> None:
    """Mean over seeds with its 95 % interval, cut to 0 … 100. Stages end at other images for other seeds, so each run's
    curve is read, by linear interpolation, at 25 points from the latest first checkpoint to the end."""
    curves = [run.curve(set_name, metric) for run in runs]
    first, last = (max(curve.images_seen.iloc[i] for curve in curves) for i in (0, -1))
    points = np.linspace(first, last, 25)
    values = np.array([np.interp(points, curve.images_seen, 100 * curve.value) for curve in curves])
    axis.plot(points, values.mean(0), **line)
    if len(runs) > 1:
        low, high = zip(*((m - h, m + h) for m, h in map(interval, values.T)), strict=True)
        low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)
        axis.fill_between(points, low, high, color=line.get("color"), alpha=0.12, lw=0)


def _legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend above all panels, each label once, in the order of LOOKS."""
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {label: handle for found in pairs for handle, label in zip(*found, strict=True)}
    places = {name: place for place, (name, *_) in reversed(list(enumerate(LOOKS.values())))}
    handles = dict(sorted(found.items(), key=lambda item: places.get(item[0], places.get(
        item[0].split(", ")[0], len(places)))))
    columns = len(handles) if len(handles) <= 5 else -(-len(handles) // 2)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, frameon=False)


def curves(runs: Mapping[str, Sequence[Run]], set: str = "seen classes", metric: str = "accuracy",
           ylabel: str | None = None, title: str | None = None) -> Figure:
    """Accuracy over the stream, a line per label: mean over seeds and 95 % interval."""
    figure, axes = _figure(ONE_COLUMN + 0.9, 2.5)
    for i, (label, group) in enumerate(runs.items()):
        name, colour, dash = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
        _band(axes[0, 0], group, set, metric, color=colour, label=name, dashes=dash or (None, None))
    axes[0, 0].set(xlabel="images of the stream seen", ylabel=ylabel or f"{metric} on {set}, %", title=title)
    axes[0, 0].legend(frameon=False)
    return figure


def losses(runs: Mapping[str, Run]) -> Figure:
    """Each loss term over the optimiser's steps; the vertical lines are stage ends."""
    figure, axes = _figure(ONE_COLUMN + 0.9, 2.3)
    for i, (label, run) in enumerate(runs.items()):
        for term, rows in run.steps.groupby("term"):
            name, colour, _ = LOOKS.get(label, (label, PALETTE[i % len(PALETTE)], ""))
            axes[0, 0].plot(rows.step, rows.value, lw=0.9, color=colour, label=f"{name}: {term}")
        for end in run.steps.groupby("stage").step.max()[:-1]:
            axes[0, 0].axvline(end, color="0.85", lw=0.6, zorder=0)
    axes[0, 0].set(xlabel="optimiser step", ylabel="loss")
    axes[0, 0].legend(frameon=False)
    return figure


def live(lines: Mapping[tuple[int, str], Sequence[tuple[float, float]]]) -> Figure:
    """One run as `widgets.live_training` shows it: (panel, name) → points, with panels 1 for loss terms over steps, 2
    for accuracy over the stream, 3 for the drift of features."""
    figure, axes = _figure(TWO_COLUMNS, 2.7, 1, 3)
    about = (("optimiser step", "loss"), ("images of the stream seen", "accuracy, %"),
             ("optimiser step", "1 − cosine to the start"))
    for column, (x, y) in enumerate(about, 1):
        axis = axes[0, column - 1]
        mine = [(name, points) for (panel, name), points in lines.items() if panel == column]
        for i, (name, points) in enumerate(mine):
            axis.plot(*zip(*points, strict=True), color=PALETTE[i % len(PALETTE)], label=name, lw=1.2,
                      dashes=((), (4, 1.5), (1, 1))[i // len(PALETTE) % 3], marker="" if column == 1 else ".", ms=4)
        axis.set(xlabel=x, ylabel=y)
        if mine:
            axis.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(.5, -.28))
    return figure


def curve_grid(groups: Mapping[tuple[str, str, str], Sequence[Run]], set: str = "seen classes") -> Figure:
    """Panels stream × tuner (or method), a line per method (or tower): keys of `groups` are (row, column, line)."""
    streams, tuners = (list(dict.fromkeys(key[i] for key in groups)) for i in (0, 1))
    figure, axes = _figure(TWO_COLUMNS, 0.5 + 2.0 * len(streams), len(streams), len(tuners), sharey="row", sharex="row")
    for (stream, tuner, method), runs in groups.items():
        axis = axes[streams.index(stream), tuners.index(tuner)]
        name, colour, dash = LOOKS[method]
        _band(axis, runs, set, "accuracy", color=colour, label=name, dashes=dash or (None, None))
        axis.set(title=f"{stream} stream, {tuner}", xlabel="images of the stream seen")
    for row in axes:
        row[0].set_ylabel(f"accuracy on {set}, %")
    _legend(figure, axes)
    return figure


def matrices(groups: Mapping[str, Sequence[Run]], candidates: str = "all") -> Figure:
    """Accuracy matrices side by side, each the mean over its runs."""
    means = {label: np.nanmean([run.matrix(candidates) for run in runs], axis=0) for label, runs in groups.items()}
    top = 100 * max(np.nanmax(R) for R in means.values())
    figure, axes = _figure(TWO_COLUMNS, 0.7 + 0.21 * len(next(iter(means.values()))), 1, len(means))
    for i, (label, R) in enumerate(means.items()):
        _matrix(axes[0, i], R, LOOKS.get(label, (label,))[0], top=top, colorbar=i == len(means) - 1)
        if i:
            axes[0, i].set_ylabel("")
    return figure


def changes(table: pd.DataFrame, ylabel: str = "change against before, points") -> Figure:
    """Bars with 95 % intervals: columns `panel`, `set`, `method`, `mean`, `half_width` (as `tables.changes` makes
    it)."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        sets, methods = list(dict.fromkeys(rows["set"])), _order(rows.method)
        for i, method in enumerate(methods):
            mine = rows[rows.method == method].set_index("set").loc[sets]
            place = np.arange(len(sets)) + (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axis.bar(place, mine["mean"], 0.8 / len(methods), yerr=mine.half_width, color=LOOKS[method][1],
                     label=LOOKS[method][0], error_kw={"lw": 0.8})
        axis.axhline(0, color="0.2", lw=0.7)
        axis.set_title(panel)
        axis.set_xticks(range(len(sets)), sets, rotation=38, ha="right")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def trade(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Two metrics against each other with their 95 % intervals: columns panel, label, x, x_half, y, y_half.

    Rows whose label is "frozen" become the dotted lines: above is gained, below is lost."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.9, 1, len(panels), sharex=True, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row in table[table.panel == panel].itertuples():
            name, colour, dash = LOOKS[row.label]
            if row.label == "frozen":
                axis.axvline(row.x, color=colour, ls=":", lw=0.8)
                axis.axhline(row.y, color=colour, ls=":", lw=0.8, label=name)
            else:
                axis.errorbar(row.x, row.y, row.y_half, row.x_half, fmt=MARKERS[dash], ms=4, lw=0.9, color=colour,
                              label=name)
        axis.set(title=panel, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def frontier(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Two metrics against each other, a line per method through its weights: columns label, weight, x, x_half, y and
    y_half.

    Above and to the right is better, so methods are compared at their best and not at one weight. The smallest and the
    largest weight of each line are written beside it. "frozen" becomes the dotted cross; a row without a weight is a
    single point."""
    figure, axes = _figure(TWO_COLUMNS, 3.6)
    axis = axes[0, 0]
    for label in _order(table.label):
        rows, (name, colour, dash) = table[table.label == label].sort_values("weight"), LOOKS[label]
        if label == "frozen":
            axis.axvline(rows.x.iloc[0], color=colour, ls=":", lw=0.8)
            axis.axhline(rows.y.iloc[0], color=colour, ls=":", lw=0.8, label=name)
            continue
        line = axis.errorbar(rows.x, rows.y, rows.y_half, rows.x_half, color=colour, label=name, lw=1.1, ms=4,
                             marker=MARKERS[dash], elinewidth=0.5)
        line[0].set_dashes(dash or (None, None))
        for row in rows.iloc[[0, -1]].itertuples() if len(rows) > 1 else ():
            axis.annotate(f"{row.weight:g}", (row.x, row.y), xytext=(4, 4), textcoords="offset points", fontsize=6.5,
                          color=colour, zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def series(table: pd.DataFrame, xlabel: str, ylabel: str, logx: bool = False) -> Figure:
    """A value against a setting: columns panel, method, x, mean, half_width; 95 % intervals as bars.

    logx: the settings stand at equal distances on a logarithmic axis, each with its value."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        for i, method in enumerate(_order(rows.method)):
            mine, (name, colour, dash) = rows[rows.method == method].sort_values("x"), LOOKS[method]
            shift = 0 if logx else (i - 1) * 0.01 * (rows.x.max() - rows.x.min())  # bars do not hide each other
            line = axis.errorbar(mine.x + shift, mine["mean"], mine.half_width, color=colour, label=name, lw=1.1, ms=3,
                                 marker="o", elinewidth=0.7)
            line[0].set_dashes(dash or (None, None))
        axis.set(title=panel, xlabel=xlabel)
        if logx:
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(rows.x)), [f"{x:g}" for x in sorted(set(rows.x))])
            axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def arrivals(streams: Mapping[str, tuple[Sequence, np.ndarray]], points: int = 60) -> Figure:
    """What a stream looks like: the share of each class among the images that arrive, over the stream.

    streams: title → (stages, labels). Classes are stacked by their home stage and coloured by it; vertical lines are
    the ends of stages."""
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


def bands(table: pd.DataFrame, ylabel: str | None = None, sharey: bool = False, zero: bool = False) -> Figure:
    """Quantities over the stream: columns panel, method, seed, images_seen, value, and part (other dashes) or not.

    A bold line per method and part, the mean over seeds (runs read by linear interpolation at 40 points), and a thin
    one per seed: with three seeds an interval at every point would hide what it is about."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(panels), sharey=sharey)
    parts = list(dict.fromkeys(table.part)) if "part" in table else [None]
    for axis, panel in zip(axes[0], panels, strict=True):
        mine = table[table.panel == panel]
        for method in _order(mine.method):
            for part, dash in zip(parts, ("", (4, 1.5), (1, 1)), strict=False):
                rows = mine[(mine.method == method) & (True if part is None else mine.part == part)]
                label = LOOKS[method][0] + (f", {part}" if part else "")
                _mean_line(axis, rows, color=LOOKS[method][1], label=label, dashes=dash or (None, None))
        if zero:
            axis.axhline(0, color="0.2", lw=0.6, zorder=0)
        axis.set(title=panel, xlabel="images of the stream seen")
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def _mean_line(axis, rows: pd.DataFrame, points: int = 40, **line) -> None:
    runs = [run.sort_values("images_seen") for _, run in rows.groupby("seed")]
    grid = np.linspace(max(r.images_seen.iloc[0] for r in runs), min(r.images_seen.iloc[-1] for r in runs), points)
    values = np.array([np.interp(grid, run.images_seen, run.value) for run in runs])
    axis.plot(grid, values.mean(0), lw=1.5, **line)
    for run in runs if len(runs) > 1 else ():
        axis.plot(run.images_seen, run.value, lw=0.4, alpha=0.5, color=line["color"])


def by_block(table: pd.DataFrame, ylabel: str) -> Figure:
    """Means over a run per block of each tower, with the runs as dots: columns panel, block, method, seed, value."""
    panels = sorted(set(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 2.3, 1, len(panels), sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table.panel == panel]
        order = sorted(set(rows.block), key=lambda block: (not block.isdigit(), int(block) if block.isdigit() else 0))
        for i, method in enumerate(_order(rows.method)):
            for place, block in enumerate(order):
                values = rows[(rows.method == method) & (rows.block == block)].value
                x = place + (i - 0.5) * 0.3
                axis.plot([x] * len(values), values, ".", color=LOOKS[method][1], ms=3, alpha=0.6)
                axis.plot([x - 0.12, x + 0.12], [values.mean()] * 2, color=LOOKS[method][1], lw=1.6,
                          label=LOOKS[method][0])
        axis.set(title=panel, xlabel="block (0 is nearest to the input)")
        axis.set_xticks(range(len(order)), order)
    axes[0, 0].set_ylabel(ylabel)
    _legend(figure, axes)
    return figure


def scatter(table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """A dot per row, coloured by method, a panel per method."""
    methods = _order(table.method)
    figure, axes = _figure(TWO_COLUMNS, 2.6, 1, len(methods), sharey=True, sharex=True)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = table[table.method == method]
        axis.plot(rows[x], rows[y], ".", color=LOOKS[method][1], ms=4, alpha=0.6)
        axis.axhline(0, color="0.7", lw=0.6, zorder=0)
        axis.set(title=LOOKS[method][0], xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def anatomy(table: pd.DataFrame, title: str | None = None) -> Figure:
    """One step, class by class: attraction to the left, repulsion to the right. Columns class, present, method,
    attraction, repulsion (norms); classes in the batch stand above those that are absent."""
    methods, order = _order(table.method), table.sort_values("present", ascending=False)
    names = list(dict.fromkeys(order["class"]))
    figure, axes = _figure(TWO_COLUMNS, 0.9 + 0.13 * len(names), 1, len(methods), sharey=True, sharex=True)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = table[table.method == method].set_index("class").reindex(names)
        places = np.arange(len(names))
        axis.barh(places, -rows.attraction, color=PALETTE[2], label="attraction")
        axis.barh(places, rows.repulsion, color=PALETTE[1], label="repulsion")
        axis.axvline(0, color="0.2", lw=0.6)
        axis.set(title=LOOKS[method][0], xlabel="norm of the pull on the class's text")
        axis.axhline(order.drop_duplicates("class").present.sum() - 0.5, color="0.5", lw=0.6, ls=":")
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=5.5)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, fontsize=8.5)
    _legend(figure, axes)
    return figure


def ranking(table: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """A dot and its 95 % interval per entry, a block of rows per board, a panel per column: columns board, column,
    label, look, mean, half_width, first (as `leaderboard.dots` makes it). titles: column → label of its axis.

    A filled dot shares the first place; a hollow one is behind; a cross has one seed, so no interval and no place. The
    dotted line is frozen CLIP. Entries stand in the order of the table."""
    boards, columns = list(dict.fromkeys(table.board)), list(dict.fromkeys(table.column))
    sizes = [int((table.board == board).sum() / len(columns)) for board in boards]
    figure, axes = _figure(TWO_COLUMNS, 0.3 + sum(0.55 + 0.155 * size for size in sizes), len(boards), len(columns),
                           sharey="row", sharex="col", height_ratios=[size + 1.5 for size in sizes])
    for (i, board), (j, column) in product(enumerate(boards), enumerate(columns)):
        rows, axis = table[(table.board == board) & (table.column == column)], axes[i, j]
        for place, row in enumerate(rows.itertuples()):
            colour, alone = LOOKS[row.look][1], math.isnan(row.half_width)
            axis.errorbar(row.mean, place, xerr=None if alone else row.half_width, color=colour, lw=1, ms=4,
                          fmt="x" if alone else MARKERS[LOOKS[row.look][2]], mfc=colour if row.first else "white")
            if row.look == "frozen":
                axis.axvline(row.mean, color=colour, ls=":", lw=0.8, zorder=0)
        names = [", ".join(filter(None, (LOOKS[row.look][0], row.label))) for row in rows.itertuples()]
        axis.set_yticks(range(len(rows)), names, fontsize=6.5)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel((titles or {}).get(column, column))
    for i, board in enumerate(boards):
        axes[i, 0].set_title(board, loc="left")
    return figure


def clouds(table: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """`trade` for any number of panels, two in a row, each with axes of its own. A row without x is left out;
    "frozen" without x is the line across."""
    panels = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, 0.5 + 2.5 * -(-len(panels) // 2), -(-len(panels) // 2), min(2, len(panels)))
    for axis, panel in zip(axes.flat, panels, strict=False):
        for row in table[table.panel == panel].itertuples():
            name, colour, dash = LOOKS[row.label]
            if row.label == "frozen":
                axis.axhline(row.y, color=colour, ls=":", lw=0.8, label=name)
            if row.label == "frozen" and not math.isnan(row.x):
                axis.axvline(row.x, color=colour, ls=":", lw=0.8)
            if row.label != "frozen" and not math.isnan(row.x):
                axis.errorbar(row.x, row.y, row.y_half or None, row.x_half or None, fmt=MARKERS[dash], ms=4, lw=0.7,
                              color=colour, label=name)
        axis.set_title(panel, fontsize=7.5)
        axis.set(xlabel=xlabel, ylabel=ylabel)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    _legend(figure, axes)
    return figure


def pretraining(curve: pd.DataFrame, families: Sequence[str], column: str = "top1", title: str | None = None) -> Figure:
    """Zero-shot accuracy of each family over the images that pretraining has seen; a thin line where a stage ended
    (the last image of each value of `stage`)."""
    figure, axes = _figure(ONE_COLUMN + 1.6, 2.6)
    for i, family in enumerate(families):
        values = 100 * curve[f"{family}/{column}"]
        axes[0, 0].plot(curve.images / 1e6, values, color=PALETTE[i % 7], label=family, marker="o", ms=2)
    for end in curve.groupby("stage").images.max().iloc[:-1]:
        axes[0, 0].axvline(end / 1e6, color="0.6", lw=0.8, zorder=0)
    axes[0, 0].set(xlabel="drawings seen in pretraining, millions", ylabel="zero-shot accuracy, %", title=title)
    axes[0, 0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


matplotlib.set_loglevel("warning")
