"""The map: every method is a point or has a reason, and at its point compose is that method, run
for run."""
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from small_runs import evaluations, make, train

from clstudy.analysis import design_space
from clstudy.data.streams import Stage
from clstudy.methods import METHODS

SMALL = {
    "er": {"size": 12, "replay": 5}, "clip_loss": {"size": 12, "replay": 5},
    "gcl": {"size": 12, "replay": 5}, "gdro": {"size": 12, "replay": 5, "strength": 0.02}
}
VARIANTS = [("sit", {"size": 12, "replay": 5}), ("er", {"policy": "balanced", "draw": "balanced"}),
            ("clip_loss", {"selection": "herding", "draw": "balanced"}),
            ("gcl", {"candidates": "batch", "exact": 0}),
            ("gcl", {"temperature": "individual", "decay": 3}),
            ("gdro", {"correct": False, "cap": 2.0}), ("gdro", {"robust": "balanced"}),
            ("lwf", {"weight": 2.0, "temperature": 2.0, "candidates": "batch"}),
            ("vr_lwf", {
                "vocabulary": "words", "size": 9, "length": 3, "classes": False, "temperature": 2.0
            }), ("vr_lwf", {"vocabulary": "captions"}),
            ("vr_lwf", {"vocabulary": "classes", "classes": False})]
POINTS = [(name, SMALL.get(name, {}) | options) for name, options in
          [(name, options) for name, options, _ in design_space.published_forms()] + VARIANTS]


def run(config) -> tuple[list[float], torch.Tensor]:
    """The objective at each step, and the tuned weights at the end."""
    kept, sums = [], {}
    for row in train(config, keep=kept.append)[1]:
        sums[row["step"]] = sums.get(row["step"], 0.0) + row["value"]
    return list(sums.values()), torch.cat(
        [p.detach().flatten() for p in kept[0].parameters() if p.requires_grad])


def test_every_method_is_a_point_or_has_a_reason():
    points = {name for name in METHODS if design_space.point(name)}
    assert points | set(design_space.beside().index) == set(METHODS)
    assert not points & set(design_space.beside().index)
    assert {name for name, *_ in design_space.published_forms()} == points - {"compose"}
    assert all(METHODS[name].place_on_map.reason for name in design_space.beside().index)


STATEFUL = [("sit", VARIANTS[0][1]), ("lwf", {}), ("vr_lwf", {}), *SMALL.items(),
            ("er", {"draw": "balanced"})]


@pytest.mark.parametrize(("name", "options"), STATEFUL, ids=str)
def test_a_run_at_a_point_is_the_run_of_its_method(tiny, name, options):
    """Two stages of four batches, two steps each: memories, averages, teachers and draws in
    step."""
    point = tiny.replace(steps_per_batch=2)
    ours, weights = run(
        point.replace(method="compose", method_args=design_space.point(name, **options)))
    theirs, expected = run(point.replace(method=name, method_args=options))
    assert ours == pytest.approx(theirs, rel=2e-4,
                                 abs=1e-6)  # sums in another order, through Adam's first steps
    assert torch.allclose(weights, expected, atol=2e-4)


@pytest.mark.parametrize(("name", "options"), POINTS, ids=str)
def test_the_loss_and_its_gradient_at_a_point_are_those_of_its_method(clip, batch, name, options):
    """In the second stage, with a teacher that the model has left, and after a first step."""
    found = []
    clip.requires_grad_(True)
    for method in (METHODS["compose"](**design_space.point(name, **options)),
                   METHODS[name](**options)):
        torch.manual_seed(3)
        before = {key: value.clone() for key, value in clip.state_dict().items()}
        method.before_stage(clip, Stage(2, (5, 2), np.arange(8)))
        with torch.no_grad():
            for p in clip.parameters():
                p.mul_(1.03)
        method.loss(clip, replace(batch, image=batch.image.flip(3)))
        total = sum(method.loss(clip, batch).values())
        grads = torch.autograd.grad(total, list(clip.parameters()), allow_unused=True)
        found.append((total, [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(clip.parameters(), grads, strict=True)
        ]))
        clip.load_state_dict(before)
    (ours, gradient), (theirs, expected) = found
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    largest = max(g.abs().max() for g in expected)
    assert largest > 0
    for one, other in zip(gradient, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6 * float(largest))


# ---- what is said of a point

SIT = {
    "candidates": "batch", "denominator": "batch", "class_weights": "uniform", "vocabulary": "none"
}


def test_the_marks_are_the_choices_of_each_method():
    marks = design_space.marks({"mine": {"class_weights": "cvar"}})
    assert list(marks.columns) == ["label", "new", "choice", "value"]
    said = {label: {name: list(rows.value) for name, rows in mine.groupby("choice")}
            for label, mine in marks.groupby("label")}
    assert said["CLIP loss (memory)"] == {"candidates": ["batch"], "denominator": ["pairs"],
                                          "class_weights": ["uniform"], "vocabulary": ["none"]}
    assert said["GDRO"]["class_weights"] == ["kl", "cvar", "eg"]
    assert marks.label.iloc[-1] == "mine" and set(marks.label[marks.new]) == {"mine"}
    assert said["mine"]["class_weights"] == ["cvar"]
    for name, values in design_space.CHOICES.items():
        assert set(marks.value[marks.choice == name]) <= set(values)
    assert set(design_space.beside()["task term"]) == {"–", "er", "finetune"}


def test_the_choices_are_those_that_compose_takes():
    from clstudy.data.types import CANDIDATES
    from clstudy.losses.vocabularies import VOCABULARIES
    from clstudy.methods.compose import DENOMINATORS, Compose
    from clstudy.utils.options import annotation

    weights, denominators = (get_args(annotation(Compose, name))
                             for name in ("class_weights", "denominator"))
    assert set(denominators) == set(DENOMINATORS)
    assert [set(values) for values in design_space.CHOICES.values()] == [
        set(CANDIDATES), set(DENOMINATORS), set(weights), {"none", *VOCABULARIES}]


@pytest.mark.parametrize(("changes", "said"), [
    ({}, ["This is `sit`: SIT", "K = the classes of the batch", "softmax_{k ∈ K}", "w_i = 1", "method_args={})"]),
    ({"denominator": "moving", "candidates": "seen", "class_weights": "eg"}, ["This is `gdro`", "gradient", "u1_i"]),
    ({"class_weights": "kl"}, [design_space.NOBODY, "p = softmax(F / λ)", "method_args={'class_weights': 'kl'}"]),
    ({"candidates": "seen", "vocabulary": "random"}, ["`vr_lwf`", "vocabulary = α (1/B)", "from the second stage on"]),
    ({"denominator": "moving", "vocabulary": "classes"}, [design_space.NOBODY, "classes = α τ (1/B)"]),
    ({"candidates": "seen", "denominator": "pairs"}, ["Nothing stands here.", "Choose candidates='batch'"])])
def test_a_point_is_described(changes, said):
    text = design_space.describe(SIT | changes)
    assert all(part in text for part in said), text
    assert ("vocabulary = " in text) == (changes.get("vocabulary") == "random")


def test_fine_tuning_and_replay_stand_at_one_point():
    assert [line.split(":")[0]
            for line in design_space.published(**SIT | {"candidates": "seen"})] == [
                "`finetune`",
                "`er`",
            ]


def test_an_option_that_compose_has_not_is_no_point():
    assert design_space.point("sit", double_softmax=True) is None is design_space.point(
        "vr_lwf", form="zscl")
    assert design_space.point("vr_lwf",
                              vocabulary="classes") is None  # two distillations on the same texts
    assert (
        design_space.point("vr_lwf", temperature=2.0)
        is None
        is not design_space.point("vr_lwf", temperature=2.0, classes=False)
    )


def test_finished_runs_of_a_point_are_shown_by_their_setting(tmp_path):
    made = []
    for seed, (method, options) in enumerate([("sit", {}), ("sit", {}),
                                              ("compose", {"size": 9, "draw": "balanced"}),
                                              ("er", {}), ("ewc", {})]):
        one = make(tmp_path / str(seed), evaluations(last=0.4 + 0.1 * seed), seed=seed)
        made.append(
            replace(
                one,
                config=one.config.model_copy(update={"method": method, "method_args": options})))
    assert design_space.results(SIT, made, ["A_last"]) == [
        "sit, no memory: A_last 45.0 ± 63.5 (2 seeds)",
        "compose, memory of 9, balanced draw: A_last 60.0 (1 seed)"]
    assert design_space.results(SIT | {"vocabulary": "words"}, made,
                                ["A_last"]) == ["no finished run of it here"]


def test_the_nearest_published_methods_are_named_with_what_differs():
    assert design_space.nearest(**SIT | {"class_weights": "kl"}) == ["`sit` (other class_weights)"]
    assert design_space.nearest(
        **SIT | {"candidates": "seen", "denominator": "moving", "vocabulary": "random"}) == [
            "`vr_lwf` (other denominator)", "`gcl` (other vocabulary)"
        ]
    assert "Nearest: `sit` (other class_weights)" in design_space.describe(
        SIT | {"class_weights": "kl"})
