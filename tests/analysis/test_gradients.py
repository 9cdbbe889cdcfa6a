"""From the tables of the probes to what figures show: tables written by hand, numbers worked out by
hand."""
import math

import pandas as pd
import pytest
from small_runs import make, row

from clstudy.analysis import gradients as anatomy
from clstudy.analysis.intervals import Interval

PARTS = ["push", "push attraction", "push repulsion"]


def classes(*rows) -> pd.DataFrame:
    """Probe `classes`: step, stage, images_seen, class, present, attraction, repulsion; another
    term is ten times that."""
    table = pd.DataFrame(rows,
                         columns=["step", "stage", "images_seen", "class", "present", *PARTS[1:]])
    table["push"] = table["push attraction"] + table["push repulsion"]
    return pd.concat([
        table.assign(term="task"),
        table.assign(term="distil", **{c: 10 * table[c] for c in PARTS})
    ])


# a and b come in stage 1, which has two steps on its first batch; c in stage 2
CLASSES = classes((0, 1, 10, "a", True, .4, -.2), (0, 1, 10, "b", False, 0., -.1),
                  (1, 1, 10, "a", True, .2, -.2), (2, 1, 20, "a", False, 0., -.3),
                  (2, 1, 20, "b", True, .5, -.1), (3, 2, 30, "c", True, .9, -.1),
                  (3, 2, 30, "a", False, 0., -.5), (3, 2, 30, "b", False, 0., -.1),
                  (4, 2, 40, "c", True, .1, -.1))


def drift(values: dict) -> pd.DataFrame:
    """Probe `drift`, from (step, stage, images_seen) → class → (text, image, match)."""
    rows = [(*head, name, *numbers) for head, found in values.items()
            for name, numbers in found.items()]
    return pd.DataFrame(rows,
                        columns=["step", "stage", "images_seen", "class", "text", "image", "match"])


DRIFT = drift({
    (0, 0, 0): {"a": (0., 0., .9), "b": (0., 0., .7), "c": (0., 0., .5)},
    (2, 1, 20): {"a": (.1, .2, .4), "b": (.2, .3, .4), "c": (.8, .8, .8)},
    (3, 1, 20): {"a": (.2, .3, .5), "b": (.4, .5, .9), "c": (.8, .8, .8)},  # the end of stage 1
    (5, 2, 40): {"a": (.3, .5, .1), "b": (.7, .7, .7), "c": (.9, .9, .9)}
})


def gradients() -> pd.DataFrame:
    """Probe `gradients`: two steps on one batch, one on the next; the image tower has two blocks,
    the text tower one."""
    rows = []
    for step, images, size, previous in ((0, 10, 1., math.nan), (1, 10, 3., .5), (2, 20, 4., -.5)):
        for tower, block, factor in (("image", "all", 5), ("image", "0", 3), ("image", "1", 4),
                                     ("text", "all", 10), ("text", "0", 10)):
            angle = previous if block == "all" else math.nan
            rows.append((step, 1, images, "task", tower, block, factor * size, angle))
            rows.append((step, 1, images, "distil", tower, block, 99., .9))
    return pd.DataFrame(
        rows,
        columns=["step", "stage", "images_seen", "term", "tower", "block", "norm", "previous"])


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "a", seed=5,
                probes={"classes": CLASSES, "drift": DRIFT, "gradients": gradients()})


def line(table: pd.DataFrame, panel: str, part: str | None = None) -> dict:
    """images_seen → value of one line."""
    rows = table[(table.panel == panel) & (True if part is None else table.part == part)]
    return dict(zip(rows.images_seen, rows.value.round(9), strict=True))


def test_a_class_is_learned_in_the_stage_of_its_first_image(run):
    assert anatomy.learned(run).to_dict() == {"a": 1, "b": 1,
                                              "c": 2}  # not where it was only offered


def test_the_first_step_of_a_stage_class_by_class():
    table = anatomy.step({"sit": CLASSES[CLASSES.present], "finetune": CLASSES}, 2)
    assert table[["method", "class", "step"]].to_numpy().tolist() == [
        ["sit", "c", 3], ["finetune", "c", 3], ["finetune", "a", 3], ["finetune", "b", 3]]
    assert (table.term == "task").all() and table.index.tolist() == [0, 1, 2, 3]
    assert (anatomy.step({"sit": CLASSES}, 1, "distil").push.round(9) == [2, -1]).all()


def test_a_stage_that_was_not_probed_is_refused():
    with pytest.raises(ValueError, match=r"stage=3: the run has steps in the stages \[1, 2\]"):
        anatomy.step({"sit": CLASSES}, 3)


def test_pushes_add_up_over_the_stream_as_a_mean_over_the_classes_of_a_stage(run):
    table = anatomy.pushes({"sit": [run]})
    assert set(table.method) == {"sit"} and set(table.seed) == {5}
    here, away = "in the batch", "seen, but absent"
    assert list(dict.fromkeys(table.panel)) == [here, away]
    # of a and b: (0.4 + 0.2) / 2 on the first batch, then 0.5 / 2 more, then nothing
    assert line(table, here, "attraction") == {10: .3, 20: .55, 30: .55, 40: .55}
    assert line(table, here, "repulsion") == {10: -.2, 20: -.25, 30: -.25, 40: -.25}
    assert line(table, here, "sum") == {10: .1, 20: .3, 30: .3, 40: .3}
    assert line(table, away, "sum") == line(table, away,
                                            "repulsion") == {10: -.05, 20: -.2, 30: -.5, 40: -.5}
    assert line(table, away, "attraction") == dict.fromkeys((10, 20, 30, 40), 0)
    assert line(anatomy.pushes({"sit": [run]}, stage=2), here,
                "sum") == {10: 0, 20: 0, 30: .8, 40: .8}
    assert line(anatomy.pushes({"sit": [run]}, term="distil"), here,
                "sum") == {10: 1, 20: 3, 30: 3, 40: 3}


def test_pushes_of_a_run_in_which_absent_texts_are_not_in_the_loss(tmp_path):
    run = make(tmp_path / "sit", probes={"classes": CLASSES[CLASSES.present]})
    table = anatomy.pushes({"sit": [run]})
    assert line(table, "seen, but absent", "sum") == dict.fromkeys((10, 20, 30, 40), 0)
    assert line(table, "in the batch", "sum") == {10: .1, 20: .3, 30: .3, 40: .3}


def test_norms_are_per_tower_and_means_over_the_steps_on_a_batch(run):
    table = anatomy.norms({"sit": [run]})
    assert line(table, "image tower") == {10: 10, 20: 20} and line(
        table, "text tower") == {10: 20, 20: 40}
    assert set(table.method) == {"sit"} and set(table.seed) == {5} and len(table) == 4
    previous = anatomy.norms({"sit": [run]}, "previous")
    assert line(previous, "image tower") == {10: .5, 20: -.5}  # the first step has no step before
    assert line(anatomy.norms({"sit": [run]}, term="distil"), "image tower") == {10: 99, 20: 99}


def test_a_batch_without_a_value_is_left_out(tmp_path):
    table = gradients()
    run = make(tmp_path / "b", probes={"gradients": table[table.step != 1]})
    assert line(anatomy.norms({"sit": [run]}, "previous"), "image tower") == {20: -.5}


def test_drifts_are_means_over_the_classes_of_a_stage(run):
    table = anatomy.drifts({"sit": [run]})
    text, image, match = anatomy.DRIFTS.values()
    assert list(dict.fromkeys(table.panel)) == [text, image, match]
    assert line(table, text) == {0: 0, 20: .225,
                                 40: .5}  # at 20 images twice: a step and the end of the stage
    assert line(table, image) == {0: 0, 20: .325, 40: .6} and line(
        table, match) == {0: .8, 20: .55, 40: .4}
    late = anatomy.drifts({"sit": [run]}, stage=2, columns={"text": "texts"})
    assert set(late.panel) == {"texts"} and line(late, "texts") == {0: 0, 20: .8, 40: .9}


def test_the_fate_of_classes_that_had_something_to_lose(tmp_path):
    accuracy = {"a": {1: .8, 2: .5}, "b": {1: .0, 2: .4}, "c": {1: .3, 2: .9}}
    rows = [row(stage, f"class {name}", "all", value) for name, values in accuracy.items()
            for stage, value in values.items()]
    groups = {}
    for method, table in (("finetune", CLASSES), ("sit", CLASSES[CLASSES.present])):
        groups[method] = [
            make(tmp_path / method, rows, 7, probes={"classes": table, "drift": DRIFT})
        ]
    table = anatomy.fates(groups)
    # b was never right, and c came in the last stage
    assert table[["method", "seed", "class"]].to_numpy().tolist() == [["finetune", 7, "a"],
                                                                      ["sit", 7, "a"]]
    assert table.repelled.tolist() == pytest.approx([-.8, 0])  # 0.3 + 0.5 while it was absent
    assert table.parted.tolist() == pytest.approx(
        [-.4, -.4])  # 0.5 at the end of stage 1, 0.1 at the end
    assert table.change.tolist() == pytest.approx([-30, -30])


def test_agreement_is_one_rank_correlation_per_run():
    def part(seed, cause, effect):
        return pd.DataFrame({"method": "sit", "seed": seed, "parted": cause, "change": effect})

    table = pd.concat([part(0, [.1, .2, .9], [-9, -8, 5]), part(1, [.1, .2, .3], [1, 9, 8]),
                       part(2, [.1, .1, .1], [1, 2, 3]), part(3, [.1, .2, .3], [4, 4, 4])])
    found = anatomy.agreement(
        table, "parted")  # 1 and 1 − 6 · 2 / (3 · 8); nothing varies in the other two
    assert found.mean == pytest.approx(.75) and found.half_width == pytest.approx(
        12.7062 * .25, rel=1e-4)
    none = anatomy.agreement(table[table.seed > 1], "parted")
    assert math.isnan(none.mean) and math.isnan(none.half_width)


@pytest.mark.parametrize(("mean", "half", "said"), [
    (.5, .2, "Spearman +0.50, 95 % interval +0.30 to +0.70: together"),
    (-.5, .2, "Spearman -0.50, 95 % interval -0.70 to -0.30: against each other"),
    (.1, .2, "Spearman +0.10, 95 % interval -0.10 to +0.30: no significant relation"),
    (.9, math.nan, "Spearman +0.90, 95 % interval +nan to +nan: no significant relation"),
])
def test_a_rank_correlation_in_words(mean, half, said):
    assert anatomy.rank(Interval(mean, half)) == said


LONG = pd.DataFrame([("p", "sit", 1, 20, 4., "sum"), ("p", "sit", 1, 10, 2., "sum"),
                     ("p", "sit", 0, 10, 1., "sum"), ("p", "sit", 0, 30, 5., "sum"),
                     ("p", "er", 0, 10, 8., "sum"), ("p", "er", 0, 10, 9., "other"),
                     ("q", "sit", 0, 40, 99., "sum")],
                    columns=["panel", "method", "seed", "images_seen", "value", "part"])


def test_the_end_of_each_run_in_a_panel():
    ends = anatomy.at_end(LONG, "push").set_index(["panel", "method", "seed", "part"]).push
    assert ends.to_dict() == {("p", "sit", 1, "sum"): 4, ("p", "sit", 0, "sum"): 5,
                              ("p", "er", 0, "sum"): 8, ("p", "er", 0, "other"): 9,
                              ("q", "sit", 0, "sum"): 99}


def test_encoders_of_two_times_are_exchanged_at_the_end_for_the_tasks_before_the_last(tmp_path):
    """Tasks 1 and 2 of three: 3 and 1 of 4 right with both as then, …; stage 2 does not count."""
    right = {("learned", "learned"): (3, 1), ("now", "learned"): (2, 0), ("learned", "now"): (3, 0),
             ("now", "now"): (1, 1), ("start", "start"): (4, 4)}
    rows = [(stage, *times, task, candidates, hits if stage == 3 else 4, 4)
            for stage in (2, 3) for candidates in ("all", "seen")
            for times, both in right.items() for task, hits in enumerate(both, 1)]
    rows += [(3, *times, 3, "all", 4, 4) for times in (("now", "now"), ("start", "start"))]
    columns = ["stage", "image", "text", "task", "candidates", "right", "count"]
    run = make(tmp_path / "run", probes={"towers": pd.DataFrame(rows, columns=columns)})
    found = anatomy.exchanged({"sit": [run]})
    assert set(found.method) == {"sit"} and found.set_index("encoders").accuracy.to_dict() == {
        "both as then": 50, "images as now": 25, "texts as now": 37.5, "both as now": 25}
