"""`grid`, `Runs`, `scores` and `compare` on finished runs written by hand, with differences that
can be computed."""
import numpy as np
import pandas as pd
import pytest
from small_runs import evaluations, make

from clstudy import RunConfig, Runs, compare, grid, scores
from clstudy.analysis.comparisons import above_zero, changes, tell
from clstudy.runs.run import Run

LAST = {("finetune", "lora"): [.40, .50, .60], ("sit", "lora"): [.55, .60, .75],
        ("finetune", "full"): [.50, .50, .50], ("sit", "full"): [.50, .60, .40]}


@pytest.fixture
def runs(tmp_path) -> Runs:
    made = []
    for (method, tuner), values in LAST.items():
        for seed, last in enumerate(values):
            folder = tmp_path / f"{method}-{tuner}-{seed}"
            config = RunConfig.model_construct(method=method, tuner=tuner, seed=seed)
            made.append(Run(config, make(folder, evaluations(last)).folder))
    return Runs(made)


def test_runs_are_chosen_by_settings_and_joined(runs):
    assert len(runs) == 12 and isinstance(runs[:2], Runs) and runs[0].config.method == "finetune"
    assert len(runs.where(method="sit", seed=[0, 2])) == 4
    assert len(runs.where(method="sit") + runs.where(tuner="lora")) == 9  # each once
    with pytest.raises(ValueError, match="metod is no setting of these runs.*method, "):
        runs.where(metod="sit")


def test_options_of_an_axis_are_found_flat_and_dotted(tmp_path):
    small, large, none = (Run(RunConfig.model_construct(method_args=options),
                              tmp_path / str(options))
                          for options in ({"size": 10}, {"size": 100}, {}))
    found = Runs([small, large, none])
    assert list(found.where(size=None)) == [none]
    assert list(found.where(size=100)) == list(
        found.where(**{"method_args.size": [100]})) == [large]


def test_scores_have_a_row_per_run_and_a_column_per_setting_that_varies(runs):
    table = scores(runs, ["A_last", "concepts"])
    assert table.columns.tolist() == ["tuner", "method", "seed", "A_last", "concepts"
                                      ] and len(table) == 12
    assert table.A_last.tolist() == pytest.approx(
        [100 * value for values in LAST.values() for value in values])
    with pytest.raises(ValueError, match="A_lst.*Did you mean A_last"):
        scores(runs, "A_lst")


def test_differences_are_paired_by_seed_in_every_group(runs):
    found = compare(runs, "A_last", by=["tuner"]).set_index("tuner")
    assert found.difference.tolist() == pytest.approx([40 / 3, 0]) and found.n.tolist() == [3, 3]
    half = 4.302652729911275 * np.std([15, 10, 15], ddof=1) / np.sqrt(
        3)  # Student t with two degrees of freedom
    assert found.loc["lora", ["low", "high"]].tolist() == pytest.approx(
        [40 / 3 - half, 40 / 3 + half])
    assert found.verdict.tolist() == ["higher", "not significantly different"]
    p = found.p.tolist()
    assert found.p_corrected.tolist() == pytest.approx([min(1, 2 * p[0]), p[1]])  # Holm over two


def test_the_order_of_runs_does_not_matter_and_a_missing_pair_is_left_out(runs):
    turned = compare(Runs(reversed(runs))[1:], "A_last", by=["tuner"])
    assert turned.set_index("tuner").loc["full", "n"] == 2


def test_one_seed_decides_nothing(runs):
    found = compare(runs.where(seed=0, tuner="lora"), ["A_last", "concepts"])
    assert found.verdict.tolist() == ["not decided by one run"] * 2 and found.p.isna().all()
    assert tell(found).splitlines(
    )[0] == "A_last: sit is not decided by one run against finetune: +15.0 points."


def test_sentences_name_both_sides_the_interval_and_the_number_of_pairs(runs):
    said = tell(compare(runs, "A_last", by=["tuner"]), {"sit": "SIT", "finetune": "fine-tuning"})
    first, second = said.splitlines()
    assert first.startswith(
        "lora, A_last: SIT is higher than fine-tuning: +13.3 points (95 % interval +6.2 to +20.5, n"
    )
    assert "full, A_last: SIT is not significantly different from fine-tuning" in second


def test_a_column_of_any_table_is_compared_in_the_same_way(runs):
    table = scores(runs, "A_last")
    found = compare(table, "A_last", by=["tuner"])
    pd.testing.assert_frame_equal(found, compare(runs, "A_last", by=["tuner"]))
    said = tell(compare(table[table.tuner == "full"], "A_last"), unit="", digits=2, means=True)
    assert said.startswith(
        "A_last: sit is not significantly different from finetune: 50.00 against 50.00, +0.00 (95 %"
    )
    with pytest.raises(ValueError, match="tunr.*tuner"):
        compare(table, "A_last", by=["tunr"])


def test_what_cannot_be_compared_is_refused_with_what_to_do(runs):
    with pytest.raises(ValueError,
                       match="differ in tuner: name it in by=, or choose runs with where"):
        compare(runs.where(method="sit") + runs.where(method="finetune", tuner="lora"), "A_last")
    with pytest.raises(ValueError, match="er.*Choices: finetune, sit"):
        compare(runs, "A_last", base="er")
    with pytest.raises(ValueError, match="tunr.*tuner"):
        compare(runs, "A_last", by=["tunr"])


def test_a_grid_has_every_combination_once_and_an_option_goes_where_it_belongs():
    made = grid(method=["finetune", "vr_lwf"], weight=[1, 8], seed=range(2), tasks=5)
    assert [(c.method, c.method_args.get("weight"), c.seed)
            for c in made] == [("finetune", None, 0), ("finetune", None, 1), ("vr_lwf", 1, 0),
                               ("vr_lwf", 1, 1), ("vr_lwf", 8, 0), ("vr_lwf", 8, 1)]
    assert {c.stream_args["tasks"] for c in made} == {5}
    assert grid(method="vr_lwf", weight=2) == grid(method="vr_lwf", **{"method_args.weight": 2})
    shared = {"benchmark_args": {"families": ["noto", "twemoji"]}, "milestones": [1], "epochs": 2}
    listed = grid(shared, seed=[0, 1])  # what is shared is taken as it is
    assert [(c.seed, c.benchmark_args["families"], c.milestones) for c in listed] == [
        (seed, ["noto", "twemoji"], [1]) for seed in (0, 1)]
    several = grid([{"tuner": "full", "lr": 2e-5}, {"tuner": "lora"}], seed=[0, 1])
    assert [(c.tuner, c.lr, c.seed) for c in several] == [
        ("full", 2e-5, 0), ("full", 2e-5, 1), ("lora", 5e-4, 0), ("lora", 5e-4, 1)]
    assert grid([], seed=[0, 1]) == []
    with pytest.raises(ValueError, match="temperature is an option of tuner and of method: write tuner_args.temp"):
        grid(tuner="full", method="lwf", temperature=2)
    with pytest.raises(ValueError, match="wieght"):
        grid(method=["finetune", "vr_lwf"], wieght=1)


def test_a_metric_after_training_is_compared_with_the_same_before(runs):
    found = changes(runs.where(tuner="lora"), "concepts", by=["method"])
    after, before = (scores(runs.where(tuner="lora"), name)
                     for name in ("concepts", "concepts before"))
    expected = (after.concepts - before["concepts before"]).groupby(after.method, sort=False).mean()
    assert found.difference.tolist() == pytest.approx(
        expected.tolist()) and found.n.tolist() == [3, 3]
    assert tell(found).startswith("finetune, concepts: after training is ")


def test_numbers_of_runs_are_told_against_zero():
    said = above_zero(pd.DataFrame({"gain": [1.0, 2.0, 3.0], "loss": [-1.0, 1.0, 0.5]}), "",
                      2).splitlines()
    assert said[
        0] == "gain is not significantly different from zero: +2.00 (95 % interval -0.48 to +4.48, n = 3)."
    assert above_zero({"gain": [2.0, 2.1]}) == (
        "gain is above zero: +2.0 points (95 % interval +1.4 to +2.7, n = 2).")
    assert above_zero({"loss": [-2.0, -2.1]}).startswith("loss is below zero: -2.0")
    assert above_zero({"one": [1.0]}) == "one is not decided by one run: +1.0 points."


def test_nothing_to_compare_is_refused(runs):
    with pytest.raises(ValueError, match="all runs have method=finetune"):
        compare(runs.where(method="finetune"), "A_last")


def test_labels_of_groups_may_be_numbers(runs):
    found = compare({8: runs.where(tuner="lora"), 100: runs.where(tuner="full")}, "A_last", "label",
                    8, by=["method"])
    assert found.label.tolist() == [100, 100] and found.difference.tolist() == pytest.approx(
        [0, -40 / 3])
