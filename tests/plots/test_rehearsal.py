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
