"""What all figures share: sizes, colours, panels, legends, and how a figure is saved."""
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clstudy.methods import METHODS as METHOD_CLASSES
from clstudy.runs.run import Run
from clstudy.utils import paths

Look = tuple[str, str, tuple[float, ...] | str]  # title, colour, dash

# inches, the usual widths of a paper
ONE_COLUMN, ONE_AND_A_HALF, TWO_COLUMNS = WIDTHS = (3.5, 5.2, 7.2)

# Family of methods → its colour, in the order of legends. Okabe and Ito's colours, an indigo, a wine
# and a gold, which colour-blind readers can tell apart; within a family methods differ by their
# dash. Orange and blue belong to the two losses alone.
FAMILIES = {
    "frozen": "#595959",
    "asymmetric": "#D55E00",
    "symmetric": "#0072B2",
    "memory": "#009E73",
    "feature replay": "#56B4E9",
    "contrastive": "#332288",
    "regularization": "#CC79A7",
    "distillation": "#7A1F2B",
    "weight averaging": "#000000",
    "prompt pool": "#C9B200",
    "other": "#999999",
}

# Forms of a method that have a line of their own: title, family, dash.
FORMS = {"er_balanced": ("ER (balanced)", "memory", (5, 1.5, 1, 1.5))}  # er with draw="balanced"

TOWERS = {
    "image": ("image encoder", "#009E73", ""),
    "text": ("text encoder", "#C9B200", (4, 1.5)),
    "both": ("both encoders", "#332288", (1, 1)),
}

VOCABULARIES = {  # what is distilled on
    "nothing": ("nothing (fine-tuning)", "#D55E00", ""),
    "class names": ("class names (LwF)", "#CC79A7", (4, 1.5)),
    "random": ("random tokens (VR-LwF)", "#7A1F2B", ""),
    "words": ("random words", "#332288", (4, 1.5)),
    "captions": ("captions", "#009E73", ""),
    "pairs": ("captions and images (ZSCL)", "#C9B200", (1, 1)),
    "subspace": ("no texts: subspaces (GeoDL)", "#000000", (1, 1)),
}

MEASURES = {
    "UT-Acc": ("UT-Acc (updated classes)", "#009E73", ""),
    "ZS-Acc": ("ZS-Acc (never updated)", "#332288", (4, 1.5)),
}


class Looks(Mapping):
    """Label → title, colour and dash. The methods are read from their classes each time, and so
    include those that a reader has added. A method looks the same in all figures."""

    def __init__(self, others: Mapping[str, Look]):
        self.others = others

    def all(self) -> dict[str, Look]:
        kinds = {name: (kind.title or name, kind.family, kind.dash)
                 for name, kind in METHOD_CLASSES.items()}
        ranked = sorted((kinds | FORMS).items(), key=lambda item: list(FAMILIES).index(item[1][1]))
        return {name: (title, FAMILIES[family], dash)
                for name, (title, family, dash) in ranked} | self.others

    def __getitem__(self, label: str) -> Look:
        return self.all()[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.all())


METHODS = Looks({})
LOOKS = Looks(TOWERS | VOCABULARIES | MEASURES)

# Two methods of one colour differ in dash, and so in marker.
MARKERS = {"": "o", (4, 1.5): "s", (1, 1): "^", (5, 1.5, 1, 1.5): "D",
           (5, 1.5, 1, 1.5, 1, 1.5): "v"}

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959"]

# The font comes with matplotlib, so that a figure is the same on every machine.
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
    "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5, "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}

FILES = {"pdf.fonttype": 42, "pdf.compression": 6, "pdf.use14corefonts": False,  # TrueType, embedded
         "savefig.dpi": 220, "savefig.bbox": "standard", "savefig.facecolor": "white",
         "savefig.transparent": False}

HEAVY = 400_000  # bytes of a PNG


def _figure(width: float, height: float, rows: int = 1, columns: int = 1,
            **options) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes, (rows, columns). width: the next of WIDTHS is taken, so that a
    figure fits into the columns of a paper as it is."""
    sns.set_theme("paper", "ticks", rc=STYLE)
    width = next((fits for fits in WIDTHS if fits >= width), TWO_COLUMNS)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
    plt.close(figure)  # notebooks show what a cell returns, once
    return figure, axes


def _panels(table: pd.DataFrame, height: float, **options
            ) -> tuple[Figure, np.ndarray, list[tuple[Axes, str, pd.DataFrame]]]:
    """Return a figure with a panel for each value of the column `panel`, side by side; its axes;
    and the axis, the value and the rows of each panel."""
    names = list(dict.fromkeys(table.panel))
    figure, axes = _figure(TWO_COLUMNS, height, 1, len(names), **options)
    panels = [(axis, name, table[table.panel == name])
              for axis, name in zip(axes[0], names, strict=True)]
    return figure, axes, panels


def _line(axis: Axes, x, y, half, look: Look, **more) -> None:
    """Draw a line with 95 % intervals as bars, in the look of a method."""
    name, colour, dash = look
    style = {"lw": 1.1, "ms": 3, "marker": MARKERS[dash], "elinewidth": 0.7} | more
    axis.errorbar(x, y, half, color=colour, label=name, dashes=dash or (None, None), **style)


def _order(labels: Iterable[str]) -> list[str]:
    """Return each label once, in the order of LOOKS; others stay behind, as they come."""
    places = {label: place for place, label in enumerate(LOOKS)}
    return sorted(dict.fromkeys(labels), key=lambda label: places.get(label, len(places)))


def _legend(figure: Figure, axes: np.ndarray, order: Sequence[str] = ()) -> None:
    """Add one legend above all panels, each label once, in the order given or else of LOOKS."""
    found = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    places = {name: place for place, (name, *_) in reversed(list(enumerate(LOOKS.values())))}
    usual = sorted(found, key=lambda label: places.get(
        label, places.get(label.split(", ")[0], len(places))))
    columns = 4 if order else len(found) if len(found) <= 5 else -(-len(found) // 2)
    shown = list(order) or usual
    figure.legend([found[label] for label in shown], shown, loc="outside upper center",
                  ncols=min(columns, len(shown)), frameon=False)


def save(figure: Figure, name: str, runs: Sequence[Run] = (), caption: str = "",
         numbers: pd.DataFrame | None = None) -> Figure:
    """Write figures/NAME.png (to read), .pdf (for papers, TrueType fonts embedded) and .json: the
    caption, the runs behind it and their settings in short. The same figure gives the same bytes:
    no file holds a date or a version.

    numbers: what is drawn, a row per seed (as of `scores`), for figures/NAME.csv."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    png, pdf, about = (paths.FIGURES / f"{name}.{kind}" for kind in ("png", "pdf", "json"))
    with matplotlib.rc_context(FILES):
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    if png.stat().st_size > HEAVY:  # 256 colours make it a third as large; the PDF has them all
        with Image.open(png) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(png, optimize=True)
    content = {"figure": name, "caption": caption, "settings": settings(runs),
               "runs": sorted({run.id for run in runs})}
    about.write_text(json.dumps(content, indent=1) + "\n")
    if numbers is not None:  # six digits are enough for every interval
        numbers.to_csv(paths.FIGURES / f"{name}.csv", index=False, float_format="%.6g")
    return figure


def settings(runs: Sequence[Run]) -> dict[str, list]:
    """Return the benchmarks, streams, tuners, seeds and methods of the runs of a figure, each once
    and in order."""
    if not runs:
        return {}
    fields = ("benchmark", "stream", "tuner", "seed", "method")
    found = {name: sorted({getattr(run.config, name) for run in runs}) for name in fields}
    return found | {"method": _order(found["method"])}
