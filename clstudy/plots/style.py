"""What all figures share: sizes, colours, how a figure is saved."""
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from clstudy.methods import METHODS as METHOD_CLASSES
from clstudy.runs.run import Run
from clstudy.utils import paths

Look = tuple[str, str, tuple[float, ...] | str]  # title, colour, dash
ONE_COLUMN, ONE_AND_A_HALF, TWO_COLUMNS = WIDTHS = (
    3.5, 5.2, 7.2)  # inches, the usual widths of a paper


# Family of methods → its colour, in the order of legends. Okabe and Ito's colours and an indigo,
# told apart by colour-blind readers; within a family methods differ by their dash.
FAMILIES = {
    "frozen": "#595959",
    "asymmetric": "#D55E00",
    "symmetric": "#0072B2",
    "memory": "#009E73",
    "contrastive": "#332288",
    "regularization": "#CC79A7",
    "distillation": "#56B4E9",
    "weight averaging": "#000000",
    "prompt pool": "#E69F00",
    "other": "#999999",
}


# Forms of a method that have a line of their own: title, family, dash.
FORMS = {"er_balanced": ("ER (balanced)", "memory", (5, 1.5, 1, 1.5))}  # er with draw="balanced"


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


class Looks(Mapping):
    """Label → title, colour and dash. The methods are read from their classes each time, and so
    hold those that a reader has added. A method looks the same in all figures."""

    def __init__(self, others: Mapping[str, Look]):
        self.others = others

    def all(self) -> dict[str, Look]:
        kinds = {
            name: (kind.title or name, kind.family, kind.dash)
            for name, kind in METHOD_CLASSES.items()
        }
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


# Two of one colour have another dash, and so another marker.
MARKERS = {"": "o", (4, 1.5): "s", (1, 1): "^", (5, 1.5, 1, 1.5): "D"}


PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959"]


# The font comes with matplotlib, so that a figure is the same on every machine.
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
    "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5, "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True
}


FILES = {"pdf.fonttype": 42,  # TrueType, embedded
         "pdf.compression": 6, "pdf.use14corefonts": False, "savefig.dpi": 220,
         "savefig.bbox": "standard", "savefig.facecolor": "white", "savefig.transparent": False}


HEAVY = 400_000  # bytes of a PNG


def _figure(width: float, height: float, rows: int = 1, columns: int = 1,
            **options) -> tuple[Figure, np.ndarray]:
    """width: becomes the next of WIDTHS, so that a figure fits into the columns of a paper as it
    is."""
    sns.set_theme("paper", "ticks", rc=STYLE)
    width = next((fits for fits in WIDTHS if fits >= width), TWO_COLUMNS)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
    plt.close(figure)  # notebooks show what a cell returns, once
    return figure, axes


def save(figure: Figure, name: str, runs: Sequence[Run] = (), caption: str = "") -> Figure:
    """Write figures/NAME.png (to read), .pdf (for papers, TrueType fonts embedded) and .json: the
    caption, the runs behind it and their settings in short. The same figure gives the same bytes:
    no file holds a date or a version."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(FILES):
        figure.savefig(paths.FIGURES / f"{name}.png", metadata={"Software": None})
        figure.savefig(paths.FIGURES / f"{name}.pdf",
                       metadata={"CreationDate": None, "Producer": None, "Creator": None})
    _lighter(paths.FIGURES / f"{name}.png")
    about = {
        "figure": name, "caption": caption, "settings": settings(runs), "runs": sorted(
            {run.id for run in runs})
    }
    (paths.FIGURES / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    return figure


def _lighter(path: Path) -> None:
    """A picture of more than HEAVY bytes keeps 256 colours, which makes it a third as large: it
    lies in the repository. The PDF has them all."""
    if path.stat().st_size > HEAVY:
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def settings(runs: Sequence[Run]) -> dict[str, list]:
    """What the runs of a figure are: their benchmarks, streams, tuners, methods and seeds, each
    once and in order."""
    found = {
        name: {getattr(run.config, name) for run in runs}
        for name in ("benchmark", "stream", "tuner", "seed")
    }
    return {name: sorted(values) for name, values in found.items()} | {
        "method": _order(sorted({run.config.method for run in runs}))} if runs else {}


def _order(labels: Iterable[str]) -> list[str]:
    """Each label once, in the order of LOOKS; others stay behind, as they come."""
    places = {label: place for place, label in enumerate(LOOKS)}
    return sorted(dict.fromkeys(labels), key=lambda label: places.get(label, len(places)))


def _legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend above all panels, each label once, in the order of LOOKS."""
    pairs = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {label: handle for found in pairs for handle, label in zip(*found, strict=True)}
    places = {name: place for place, (name, *_) in reversed(list(enumerate(LOOKS.values())))}
    handles = dict(sorted(found.items(), key=lambda item: places.get(item[0], places.get(
        item[0].split(", ")[0], len(places)))))
    columns = len(handles) if len(handles) <= 5 else -(-len(handles) // 2)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns,
                  frameon=False)
