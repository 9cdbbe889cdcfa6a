"""From runs to the numbers and sentences of a paper: runs written by hand, numbers worked out by hand."""
import math
from functools import lru_cache

import pandas as pd
import pytest
from small_runs import evaluations, make, row, said

from clstudy.analysis import comparisons, export, interpolation, scores, tables
from clstudy.evaluation import metrics
from clstudy.evaluation.metrics import Interval
from clstudy.utils import paths

T = 4.302653  # Student's t, 97.5 %, two degrees of freedom
UP, BASE, DOWN = (.60, .62, .61), (.40, .41, .42), (.20, .22, .21)  # UP − BASE: 20, 21, 19 points
NEAR = (.50, .31, .42)  # NEAR − BASE: 10, −10, 0 points


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Runs over seeds that differ in their last accuracy. Equal ones are made once: a run remembers its scores."""
    folder = tmp_path_factory.mktemp("runs")

    @lru_cache
    def one(last, seed):
        return make(folder / f"{last}-{seed}", evaluations(last), seed)

    return lambda lasts: [one(last, seed) for seed, last in enumerate(lasts)]


def test_every_score_of_a_run(tmp_path):
    found = scores.metrics_of(make(tmp_path / "a"))
    expected = {
        "A_auc": 64,  # (90 + 80 + 50 + 60 + 40) / 5: the checkpoint at a stage end counts once
        "A_avg": 60, "A_last": 40,
        "forgetting": 25, "backward transfer": -20, "Transfer": 45,  # the worked examples of `metrics`
        "F_last": 10, "worst class": 50, "worst fifth": 50, "own tasks": 80, "seen classes": 40, "all classes": 65,
        "all classes before": 40, "concepts": 70, "concepts before": 90, "pets": 50, "pets before": 20,
        "R@1 image to text": 35, "R@1 image to text before": 50, "R@1 text to image": 63,
        "R@1 text to image before": 60, "ACC": 1, "BWT": 0, "BWT p+1": 0}  # of the one balanced task
    assert list(found) == list(expected) and found == pytest.approx(expected)


def test_a_run_without_retrieval_and_held_out_sets(tmp_path):
    rows = [row for row in evaluations() if said(row) not in ("concepts", "pets") and "drawings" not in said(row)]
    run = make(tmp_path / "a", rows)
    assert run.held_out_sets() == [] and "concepts" not in scores.metrics_of(run)
    assert math.isnan(scores.metrics_of(run)["R@1 image to text"]) and scores.metrics_of(run)["A_last"] == 40


def test_held_out_sets_are_what_is_no_task(tmp_path):
    assert make(tmp_path / "a").held_out_sets() == ["concepts", "pets"]


def test_a_summary_has_the_mean_and_the_interval_over_seeds(seeds):
    groups = {("disjoint", "sit"): seeds((.5, .6, .7)), ("joint", "sit"): seeds((.25,))}
    table = tables.summary(groups, ["A_last", "concepts"], ["stream", "method"])
    assert list(table.columns) == ["A_last", "concepts"] and table.index.names == ["stream", "method"]
    assert f"{T * 10 / math.sqrt(3):.1f}" == "24.8"
    assert table.loc["disjoint", "sit"].tolist() == ["60.0 ± 24.8", "70.0 ± 0.0"]
    assert table.loc["joint", "sit"].tolist() == ["25.0", "70.0"]  # one seed has no interval


def test_a_difference_is_paired_by_seed(seeds):
    found = comparisons.difference(seeds((.3, .5, .9)), seeds((.1, .35, .7)), "A_last")  # 20, 15, 20
    assert found.mean == pytest.approx(55 / 3)
    assert found.half_width == pytest.approx(T * math.sqrt(25 / 3) / math.sqrt(3), rel=1e-5)


def test_a_difference_needs_the_same_seeds(seeds):
    ours, theirs = seeds(UP), seeds(BASE)
    for other, listed in ((theirs[:2], r"\[0, 1\]"), (theirs[::-1], r"\[2, 1, 0\]")):
        with pytest.raises(ValueError, match=rf"same seeds on both sides, got \[0, 1, 2\] and {listed}"):
            comparisons.difference(ours, other, "A_last")


@pytest.mark.parametrize(("mean", "half", "said"), [
    (5, 2, "+5.0 points, 95 % interval +3.0 to +7.0: ahead"),
    (-5, 2, "-5.0 points, 95 % interval -7.0 to -3.0: behind"),
    (1, 2, "+1.0 points, 95 % interval -1.0 to +3.0: no difference can be told"),
    (2, 2, "+2.0 points, 95 % interval +0.0 to +4.0: no difference can be told"),
    (-2, 2, "-2.0 points, 95 % interval -4.0 to +0.0: no difference can be told"),
    (5, math.nan, "+5.0 points: one seed, so nothing can be said"),
])
def test_what_an_interval_allows_to_say(mean, half, said):
    assert comparisons.verdict(Interval(float(mean), float(half)), "ahead", "behind") == said


def test_a_contest_names_the_metric_and_the_winner(seeds):
    up, base = seeds(UP), seeds(BASE)
    said = comparisons.contest(up, base, "A_last", "up", "base")
    assert said == "    A_last +20.0 points, 95 % interval +17.5 to +22.5: up"
    assert comparisons.contest(base, up, "A_last", "base", "up").endswith("-22.5 to -17.5: up")
    said = comparisons.contest(up[:1], base[:1], "A_last", "up", "base")
    assert said == "    A_last +20.0 points: one seed, so nothing can be said"


@pytest.mark.parametrize(("sit", "lower", "said"), [
    ([UP, UP], False, "holds here"),
    ([DOWN, DOWN], True, "holds here"),
    ([UP, NEAR], False, "holds in 1 of 2 cases"),
    ([UP, DOWN], False, "holds in 1 of 2 cases, the opposite in 1"),
    ([UP, DOWN], True, "holds in 1 of 2 cases, the opposite in 1"),
    ([DOWN, DOWN], False, "not reproduced here"),
    ([UP, UP], True, "not reproduced here"),
    ([NEAR, NEAR], False, "not reproduced here"),
], ids=str)
def test_a_claim_holds_in_part_or_not(seeds, sit, lower, said):
    groups = {}
    for stream, lasts in zip(("disjoint", "blurred"), sit, strict=True):
        groups |= {(stream, "lora", "finetune"): seeds(BASE), (stream, "lora", "sit"): seeds(lasts),
                   (stream, "lora", "er"): seeds(UP)}  # takes no part
    lines = comparisons.claim(groups, "A_last", "it is better", lower).splitlines()
    assert lines[0] == f"“it is better”: {said}."
    higher, below = (("asymmetric is lower", "symmetric is lower") if lower else
                     ("symmetric is higher", "asymmetric is higher"))
    ends = {UP: f"+20.0 points, 95 % interval +17.5 to +22.5: {higher}",
            DOWN: f"-20.0 points, 95 % interval -22.5 to -17.5: {below}",
            NEAR: "+0.0 points, 95 % interval -24.8 to +24.8: no difference can be told"}
    assert lines[1:] == [f"    {stream}, lora: A_last {ends[lasts]}"
                         for stream, lasts in zip(("disjoint", "blurred"), sit, strict=True)]


def test_tuning_against_frozen_clip_of_the_same_stream(seeds):
    groups = {("disjoint", "sit"): seeds(UP), ("joint", "sit"): seeds(BASE)}
    said = comparisons.above(groups, {"disjoint": seeds(BASE), "joint": seeds(UP)}, "A_last")
    assert said == ("Against frozen CLIP:\n"
                    "    disjoint, sit: A_last +20.0 points, 95 % interval +17.5 to +22.5: above\n"
                    "    joint, sit: A_last -20.0 points, 95 % interval -22.5 to -17.5: below")


def test_changes_since_before_training(tmp_path):
    moved = [make(tmp_path / f"moved{seed}", evaluations(concepts=value), seed)
             for seed, value in enumerate((.8, .7, .6))]  # −10, −20, −30 points
    table = tables.changes({("disjoint", "lora", "sit"): moved, ("disjoint", "lora", "er"): moved[:1]},
                           ["concepts", "R@1 image to text"])
    assert list(table.columns) == ["panel", "set", "method", "mean", "half_width"]
    assert table.panel.tolist() == ["disjoint, lora"] * 4 and table.method.tolist() == ["sit", "sit", "er", "er"]
    assert table["set"].tolist() == ["concepts", "R@1 image to text"] * 2
    assert table["mean"].tolist() == pytest.approx([-20, -15, -10, -15])
    assert table.half_width.tolist() == pytest.approx([T * 10 / math.sqrt(3), 0, 0, 0], abs=1e-4)


def test_means_of_scores(seeds):
    assert scores.means(seeds((.5, .6, .7)), "A_last", "concepts") == pytest.approx([60, 70])


def test_two_metrics_of_a_group_with_their_intervals(seeds):
    table = tables.crosses({("lora", "sit"): seeds((.5, .6, .7)), ("none", "frozen"): seeds((.3,))}, "A_last",
                           "concepts")
    assert table[["panel", "label"]].to_numpy().tolist() == [["lora", "sit"], ["none", "frozen"]]
    assert table[["x", "x_half", "y", "y_half"]].to_numpy() == pytest.approx(
        pd.DataFrame([[60, T * 10 / math.sqrt(3), 70, 0], [30, 0, 70, 0]]).to_numpy(), abs=1e-4)


def test_metrics_over_a_setting(seeds):
    table = tables.against({("sit", 0.0): seeds((.5, .6, .7)), ("sit", 50.0): seeds((.3,))},
                           {"A_last": "at the end", "concepts": "zero-shot"})
    assert table.panel.tolist() == ["at the end", "zero-shot"] * 2 and table.x.tolist() == [0, 0, 50, 50]
    assert table["mean"].tolist() == pytest.approx([60, 70, 30, 70])
    assert table.half_width.tolist() == pytest.approx([T * 10 / math.sqrt(3), 0, 0, 0], abs=1e-4)


@pytest.mark.parametrize(("without", "expected"), [((), [85, 60, 80]), (("task 1",), [80, 70, 70])], ids=str)
def test_one_stage_read_under_each_choice_of_candidates(tmp_path, without, expected):
    """After stage 2, over the tasks 1 and 2: own 90 and 80, seen 50 and 70, all 90 and 70."""
    rows = [row for row in evaluations() if said(row) not in without]
    table = tables.readings({10.0: [make(tmp_path / "a", rows)]}, 2, ["label", "method"])
    assert table.candidates.tolist() == ["own", "seen", "all"] and table["mean"].tolist() == pytest.approx(expected)
    assert (table.half_width == 0).all() and (table.label == 10).all() and (table.method == "sit").all()


def test_readings_have_the_interval_over_seeds(tmp_path):
    runs = []
    for seed, value in enumerate((.4, .5, .6)):
        rows = [{**row, "value": value} if (said(row), row["candidates"]) == ("task 1", "own") else row
                for row in evaluations()]
        runs.append(make(tmp_path / str(seed), rows, seed))
    own = tables.readings(runs, 1, ["method"]).iloc[0]
    assert own["mean"] == pytest.approx(50) and own.half_width == pytest.approx(T * 10 / math.sqrt(3), rel=1e-5)


def test_panels_put_frozen_clip_beside_each_and_pools_together():
    pairs = [("none", "frozen"), ("l2p", "l2p"), ("full", "sit"), ("mvp", "mvp"), ("lora", "er"), ("lora", "sit")]
    crosses = pd.DataFrame(pairs, columns=["panel", "label"]).assign(x=range(6))
    table = tables.panels(crosses, ["l2p", "dualprompt", "mvp"])
    assert list(zip(table.panel, table.label, table.x, strict=True)) == [
        ("lora", "frozen", 0), ("lora", "er", 4), ("lora", "sit", 5),
        ("prompt pools", "frozen", 0), ("prompt pools", "l2p", 1), ("prompt pools", "mvp", 3),
        ("full", "frozen", 0), ("full", "sit", 2)]
    assert crosses.panel.tolist() == [panel for panel, _ in pairs]  # is not written into


def test_what_runs_cost(tmp_path):
    def run(name, **result):
        return make(tmp_path / name, **result)

    cpu = [run(f"cpu{speed}", parameters=12000, images_per_second=speed, peak_memory=None) for speed in (10., 40., 21.)]
    gpu = [run(f"gpu{mega}", parameters=7, images_per_second=100., peak_memory=mega * 2**20) for mega in (3, 5)]
    frozen = [run("frozen", parameters=0, images_per_second=9., peak_memory=None)]
    names = ("parameters", "images/s", "GPU memory, MB")
    assert scores.cost(cpu) == dict(zip(names, ("12,000", "21", "-"), strict=True))
    assert scores.cost(gpu) == dict(zip(names, ("7", "100", "5"), strict=True))
    assert scores.cost(frozen) == dict(zip(names, ("0", "-", "-"), strict=True))
    assert scores.cost([run("old")]) == dict(zip(names, ("0", "-", "-"), strict=True))  # of before costs were kept
    assert scores.costs({("a",): cpu, ("b",): frozen}, ["images/s", "parameters"]) == {
        "images/s": ["21", "-"], "parameters": ["12,000", "0"]}


def test_a_table_is_saved_to_read_to_compute_with_and_to_print(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "new" / "figures")
    groups = {("si_blurry", "sit"): seeds((.5, .6, .7)), ("joint", "er"): seeds((.25,))}
    table = tables.summary(groups, ["A_last"], ["stream", "method"])
    export.save(table, "07_table", "Two groups.")
    folder = tmp_path / "new" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["07_table.csv", "07_table.md", "07_table.tex"]
    assert (folder / "07_table.md").read_text().splitlines() == [
        "Two groups.", "", "| stream | method | A_last |", "| --- | --- | --- |",
        "| si_blurry | sit | 60.0 ± 24.8 |", "| joint | er | 25.0 |"]
    assert pd.read_csv(folder / "07_table.csv", dtype=str).to_numpy().tolist() == [["si_blurry", "sit", "60.0 ± 24.8"],
                                                                                   ["joint", "er", "25.0"]]
    assert (folder / "07_table.tex").read_text().splitlines() == [
        r"\begin{tabular}{llr}", r"\toprule", r"stream & method & A\_last \\", r"\midrule",
        r"si\_blurry & sit & 60.0 $\pm$ 24.8 \\", r"joint & er & 25.0 \\", r"\bottomrule", r"\end{tabular}"]


def test_a_table_may_give_numbers_to_compute_with(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    table = tables.summary({("sit",): seeds((.5, .6, .7))}, ["A_last"], ["method"])
    export.save(table, "07_table", "One group.", pd.DataFrame({"method": ["sit"], "A_last": [1 / 3]}))
    assert pd.read_csv(tmp_path / "07_table.csv").A_last[0] == pytest.approx(1 / 3, abs=1e-15)
    assert "60.0 ± 24.8" in (tmp_path / "07_table.md").read_text()


def test_what_stands_in_a_cell_breaks_neither_markdown_nor_latex(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    table = pd.DataFrame({"a_b": [r"{x: 1} | #2 $ 5 % & ~ ^ \ < > *", "1 ± 2 → −3"]}, index=pd.Index([1, 2], name="n"))
    export.save(table, "07_table", "Signs.")
    assert (tmp_path / "07_table.md").read_text().splitlines()[4].count("|") - 1 == 3  # one of them escaped
    first, second = (tmp_path / "07_table.tex").read_text().splitlines()[4:6]
    assert first == (r"1 & \{x: 1\} | \#2 \$ 5 \% \& \textasciitilde{} \textasciicircum{} \textbackslash{} "
                     r"$<$ $>$ $^*$ \\")
    assert second == r"2 & 1 $\pm$ 2 $\rightarrow$ $-$3 \\"


# ---- updated and never updated


def updated(folder, ut: float, zs: float, seed: int = 0, balanced=metrics.EXAMPLE):
    """A run of three stages with these accuracies at its end, from 0.4 and 0.5 before."""
    rows = [row for row in evaluations() if said(row) not in ("all classes", "task 1", "task 2", "task 3")]
    rows += [row(0, "all classes", "all", .4), row(3, "all classes", "all", ut), row(0, "other classes", "own", .5),
             row(3, "other classes", "own", zs)]
    rows += [row(stage, f"task {task}", "all", value, metric) for stage, values in enumerate(balanced.tolist())
             for task, value in enumerate(values, 1) for metric in ("accuracy", "class-balanced accuracy")]
    return make(folder, rows, seed)


def test_vr_lwfs_metrics_of_a_run(tmp_path):
    found = scores.metrics_of(updated(tmp_path / "a", .7, .3))
    assert {name: found[name] for name in ("UT-Acc", "ZS-Acc", "A-Acc", "UT-Acc before", "A-Acc before")} == \
        pytest.approx({"UT-Acc": 70, "ZS-Acc": 30, "A-Acc": 50, "UT-Acc before": 40, "A-Acc before": 45})
    # the matrix of the worked examples: last row .6 .5 .9, diagonal .8 .7 .9
    assert found["ACC"] == pytest.approx(100 * (.6 + .5 + .9) / 3)
    assert found["BWT"] == pytest.approx(100 * (-.2 - .2) / 2) and found["BWT p+1"] == pytest.approx(100 * -.4 / 3)


def test_a_run_without_other_classes_has_no_update_metrics(tmp_path):
    assert not {"UT-Acc", "ZS-Acc", "A-Acc"} & set(scores.metrics_of(make(tmp_path / "a")))


def test_what_moved_is_said_with_its_interval(tmp_path):
    runs = [updated(tmp_path / str(seed), .7 + .01 * seed, .3, seed) for seed in range(3)]
    assert comparisons.moved(runs, "UT-Acc") == "    UT-Acc +31.0 points, 95 % interval +28.5 to +33.5: raised"
    assert comparisons.moved(runs, "ZS-Acc").endswith("-20.0 to -20.0: lowered")


def test_the_order_of_methods_on_two_benchmarks(seeds):
    here = {("a", "lora", "sit"): UP, ("a", "lora", "er"): BASE, ("a", "none", "frozen"): DOWN, ("a", "", "lwf"): UP}
    there = {("b", "lora", "er"): UP, ("b", "lora", "sit"): BASE, ("b", "none", "frozen"): DOWN}
    groups = {key: seeds(lasts) for key, lasts in (here | there).items()}
    assert comparisons.same_order(groups, "a", "b", "A_last") == (
        "    A_last, 3 methods on a and on b: rank correlation +0.50")  # 1 − 6·(1 + 1 + 0) / (3·(9 − 1))


def test_a_frontier_is_a_point_per_weight_and_the_start(tmp_path):
    runs = {w: [updated(tmp_path / f"{w}{seed}", .7 - w / 10, .3 + w / 10, seed) for seed in range(2)] for w in (1, 2)}
    table = tables.frontier({("random", 1): runs[1], ("random", 2): runs[2]}, "UT-Acc", "ZS-Acc")
    assert table.label.tolist() == ["random", "random", "frozen"] and table.weight.tolist() == [1, 2, 0]
    assert table.x.tolist() == pytest.approx([60, 50, 40]) and table.y.tolist() == pytest.approx([40, 50, 50])
    assert table.x_half.tolist() == pytest.approx([0, 0, 0])


def test_settings_are_a_line_per_metric(tmp_path):
    runs = [updated(tmp_path / "a", .7, .3)]
    table = tables.settings({("texts", 10): runs, ("tokens", 2): runs}, ["UT-Acc", "ZS-Acc"])
    assert table[["panel", "method", "x"]].values.tolist() == [
        ["texts", "UT-Acc", 10], ["texts", "ZS-Acc", 10], ["tokens", "UT-Acc", 2], ["tokens", "ZS-Acc", 2]]
    assert table["mean"].tolist() == pytest.approx([70, 30, 70, 30])


# ---- lines in weight space

SETS = {"UT-Acc": "all classes/all", "ZS-Acc": "other classes/own"}


def line(ut, zs, seed) -> pd.DataFrame:
    """Rows of `interpolation.lines` at the shares 0, 0.5 and 1."""
    return pd.DataFrame([{"label": "path", "seed": seed, "share": share, "name": name, "candidates": candidates,
                          "metric": "accuracy", "value": value}
                         for name, candidates, values in (("all classes", "all", ut), ("other classes", "own", zs))
                         for share, value in zip((0., .5, 1.), values, strict=True)])


def walked(*seeds) -> pd.DataFrame:
    rows = pd.concat([line(*both, seed) for seed, both in enumerate(seeds)])
    return interpolation.accuracies(rows, SETS)


def test_a_road_and_the_points_of_a_line_hold_the_means_over_seeds():
    table = walked(((.4, .7, .8), (.5, .5, .2)), ((.4, .6, .8), (.5, .5, .4)))
    assert table.columns.tolist() == ["label", "seed", "share", "UT-Acc", "ZS-Acc"] and len(table) == 6
    road = interpolation.road(table, "UT-Acc", "ZS-Acc")
    assert road.share.tolist() == [0, .5, 1] and set(road.label) == {"path"}
    assert road.x.tolist() == pytest.approx([40, 65, 80]) and road.y.tolist() == pytest.approx([50, 50, 30])
    assert road.x_half.tolist() == pytest.approx([0, metrics.interval([70., 60.]).half_width, 0])
    points = interpolation.points(table)
    assert points.metric.tolist() == ["UT-Acc"] * 3 + ["ZS-Acc"] * 3
    assert points["mean"].tolist() == pytest.approx([40, 65, 80, 50, 50, 30])
    assert points.half_width[1] == pytest.approx(road.x_half[1])


def test_the_middle_of_a_line_is_compared_with_its_ends():
    table = walked(((.4, .7, .8), (.5, .5, .2)), ((.4, .71, .8), (.5, .51, .2)))
    found = interpolation.middle(table, ["UT-Acc", "ZS-Acc"])
    assert found.difference.tolist() == pytest.approx([10.5, 15.5]) and set(found.verdict) == {"higher"}
    assert comparisons.tell(found).startswith("path, UT-Acc: half-way is higher than the mean of the ends: +10.5 points")
    both = table.assign(mean=table[["UT-Acc", "ZS-Acc"]].mean(axis=1))
    for base, difference in (("the start", 15.5), ("the end", 10.5)):
        found = interpolation.middle(both, ["mean"], base)
        assert found.difference.tolist() == pytest.approx([difference]) and found.verdict.item() == "higher"
    down = walked(((.8, .3, .8), (.5, .1, .5)), ((.8, .31, .8), (.5, .1, .5)))
    assert interpolation.middle(down, ["UT-Acc"]).verdict.item() == "lower"
    with pytest.raises(ValueError, match="base='the top'.*the start"):
        interpolation.middle(down, ["UT-Acc"], "the top")
