"""`grid`, `Runs`, `scores` and `compare` on finished runs written by hand, with differences that
can be computed."""
import numpy as np
import pandas as pd
import pytest
from small_runs import evaluations, make

from clstudy import RunConfig, Runs, compare, grid, scores
from clstudy.analysis import replicates, resampling
from clstudy.analysis.comparisons import changes, tell
from clstudy.analysis.intervals import interval
from clstudy.analysis.scores import metrics_of
from clstudy.runs.run import Damaged, Run

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
    assert found.verdict.tolist() == ["higher", "inconclusive"]
    p = found.p.tolist()
    assert found.p_corrected.tolist() == pytest.approx([min(1, 2 * p[0]), p[1]])  # Holm over two


def test_the_order_of_runs_does_not_matter_and_a_missing_pair_is_left_out(runs):
    turned = compare(Runs(reversed(runs))[1:], "A_last", by=["tuner"])
    assert turned.set_index("tuner").loc["full", "n"] == 2


def test_one_seed_decides_nothing(runs):
    found = compare(runs.where(seed=0, tuner="lora"), ["A_last", "concepts"])
    assert found.verdict.tolist() == ["not decided by one seed"] * 2 and found.p.isna().all()
    assert tell(found).splitlines()[1] == (
        "concepts: sit against finetune is not decided by one seed: +0.0 points.")


def test_sentences_name_both_sides_the_interval_and_the_number_of_pairs(runs):
    found = compare(scores(runs, "A_last"), "A_last", by=["tuner"], margin=2)
    said = tell(found, {"sit": "SIT", "finetune": "fine-tuning"})
    first, second = said.splitlines()
    assert first.startswith("lora, A_last: SIT is higher than fine-tuning: +13.3 points (95 % interval "
                            "over seeds +6.2 to +20.5, n = 3")
    assert second.startswith("full, A_last: SIT against fine-tuning is inconclusive: +0.0 points (95 % ")
    assert second.endswith("-24.8 to +24.8, n = 3; some 99 seeds would decide).")


def test_a_column_of_any_table_is_compared_in_the_same_way(runs):
    table = scores(runs, "A_last")
    found = compare(table, "A_last", by=["tuner"])
    same = ["difference", "low", "high", "p_corrected", "n", "pairs", "low_seeds"]
    pd.testing.assert_frame_equal(found[same], compare(runs, "A_last", by=["tuner"])[same])
    assert set(found.interval) == {"seeds"} and set(found.equal_within) == {0}
    said = tell(compare(table[table.tuner == "full"], "A_last"), unit="", digits=2, means=True)
    assert said.startswith("A_last: sit against finetune is inconclusive: 50.00 against 50.00, +0.00 (")
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


def test_nothing_to_compare_is_refused(runs):
    with pytest.raises(ValueError, match="all runs have method=finetune"):
        compare(runs.where(method="finetune"), "A_last")


def test_labels_of_groups_may_be_numbers(runs):
    found = compare({8: runs.where(tuner="lora"), 100: runs.where(tuner="full")}, "A_last", "label",
                    8, by=["method"])
    assert found.label.tolist() == [100, 100] and found.difference.tolist() == pytest.approx(
        [0, -40 / 3])


# ---- over seeds × concepts


def with_bits(folder, seeds, methods=("finetune", "sit"), concepts=12, first=0, **settings) -> Runs:
    """Runs with bits of their own on four images of each concept; `sit` is better on every second."""
    made, second = [], np.arange(4 * concepts) // 4 % 2
    for method in methods:
        k = method == "sit"
        for seed in seeds:
            right = np.random.default_rng([k, seed]).random(4 * concepts) < .3 + .6 * k * second
            run = make(folder / f"{method}-{seed}-{first}-{concepts}", evaluations(right.mean()))
            bits = {"stage": [3], "images_seen": 120, "stage_end": True, "set": "test",
                    "candidates": "seen", "count": len(right), "bits": [np.packbits(right).tobytes()]}
            pd.DataFrame(bits).to_parquet(run.folder / "correct.parquet")
            tests = {"set": "test", "label": 0, "concept": first + np.arange(len(right)) // 4,
                     "domain": -1, "task": 1, "arrived": 40}
            pd.DataFrame(tests).to_parquet(run.folder / "tests.parquet")
            config = RunConfig.model_construct(method=method, seed=seed, **settings)
            made.append(Run(config, run.folder))
    return Runs(made)


@pytest.fixture
def under(monkeypatch):
    """`clstudy.analysis.resampling` for A_last alone, from the bits of the last stage."""
    def concepts_of(runs, metrics):
        ids = {tuple(run.tests.concept) for run in runs}
        if len(ids) > 1:
            raise ValueError("not tested on the same images")
        return np.unique(ids.pop()) if "A_last" in metrics else np.array([], int)

    def under_weights(run, metrics, concepts, weights):
        of_image = weights[:, np.searchsorted(concepts, run.tests.concept)]
        accuracy = 100 * of_image @ run.correct()[-1] / of_image.sum(axis=1)
        return {name: accuracy for name in ("A_last", "A_last before") if name in metrics}

    monkeypatch.setattr(resampling, "concepts_of", concepts_of)
    monkeypatch.setattr(resampling, "under_weights", under_weights)


def test_the_interval_is_over_seeds_and_concepts_where_runs_tell_what_was_right(tmp_path, under):
    runs = with_bits(tmp_path, range(4))
    found = compare(runs, ["A_last", "forgetting"])
    one = found.iloc[0]
    assert found.interval.tolist() == ["seeds × concepts", "seeds"] and one.concepts == 12
    right = np.array([run.correct()[-1].reshape(12, 4).mean(axis=1) for run in runs])
    change = 100 * (right[4:] - right[:4])  # (seeds, concepts)
    left = change - change.mean(0) - change.mean(1)[:, None] + change.mean()
    exact = change.mean(0).var(ddof=1) / 12 - (left**2).sum() / (3 * 11) / (4 * 12)
    assert one.se_concepts == pytest.approx(max(exact, 0)**.5, rel=.1) and one.se_concepts > 1
    assert one.se_seeds == pytest.approx(change.mean(axis=1).std(ddof=1) / 2)
    assert one.se == pytest.approx(np.hypot(one.se_seeds, one.se_concepts))
    alone = compare(runs, "A_last").iloc[0]  # nor does it depend on what else is compared
    assert (alone.low, alone.high) == (one.low, one.high)


def test_concepts_keep_their_weights_in_another_company():
    few, many = (replicates._weights(np.array(ids).tobytes()) for ids in ([3, 7], [1, 3, 5, 7]))
    assert (few == many[:, [1, 3]]).all() and few.shape == (replicates.REPLICATES, 2)
    assert many.mean() == pytest.approx(1, abs=.05) and many.var() == pytest.approx(1, abs=.1)


@pytest.mark.parametrize("name", ["tests", "correct"])
def test_without_tables_or_on_other_images_the_interval_is_over_seeds(tmp_path, under, name):
    runs = with_bits(tmp_path, range(3), ["finetune"]) + with_bits(tmp_path, range(3), ["sit"], first=1)
    assert set(compare(runs, "A_last").interval) == {"seeds"}
    runs = with_bits(tmp_path, range(4, 7))
    (runs[0].folder / f"{name}.parquet").unlink()
    assert set(compare(runs, "A_last").interval) == {"seeds"}


def test_a_damaged_table_is_named(tmp_path):
    runs = with_bits(tmp_path, range(2))
    (runs[0].folder / "tests.parquet").write_bytes(b"")
    with pytest.raises(Damaged, match="tests.parquet"):
        compare(runs, "A_last")


def test_one_seed_tells_of_the_test_concepts_alone(tmp_path, under):
    found = compare(with_bits(tmp_path, [0]), "A_last").iloc[0]
    assert found.interval == "concepts" and found.low < found.difference < found.high
    assert found.verdict == "not decided by one seed" and np.isnan([found.p, found.low_seeds]).all()


def test_after_is_compared_with_before_under_the_same_weights(tmp_path, under):
    runs = with_bits(tmp_path, range(3), ["sit"])
    monkey = {run: metrics_of(run) | {"A_last before": 50.} for run in runs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clstudy.analysis.comparisons.metrics_of", monkey.get)
        found = changes(runs, "A_last").iloc[0]
    assert found.interval == "seeds × concepts" and found.se_concepts == 0  # they cancel here
    assert found.difference == pytest.approx(np.mean([each["A_last"] for each in monkey.values()]) - 50)


def test_pairs_with_one_class_order_are_averaged_first(tmp_path, under):
    """Class orders 5, 6 and 2: two seeds share each of the first two; seed 2 has its own."""
    runs = sum((with_bits(tmp_path / str(order), seeds, stream_seed=order)
                for order, seeds in ((5, [0, 1]), (6, [0, 1]), (None, [2]))), Runs())
    found = compare(runs, "A_last").iloc[0]
    assert (found.n, found.pairs, found.interval) == (3, 5, "seeds × concepts")
    change = {run.folder: metrics_of(run)["A_last"] for run in runs}
    ours, theirs = ([change[run.folder] for run in runs.where(method=name)]
                    for name in ("sit", "finetune"))
    d = np.subtract(ours, theirs)
    expected = interval([d[:2].mean(), d[2:4].mean(), d[4]])
    assert (found.low_seeds, found.high_seeds) == pytest.approx(
        (expected.mean - expected.half_width, expected.mean + expected.half_width))
    assert "n = 3 class orders, 5 pairs" in tell(compare(runs, "A_last"))
    table = compare(scores(runs, "A_last"), "A_last").iloc[0]
    assert (table.n, table.low_seeds) == (3, found.low_seeds)
    one = compare(runs.where(stream_seed=5), "A_last").iloc[0]
    assert (one.n, one.pairs, one.verdict) == (1, 2, "not decided by one seed")
