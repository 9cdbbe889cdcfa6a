"""Figures of small memories and of domains hold the numbers of their tables; no pixel is
compared."""
import numpy as np
import pandas as pd
import pytest

from clstudy import plots
from clstudy.plots import domains, rehearsal


def legend(figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def points(line) -> list[list[float]]:
    return np.round(np.transpose(line.get_data()).astype(float), 6).tolist()


def test_a_look_of_its_own_can_be_told_apart():
    looks = {**plots.METHODS, **rehearsal.LOOKS}
    assert len({(colour, dash) for _, colour, dash in looks.values()}) == len(looks)
    assert rehearsal.look("sit") == plots.METHODS["sit"] and "joint" in rehearsal.look("joint")[0]
    assert [rehearsal.look(name)[0].endswith("(reconstruction)")
            for name in ("gcl", "gdro", "er")] == [1, 1, 0]
    with pytest.raises(KeyError):
        rehearsal.look("no such method")


def test_sizes_stand_at_equal_distances_and_what_has_no_memory_is_a_line_across():
    rows = [("A", "er", 50, 5., .5), ("A", "er", 0, 1., 0.), ("A", "er", 2, 2., .25),
            ("A", "frozen", np.nan, 4., 1.), ("A", "sit", 2, 3., 0.), ("B", "er", 0, 9., 0.),
            ("B", "er", 2, 8., 0.), ("B", "er", 50, 7., 0.), ("B", "frozen", np.nan, 6., 0.),
            ("B", "sit", 2, 5., 0.)]
    table = pd.DataFrame(rows, columns=["panel", "method", "x", "mean", "half_width"])
    figure = rehearsal.sizes(table, "images per class", "%")
    left, right = figure.axes
    assert titles(figure) == [
        "A", "B"
    ] and left.get_ylabel() == "%" and right.get_xlabel() == "images per class"
    assert left.get_ylim() == pytest.approx(
        (1 - 1.4, 5 + 1.4))  # the means, and a third of their range
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "2", "50"]
    er, across, sit = left.containers
    assert points(er.lines[0]) == [[-.03, 1], [.97, 2], [1.97, 5]] and points(
        sit.lines[0]) == [[1.03, 3]]
    assert [segment[:, 1].tolist() for segment in er.lines[2][0].get_segments()] == [[1, 1],
                                                                                     [1.75, 2.25],
                                                                                     [4.5, 5.5]]
    assert [segment[:, 1].tolist() for segment in across.lines[2][0].get_segments()] == [[3, 5]]
    (line,) = [line for line in left.lines if line.get_label() == plots.METHODS["frozen"][0]]
    assert set(line.get_ydata()) == {4}
    assert legend(figure) == [plots.METHODS[name][0] for name in ("er", "frozen", "sit")]


def test_weights_of_every_class_and_their_means():
    rows = [(seed, stage, step, label, weight + seed) for seed in (0, 1)
            for stage, step, label, weight in [(1, 0, 4, 1.), (1, 0, 2,
                                                               1.), (2, 1, 4,
                                                                     .5), (2, 1, 2,
                                                                           .75), (2, 1, 0, 1.75)]]
    weights = pd.DataFrame(rows, columns=["seed", "stage", "step", "class", "weight"])
    ages = pd.DataFrame([(0, 0, "new", 1.), (0, 1, "new", 1.75),
                         (0, 1, "old", .6), (1, 0, "new", 2.), (1, 1, "new", 2.75),
                         (1, 1, "old", 1.6)], columns=["seed", "step", "age", "weight"])
    figure = rehearsal.class_weights(weights, ages)
    left, right = figure.axes[:2]
    (mesh,) = left.collections
    shown = np.ma.filled(mesh.get_array(), np.nan).reshape(3, 2)
    assert shown[:2].tolist() == [[1., .75], [1., .5]] and np.isnan(
        shown[2, 0]) and shown[2, 1] == 1.75  # 2, 4, then 0
    assert mesh.get_clim() == (0, 1.75)
    lines = {
        line.get_label(): points(line) for line in right.lines
        if not line.get_label().startswith("_")
    }
    assert lines == {"old classes": [[1, 1.1]], "new classes": [[0, 1.5], [1, 2.25]]}
    assert sum(line.get_linewidth() < .5
               for line in right.lines) == 4
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(lines)


def test_payers_have_a_dot_per_class_a_line_and_names():
    table = pd.DataFrame({"class": ["a", "b", "c", "d"], "before": [0., 10., 20., 30.],
                          "difference": [3., 2., 1., 0.]})
    figure = rehearsal.payers({"one": table, "two": table.assign(difference=1.)}, "before", "gain")
    left, right = figure.axes
    zero, dots, line = left.lines
    assert points(dots) == [[0, 3], [10, 2], [20, 1], [30, 0]] and points(line) == [[0, 3], [30, 0]]
    assert [text.get_text() for text in left.texts] == ["a", "b", "c"]
    assert [text.get_ha() for text in left.texts] == ["left", "left", "right"]  # away from the edge
    assert titles(figure) == ["one", "two"
                              ] and (left.get_xlabel(), left.get_ylabel()) == ("before", "gain")


def test_estimates_have_a_line_per_gamma():
    rows = [(seed, gamma, visit, visit + seed, -visit * gamma)
            for seed in (0, 2) for gamma in (.5, 1.) for visit in (1, 2)]
    figure = rehearsal.estimates(
        pd.DataFrame(rows, columns=["seed", "gamma", "visit", "error", "bias"]))
    left, right = figure.axes
    assert [points(c.lines[0]) for c in left.containers] == [[[1, 2], [2, 3]]] * 2
    assert [points(c.lines[0]) for c in right.containers] == [[[1, -1], [2, -2]], [[1, -.5],
                                                                                   [2, -1]]]
    assert legend(figure) == ["γ = 1 (the batch alone)", "γ = 0.5"]
    heights = np.ptp([s[:, 1] for s in left.containers[0].lines[2][0].get_segments()], axis=1)
    assert heights == pytest.approx([2 * 12.7062] * 2,
                                    rel=1e-4)  # Student's t for two seeds, s / √2 = 1


def test_hands_are_a_row_per_thing_and_a_column_per_domain():
    pictures = np.stack([np.full((3, 4, 4), i, np.uint8) for i in range(6)])
    figure = domains.style_grid(pictures, ["dog", "cat"], ["x", "y", "z"])
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes] == list(range(6))
    named = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert named == [["x"], ["y"], ["z"], [], [], []]
    assert [axis.get_ylabel() for axis in figure.axes] == ["dog", "", "", "cat", "", ""]


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (4, (1, 4)), (5, (2, 3))])
def test_matrices_of_domains(count, shape):
    labels = ["finetune", "er", "gcl", "frozen", "joint"][:count]
    means = {
        label: np.array([[.5, .5], [.5 + .01 * i, .5], [.5, .5 - .1]])
        for i, label in enumerate(labels, 1)
    }
    figure = domains.domain_matrices(means)
    *panels, bar = [axis for axis in figure.axes if axis.axison]
    assert panels[0].get_subplotspec().get_gridspec().get_geometry() == shape and bar.get_ylabel(
    ) == "change, points"
    assert [axis.get_title() for axis in panels] == [rehearsal.look(label)[0] for label in labels]
    assert [text.get_text()
            for text in panels[-1].texts] == ["50", "50",
                                              str(50 + count), "50", "50", "40"]
    (mesh,) = panels[-1].collections
    assert np.ravel(mesh.get_array()).tolist() == pytest.approx([0, 0, count, 0, 0, -10])
    assert mesh.get_clim() == pytest.approx((-10, 10))
    assert [text.get_color() for text in panels[0].texts] == ["0.15"] * 5 + ["white"]
    assert panels[0].get_ylabel() == "after stage" and panels[0].get_ylim() == (3, 0)
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["before", "1", "2"]
    assert figure.get_supxlabel() == "domain, in order of arrival"
    named = domains.domain_matrices(means, ["x", "y"], {"finetune": "fine-tuning"})
    assert named.axes[0].get_title() == "fine-tuning"
    assert [tick.get_text() for tick in named.axes[0].get_xticklabels()
            ] == ["x", "y"] and not named.get_supxlabel()
