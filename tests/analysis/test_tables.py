"""From runs to the numbers and sentences of a paper: runs written by hand, numbers worked out by
hand."""
import math
from functools import lru_cache

import pandas as pd
import pytest
from small_runs import evaluations, make, row, said

from clstudy.analysis import comparisons, export, scores, tables
from clstudy.evaluation import metrics
from clstudy.utils import paths

T = 4.302653  # Student's t, 97.5 %, two degrees of freedom
UP, BASE, DOWN = (.60, .62, .61), (.40, .41, .42), (.20, .22, .21)  # UP − BASE: 20, 21, 19 points
NEAR = (.50, .31, .42)  # NEAR − BASE: 10, −10, 0 points


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Runs over seeds that differ in their last accuracy. Equal ones are made once: a run remembers
    its scores."""
    folder = tmp_path_factory.mktemp("runs")

    @lru_cache
    def one(last, seed):
        return make(folder / f"{last}-{seed}", evaluations(last), seed)

    return lambda lasts: [one(last, seed) for seed, last in enumerate(lasts)]


def test_every_score_of_a_run(tmp_path):
    found = scores.metrics_of(make(tmp_path / "a"))
    expected = {
        "A_auc": 220 / 3,  # the checkpoints 90, 80, 50: stage ends do not count
        # 20 images each of 90, 80, 50, 60, and 40 of 40; at 40 images the stage end counts
        "A_time": (20 * (90 + 80 + 50 + 60) + 40 * 40) / 120,
        "A_avg": 60,
        "A_last": 40,
        "forgetting": 25,
        "zero-shot forgetting": 25,
        "backward transfer": -20,
        "change on tasks to come": 0,
        "Transfer (MTIL)": 50,  # .5 and (.5 + .5) / 2 of OWN
        "Avg (MTIL)": 100 * (.9 + 2.1 / 3 + 1.7 / 3) / 3,
        "Last (MTIL)": 80,
        "Transfer (X-TAIL)": 45,  # the worked examples of `metrics`
        "Avg (X-TAIL)": 100 * 5.7 / 9,
        "Last (X-TAIL)": 200 / 3,
        "F_last": 10,
        "F_last (all)": float("nan"),  # classes are measured among those seen alone
        "lowest fifth": float("nan"),  # three classes of ten tests
        "own tasks": 80,
        "ACC": 1,  # of the one balanced task
        "BWT": 0,
        "BWT p+1": 0,
        "seen classes": 40,
        "all classes": 65,
        "all classes before": 40,
        "concepts": 70,
        "concepts before": 90,
        "pets": 50,
        "pets before": 20,
        "R@1 image to text": 35,
        "R@1 image to text before": 50,
        "R@1 text to image": 63,
        "R@1 text to image before": 60,
    }
    assert list(found) == list(expected) and found == pytest.approx(expected, nan_ok=True)


def test_a_run_without_periodic_checkpoints_has_no_a_auc_and_says_so(tmp_path):
    rows = [row for row in evaluations() if row["stage_end"]]
    with pytest.warns(UserWarning, match="A_auc is NaN in 1 of 2 runs.*eval_every=None"):
        found = scores.scores([make(tmp_path / "a", rows), make(tmp_path / "b")], "A_auc")
    assert math.isnan(found.A_auc[0]) and found.A_auc[1] == pytest.approx(220 / 3)


def test_classes_with_few_tests_are_left_out_and_counted(tmp_path):
    """Of seven classes with 20 tests or more, ⌈7 / 5⌉ = 2 are the lowest fifth."""
    tests = dict(zip("abcdefghi", (20, 19, 30, 40, 20, 20, 20, 3, 20), strict=True))
    rows = [{**row(3, f"class {name}", "seen", .1 * place), "count": tests[name]}
            for place, name in enumerate("ihgfedcba", 1)]
    known = [row for row in evaluations() if row["kind"] != "class"]
    run = make(tmp_path / "a", [*known, *rows])
    assert scores.left_out(run) == 2 and scores.left_out(run, least=4) == 1
    assert scores.metrics_of(run)["lowest fifth"] == pytest.approx((10 + 30) / 2)


def test_f_last_at_fixed_candidates_is_zero_where_nothing_changes(tmp_path):
    """As more classes compete, those of a frozen model fall among the seen, not among all."""
    rows = [row for row in evaluations() if row["kind"] != "class"]
    for name, home, seen in (("a", 1, (.9, .6, .5)), ("b", 2, (.8, .4)), ("c", 3, (.7, ))):
        rows += [row(home + i, f"class {name}", "seen", value) for i, value in enumerate(seen)]
        rows += [row(stage, f"class {name}", "all", .4 if stage else .3) for stage in range(4)]
    found = scores.metrics_of(make(tmp_path / "a", rows))
    assert found["F_last"] == pytest.approx((40 + 40) / 2) and found["F_last (all)"] == 0


def test_a_run_without_retrieval_and_held_out_sets(tmp_path):
    rows = [
        row for row in evaluations()
        if said(row) not in ("concepts", "pets") and "drawings" not in said(row)
    ]
    run = make(tmp_path / "a", rows)
    assert run.held_out_sets() == [] and "concepts" not in scores.metrics_of(run)
    assert math.isnan(
        scores.metrics_of(run)["R@1 image to text"]) and scores.metrics_of(run)["A_last"] == 40


def test_held_out_sets_are_what_is_no_task(tmp_path):
    assert make(tmp_path / "a").held_out_sets() == ["concepts", "pets"]


@pytest.mark.parametrize(("without", "expected"), [((), [85, 60, 80]), (("task 1",), [80, 70, 70])], ids=str)
def test_one_stage_read_under_each_choice_of_candidates(tmp_path, without, expected):
    """After stage 2, over the tasks 1 and 2: own 90 and 80, seen 50 and 70, all 90 and 70."""
    rows = [row for row in evaluations() if said(row) not in without]
    table = tables.readings({10.0: [make(tmp_path / "a", rows)]}, 2)
    assert table[["own", "seen", "all"]].iloc[0].tolist() == pytest.approx(expected)
    assert table.label.tolist() == [10] and table.seed.tolist() == [0]


def test_readings_are_compared_run_by_run(tmp_path):
    runs = []
    for seed, value in enumerate((.4, .5, .6)):
        for method, lead in (("finetune", 0), ("sit", .1)):
            rows = [{**row, "value": value + lead} if
                    (said(row), row["candidates"]) == ("task 1", "own") else row
                    for row in evaluations()]
            run = make(tmp_path / f"{method}{seed}", rows, seed)
            runs.append(type(run)(run.config.model_copy(update={"method": method}), run.folder))
    table = tables.readings(runs, 1)
    assert table.own.tolist() == pytest.approx([40, 50, 50, 60, 60, 70])
    found = comparisons.compare(table, ["own", "all"], margin=2)
    assert found.difference.tolist() == pytest.approx([10, 0])
    assert found.verdict.tolist() == ["higher", "equal within ±2"]


def test_what_runs_cost(tmp_path):
    def run(name, **result):
        return make(tmp_path / name, **result)

    cpu = [
        run(f"cpu{speed}", parameters=12000, images_per_second=speed, peak_memory=None)
        for speed in (10., 40., 21.)
    ]
    gpu = [
        run(f"gpu{mega}", parameters=7, images_per_second=100., peak_memory=mega * 2**20)
        for mega in (3, 5)
    ]
    frozen = [run("frozen", parameters=0, images_per_second=9., peak_memory=None)]
    names = ("parameters", "images/s", "GPU memory, MB")
    assert scores.cost(cpu) == dict(zip(names, ("12,000", "21", "-"), strict=True))
    assert scores.cost(gpu) == dict(zip(names, ("7", "100", "5"), strict=True))
    assert scores.cost(frozen) == dict(zip(names, ("0", "-", "-"), strict=True))
    assert scores.cost([run("old")]) == dict(zip(names, ("0", "-", "-"),
                                                 strict=True))  # of before costs were kept


def test_what_stands_in_a_cell_breaks_neither_markdown_nor_latex(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    table = pd.DataFrame({"a_b": [r"{x: 1} | #2 $ 5 % & ~ ^ \ < > *", "1 ± 2 → −3"]},
                         index=pd.Index([1, 2], name="n"))
    export.save(table, "07_table", "Signs.")
    assert (tmp_path
            / "07_table.md").read_text().splitlines()[4].count("|") - 1 == 3  # one of them escaped
    first, second = (tmp_path / "07_table.tex").read_text().splitlines()[4:6]
    assert first == (
        r"1 & \{x: 1\} | \#2 \$ 5 \% \& \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"$<$ $>$ $^*$ \\")
    assert second == r"2 & 1 $\pm$ 2 $\rightarrow$ $-$3 \\"


# ---- updated and never updated


def updated(folder, ut: float, zs: float, seed: int = 0, balanced=metrics.EXAMPLE):
    """A run of three stages with these accuracies at its end, from 0.4 and 0.5 before."""
    rows = [
        row for row in evaluations()
        if said(row) not in ("all classes", "task 1", "task 2", "task 3")
    ]
    rows += [
        row(0, "all classes", "all", .4),
        row(3, "all classes", "all", ut),
        row(0, "other classes", "own", .5),
        row(3, "other classes", "own", zs)
    ]
    rows += [
        row(stage, f"task {task}", "all", value, metric)
        for stage, values in enumerate(balanced.tolist()) for task, value in enumerate(values, 1)
        for metric in ("accuracy", "class-balanced accuracy")
    ]
    return make(folder, rows, seed)


def test_vr_lwfs_metrics_of_a_run(tmp_path):
    found = scores.metrics_of(updated(tmp_path / "a", .7, .3))
    assert {name: found[name] for name in ("UT-Acc", "ZS-Acc", "A-Acc", "UT-Acc before", "A-Acc before")} == \
        pytest.approx({"UT-Acc": 70, "ZS-Acc": 30, "A-Acc": 50, "UT-Acc before": 40, "A-Acc before": 45})
    # the matrix of the worked examples: last row .6 .5 .9, diagonal .8 .7 .9
    assert found["ACC"] == pytest.approx(100 * (.6 + .5 + .9) / 3)
    assert found["BWT"] == pytest.approx(
        100 * (-.2 - .2) / 2) and found["BWT p+1"] == pytest.approx(100 * -.4 / 3)


def test_a_run_without_other_classes_has_no_update_metrics(tmp_path):
    assert not {"UT-Acc", "ZS-Acc", "A-Acc"} & set(scores.metrics_of(make(tmp_path / "a")))


def test_the_pairs_behind_a_comparison_have_its_mean():
    rows = [{"lr": lr, "method": method, "seed": seed, "stream_seed": order,
             "gain": lr + (3 + seed - order if method == "sit" else 10 * order)}
            for lr in (1, 2) for method in ("finetune", "sit") for seed in (0, 1)
            for order in (0, 1)]
    table = pd.DataFrame(rows)[::-1]
    pairs = tables.paired(table, "gain", by=["lr"])
    assert pairs.columns.tolist() == [
        "lr", "method", "base", "metric", "difference", "seed", "stream_seed"] and len(pairs) == 8
    assert (pairs.difference == 3 + pairs.seed - 11 * pairs.stream_seed).all()
    found = comparisons.compare(table, "gain", by=["lr"]).set_index("lr").difference
    assert pairs.groupby("lr").difference.mean().tolist() == pytest.approx(found[[1, 2]].tolist())


def test_an_interval_within_seeds_does_not_hold_what_they_share():
    """Two groups that differ by 1, 2, 3: each varies by half of it, and 2 / (2 − 1) makes up."""
    table = pd.DataFrame([{"method": method, "seed": seed, "gain": 100 * seed + more * (1 + seed)}
                          for seed in (0, 1, 2) for method, more in (("a", 0), ("b", 1))])
    found = tables.within(table, "gain", ["method"])
    assert found["mean"].tolist() == pytest.approx([100, 102]) and found.n.tolist() == [3, 3]
    half = T * .5 / math.sqrt(3) * math.sqrt(2)
    assert found.half_width.tolist() == pytest.approx([half, half], rel=1e-5)
    with pytest.raises(ValueError, match="seed=0 has no gain at method=a"):
        tables.within(table[1:], "gain", ["method"])


def test_a_table_may_give_numbers_to_compute_with(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    table = tables.table({"sit": seeds((.5, .6, .7))}, ["A_last"], ["label"])
    export.save(table, "07_table", "One group.", pd.DataFrame(
        {"method": ["sit"], "A_last": [1 / 3]}))
    assert pd.read_csv(tmp_path / "07_table.csv").A_last[0] == pytest.approx(1 / 3, abs=1e-15)
    assert "60.0 ± 24.8" in (tmp_path / "07_table.md").read_text()


def test_a_table_is_saved_to_read_to_compute_with_and_to_print(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "new" / "figures")
    groups = {"blurred, SIT": seeds((.5, .6, .7)), "joint, ER": seeds((.25,))}
    table = tables.table(groups, ["A_last"], ["label"])
    export.save(table, "07_table", "Two groups.")
    folder = tmp_path / "new" / "figures"
    assert sorted(
        path.name for path in folder.iterdir()) == ["07_table.csv", "07_table.md", "07_table.tex"]
    assert (folder / "07_table.md").read_text().splitlines() == [
        "Two groups.", "", "| label | A_last |", "| --- | --- |",
        "| blurred, SIT | 60.0 ± 24.8 |", "| joint, ER | 25.0 |"]
    assert pd.read_csv(folder / "07_table.csv",
                       dtype=str).to_numpy().tolist() == [["blurred, SIT", "60.0 ± 24.8"],
                                                          ["joint, ER", "25.0"]]
    assert (folder / "07_table.tex").read_text().splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"label & A\_last \\", r"\midrule",
        r"blurred, SIT & 60.0 $\pm$ 24.8 \\", r"joint, ER & 25.0 \\", r"\bottomrule",
        r"\end{tabular}"
    ]
