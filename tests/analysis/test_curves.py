"""Curves, matrices, points and pairs of metrics over groups of runs, and the figures that take them
as they are."""
import numpy as np
import pandas as pd
import pytest
from small_runs import evaluations, make

from clstudy import RunConfig, plots
from clstudy.analysis import curves, tables
from clstudy.evaluation.metrics import EXAMPLE
from clstudy.runs.run import Run, Runs


@pytest.fixture
def runs(tmp_path) -> Runs:
    made = []
    for method, concepts in (("finetune", .5), ("sit", .7)):
        for seed in range(2):
            folder = tmp_path / f"{method}-{seed}"
            make(
                folder, evaluations(.4 + .2 * seed, concepts), steps=[{
                    "stage": 1, "images_seen": 0, "step": step, "term": "task", "value": 1. - step
                } for step in range(2)])
            made.append(
                Run(
                    RunConfig.model_construct(method=method, seed=seed, tuner="lora",
                                              stream="disjoint"), folder))
    return Runs(made)


def test_a_curve_has_the_mean_and_the_interval_of_its_runs(runs):
    table = curves.over_stream(runs, ["method"])
    assert table.method.unique().tolist() == ["finetune", "sit"]
    end = table[table.images_seen == 120].iloc[0]
    half = 12.706204736 * np.std([40, 60], ddof=1) / np.sqrt(
        2)  # Student t with one degree of freedom
    assert end["mean"] == pytest.approx(50) and [end.low, end.high] == [0, 100] and half > 50
    one = curves.over_stream(runs.where(seed=0), ["method"])
    assert (one.low == one["mean"]).all() and curves.over_stream(runs, ["method"], "nowhere").empty


def test_matrices_are_means_by_a_setting_or_a_label(runs):
    assert list(curves.matrices(runs, "method")) == ["finetune", "sit"]
    np.testing.assert_allclose(curves.matrices({"mine": runs})["mine"], EXAMPLE)


def test_points_and_pairs_of_metrics_have_intervals(runs):
    found = tables.points(runs, ["A_last", "concepts"], ["method"])
    assert found["mean"].tolist() == pytest.approx([50, 50, 50, 70]) and found.n.tolist() == [2] * 4
    changed = tables.points(runs, "concepts", ["method"], change=True)
    assert changed["mean"].tolist() == pytest.approx([-40, -20])
    both = tables.pairs(runs, "A_last", "concepts", ["method"])
    assert both.columns.tolist() == ["method", "x", "x_half", "y", "y_half"
                                     ] and both.y.tolist() == pytest.approx([50, 70])
    said = tables.table({"a": runs, "b": runs[:1]}, ["concepts"], ["label"])
    assert said.concepts.tolist() == ["60.0 ± 18.4", "50.0"]
    costly = tables.table(runs, ["concepts", "parameters"], ["method"], sort="concepts")
    assert costly.index.to_list() == [("sit", ), ("finetune", )
                                      ] and costly.columns.to_list() == ["concepts", "parameters"]
    by_size = tables.table(pd.DataFrame({"size": [2, None], "last": [1.0, np.nan]}), ["last"],
                           ["size"])
    assert by_size.index.tolist() == [("2",), ("-",)] and by_size["last"].tolist() == ["1.0", "-"]
    with pytest.raises(ValueError, match="methd.*Did you mean method"):
        tables.points(runs, "A_last", ["methd"])


def test_figures_take_these_tables_by_the_names_of_their_columns(runs):
    figure = plots.stream_curves(curves.over_stream(runs, ["stream", "tuner", "method"]),
                                 row="stream", column="tuner")
    assert figure.axes[0].get_title() == "disjoint, lora" and len(figure.axes[0].lines) == 2
    table = curves.over_stream(runs, ["tuner", "method"]).replace({"finetune": "frozen"})
    table.loc[table.method == "frozen", "tuner"] = "none"
    alone = plots.stream_curves(table, column="tuner")  # frozen CLIP has no panel of its own
    assert [(axis.get_title(), len(axis.lines)) for axis in alone.axes] == [("lora", 2)]
    plots.series(tables.points(runs, "A_last", ["seed", "method"]), "seed", "%", panel="metric",
                 x="seed")
    assert len(plots.accuracy_matrices(curves.matrices(runs, "method")).axes) == 3
    with pytest.raises(ValueError, match="panel: column='tunr'"):
        plots.series(tables.points(runs, "A_last", ["seed", "method"]), "seed", "%", panel="tunr")


def test_several_sets_stand_together_at_each_evaluation_that_has_all_of_them(runs):
    table = curves.together(runs, ["seen classes", "concepts"], ["method"])
    assert list(table) == ["method", "seed", "images_seen", "seen classes", "concepts"]
    for run, (_, rows) in zip(runs, table.groupby(["method", "seed"], sort=False), strict=True):
        both = [run.curve(name).set_index("images_seen").value for name in ("seen classes", "concepts")]
        at = sorted(set(both[0].index) & set(both[1].index))
        assert rows.images_seen.tolist() == at and 0 < len(at) < len(both[0])
        for name, values in zip(("seen classes", "concepts"), both, strict=True):
            np.testing.assert_allclose(rows[name], 100 * values[at])
