"""The loop: stages without images or without classes, curves, epochs, steps, and runs that must
stop."""
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import train

from clstudy.data.streams import STREAMS, Stage, Stream
from clstudy.evaluation.accuracy import evaluate
from clstudy.methods import METHODS
from clstudy.training import loop
from clstudy.training.loop import batches
from clstudy.training.monitor import NotFinite
from clstudy.training.setup import pick_device, prepare
from clstudy.utils.progress import Progress

IDS = ["stage", "set", "candidates", "metric"]


def tables(config) -> tuple[pd.DataFrame, pd.DataFrame]:
    evals, steps = train(config)
    return pd.DataFrame(evals), pd.DataFrame(steps)


def images_of(toy, *classes: int) -> np.ndarray:
    return np.flatnonzero(np.isin(toy().load().train.labels, classes))


# ---- evaluations


def test_row_0_is_the_model_before_training(tiny):
    evals, _ = tables(tiny)
    clip, benchmark, stages = prepare(tiny)
    expected = pd.DataFrame(evaluate(clip, benchmark, [stage.classes for stage in stages], []).rows)
    found = evals[evals.stage == 0]
    assert (found.images_seen == 0).all() and found.stage_end.all()
    assert found[list(expected)].to_dict("records") == expected.to_dict("records")
    assert "seen" not in set(found.candidates)  # nothing has been seen


def test_every_stage_end_has_the_rows_of_every_scenario(tiny):
    evals, _ = tables(tiny)
    for stage in (1, 2):
        rows = evals[evals.stage == stage]
        for task in ("task 1", "task 2"):
            assert set(rows[rows["set"] == task].candidates) == {"own", "seen", "all"}
        assert {"seen classes", "all classes", "shades", "drawings: image to text"} <= set(
            rows["set"])
        assert (rows.images_seen == 30 * stage).all()
    assert not evals.duplicated([*IDS, "images_seen", "stage_end"]).any()
    assert evals.value.between(0, 1).all()


def test_eval_every_looks_when_that_many_images_have_passed(tiny):
    plain, plain_steps = tables(tiny)
    evals, steps = tables(tiny.replace(eval_every=10))
    curve = evals[~evals.stage_end]
    assert curve.images_seen.tolist() == [16, 24, 30, 46, 54, 60]  # ends of batches of 8, 8, 8, 6
    assert set(curve["set"]) == {"seen classes"}
    assert curve.stage.tolist() == [1, 1, 1, 2, 2, 2]
    assert steps.equals(plain_steps)  # looking changes nothing
    assert evals[evals.stage_end].reset_index(drop=True).equals(plain)


def test_held_out_every_leaves_held_out_sets_out_but_for_the_first_and_last_look(tiny):
    config = tiny.replace(stream_args={"tasks": 6})
    every, _ = tables(config)
    evals, _ = tables(config.replace(held_out_every=4))
    sides = ("shades", "drawings: image to text", "drawings: text to image")
    assert evals[evals["set"] == "shades"].stage.tolist() == [0, 4, 6]
    kept = every[~every["set"].isin(sides) | every.stage.isin([0, 4, 6])]
    assert kept.to_dict("records") == evals.to_dict("records")


def test_held_out_every_evaluation_gives_a_line_of_early_stops(tiny):
    """The updated classes, held-out sets and retrieval at several points of one run, with bits; what
    is measured changes nothing."""
    config = tiny.replace(stream="joint", stream_args={}, epochs=2, eval_every=20, method="finetune")
    plain, made = (loop.train(config.replace(held_out_every=every)) for every in (1, "evaluation"))
    inside = made.evals[~made.evals.stage_end]
    for name, candidates in (("seen classes", "seen"), ("shades", "own")):
        assert inside[inside["name"] == name].images_seen.tolist() == [24, 40, 60, 84, 100, 120]
        kind = "test" if candidates == "seen" else name
        bits = made.correct[(made.correct["set"] == kind) & ~made.correct.stage_end]
        assert set(bits.candidates) == {candidates} and len(bits) == 6
        values = inside[inside["name"] == name].value.tolist()
        for value, row in zip(values, bits.itertuples(), strict=True):
            right = np.unpackbits(np.frombuffer(row.bits, np.uint8), count=row.count)
            assert right.mean() == value
    assert {"image-to-text recall@1", "text-to-image recall@5"} <= set(inside.metric)
    assert made.steps.equals(plain.steps)
    sides = inside.kind.isin(["held-out set", "retrieval"])
    assert made.evals.drop(inside.index[sides]).reset_index(drop=True).equals(plain.evals)


@pytest.mark.parametrize("tower", ["image", "text", "both"])
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_kept_features_never_change_a_number(tiny, tuner, tower):
    """The last row, made with features kept of towers that do not move, is that of a fresh
    evaluation."""
    kept, config = [], tiny.replace(tuner=tuner, tower=tower, eval_every=10)
    evals, _ = train(config, keep=kept.append)
    _, benchmark, stages = prepare(config)
    fresh = evaluate(kept[0], benchmark, [stage.classes for stage in stages], range(6)).rows
    assert [{key: row[key] for key in fresh[0]} for row in evals
            if row["stage"] == 2 and row["stage_end"]] == fresh


# ---- streams with holes


def test_a_stage_without_images_and_classes(tiny, toy):
    evals, steps = tables(tiny.replace(stream_args={"tasks": [[0, 1], [], [2, 3, 4, 5]]}))
    assert evals[evals["set"] == "seen classes"].images_seen.tolist() == [20, 20, 60]
    assert "task 2" not in set(evals["set"]) and {"task 1", "task 3"} <= set(evals["set"])
    before, after = (evals[(evals.stage == stage) & (evals.candidates == "all")].value.tolist()
                     for stage in (1, 2))
    assert before == after and set(steps.stage) == {1, 3}


def test_a_stage_whose_images_are_at_home_elsewhere(monkeypatch, tiny, toy):
    @dataclass
    class Holes(Stream):
        def stages(self, labels: np.ndarray, seed: int, domains=None) -> list[Stage]:
            two, rest = images_of(toy, 2), images_of(toy, 3, 4)
            return [
                Stage(1, (), np.array([], np.int64)),
                Stage(2, (0, 1), images_of(toy, 0, 1)),
                Stage(3, (), two[:5]),
                Stage(4, (2, 3, 4), np.concatenate([two[5:], rest]))
            ]

    monkeypatch.setitem(STREAMS, "holes", Holes)
    evals, steps = tables(tiny.replace(stream="holes", stream_args={}))
    assert set(steps.stage) == {2, 3, 4} and np.isfinite(evals.value).all()
    seen = evals[evals["set"] == "seen classes"]
    assert seen.stage.tolist() == [2, 3, 4] and seen["count"].tolist() == [
        8, 12, 20
    ]  # 4 test images of each class
    assert "class yellow sun" in set(evals["set"]) and "class black cat" not in set(
        evals["set"])  # 5 has no home
    assert (evals[evals["set"] == "all classes"]["count"] == 20).all()


@pytest.mark.parametrize("seed", range(3))
def test_blurred_streams_run(tiny, seed):
    evals, _ = tables(tiny.replace(stream="si_blurry", stream_args={"tasks": 5}, seed=seed))
    assert evals.stage.max() == 5 and evals.images_seen.max() == 60


def test_named_groups_are_tasks(tiny, toy):
    _, _, stages = prepare(tiny.replace(stream_args={"tasks": "groups"}))
    assert [stage.classes for stage in stages] == list(toy().load().groups.values())


# ---- steps and epochs


def test_steps_are_numbered_and_know_the_images_before_them(tiny):
    _, steps = tables(tiny.replace(steps_per_batch=3))
    assert list(steps) == ["stage", "images_seen", "step", "term", "value"]
    assert steps.step.tolist() == list(range(24))
    assert steps.images_seen.tolist() == [
        n for n in (0, 8, 16, 24, 30, 38, 46, 54) for _ in range(3)
    ]
    assert steps.stage.tolist() == [1] * 12 + [2] * 12


def test_epochs_pass_over_each_stage_again_in_another_order(monkeypatch, tiny):
    seen = []

    class Watching(METHODS["sit"]):
        def after_step(self, clip, batch):
            seen.append((batch.stage.number, batch.index))

    monkeypatch.setitem(METHODS, "watching", Watching)
    evals, steps = tables(tiny.replace(method="watching", epochs=3))
    assert evals.images_seen.max() == 180 and len(steps) == 3 * 8
    for stage in (1, 2):
        order = [i for number, index in seen if number == stage for i in index]
        passes = [order[:30], order[30:60], order[60:]]
        assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
        assert passes[0] != passes[1] != passes[2]


def test_the_learning_rate_falls_at_milestones_of_every_stage(monkeypatch, tiny):
    from clstudy.training import loop as module
    from clstudy.training import setup

    rates, make = [], setup.make_optimizer

    def watched(config, parameters):
        optimizer = make(config, parameters)
        step = optimizer.step
        optimizer.step = lambda: rates.append(optimizer.param_groups[0]["lr"]) or step()
        return optimizer

    monkeypatch.setattr(module, "make_optimizer", watched)
    train(tiny.replace(epochs=4, milestones=[1, 3], lr=1e-2))
    expected = [1e-2, 1e-3, 1e-3, 1e-4] * 2  # by epoch; four batches in each
    assert rates == pytest.approx([rate for rate in expected for _ in range(4)])


@pytest.mark.parametrize("milestones", [[0], [3], [1, 9]])
def test_a_milestone_lies_between_two_epochs(tiny, milestones):
    with pytest.raises(ValueError, match="must be numbers from 1 to epochs - 1 = 2"):
        tiny.replace(epochs=3, milestones=milestones)


def test_the_last_batch_of_a_stage_is_smaller_and_none_is_empty(toy):
    benchmark, seen = toy().load(), []
    for size, expected in ((8, [8, 8, 4]), (20, [20]), (7, [7, 7, 6]), (64, [20])):
        stage = Stage(1, (0, 1), images_of(toy, 0, 1))
        prompts = torch.zeros(6, 4, dtype=torch.long)
        found = [len(b.labels) for b in batches(stage, benchmark, seen, prompts, size, stage.index)]
        assert found == expected
    empty = Stage(1, (), np.array([], np.int64))
    assert list(batches(empty, benchmark, seen, torch.zeros(6, 4, dtype=torch.long), 8,
                        empty.index)) == []


@pytest.mark.parametrize("settings", [
    {"optimizer": "adam"}, {"optimizer": "sgd", "clip_norm": 1.0}, {"precision": "bf16"}, {"channels_last": True},
    {"augmentation": "none"}, {"augmentation": "crop_flip"}, {"tuner": "full", "tower": "text", "lr": 1e-4},
    {"tower": "image"}, {"batch_size": 1000}, {"stream": "joint", "stream_args": {}},
], ids=str)
def test_other_settings_run_and_learn(tiny, settings):
    kept = []
    _, steps = train(tiny.replace(**settings), keep=kept.append)
    assert np.isfinite([row["value"] for row in steps]).all()
    clip = kept[0]
    assert clip.precision == settings.get("precision", "fp32")
    assert all(p.dtype == torch.float32 for p in clip.parameters())


def test_clipping_bounds_the_step(tiny):
    moved = {}
    for clip_norm in (None, 1e9, 1e-3):
        config = tiny.replace(optimizer="sgd", lr=1.0, weight_decay=0, clip_norm=clip_norm,
                              tuner="full", stream="joint", stream_args={}, batch_size=60)
        start, _, _ = prepare(config)
        kept = []
        train(config, keep=kept.append)
        pairs = zip(start.parameters(), kept[0].parameters(), strict=True)
        moved[clip_norm] = torch.stack([(a - b).detach().norm() for a, b in pairs]).norm()
    assert moved[None] == moved[1e9] > 1e-2
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.02)


def test_a_model_that_can_learn_does(tiny):
    config = tiny.replace(tuner="full", lr=1e-3, stream="joint", stream_args={}, epochs=15,
                          augmentation="none")
    _, steps = tables(config)
    assert steps.value[-8:].mean() < 0.5 * steps.value[:8].mean()


def test_progress_counts_every_image(tiny):
    class Counting(Progress):
        seen, closed = 0, False

        def update(self, count):
            self.seen += count

        def close(self):
            self.closed = True

    progress = Counting()
    train(tiny.replace(epochs=2), progress=progress)
    assert progress.seen == 120 and progress.closed


# ---- what must stop


def test_a_loss_that_is_not_finite_stops_the_run_with_stage_step_and_term(tiny):
    with pytest.raises(NotFinite,
                       match=r"'task' is nan at stage 1, step [12], after (8|16) images"):
        train(tiny.replace(lr=1e30))


def test_the_term_that_is_not_finite_is_named(monkeypatch, tiny):
    class Breaking(METHODS["sit"]):
        steps = 0

        def loss(self, clip, batch):
            self.steps += 1
            task = super().loss(clip, batch)["task"]
            return {"task": task, "other": task * (float("inf") if self.steps == 6 else 0.5)}

    monkeypatch.setitem(METHODS, "breaking", Breaking)
    with pytest.raises(NotFinite, match=r"'other' is inf at stage 2, step 5, after 38 images"):
        train(tiny.replace(method="breaking"))


def test_weights_that_are_not_finite_are_not_evaluated(monkeypatch, tiny):
    """A gradient can be NaN where the loss is finite, and after the last step no loss would show
    it."""

    class Poisoning(METHODS["sit"]):
        steps = 0

        def edit_gradients(self, clip):
            self.steps += 1
            if self.steps == 8:
                next(p for p in clip.parameters() if p.grad is not None).grad.fill_(float("nan"))

    monkeypatch.setitem(METHODS, "poisoning", Poisoning)
    with pytest.raises(NotFinite):
        train(tiny.replace(method="poisoning"))


def test_impossible_streams_and_tuners_are_refused_before_training(tiny):
    with pytest.raises(ValueError, match="tasks=7"):
        train(tiny.replace(stream_args={"tasks": 7}))
    with pytest.raises(ValueError, match="rank=0"):
        train(tiny.replace(tuner_args={"rank": 0}))


def test_devices(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"


def test_a_stream_of_domains_has_a_column_for_each(monkeypatch, tiny, toy, tmp_path):
    from dataclasses import replace

    from conftest import benchmark_of

    from clstudy import load_or_train
    from clstudy.data.benchmarks import BENCHMARKS

    def painted():
        whole = toy().load()
        parts = [
            replace(part, domains=np.arange(len(part)) % 3, domain_names=("ink", "oil", "chalk"))
            for part in (whole.train, whole.test)
        ]
        return replace(whole, train=parts[0], test=parts[1])

    monkeypatch.setitem(BENCHMARKS, "painted", benchmark_of(painted))
    config = tiny.replace(benchmark="painted", stream="domains", stream_args={"order": "given"})
    run = load_or_train(config, runs=tmp_path)
    found = run.domains()
    assert found.index.tolist() == [0, 1, 2, 3] and set(found.columns) == {"ink", "oil", "chalk"}
    assert found.notna().all(axis=None) and run.evals.images_seen.max() == 60
    with pytest.raises(
            ValueError,
            match="stream='domains' needs images with domains; benchmark='toy' has none"):
        train(tiny.replace(stream="domains", stream_args={}))
