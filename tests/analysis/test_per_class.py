"""Tables of small memories and of domains: runs written by hand, numbers worked out by hand."""
import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import CLASSES, evaluations, make, row

from clstudy.analysis import domains, per_class, scores
from clstudy.data.streams import Domains
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.evaluation import metrics
from clstudy.runs.run import Run
from clstudy.training.config import RunConfig

NAMES = ("a", "b", "c")


def several(folder, lasts, **more):
    return [
        make(folder / str(seed), evaluations(last), seed, **more) for seed, last in enumerate(lasts)
    ]


# ---- over the size


# ---- what was claimed


# ---- class weights


def weighing(folder, seed=0, old=1.5, late=(.5, 1.)):
    """Three classes: 0 and 1 come in stage 1, 2 in stage 2; a step each and a second one in stage
    2."""
    rows = [(1, 0, 0, 1.2), (1, 0, 1, .8), (2, 1, 0, old), (2, 1, 1, old - 1), (2, 1, 2, late[0]),
            (2, 2, 0, old), (2, 2, 1, old - 1), (2, 2, 2, late[1])]
    table = pd.DataFrame(rows, columns=["stage", "step", "class", "weight"])
    before = [
        row(0, f"class {name}", "all", value)
        for name, value in zip(NAMES, (.1, .9, .5), strict=True)
    ]
    return make(folder, [*evaluations(), *before], seed, probes={"method": table})


def test_a_class_is_new_in_the_stage_in_which_it_comes(tmp_path):
    weights = per_class.class_weights([weighing(tmp_path / "a"), weighing(tmp_path / "b", 1)])
    assert weights.age.tolist() == 2 * ["new", "new", "old", "old", "new", "old", "old", "new"]
    assert weights.seed.tolist() == [0] * 8 + [1] * 8


def test_old_against_new_is_over_the_steps_that_have_both(tmp_path):
    runs = [weighing(tmp_path / "a"), weighing(tmp_path / "b", 1, old=2.)]
    weights = per_class.class_weights(runs)
    ages = per_class.by_age(weights)
    first = ages[ages.seed == 0]
    assert first.weight.tolist() == pytest.approx([1., .5, 1., 1., 1.])  # new; new, old; new, old
    assert per_class.old_against_new(weights).to_dict() == pytest.approx({0: .25, 1: .75})


def test_hard_classes_weigh_more(tmp_path):
    run = weighing(tmp_path / "a",
                   late=(.5, 1.))  # at the end 1.5, .5, 1.0 for accuracies .1, .9, .5
    assert per_class.hard_classes([run], NAMES) == pytest.approx([1])
    run = weighing(tmp_path / "b", late=(.5, 3.))  # 1.5, .5, 3.0: ranks 2, 1, 3 against 3, 1, 2
    assert per_class.hard_classes([run], NAMES) == pytest.approx([.5])
    run = weighing(tmp_path / "c")
    assert per_class.hard_classes([run], ("b", "a", "c")) == pytest.approx(
        [-1])  # names, not places


def test_the_effective_number_of_classes(tmp_path):
    weights = per_class.class_weights([weighing(tmp_path / "a")])
    assert per_class.effective(weights) == pytest.approx(9 / (1.5**2 + .5**2 + 1) / 3)
    even = weights.assign(weight=1.)
    assert per_class.effective(even) == pytest.approx(1)


# ---- which classes pay


def classes(folder, ends, seed=0, before=(.1, .9, .5)):
    rows = [r for r in evaluations() if r["kind"] != "class"]
    rows += [
        row(0, f"class {name}", "all", value) for name, value in zip(NAMES, before, strict=True)
    ]
    return make(folder, rows + [row(3, f"class {name}", "seen", value)
                                for name, value in zip(NAMES, ends, strict=True)], seed)


def test_the_classes_of_the_small_runs_have_all_columns(tmp_path):
    assert set(make(tmp_path / "a").classes("seen").columns) == set(CLASSES)


# ---- domains

HANDS = ("x", "y", "z")
TABLE = {"x": (.3, .8, .9, .6), "y": (.4, .5, .7, .5),
         "z": (.5, .4, .4, .9)}  # EXAMPLE, if x, y, z is the order


def world():
    """Two classes in three domains, an image of each."""
    labels, hands = np.tile([0, 1], 3), np.repeat([0, 1, 2], 2)
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2)
    train = Labelled(images, labels, ("cat", "dog"), "{}", hands, HANDS)
    return BenchmarkData("hands", train, train,
                         ("poodle: curly", "b", "poodle: white", "d", "e", "f"), {})


def drawing(folder, seed=0, stream="domains", table=TABLE, **args):
    rows = [row(stage, f"domain {name}", "all", value) for name, values in table.items()
            for stage, value in enumerate(values)]
    made = make(folder, [*evaluations(), *rows], seed)
    config = RunConfig.model_construct(seed=seed, stream=stream, stream_args=args
                                       or {"order": "given"}, stream_seed=None)
    return Run(config, made.folder)


def test_the_matrix_of_domains_is_in_the_order_of_arrival(tmp_path):
    run = drawing(tmp_path / "a")
    assert domains.in_order(run) == ["x", "y", "z"]
    R = domains.domain_matrix(run)
    assert R.tolist() == metrics.EXAMPLE.tolist()
    shuffled = drawing(tmp_path / "b", 3, order="random")
    stages = Domains().stages(np.tile([0, 1], 3), 3, np.repeat([0, 1, 2], 2))
    order = [stage.index[0] // 2 for stage in stages]
    assert domains.in_order(shuffled) == [HANDS[i] for i in order] != ["x", "y", "z"]
    assert np.array_equal(domains.domain_matrix(shuffled), metrics.EXAMPLE[:, order])
    means = domains.domain_means({"er": [run, shuffled]})
    assert np.allclose(means["er"], (metrics.EXAMPLE + metrics.EXAMPLE[:, order]) / 2)
    with pytest.raises(ValueError, match="stream='joint' of run c: must be 'domains'"):
        domains.domain_matrix(drawing(tmp_path / "c", stream="joint"))


def test_metrics_over_domains_are_those_of_the_matrix(tmp_path):
    found = scores.metrics_of(drawing(tmp_path / "a"))
    names = ["average domain", "worst domain", "domain forgetting", "domain transfer"]
    assert [found[name] for name in names] == pytest.approx([200 / 3, 50, 25, 0])
    assert found["average domain before"] == pytest.approx(40) and found["worst domain before"] == 30
    shuffled = drawing(tmp_path / "b", 3, order="random")
    R = domains.domain_matrix(shuffled)
    moved = scores.metrics_of(shuffled)
    assert moved["domain forgetting"] == pytest.approx(100 * metrics.forgetting(R))
    assert moved["domain transfer"] == pytest.approx(100 * metrics.forward_transfer(R))
    assert moved["domain forgetting"] != pytest.approx(25)
    joint = scores.metrics_of(drawing(tmp_path / "c", stream="joint"))
    assert joint["average domain"] == pytest.approx(200 / 3) and "domain forgetting" not in joint


def test_one_picture_of_each_thing_in_each_domain():
    pictures, names = domains.in_every_domain(world(), ["poodle", "dog"])
    assert names == ["x", "y", "z"] * 2 and pictures.shape == (6, 3, 2, 2)
    assert pictures[:, 0, 0, 0].tolist() == [0, 2, 255, 1, 3, 5]  # the third domain has no poodle
    with pytest.raises(ValueError, match="'fish'"):
        domains.in_every_domain(world(), ["fish"])
