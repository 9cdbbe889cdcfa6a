"""Figures of comparisons hold the numbers of their tables; no pixel is compared."""
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from clstudy import plots

SIT = plots.METHODS["sit"][0]
SPAN = {"base": "finetune", "metric": "A_last", "equal_within": 2.0}
FOUND = pd.DataFrame([
    {"stream": stream, "lr": lr, "method": "sit", **SPAN, "difference": mean, "low": mean - half,
     "high": mean + half, "verdict": verdict}
    for stream, lr, mean, half, verdict in (
        ("disjoint", 1e-4, 5., 2., "higher"), ("disjoint", 3e-4, 9., 3., "higher"),
        ("blurred", 1e-4, 1., 99., "inconclusive"), ("blurred", 3e-4, -4., 2., "lower"))])
EACH = pd.DataFrame([{**row, "seed": seed, "difference": row["difference"] + seed}
                     for row in FOUND.drop(columns="verdict").to_dict("records")
                     for seed in (-1, 0, 1)])


def words(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def marks(axis, marker: str) -> list[tuple[float, float]]:
    return [(round(float(x), 6), round(float(y), 6)) for line in axis.lines
            if line.get_marker() == marker and line.get_markersize() > 4
            for x, y in zip(*line.get_data(), strict=True)]


def overlaps(axis) -> list[tuple[str, str]]:
    axis.figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in axis.texts]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def small(figure) -> set[str]:
    """What is written in letters below 8 points."""
    shown = [text for axis in figure.axes for text in (
        *axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label, *axis.get_xticklabels(),
        *axis.get_yticklabels())]
    return {text.get_text() for text in shown if text.get_text() and text.get_fontsize() < 8}


def test_differences_are_dots_in_rows_with_their_verdicts():
    figure = plots.differences(FOUND, EACH, labels={"disjoint": "Disjoint"}, title="A finding.")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "Disjoint, 1e-4", "Disjoint, 3e-4", "blurred, 1e-4", "blurred, 3e-4"]
    assert marks(axis, "o") == [(5, 0), (9, 1), (1, 2), (-4, 3)]
    assert words(axis) == ["higher", "higher", "inconclusive", "lower"] and not overlaps(axis)
    assert axis.get_xlabel() == f"A_last: {SIT} − {plots.METHODS['finetune'][0]}, points"
    assert figure.get_suptitle() == "A finding." and not small(figure)
    dots = [line.get_xdata().tolist() for line in axis.lines if line.get_markersize() < 3]
    assert dots == [[4, 5, 6], [8, 9, 10], [0, 1, 2], [-5, -4, -3]]


def test_a_long_interval_ends_in_arrows_at_the_edges():
    (axis,) = plots.differences(FOUND).axes
    left, right = axis.get_xlim()
    assert marks(axis, "<") == [(round(left, 6), 2)] and marks(axis, ">") == [(round(right, 6), 2)]
    assert -20 < left < -6 and 12 < right < 25
    ends = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 1.3]
    assert all(left <= value <= right for end in ends for value in end)


def test_panels_are_metrics_and_any_column_makes_the_rows():
    table = pd.concat([FOUND, FOUND.assign(metric="forgetting", difference=0.)])
    table = table.assign(pair=table.stream + " at " + table.lr.astype(str))
    figure = plots.differences(table, y="pair")
    assert [axis.get_title("left") for axis in figure.axes] == ["A_last", "forgetting"]
    assert marks(figure.axes[1], "o") == [(0, 0), (0, 1), (0, 2), (0, 3)]
    one = plots.differences(FOUND[:1].assign(low=np.nan, high=np.nan))  # one seed: no interval
    assert one.axes[0].get_yticklabels()[0].get_text() == SIT and len(one.axes[0].lines) == 3


def test_panels_with_rows_of_their_own_stand_one_below_the_other():
    figure = plots.differences(FOUND[:3], EACH, y="lr", panel="stream", own_rows=True)
    one, two = figure.axes
    assert [len(axis.get_yticklabels()) for axis in figure.axes] == [2, 1]
    assert marks(one, "o") == [(5, 0), (9, 1)] and marks(two, "o") == [(1, 0)]
    assert words(two) == ["inconclusive"] and two.get_ylim() == (0.5, -0.5)
    assert one.get_position().y0 > two.get_position().y1


def test_differences_over_a_setting_stand_on_a_logarithmic_axis():
    figure = plots.over(FOUND, panel=["stream"], each=EACH, title="A finding.")
    assert [axis.get_title("left") for axis in figure.axes] == ["disjoint", "blurred"]
    at = [(-4, 5), (round(np.log10(3e-4), 6), 9)]
    assert marks(figure.axes[0], "o") == at and not small(figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1e-4", "3e-4"]
    hollow = [line.get_markerfacecolor() == "white" for line in figure.axes[1].lines
              if line.get_markersize() == 4.8]
    assert hollow == [True, False]
    assert len(marks(figure.axes[1], "^")) == len(marks(figure.axes[1], "v")) == 1


def test_several_compared_values_are_lines_with_their_names():
    table = pd.concat([FOUND[:2].assign(lr=[0, 8]), FOUND[:2].assign(lr=[0, 8], method="er")])
    (axis,) = plots.over(table).axes
    assert sorted(words(axis)) == ["ER", SIT] and not overlaps(axis)
    assert axis.get_xticks().tolist() == [0, 1]  # zero has no logarithm
    with pytest.raises(ValueError, match="over: stream='blurred': must be numbers"):
        plots.over(FOUND, x="stream")


SCORES = pd.DataFrame([
    {"method": method, "weight": weight, "size": size, "seed": seed, "UT": 60 + place + 9 * seed,
     "ZS": 50 - place + 5 * seed}
    for place, (method, weight, size) in enumerate((
        ("frozen", np.nan, np.nan), ("lwf", 1., 0), ("lwf", 8., 4), ("vr_lwf", .5, 0),
        ("vr_lwf", 2., 4), ("joint", np.nan, np.nan))) for seed in (0, 1)])


def test_a_frontier_names_its_lines_and_the_ends_of_their_strengths():
    figure = plots.frontier(SCORES, "UT", "ZS", point="weight", highlight=["vr_lwf"])
    (axis,) = figure.axes
    lines = [np.transpose(bars.lines[0].get_data()).tolist() for bars in axis.containers]
    assert lines == [[[64.5, 52.5]], [[65.5, 51.5], [66.5, 50.5]], [[67.5, 49.5], [68.5, 48.5]],
                     [[69.5, 47.5]]]
    assert sorted(words(axis)) == sorted([
        "1", "8", "0.5", "2", "frozen CLIP", "LwF", "VR-LwF", "joint training (ceiling)"])
    assert not overlaps(axis) and not small(figure)
    bold = [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"]
    assert bold == ["VR-LwF"]
    given = pd.DataFrame({"method": ["lwf", "er"], "x": [1., 2.], "x_half": [.5, 0.], "y": [3., 4.],
                          "y_half": [0., 1.]})
    bars = plots.frontier(given, "x", "y").axes[0].containers
    assert [bar.lines[0].get_data()[0][0] for bar in bars] == [1, 2]


def test_buffers_have_intervals_of_pairs_and_lines_across():
    figure = plots.buffers(SCORES, y="UT", title="A finding.")
    (axis,) = figure.axes
    segments = [np.ptp(bar.get_segments()[0][:, 1]) for bars in axis.containers
                for bar in bars.lines[2]]
    assert segments == pytest.approx([0] * len(segments), abs=1e-9)  # seeds differ by 9 everywhere
    across = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    assert across == [64.5, 69.5] and not overlaps(axis) and not small(figure)
    assert sorted(words(axis)) == ["LwF", "VR-LwF", "frozen CLIP", "joint training (ceiling)"]
    with pytest.raises(ValueError, match="seed=1 has no UT at method=lwf, size=0"):
        plots.buffers(SCORES[SCORES.weight != 8].drop(SCORES.index[3]), y="UT")


@pytest.mark.parametrize(("draw", "says"), [
    (lambda: plots.differences(FOUND, y="tuner"), "y: column='tuner'.*stream"),
    (lambda: plots.differences(FOUND, x="gain"), "column='gain'.*difference"),
    (lambda: plots.differences(FOUND, EACH.drop(columns="lr")), "y: column='lr'.*seed"),
    (lambda: plots.over(FOUND, x="size"), "column='size'.*lr"),
    (lambda: plots.over(FOUND.drop(columns="base")), "column='base'.*lr"),
    (lambda: plots.frontier(SCORES, "UT", "ZS-Acc"), "y: column='ZS-Acc'.*ZS"),
    (lambda: plots.buffers(SCORES, x="memory"), "x: column='memory'.*size"),
])
def test_a_missing_column_is_named_with_the_choices(draw, says):
    with pytest.raises(ValueError, match=says):
        draw()


def test_metrics_may_be_rows_of_one_panel():
    figure = plots.differences(FOUND[:2].assign(metric=["symbols", "flags"]), y="metric")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["symbols", "flags"]
