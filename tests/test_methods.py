"""Every method by name: a short run, finite, equal twice; the verbs in their order; and what each loss sees."""
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from clstudy.losses import match
from clstudy.methods import METHODS
from clstudy.train import train

TRAINED = sorted(set(METHODS) - {"frozen"})


def learn(config):
    """Evaluations, steps, and the final model."""
    kept = []
    evals, steps = train(config, keep=kept.append)
    return evals, steps, kept[0]


def values(rows: list[dict]) -> list[float]:
    return [row["value"] for row in rows]


# ---- short runs


@pytest.mark.parametrize("name", METHODS)
def test_a_short_run_is_finite_and_equal_twice(tiny, name):
    config = tiny.but(method=name, eval_every=16)
    evals, steps, clip = learn(config)
    again_evals, again_steps, again = learn(config)
    assert evals and np.isfinite(values(evals)).all() and np.isfinite(values(steps)).all()
    assert evals == again_evals and steps == again_steps
    for (key, one), (_, other) in zip(clip.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", METHODS)
def test_another_seed_gives_another_run_on_the_same_stream(tiny, name):
    config = tiny.but(method=name, stream_seed=0)
    evals, steps, _ = learn(config)
    other_evals, other_steps, _ = learn(config.but(seed=1))
    if name == "frozen":
        assert evals == other_evals and steps == other_steps == []
    else:
        assert values(steps) != values(other_steps)


@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_moves_the_model(tiny, name, tuner):
    starts, ends, config = {}, {}, tiny.but(method=name, tuner=tuner, lr=1e-3)
    train(config.but(lr=1e-30), keep=lambda clip: starts.update(clip.named_parameters()))
    train(config, keep=lambda clip: ends.update(clip.named_parameters()))
    free = [key for key, p in ends.items() if p.requires_grad and "token_embedding" not in key]
    moved = [key for key in ends if not torch.allclose(starts[key], ends[key], atol=1e-8, rtol=0)]
    assert free and set(free) <= set(moved)
    assert all(ends[key].requires_grad for key in moved)


@pytest.mark.parametrize("name", sorted(set(TRAINED) - {"finetune"}))
def test_a_method_at_its_defaults_is_not_fine_tuning(tiny, name):
    _, steps, _ = learn(tiny.but(method=name))
    _, plain, _ = learn(tiny.but(method="finetune"))
    assert values(steps) != values(plain)


def test_frozen_changes_nothing(tiny):
    evals, steps, clip = learn(tiny.but(method="frozen", tuner="none"))
    assert steps == [] and not any(p.requires_grad for p in clip.parameters())
    at = {stage: [row for row in evals if row["stage"] == stage and row["candidates"] in ("own", "all")]
          for stage in (0, 1, 2)}
    strip = [[(r["set"], r["candidates"], r["metric"], r["value"]) for r in rows] for rows in at.values()]
    assert strip[0] == strip[1] == strip[2]


# ---- which texts compete


def test_candidates_are_narrowed_in_their_order_and_targets_follow(batch):
    assert batch.classes == (0, 4, 5, 1, 3, 2) and batch.stage.classes == (5, 2)
    present, phase, some = batch.present(), batch.phase(), batch.among((2, 5, 0))
    assert present.classes == (0, 5, 2)  # those of the batch
    assert phase.classes == (0, 5, 2)  # at home in the stage, and 0, whose home is elsewhere but which is here
    assert replace(batch, labels=(5,) * 8).phase().classes == (5, 2)
    assert replace(batch, labels=(5,) * 8).present().classes == (5,)
    for narrowed in (batch, present, phase, some):
        assert [narrowed.classes[row] for row in narrowed.target.tolist()] == list(batch.labels)
        assert torch.equal(narrowed.text, batch.prompts[list(narrowed.classes)])
        assert torch.equal(narrowed.text[narrowed.target], batch.prompts[list(batch.labels)])
        assert narrowed.image is batch.image and narrowed.index == batch.index


def test_sit_is_the_asymmetric_loss_when_every_seen_class_is_present(clip, batch):
    every = batch.among((5, 0, 2))
    sit, plain = METHODS["sit"](), METHODS["finetune"]()
    assert torch.equal(sit.loss(clip, every)["task"], plain.loss(clip, every)["task"])
    assert sit.loss(clip, batch)["task"] < plain.loss(clip, batch)["task"]  # fewer texts compete
    assert torch.equal(sit.loss(clip, batch)["task"], sit.loss(clip, every.among((0, 5, 2)))["task"])


def test_the_losses_are_match_over_their_candidates(clip, batch):
    for name, candidates in (("finetune", batch), ("sit", batch.present())):
        image, text = clip.encode_image(batch.image), clip.encode_text(candidates.text)
        expected = match(image, text, clip.scale(), candidates.target)
        terms = METHODS[name]().loss(clip, batch)
        assert list(terms) == ["task"] and torch.equal(terms["task"], expected)


def word_gradients(clip, batch, name: str) -> torch.Tensor:
    """Norm of the gradient on the words of each class's prompt; no word is shared between classes."""
    clip.zero_grad()
    sum(METHODS[name]().loss(clip, batch).values()).backward()
    return clip.model.token_embedding.weight.grad[batch.prompts[:, 1:4]].norm(dim=-1).sum(-1)


def test_texts_of_absent_classes_are_not_in_sits_loss(clip, batch):
    absent, present = [1, 3, 4], [0, 2, 5]
    sit = word_gradients(clip, batch, "sit")
    assert (sit[absent] == 0).all() and (sit[present] > 0).all()
    assert (word_gradients(clip, batch, "finetune") > 0).all()


# ---- the seven verbs


@dataclass
class Recording:
    """A method that writes down how it is called."""

    calls: list = field(default_factory=list)

    def before_stage(self, clip, stage):
        self.calls.append(("before_stage", stage.number))

    def trainable(self, clip):
        self.calls.append(("trainable",))
        return [p for p in clip.parameters() if p.requires_grad]

    def loss(self, clip, batch):
        assert clip.training
        self.calls.append(("loss", batch))
        encoded = clip.encode(batch)
        return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target), "extra": 0 * encoded.scale}

    def edit_gradients(self, clip):
        assert any(p.grad is not None for p in clip.parameters())
        self.calls.append(("edit_gradients",))

    def after_step(self, clip, batch):
        self.calls.append(("after_step", batch))

    def after_stage(self, clip, batches):
        self.calls.append(("after_stage", list(batches)))

    def deploy(self, clip):
        self.calls.append(("deploy",))
        return clip


@pytest.fixture
def recorded(monkeypatch, tiny):
    """Calls of a run with three steps on each of four batches of two stages, and its tables."""
    method = Recording()
    monkeypatch.setitem(METHODS, "recording", lambda: method)
    evals, steps = train(tiny.but(method="recording", steps_per_batch=3, eval_every=20))
    return method.calls, evals, steps


def test_verbs_are_called_in_this_order_and_number(recorded):
    calls, _, steps = recorded
    one = ["loss", "edit_gradients"] * 3 + ["after_step"]
    expected = ["deploy"]
    for stage in (1, 2):
        expected += ["before_stage", "trainable"]
        for number in range(4):
            expected += one + (["deploy"] if number in looks_after(stage) else [])
        expected += ["after_stage", "deploy"]
    assert [call[0] for call in calls] == expected
    assert [call[1] for call in calls if call[0] == "before_stage"] == [1, 2]
    assert {row["term"] for row in steps} == {"task", "extra"} and len(steps) == 2 * 4 * 3 * 2


def looks_after(stage: int) -> list[int]:
    """Batches after which `images // 20` has grown; a stage is 30 images in batches of 8, 8, 8, 6."""
    ends = np.cumsum([8, 8, 8, 6]) + 30 * (stage - 1)
    starts = np.concatenate([[30 * (stage - 1)], ends[:-1]])
    return np.flatnonzero(starts // 20 < ends // 20).tolist()


def test_batches_bring_images_labels_and_candidates_in_order_of_arrival(recorded, toy, tiny):
    calls, _, _ = recorded
    benchmark, batches = toy(), [call[1] for call in calls if call[0] == "after_step"]
    seen = []
    for batch in batches:
        index = list(batch.index)
        assert batch.labels == tuple(benchmark.train.labels[index])
        assert torch.equal(batch.image, benchmark.train.images[index].float() / 255)  # as it came, not augmented
        seen += [label for label in dict.fromkeys(batch.labels) if label not in seen]
        assert batch.classes == tuple(seen)
        assert set(batch.labels) <= set(batch.stage.classes)
    assert sorted(i for batch in batches for i in batch.index) == list(range(60))


def test_each_step_sees_its_batch_under_a_fresh_augmentation(recorded):
    calls, _, _ = recorded
    losses = [call[1] for call in calls if call[0] == "loss"]
    for first, second, third in zip(losses[::3], losses[1::3], losses[2::3], strict=True):
        assert first.index == second.index == third.index
        assert not torch.equal(first.image, second.image) and not torch.equal(second.image, third.image)


def test_the_pass_after_a_stage_is_the_stage_once_without_augmentation(recorded, toy):
    calls, _, _ = recorded
    for number, (_, batches) in enumerate((call for call in calls if call[0] == "after_stage"), 1):
        assert all(batch.stage.number == number for batch in batches)
        assert [i for batch in batches for i in batch.index] == batches[0].stage.index.tolist()
        assert torch.equal(batches[0].image, toy().train.images[list(batches[0].index)].float() / 255)


def test_what_a_method_deploys_is_what_is_evaluated(monkeypatch, tiny):
    """A method that trains but deploys the model of the beginning: every accuracy of `all` stays that of row 0."""
    from copy import deepcopy

    class Conservative(Recording):
        start = None

        def deploy(self, clip):
            self.start = self.start or deepcopy(clip)
            return self.start

    monkeypatch.setitem(METHODS, "conservative", Conservative)
    kept = []
    evals, steps = train(tiny.but(method="conservative"), keep=kept.append)
    rows = {stage: [row["value"] for row in evals if row["stage"] == stage and row["candidates"] == "all"]
            for stage in (0, 1, 2)}
    assert rows[0] == rows[1] == rows[2] and steps
    assert all((p == 0).all() for name, p in kept[0].named_parameters() if "lora_B" in name)


def test_a_method_may_free_a_tower_that_the_tuner_froze(monkeypatch, tiny):
    """What it trains is what is evaluated, also where evaluation keeps features of a tower that does not move."""
    from clstudy.evaluate import evaluate
    from clstudy.train import prepare

    class Freeing(Recording):
        def trainable(self, clip):
            return [p.requires_grad_() for _, p in clip.tower("text")]

    monkeypatch.setitem(METHODS, "freeing", Freeing)
    config, kept = tiny.but(method="freeing", tower="image", lr=1e-2), []
    evals, _ = train(config, keep=kept.append)
    _, benchmark, stages = prepare(config)
    fresh = evaluate(kept[0], benchmark, [stage.classes for stage in stages], range(6))
    last = [{key: row[key] for key in fresh[0]} for row in evals if row["stage"] == 2]
    assert last == fresh
