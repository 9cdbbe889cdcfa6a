"""Figures hold the numbers of their tables: lines, bars, labels and legends are read back; no pixel
is compared."""
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from small_runs import make, row

from clstudy import plots
from clstudy.analysis.curves import matrices, over_stream
from clstudy.data.streams import Stage
from clstudy.evaluation.metrics import EXAMPLE
from clstudy.plots import style
from clstudy.utils import paths

T = 4.302653  # Student's t, 97.5 %, two degrees of freedom
SIT, FINETUNE = plots.METHODS["sit"], plots.METHODS["finetune"]


def legend(figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def ticks(axis, way: str) -> list[str]:
    return [label.get_text() for label in getattr(axis, f"get_{way}ticklabels")()]


def points(line) -> list[list[float]]:
    return np.round(np.transpose(line.get_data()).astype(float), 9).tolist()


def look(line) -> tuple[str, bool]:
    """Colour, and whether it is dashed."""
    return to_hex(line.get_color()).upper(), line.is_dashed()


def curve(folder, values: dict[int, float], seed: int = 0, name: str = "seen classes"):
    """A run that was evaluated after so many images."""
    return make(folder,
                [row(1, name, "seen", value, images=images) for images, value in values.items()],
                seed)


# ---- files


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "new" / "figures")
    return tmp_path / "new" / "figures"


def test_a_figure_is_saved_to_read_to_print_and_with_its_runs(figures, tmp_path):
    runs = [curve(tmp_path / name, {20: .5}) for name in ("bbb", "aaa")]
    figure = plots.bars({"one": 1.5})
    assert plots.save(figure, "07_bars", [*runs, runs[0]], "Two runs.") is figure
    assert sorted(
        path.name for path in figures.iterdir()) == ["07_bars.json", "07_bars.pdf", "07_bars.png"]
    assert (figures / "07_bars.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "07_bars.pdf").read_bytes().startswith(b"%PDF")
    about = json.loads((figures / "07_bars.json").read_text())
    assert about == {
        "figure": "07_bars", "caption": "Two runs.", "runs": ["aaa", "bbb"], "settings": {
            "benchmark": ["emoji"], "stream": ["disjoint"], "tuner": ["lora"], "seed": [0],
            "method": ["sit"]
        }
    }
    plots.save(figure, "07_plain")
    assert not (figures / "07_plain.csv").exists()
    plots.save(figure, "07_plain", numbers=pd.DataFrame({"seed": [0, 1], "A_last": [2 / 3, 50]}))
    assert (figures / "07_plain.csv").read_text() == "seed,A_last\n0,0.666667\n1,50\n"
    plain = json.loads((figures / "07_plain.json").read_text())
    assert plain["runs"] == [] and plain["settings"] == {}


def test_the_settings_of_a_figure_are_in_order(tmp_path):
    runs = [curve(tmp_path / name, {20: .5}, seed) for name, seed in (("a", 2), ("b", 0), ("c", 0))]
    methods = ("sit", "mine", "frozen")
    runs = [replace(run, config=run.config.model_copy(update={"method": method}))
            for run, method in zip(runs, methods, strict=True)]
    assert style.settings(runs)["seed"] == [0, 2] and style.settings(runs)["method"] == [
        "frozen", "sit", "mine"
    ]


def test_a_figure_is_the_same_file_in_another_process(figures):
    """No order of a set and no hash of a word goes into a file."""
    code = (
        "import pandas as pd; from clstudy import plots; plots.save(plots.series(pd.DataFrame("
        "{'panel': 'p', 'method': ['sit', 'gcl'], 'x': 1, 'mean': 2., 'half_width': 1.}), 'x, %', "
        "'y'), '07_series')")
    exec(code, {})
    subprocess.run([sys.executable, "-c", code], check=True,
                   env=os.environ | {"CLSTUDY_FIGURES": str(figures / "other")})
    found = [{path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
             for folder in (figures, figures / "other")]
    assert found[0] == found[1] and len(found[0]) == 3


def test_fonts_are_truetype_and_embedded_whatever_the_reader_has_set(figures):
    import matplotlib

    figure = plots.bars({"one": 1.5}, "β → 1", "points")
    with matplotlib.rc_context({"pdf.fonttype": 3, "pdf.compression": 0, "savefig.dpi": 10, "savefig.bbox": "tight"}), \
            mock.patch.dict(style.FILES, {"pdf.compression": 0}):
        plots.save(figure, "07_bars")
    pdf = (figures / "07_bars.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Subtype /TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf and b"DejaVuSans" in pdf
    assert not re.search(rb"/CreationDate|/Producer|/Creator", pdf)
    width = int.from_bytes((figures / "07_bars.png").read_bytes()[16:20], "big")
    assert width == round(
        220 * figure.get_figwidth())  # as wide as it was drawn, in the resolution of the house


def test_a_heavy_picture_is_stored_with_fewer_colours(figures, monkeypatch):
    grey = np.linspace(0, 255, 64)[:, None] * np.linspace(.2, 1, 64)  # more than 256 colours
    figure = plots.pictures(np.stack([grey, grey.T, 255 - grey])[None].astype(np.uint8), columns=1)
    plots.save(figure, "07_light")
    monkeypatch.setattr(style, "HEAVY", 1000)
    plots.save(figure, "07_heavy")
    light, heavy = (figures / f"07_{name}.png" for name in ("light", "heavy"))
    with Image.open(light) as full, Image.open(heavy) as fewer:
        assert (full.mode, fewer.mode) == ("RGBA", "P") and full.size == fewer.size
        apart = np.abs(
            np.asarray(full.convert("RGB")).astype(int) - np.asarray(fewer.convert("RGB")))
    assert 0 < apart.mean() < 2 and heavy.stat().st_size < light.stat().st_size


@pytest.mark.parametrize(("wanted", "width"), [(1.0, 3.5), (3.5, 3.5), (4.4, 5.2), (5.3, 7.2), (9.0, 7.2)])
def test_a_figure_fits_into_the_columns_of_a_paper(wanted, width):
    assert (style.ONE_COLUMN, style.ONE_AND_A_HALF, style.TWO_COLUMNS) == (3.5, 5.2, 7.2)
    assert style._figure(wanted, 2.0)[0].get_figwidth() == width


def test_no_figure_is_left_open():
    """A notebook shows what a cell returns, once."""
    import matplotlib.pyplot as plt

    plots.bars({"one": 1.5})
    assert not plt.get_fignums()


# ---- pictures and heatmaps


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_pictures_are_shown_under_their_titles(kind):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5)).astype(np.uint8)
    figure = plots.pictures(kind(images), ["a", "b", "c"], columns=2, title="all")
    assert titles(figure) == ["a", "b", "c", ""] and figure.get_suptitle() == "all"
    for axis, image in zip(figure.axes, images, strict=False):
        assert np.array_equal(axis.images[0].get_array(), image.transpose(1, 2, 0))
    assert not figure.axes[3].images and not any(axis.axison for axis in figure.axes)
    assert len(plots.pictures(kind(images)).axes) == 3  # no empty place


def test_similarities_stand_in_their_cells():
    figure = plots.similarity(torch.tensor([[.25, -.5, 1.], [0., .125, .75]]), ["i", "j"],
                              ["x", "y", "z"], "cosine")
    axis = figure.axes[0]
    assert [text.get_text()
            for text in axis.texts] == ["0.25", "-0.50", "1.00", "0.00", "0.12", "0.75"]
    assert ticks(axis, "x") == ["x", "y", "z"] and ticks(axis, "y") == ["i", "j"]
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("cosine", "text", "image")


def test_a_matrix_has_the_row_before_training_and_percent():
    R = EXAMPLE.copy()
    R[1, 2] = np.nan
    axis = plots.matrix(R, "R").axes[0]
    shown = axis.collections[0].get_array()
    assert np.allclose(shown.filled(-1), np.nan_to_num(100 * R, nan=-1))
    assert ticks(axis, "y") == ["before", "1", "2", "3"] and ticks(axis, "x") == ["1", "2", "3"]
    assert " ".join(text.get_text() for text in axis.texts) == "30 40 50 80 50 90 70 40 60 50 90"
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("R", "task", "after stage")
    assert axis.collections[0].get_clim() == (0, 100)
    named = plots.matrix(EXAMPLE, row_names=["p", "q", "r", "s"], column_names=["x", "y",
                                                                                "z"]).axes[0]
    assert ticks(named, "y") == ["p", "q", "r", "s"] and ticks(named, "x") == ["x", "y", "z"]
    assert not plots.matrix(np.full((12, 11), .5)).axes[0].texts  # numbers that would not fit


# ---- bars


def test_bars_are_as_long_as_their_values_from_the_top():
    axis = plots.bars({"up": 1.5, "down": -2.25}, "change", "points").axes[0]
    assert [bar.get_width()
            for bar in axis.patches] == [1.5, -2.25] and ticks(axis, "y") == ["up", "down"]
    assert [text.get_text() for text in axis.texts] == ["1.50", "-2.25"] and axis.yaxis_inverted()
    assert [text.xy for text in axis.texts] == [(1.5, 0), (0, 1)]  # beside the bar, or beside zero
    assert (axis.get_title(), axis.get_xlabel()) == ("change", "points")


def test_one_step_class_by_class_attraction_left_repulsion_right():
    rows = [("b", False, "finetune", 0., 2.), ("a", True, "finetune", 3., 1.),
            ("a", True, "sit", 4., .5)]
    table = pd.DataFrame(rows, columns=["class", "present", "method", "attraction", "repulsion"])
    figure = plots.anatomy(table, "step")
    finetune, sit = figure.axes
    assert titles(figure) == [FINETUNE[0], SIT[0]] and figure.get_suptitle() == "step"
    assert ticks(finetune, "y") == ["a", "b"]  # what is in the batch stands above
    assert [bar.get_width() for bar in finetune.patches] == [-3, 0, 1, 2]
    widths = [bar.get_width() for bar in sit.patches]
    assert widths[::2] == [-4, .5] and all(math.isnan(width)
                                           for width in widths[1::2])  # b is not in the loss
    assert finetune.get_ylim()[0] > finetune.get_ylim()[1] and legend(figure) == [
        "attraction", "repulsion"
    ]
    assert .5 in [line.get_ydata()[0]
                  for line in finetune.lines]  # between the present and the absent


# ---- curves over the stream


def test_bands_are_means_over_seeds_with_each_seed_thin():
    rows = [("p", "sit", seed, images, part, scale * (images + seed)) for seed in (0, 1)
            for images in (0, 10 + 10 * seed) for part, scale in (("sum", 1.), ("attraction", 2.))]
    rows += [("q", "sit", 0, images, part, 7.) for images in (0, 10)
             for part in ("sum", "attraction")]
    table = pd.DataFrame(rows, columns=["panel", "method", "seed", "images_seen", "part", "value"])
    figure = plots.bands(table, "push", zero=True)
    left, right = figure.axes
    bold = [line for line in left.lines if line.get_lw() == 1.5]
    thin = [line for line in left.lines if line.get_lw() == .4]
    assert [(points(line)[0], points(line)[-1]) for line in bold] == [([0, .5], [10, 10.5]),
                                                                      ([0, 1], [10, 21])]
    assert [len(line.get_xdata())
            for line in bold] == [40, 40] and [look(line) for line in bold] == [(SIT[1], False),
                                                                                (SIT[1], True)]
    assert [points(line) for line in thin] == [[[0, 0], [10, 10]], [[0, 1], [20, 21]],
                                               [[0, 0], [10, 20]], [[0, 2], [20, 42]]]
    assert [line.get_lw() for line in right.lines] == [1.5, 1.5,
                                                       .6]  # one seed has no thin line; and zero
    assert legend(figure) == [f"{SIT[0]}, sum", f"{SIT[0]}, attraction"
                              ] and titles(figure) == ["p", "q"]
    assert (left.get_ylabel(), right.get_xlabel()) == ("push", "images of the stream seen")
    plain = plots.bands(table[table.part == "sum"].drop(columns="part"))
    assert legend(plain) == [SIT[0]] and len(plain.axes[1].lines) == 1


def test_arrivals_are_shares_of_classes_among_the_images_in_time():
    labels = np.array([3, 3, 5, 3, 4, 4, 4, 4])
    stages = [Stage(1, (3, 5), np.array([0, 1, 2, 4])), Stage(2, (4,), np.array([3, 5, 6, 7]))]
    figure = plots.arrivals({"blurred": (stages, labels)}, points=2)
    axis = figure.axes[0]
    tops = [[path[path[:, 0] == x][:, 1].max() for x in (2, 6)]
            for path in (area.get_paths()[0].vertices for area in axis.collections)]
    assert tops == [[50, 25], [75, 25], [100, 100]]  # 3: 2 of 4, then 1 of 4; 5: 1; 4: 1, then 3
    assert [line.get_xdata()[0] for line in axis.lines] == [4]  # the end of stage 1
    assert axis.get_title() == "blurred" and axis.get_xlabel(
    ) == "images of the stream" and axis.get_xlim() == (0, 8)
    colours = [tuple(area.get_facecolor()[0]) for area in axis.collections]
    assert colours[0] == colours[1] != colours[2]  # by home stage


def test_methods_of_one_colour_can_be_told_apart():
    for looks in (plots.METHODS, style.TOWERS):
        assert len({(colour, dash) for _, colour, dash in looks.values()}) == len(looks)
        assert {dash for _, _, dash in looks.values()} <= set(style.MARKERS)
        assert len({name for name, _, _ in looks.values()}) == len(looks)
    assert len(set(style.MARKERS.values())) == len(style.MARKERS)


def test_every_method_has_its_name_and_colour():
    from clstudy.methods import METHODS

    assert set(METHODS) | {"er_balanced", "compose"} <= set(plots.METHODS)


SIGHT = {  # linear RGB as a dichromat sees it: Machado et al. 2009, doi 10.1109/TVCG.2009.113, severity 1
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "protan": [[.152286, 1.052583, -.204868],
                                                            [.114503, .786281, .099216],
                                                            [-.003882, -.048116, 1.051998]],
    "deutan": [[.367322, .860646, -.227968], [.280085, .672501, .047413],
               [-.011820, .042940, .968881]], "tritan": [[1.255528, -.076749, -.178779],
                                                         [-.078411, .930809, .147602],
                                                         [.004733, .691367, .303900]]
}


def lab(colour: str, sight: list) -> np.ndarray:
    """CIE L*a*b* of a colour as seen; D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = to_xyz @ np.clip(np.array(sight) @ linear, 0, 1) / [.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_can_be_told_apart_by_colour_blind_readers(sight):
    """A difference of 10 is plain to see; of 2.3, just noticeable."""
    assert np.linalg.norm(lab("#000000", SIGHT[sight])
                          - lab("#ffffff", SIGHT[sight])) == pytest.approx(100, abs=.1)
    colours = {colour for _, colour, _ in plots.LOOKS.values()}
    seen = {colour: lab(colour, SIGHT[sight]) for colour in colours}
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)) > 15


def test_methods_stand_in_the_same_order_everywhere():
    assert style._order(["mine", "sit", "gdro", "frozen", "sit", "er_balanced"]) == [
        "frozen", "sit", "er_balanced", "gdro", "mine"]


def test_a_series_has_a_line_per_method_over_a_setting():
    rows = [("end", "sit", 50., 3., .5), ("end", "sit", 0., 1., .25),
            ("end", "finetune", 0., 4., 0.), ("end", "finetune", 50., 5., 1.),
            ("start", "sit", 0., 9., 0.), ("start", "sit", 50., 8., 0.)]
    figure = plots.series(
        pd.DataFrame(rows, columns=["panel", "method", "x", "mean", "half_width"]), "N, %", "%")
    left, right = figure.axes
    assert [points(c.lines[0]) for c in left.containers] == [[[-.5, 4], [49.5, 5]],
                                                             [[0, 1], [50, 3]]]  # side by side
    bars = [[segment[:, 1].tolist() for segment in c.lines[2][0].get_segments()]
            for c in left.containers]
    assert bars == [[[4, 4], [4, 6]], [[.75, 1.25], [2.5, 3.5]]]
    assert [look(c.lines[0]) for c in left.containers] == [(FINETUNE[1], True), (SIT[1], False)]
    assert right.containers[0].lines[0].get_ydata().tolist() == [9, 8]
    assert legend(figure) == [FINETUNE[0], SIT[0]] and titles(figure) == ["end", "start"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("N, %", "%")


# ---- what is refused, and what is not needed




def test_settings_on_a_logarithmic_axis_are_written_at_their_places():
    table = pd.DataFrame(
        [{"panel": "texts", "method": "UT-Acc", "x": x, "mean": 2. * x, "half_width": 1.}
         for x in (10, 100, 400)])
    figure = plots.series(table, "how many", "%", logx=True)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and ticks(axis, "x") == ["10", "100", "400"]
    assert points(axis.containers[0].lines[0]) == [[10, 20], [100, 200], [400, 800]]


@pytest.mark.parametrize("draw", [
    lambda: plots.series(pd.DataFrame({"panel": ["p"], "method": ["sitt"], "x": [1.], "mean": [1.],
                                       "half_width": [0.]}), "x", "y"),
    lambda: plots.bands(pd.DataFrame({"panel": ["p"], "method": ["sitt"], "seed": [0], "images_seen": [1],
                                      "value": [0.]})),
    lambda: plots.anatomy(pd.DataFrame({"class": ["a"], "present": [True], "method": ["sitt"], "attraction": [0.],
                                        "repulsion": [0.]})),
], ids=["series", "bands", "anatomy"])
def test_an_unknown_method_has_no_look_and_is_refused(draw):
    with pytest.raises((KeyError, ValueError), match="sitt"):
        draw()


def test_a_figure_drawn_and_saved_twice_is_the_same_file(figures, monkeypatch, tmp_path):
    runs = [curve(tmp_path / str(seed), {20: .5, 40: .6 + .1 * seed}, seed) for seed in range(2)]
    saved = []
    for day in ("0", "86400"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)  # a date in a file would be this one
        plots.save(plots.stream_curves(over_stream({"sit": runs}), hue="label"), "07_curves", runs,
                   "A curve.")
        saved.append({path.name: path.read_bytes() for path in figures.iterdir()})
    assert saved[0] == saved[1] and len(saved[0]) == 3
    plots.save(plots.stream_curves(over_stream({"finetune": runs}), hue="label"), "07_curves", runs,
               "A curve.")
    assert (figures / "07_curves.png").read_bytes() != saved[0]["07_curves.png"]


def test_matrices_are_means_over_runs_on_one_scale(tmp_path):
    def run(name, share, without=()):
        return make(tmp_path / name, [
            row(stage, f"task {task}", "all", share * stage / task) for stage in range(3)
            for task in (1, 2) if (stage, task) not in without
        ])

    groups = {"sit": [run("a", .1), run("b", .3, without=[(2, 2)])], "mine": [run("c", .4)]}
    figure = plots.accuracy_matrices(matrices(groups))
    sit, mine, bar = figure.axes
    assert titles(figure)[:2] == [SIT[0], "mine"]
    assert np.allclose(sit.collections[0].get_array(),
                       [[0, 0], [20, 10], [40, 10]])  # NaN is left out
    assert np.allclose(mine.collections[0].get_array(), [[0, 0], [40, 20], [80, 40]])
    assert sit.collections[0].get_clim() == mine.collections[0].get_clim() == (0, 80)
    assert bar.get_ylabel() == "accuracy, %" and (sit.get_ylabel(),
                                                  mine.get_ylabel()) == ("after stage", "")
