"""Every method by name: a short run, finite, equal twice; the verbs in their order; what each loss
sees; its limits."""
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from small_runs import register, train
from torch.nn.utils import parameters_to_vector

from clstudy.losses.functional import match
from clstudy.methods import METHODS
from clstudy.methods.base import Method
from clstudy.models.tuners import TUNERS

SMALL = {"ranpac": {"width": 40}}  # options that spare time
TRAINED = sorted(name for name, kind in METHODS.items() if kind().trains)


def of(config, method: str, **changes):
    """The run with this method; where the method is made for a tuner, with that one."""
    needs = METHODS[method].needs_tuner
    if needs:
        changes |= {"tuner": needs, "tower": TUNERS[needs].towers[-1]}
    return config.replace(method=method, method_args=SMALL.get(method, {}), **changes)


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
    config = of(tiny, name, eval_every=16)
    evals, steps, clip = learn(config)
    again_evals, again_steps, again = learn(config)
    assert evals and np.isfinite(values(evals)).all() and np.isfinite(values(steps)).all()
    assert evals == again_evals and steps == again_steps
    for (key, one), (_, other) in zip(clip.state_dict().items(),
                                      again.state_dict().items(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", METHODS)
def test_another_seed_gives_another_run_on_the_same_stream(tiny, name):
    config = of(tiny, name, stream_seed=0)
    evals, steps, _ = learn(config)
    other_evals, other_steps, _ = learn(config.replace(seed=1))
    if name not in TRAINED:
        assert evals == other_evals or name == "ranpac"  # which draws its projection
        assert steps == other_steps == []
    else:
        assert values(steps) != values(other_steps)


@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_moves_the_model(tiny, name, tuner):
    starts, ends, config = {}, {}, of(tiny, name, tuner=tuner, lr=1e-3)
    train(config.replace(lr=1e-30), keep=lambda clip: starts.update(clip.named_parameters()))
    train(config, keep=lambda clip: ends.update(clip.named_parameters()))
    free = [key for key, p in ends.items() if p.requires_grad and "token_embedding" not in key]
    moved = [key for key in ends if not torch.allclose(starts[key], ends[key], atol=1e-8, rtol=0)]
    if config.tuner == tuner:  # of a pool only the prompts that were chosen move
        assert set(free) <= set(moved)
    assert free and moved
    assert all(ends[key].requires_grad for key in moved)


@pytest.mark.parametrize("name", sorted(set(TRAINED) - {"finetune"}))
def test_a_method_at_its_defaults_is_not_fine_tuning(tiny, name):
    config = of(tiny, name)
    ends = [parameters_to_vector([p for p in learn(run)[2].parameters() if p.requires_grad])
            for run in (config, config.replace(method="finetune"))]
    assert (ends[0] - ends[1]).abs().max() > 1e-4  # a hundredth of one step


def test_frozen_changes_nothing(tiny):
    evals, steps, clip = learn(tiny.replace(method="frozen", tuner="none"))
    assert steps == [] and not any(p.requires_grad for p in clip.parameters())
    rows = [row for row in evals if row["candidates"] in ("own", "all")]
    strip = [[(r["set"], r["candidates"], r["metric"], r["value"])
              for r in rows if r["stage"] == stage] for stage in (0, 1, 2)]
    assert strip[0] == strip[1] == strip[2]


# ---- which texts compete


def test_candidates_are_narrowed_in_their_order_and_targets_follow(batch):
    assert batch.classes == (0, 4, 5, 1, 3, 2) and batch.stage.classes == (5, 2)
    present, phase, some = batch.present(), batch.phase(), batch.among((2, 5, 0))
    assert present.classes == (0, 5, 2)  # those of the batch
    assert phase.classes == (0, 5, 2)  # at home in the stage, and 0, which is here
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
    reordered = every.among((0, 5, 2))
    assert torch.equal(sit.loss(clip, batch)["task"], sit.loss(clip, reordered)["task"])


def test_the_losses_are_match_over_their_candidates(clip, batch):
    for name, candidates in (("finetune", batch), ("sit", batch.present())):
        image, text = clip.encode_image(batch.image), clip.encode_text(candidates.text)
        expected = match(image, text, clip.scale(), candidates.target)
        terms = METHODS[name]().loss(clip, batch)
        assert list(terms) == ["task"] and torch.equal(terms["task"], expected)


def word_gradients(clip, batch, name: str, **options) -> torch.Tensor:
    """Norm of the gradient on the words of each class's prompt; no word is shared between
    classes."""
    clip.zero_grad()
    sum(METHODS[name](**options).loss(clip, batch).values()).backward()
    return clip.model.token_embedding.weight.grad[batch.prompts[:, 1:4]].norm(dim=-1).sum(-1)


def test_texts_of_absent_classes_are_not_in_sits_loss(clip, batch):
    absent, present = [1, 3, 4], [0, 2, 5]
    sit = word_gradients(clip, batch, "sit")
    assert (sit[absent] == 0).all() and (sit[present] > 0).all()
    assert (word_gradients(clip, batch, "finetune") > 0).all()


def test_absent_texts_can_compete_without_a_gradient(clip, batch):
    absent, present = [1, 3, 4], [0, 2, 5]
    felt = {push: word_gradients(clip, batch, "finetune", absent_push=push)
            for push in ("both", "image", "text", "none")}
    for push in ("image", "none"):
        assert (felt[push][absent] == 0).all()
    assert torch.allclose(felt["text"], felt["both"])
    assert all(torch.allclose(one[present], felt["both"][present]) for one in felt.values())
    sit = word_gradients(clip, batch, "finetune", absent_push="image", absent_competes=False)
    assert torch.allclose(sit, word_gradients(clip, batch, "sit"))
    for options in ({"absent_competes": False}, {"absent_push": "none", "double_softmax": True}):
        with pytest.raises(ValueError, match="absent_push"):
            METHODS["finetune"](**options)


# ---- the verbs


@dataclass
class Recording(Method):
    """A method that writes down how it is called."""

    calls: list = field(default_factory=list, init=False)

    def before_stage(self, clip, stage, batches):
        self.calls.append(("before_stage", stage.number, list(batches)))

    def trainable(self, clip):
        self.calls.append(("trainable",))
        return [p for p in clip.parameters() if p.requires_grad]

    def rehearse(self, clip, batch):
        self.calls.append(("rehearse", batch))
        return batch.join(batch.image[:2], batch.labels[:2], batch.index[:2])

    def loss(self, clip, batch):
        assert clip.training
        self.calls.append(("loss", batch))
        encoded = clip.encode(batch)
        return {
            "task": match(encoded.image, encoded.text, encoded.scale, batch.target),
            "extra": 0 * encoded.scale
        }

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
    register(monkeypatch, "recording", method)
    evals, steps = train(tiny.replace(method="recording", steps_per_batch=3, eval_every=20))
    return method.calls, evals, steps


def test_verbs_are_called_in_this_order_and_number(recorded):
    calls, _, steps = recorded
    one = ["rehearse", "loss", "edit_gradients"] * 3 + ["after_step"]
    expected = ["deploy"]
    for stage in (1, 2):
        expected += ["before_stage", "trainable"]
        for number in range(4):
            expected += one + (["deploy"] if number in looks_after(stage) else [])
        expected += ["after_stage", "deploy"]
    expected += ["deploy"]  # the model that `train` returns
    assert [call[0] for call in calls] == expected
    assert [call[1] for call in calls if call[0] == "before_stage"] == [1, 2]
    assert {row["term"] for row in steps} == {"task", "extra"} and len(steps) == 2 * 4 * 3 * 2


def looks_after(stage: int) -> list[int]:
    """Batches after which `images // 20` has grown; a stage is 30 images in batches of 8, 8, 8,
    6."""
    ends = np.cumsum([8, 8, 8, 6]) + 30 * (stage - 1)
    starts = np.concatenate([[30 * (stage - 1)], ends[:-1]])
    return np.flatnonzero(starts // 20 < ends // 20).tolist()


def test_batches_bring_images_labels_and_candidates_in_order_of_arrival(recorded, toy, tiny):
    calls, _, _ = recorded
    benchmark, batches = toy().load(), [call[1] for call in calls if call[0] == "after_step"]
    seen = []
    for batch in batches:
        index = list(batch.index)
        assert batch.labels == tuple(benchmark.train.labels[index])
        assert torch.equal(batch.image,
                           benchmark.train.images[index].float() / 255)  # as it came, not augmented
        seen += [label for label in dict.fromkeys(batch.labels) if label not in seen]
        assert batch.classes == tuple(seen)
        assert set(batch.labels) <= set(batch.stage.classes)
    assert sorted(i for batch in batches for i in batch.index) == list(range(60))


def test_each_step_sees_its_batch_under_a_fresh_augmentation(recorded):
    calls, _, _ = recorded
    losses = [call[1] for call in calls if call[0] == "loss"]
    for first, second, third in zip(losses[::3], losses[1::3], losses[2::3], strict=True):
        assert first.index == second.index == third.index
        assert not torch.equal(first.image, second.image)
        assert not torch.equal(second.image, third.image)


def test_what_a_memory_joins_is_augmented_and_not_in_the_stream(recorded):
    calls, _, _ = recorded
    offered, losses = ([call[1] for call in calls if call[0] == name]
                       for name in ("rehearse", "loss"))
    after = [call[1] for call in calls if call[0] == "after_step"]
    lasts = [batch for batch in after for _ in range(3)]
    for before, batch, last in zip(offered, losses, lasts, strict=True):
        assert before.replayed == 0 and before.index == batch.index[:-2]
        assert last is before
        assert batch.replayed == 2 and batch.labels[-2:] == batch.labels[:2] == before.labels[:2]
        assert not torch.equal(batch.image[-2:], batch.image[:2])  # augmented one by one


def test_the_pass_after_a_stage_is_the_stage_once_without_augmentation(recorded, toy):
    calls, _, _ = recorded
    for number, (_, batches) in enumerate((call for call in calls if call[0] == "after_stage"), 1):
        assert all(batch.stage.number == number for batch in batches)
        assert [i for batch in batches for i in batch.index] == batches[0].stage.index.tolist()
        assert torch.equal(batches[0].image,
                           toy().load().train.images[list(batches[0].index)].float() / 255)


def test_what_a_method_deploys_is_what_is_evaluated(monkeypatch, tiny):
    """A method that trains but deploys the model of the beginning: every accuracy of `all` stays
    that of row 0."""
    class Conservative(Recording):
        start = None

        def deploy(self, clip):
            self.start = self.start or deepcopy(clip)
            return self.start

    monkeypatch.setitem(METHODS, "conservative", Conservative)
    kept = []
    evals, steps = train(tiny.replace(method="conservative"), keep=kept.append)
    rows = {
        stage: [
            row["value"] for row in evals if row["stage"] == stage and row["candidates"] == "all"
        ] for stage in (0, 1, 2)
    }
    assert rows[0] == rows[1] == rows[2] and steps
    assert all((p == 0).all() for name, p in kept[0].named_parameters() if "lora_B" in name)


def test_a_method_may_free_a_tower_that_the_tuner_froze(monkeypatch, tiny):
    """What it trains is what is evaluated, also where evaluation keeps features of a tower that
    does not move."""
    from clstudy.evaluation.accuracy import evaluate
    from clstudy.training.setup import prepare

    class Freeing(Recording):
        def trainable(self, clip):
            return [p.requires_grad_() for _, p in clip.tower("text")]

    monkeypatch.setitem(METHODS, "freeing", Freeing)
    config, kept = tiny.replace(method="freeing", tower="image", lr=1e-2), []
    evals, _ = train(config, keep=kept.append)
    _, benchmark, stages = prepare(config)
    fresh = evaluate(kept[0], benchmark, [stage.classes for stage in stages], range(6)).rows
    last = [{key: row[key] for key in fresh[0]} for row in evals if row["stage"] == 2]
    assert last == fresh


# ---- memories, teachers, anchors: limits, and each term by hand


def weights(clip) -> torch.Tensor:
    return parameters_to_vector([p for p in clip.parameters() if p.requires_grad]).detach()


def watched(monkeypatch, tiny, method, **changes) -> list:
    """Run with this method object; the batches that its loss saw."""
    batches, loss = [], method.loss
    method.loss = lambda clip, batch: batches.append(batch) or loss(clip, batch)
    register(monkeypatch, "watched", method)
    train(tiny.replace(method="watched", **changes))
    return batches


@pytest.mark.parametrize(("name", "args", "limit"), [
    ("er", {"size": 0}, "finetune"),
    ("er", {"replay": 0}, "finetune"),
    ("derpp", {"size": 0}, "finetune"),
    ("derpp", {"replay": 0}, "finetune"),
    ("lwf", {"weight": 0}, "finetune"),
    ("vr_lwf", {"weight": 0}, "finetune"),
    ("geodl", {"weight": 0}, "finetune"),
    ("ewc", {"weight": 0}, "finetune"),
    ("ewc", {"weight": 0, "streaming": 0.9}, "finetune"),
    ("imm", {"alpha": 1}, "finetune"),
    ("imm", {"alpha": 1, "mode": "mode", "carry": False}, "finetune"),
    ("wise_ft", {"alpha": 1}, "finetune"),
    ("zscl", {"weight": 0, "average_every": 0}, "finetune"),
    ("agem", {"replay": 0}, "finetune"),
    ("sit", {"size": 0, "replay": 9}, "sit"),
    ("sit", {"size": 9, "replay": 0}, "sit"),
    ("finetune", {"double_softmax": False}, "finetune"),
])
def test_a_method_without_its_term_is_another_one_exactly(tiny, name, args, limit):
    _, steps, clip = learn(tiny.replace(method=name, method_args=args, steps_per_batch=2))
    _, plain, other = learn(tiny.replace(method=limit, steps_per_batch=2))
    assert [row for row in steps if row["term"] == "task"] == plain
    assert torch.equal(weights(clip), weights(other))
    assert all(row["value"] == 0 for row in steps if row["term"] != "task")


@pytest.mark.parametrize(("name", "args", "message"), [
    ("er", {"replay": -1}, "replay=-1: must be at least 0"),
    ("er", {"size": -5}, "size=-5: must be at least 0"),
    ("er", {"policy": "fifo"}, "policy='fifo' is unknown. Choices: balanced, quota, reservoir"),
    ("sit", {"replay": -1}, "replay=-1: must be at least 0"),
    ("derpp", {"alpha": -0.1}, "alpha=-0.1: must be at least 0"),
    ("derpp", {"temperature": 0}, "temperature=0: must be above 0"),
    ("clib", {"size": 0}, "size=0: must be at least 1"),
    ("clib", {"replay": 0}, "replay=0: must be a whole number, at least 1, or None"),
    ("clib", {"decay": 1}, "decay=1: must be from 0 to below 1"),
    ("lwf", {"weight": -1}, "weight=-1: must be at least 0"),
    ("geodl", {"weight": -1}, "weight=-1: must be at least 0"),
    ("geodl", {"candidates": "all"}, "candidates='all' is unknown. Choices: batch, phase, seen"),
    ("lwf", {"temperature": 0}, "temperature=0: must be above 0"),
    ("lwf", {"candidates": "all"}, "candidates='all' is unknown"),
    ("finetune", {"candidates": "all"}, "candidates='all' is unknown"),
    ("gcl", {"gamma": 0}, "gamma=0: must be above 0"),
    ("gcl", {"selection": "best"}, "selection='best' is unknown"),
    ("gcl", {"replay": -1}, "replay=-1: must be at least 0"),
    ("gdro", {"robust": "max"}, "robust='max' is unknown"),
    ("gdro", {"cap": 0}, "cap=0: must be above 0"),
    ("clip_loss", {"replay": -1}, "replay=-1: must be at least 0"),
    ("vr_lwf", {"weight": -1}, "weight=-1: must be at least 0"),
    ("vr_lwf", {"temperature": 0.0}, "temperature=0.0: must be a number, above 0, or None"),
    ("vr_lwf", {"form": "offical"}, "form='offical' is unknown. Did you mean official?"),
    ("vr_lwf", {"size": 0}, "size=0: must be a whole number, at least 1, or None"),
    ("vr_lwf", {"length": 0}, "length=0: must be a whole number, at least 1, or None"),
    ("vr_lwf", {"candidates": "all"}, "candidates='all' is unknown"),
    ("ewc", {"gamma": 1.5}, "gamma=1.5: must be from 0 to 1"),
    ("ewc", {"draws": 0}, "draws=0: must be at least 1"),
    ("imm", {"alpha": 1.1}, "alpha=1.1: must be from 0 to 1"),
    ("imm", {"mode": "median"}, "mode='median' is unknown. Did you mean mean"),
    ("imm", {"draws": 0}, "draws=0: must be at least 1"),
    ("imm", {"candidates": "all"}, "candidates='all' is unknown"),
    ("wise_ft", {"alpha": -0.1}, "alpha=-0.1: must be from 0 to 1"),
    ("wise_ft", {"candidates": "all"}, "candidates='all' is unknown"),
    ("zscl", {"weight": -1}, "weight=-1: must be at least 0"),
    ("zscl", {"anchor": -1}, "anchor=-1: must be at least 0"),
    ("zscl", {"average_every": -1}, "average_every=-1: must be at least 0"),
    ("zscl", {"temperature": 0}, "temperature=0: must be above 0"),
    ("zscl", {"references": 1}, "references=1: must be at least 2"),
    ("zscl", {"candidates": "all"}, "candidates='all' is unknown"),
    ("agem", {"replay": -1}, "replay=-1: must be at least 0"),
    ("agem", {"size": -1}, "size=-1: must be at least 0"),
    ("agem", {"candidates": "all"}, "candidates='all' is unknown"),
    ("ewc", {"memory": 3}, "method_args: 'memory' is unknown"),
])
def test_impossible_settings_are_refused_before_anything_is_loaded(tiny, name, args, message):
    with pytest.raises(ValueError, match=message):
        tiny.replace(method=name, method_args=args)


@pytest.mark.parametrize("name", ["finetune", "sit"])
def test_double_softmax_is_the_loss_of_the_released_code(clip, batch, name):
    candidates = batch if name == "finetune" else batch.present()
    p = (clip.scale() * clip.encode_image(batch.image)
         @ clip.encode_text(candidates.text).T).softmax(-1)
    expected = -p.log_softmax(-1)[range(8), candidates.target].mean()
    found = METHODS[name](double_softmax=True).loss(clip, batch)["task"]
    assert torch.allclose(
        found, expected) and not torch.allclose(found, METHODS[name]().loss(clip, batch)["task"])


# replay


@pytest.mark.parametrize("name", ["er", "sit"])
def test_replay_joins_images_of_before_to_every_step(monkeypatch, tiny, toy, name):
    method = METHODS[name](size=10, replay=5)
    batches = watched(monkeypatch, tiny, method, steps_per_batch=2, augmentation="none")
    assert [batch.replayed for batch in batches] == [0, 0] + [5] * 14
    earlier, images = set(), toy().load().train.images
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        for batch in (first, second):
            old = batch.index[len(batch.index) - batch.replayed:]
            assert set(old) <= earlier and len(set(old)) == batch.replayed
            assert torch.equal(batch.image, images[list(batch.index)].float() / 255)
            assert batch.labels == tuple(toy().load().train.labels[list(batch.index)])
        assert first is batches[0] or first.index != second.index  # drawn anew for each step
        earlier.update(first.index)
    assert len(method.memory) == 10 and len(method.memory.arrived) == 60


def test_the_policy_of_a_memory_is_an_option():
    assert METHODS["er"]().memory.policy == METHODS["sit"]().memory.policy == "reservoir"
    assert METHODS["er"](policy="balanced").memory.policy == "balanced"


def test_replay_is_one_mean_over_all_classes_seen(clip, batch):
    joined = batch.join(batch.image[:3] / 2, (4, 1, 3), (20, 21, 22))
    z = clip.scale() * clip.encode_image(joined.image) @ clip.encode_text(batch.text).T
    expected = -sum(z[i].log_softmax(-1)[batch.classes.index(label)]
                    for i, label in enumerate(joined.labels)) / 11
    assert torch.allclose(METHODS["er"]().loss(clip, joined)["task"], expected)


def test_sit_with_a_memory_stays_symmetric(clip, batch):
    """The candidates are the classes of stream and memory; if these are all seen, it is plain
    replay."""
    sit = METHODS["sit"](size=20, replay=20)
    sit.after_step(clip, replace(batch, labels=(0,) * 8))
    new = replace(batch, labels=(5,) * 8, index=tuple(range(8, 16)))
    joined = sit.rehearse(clip, new)
    assert joined.replayed == 8 and set(joined.labels) == {0, 5} and joined.classes == batch.classes
    two, six = (METHODS["er"]().loss(clip, joined.among(classes))["task"]
                for classes in ((0, 5), batch.classes))
    assert torch.equal(sit.loss(clip, joined)["task"], two) and two < six
    every = joined.among((5, 0))
    assert torch.equal(sit.loss(clip, every)["task"], METHODS["er"]().loss(clip, every)["task"])


# DER++


def shaken(clip, seed: int = 0):
    """The same model with other weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in clip.parameters():
            if p.ndim > 1:
                p.add_(0.1 * p.std() * torch.randn(p.shape, generator=generator))
    return clip


def test_the_terms_of_derpp_by_hand(clip, batch):
    """Logits on the first draw, over the classes seen when they were stored; labels on the second,
    over all."""
    method = METHODS["derpp"](replay=3, alpha=0.7, beta=0.3, temperature=0.2)
    few = batch.among((5, 0, 2))
    flipped = replace(few, image=few.image.flip(0))
    assert list(method.loss(clip, flipped)) == ["task"]  # a step before
    method.loss(clip, few)
    method.after_step(clip, few)
    stored = (clip.encode_image(few.image) @ clip.encode_text(few.text).T).detach() / 0.2
    shaken(clip)
    new = replace(batch, image=batch.image / 2, index=tuple(range(8, 16))).among((5, 0, 1, 2))
    joined = method.rehearse(clip, new)
    assert joined.replayed == 6 and set(joined.index[8:]) <= set(range(8))
    terms = method.loss(clip, joined)
    cosine = (clip.encode_image(joined.image) @ clip.encode_text(joined.text).T).detach()
    log_p = (clip.scale() * cosine).log_softmax(-1).detach()
    total = sum(
        float(cosine[row, new.classes.index(label)] / 0.2
              - stored[image, few.classes.index(label)])**2
        for row, image in zip((8, 9, 10), joined.index[8:11], strict=True) for label in (5, 0, 2))
    ce = [-float(log_p[row, new.classes.index(label)]) for row, label in enumerate(joined.labels)]
    assert set(terms) == {"task", "logits", "replay"} and total > 1e-3
    assert terms["logits"].item() == pytest.approx(0.7 * total / 9, rel=1e-4)
    assert terms["replay"].item() == pytest.approx(0.3 * np.mean(ce[11:]), rel=1e-5)
    assert terms["task"].item() == pytest.approx(np.mean(ce[:8]), rel=1e-5)


def test_an_unchanged_model_has_no_logits_term(clip, batch):
    batch = replace(batch, image=(batch.image * 255).round() / 255)  # as it is stored
    method = METHODS["derpp"]()
    method.loss(clip, batch)
    method.after_step(clip, batch)
    terms = method.loss(clip, method.rehearse(clip, batch))
    assert terms["logits"].item() == pytest.approx(0, abs=1e-9)


def test_derpp_keeps_what_the_model_said_at_the_last_step(monkeypatch, tiny):
    """One row per image kept, NaN for the classes that had not arrived."""
    method = METHODS["derpp"](size=12, replay=4)
    batches = watched(monkeypatch, tiny, method, steps_per_batch=2)
    logits = method.memory.extra["logits"]
    assert logits.shape == (12, 6) and [batch.replayed for batch in batches] == [0, 0] + [8] * 14
    seen_at = {i: set(batch.classes) for batch in batches[::2]
               for i in batch.index[:len(batch.index) - batch.replayed]}
    for image, row in zip(method.memory.index, logits, strict=True):
        assert {k for k in range(6) if not row[k].isnan()} == seen_at[image]


# CLIB


def test_clib_trains_on_its_memory_only(monkeypatch, tiny):
    method = METHODS["clib"](size=12)
    batches = watched(monkeypatch, tiny, method)
    assert all(batch.replayed == len(batch.index) == len(batch.image) for batch in batches)
    assert [len(batch.index) for batch in batches] == [8, 8, 8, 6] * 2  # as many as arrived
    arrived = [i for stage in (batches[0].stage, batches[-1].stage) for i in stage.index.tolist()]
    for number, batch in enumerate(batches):
        so_far = sum(len(b.index) for b in batches[:number + 1])
        assert set(batch.index) <= set(arrived[:so_far])
        assert len(set(batch.index)) == len(batch.index)
    assert sorted(np.bincount(method.memory.labels, minlength=6)) == [2] * 6
    assert set(method.importance) == set(method.memory.index) and any(method.importance.values())


def test_the_importance_of_an_image_by_hand(monkeypatch, clip, batch):
    """ρ H + (1 − ρ)(ℓ − ℓ') for what was drawn in between; a new image starts with the mean of its
    class."""
    losses = iter([5.0, 3.0, 4.0, 4.4, 9.0])  # from 5 to 3 on one draw, from 4 to 4.4 on the next
    monkeypatch.setattr("clstudy.methods.clib.loss_of",
                        lambda clip, batch: torch.tensor(next(losses)))
    method = METHODS["clib"](size=24, replay=3, every=2, decay=0.75)
    drawn = set(method.rehearse(clip, batch).index) | set(method.rehearse(clip, batch).index)
    assert method.importance == dict.fromkeys(range(8), 0.0) and 3 <= len(drawn) <= 6
    new = replace(batch, index=tuple(range(8, 16)), labels=(2, 5, 1, 0, 2, 2, 0, 5))
    again = set(method.rehearse(clip, new).index)
    found = {i: 0.25 * 2.0 if i in drawn else 0.0 for i in range(8)}
    assert {i: method.importance[i] for i in range(8)} == found
    for i, label in zip(new.index, new.labels, strict=True):
        mates = [found[j]
                 for j, other in enumerate(batch.labels) if other == label] or list(found.values())
        assert method.importance[i] == pytest.approx(np.mean(mates))
    assert 0 < np.mean(list(found.values())) < 0.5
    again |= set(method.rehearse(clip, new).index)
    before = dict(method.importance)
    method.rehearse(clip, replace(batch, index=tuple(range(16, 24))))
    for i in range(16):
        expected = 0.75 * before[i] - 0.25 * 0.4 if i in again else before[i]
        assert method.importance[i] == pytest.approx(expected)


def test_the_least_important_image_leaves_clibs_memory(clip, batch):
    method = METHODS["clib"](size=8)
    method.rehearse(clip, batch)  # labels 2 5 5 0 2 2 0 5
    method.importance = {i: float(value) for i, value in enumerate([3, 1, 2, 9, -4, 5, 8, 7])}
    method.rehearse(clip, replace(batch, image=batch.image[:2], labels=(0, 1), index=(30, 31)))
    assert set(method.memory.index) == {0, 2, 3, 5, 6, 7, 30, 31}  # of 2 went 4, of 5 went 1
    assert set(method.importance) == set(method.memory.index)


def test_a_look_at_the_memory_changes_nothing(clip, batch):
    from clstudy.methods.clib import loss_of

    clip.train()
    found = loss_of(clip, batch)
    assert clip.training and not found.requires_grad
    assert torch.equal(found, METHODS["finetune"]().loss(clip, batch)["task"])


# LwF


def test_distillation_starts_at_zero_in_each_stage_and_grows(tiny):
    _, steps, _ = learn(tiny.replace(method="lwf"))
    for stage in (1, 2):
        rows = [row["value"] for row in steps if row["stage"] == stage and row["term"] == "distil"]
        assert abs(rows[0]) < 1e-6 < 1e-4 < max(rows)


def test_the_teacher_is_the_model_at_the_start_of_the_stage(monkeypatch, tiny):
    method, starts = METHODS["lwf"](), []
    before = method.before_stage
    method.before_stage = lambda clip, *stage: starts.append(weights(clip)) or before(clip, *stage)
    watched(monkeypatch, tiny, method)
    taught = parameters_to_vector([p for n, p in method.teacher.named_parameters() if "lora_" in n])
    assert torch.equal(taught, starts[1]) and not torch.equal(*starts)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_distillation_is_over_all_classes_seen_with_each_models_own_texts(clip, batch):
    method = METHODS["lwf"](weight=0.3, temperature=2.0)
    method.before_stage(clip, batch.stage)
    old = (clip.scale() * clip.encode_image(batch.image) @ clip.encode_text(batch.text).T).detach()
    shaken(clip)
    new = (clip.scale() * clip.encode_image(batch.image) @ clip.encode_text(batch.text).T).detach()
    total = 0.0
    for i in range(8):
        q, p = (new[i] / 2).log_softmax(-1), (old[i] / 2).log_softmax(-1)
        total += sum(float(p[k].exp() * (p[k] - q[k])) for k in range(6)) / 8
    terms = method.loss(clip, batch)
    assert terms["distil"].item() == pytest.approx(0.3 * 4 * total, rel=1e-4) and total > 1e-4
    terms["distil"].backward()
    assert clip.model.visual.proj.grad.abs().max() > 0
    assert clip.model.token_embedding.weight.grad.abs().max() > 0


def test_the_teachers_texts_are_kept_while_the_candidates_are_the_same(clip, batch):
    method = METHODS["lwf"]()
    method.before_stage(clip, batch.stage)
    first = method.taught(batch)
    text = method.texts[batch.classes]
    assert torch.equal(method.taught(batch), first) and method.texts[batch.classes] is text
    few = batch.among((2, 5))
    assert torch.equal(method.taught(few),
                       clip.scale() * clip.encode_image(few.image) @ clip.encode_text(few.text).T)
    method.taught(batch)
    method.before_stage(shaken(clip), batch.stage)  # another teacher, the same candidates
    fresh = clip.scale() * clip.encode_image(batch.image) @ clip.encode_text(batch.text).T
    assert torch.equal(method.taught(batch), fresh) and not torch.equal(fresh, first)


# EWC


def test_the_fisher_decays_and_each_stage_counts_the_same(monkeypatch, tiny):
    method = METHODS["ewc"](gamma=0.6)
    after, seen = method.after_stage, []

    def watch(clip, batches):
        after(clip, batches)
        seen.append((method.fisher.clone(), method.anchor.clone(), weights(clip)))

    method.after_stage = watch
    watched(monkeypatch, tiny, method, stream_args={"tasks": 3})
    means = [fisher.mean().item() for fisher, _, _ in seen]
    assert means == pytest.approx([1, 1.6, 1 + 0.6 * 1.6], rel=1e-4)
    for fisher, anchor, end in seen:
        assert (fisher >= 0).all() and fisher.std() > 0.5 and torch.equal(anchor, end)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_penalty_by_hand(clip, batch):
    method = METHODS["ewc"](weight=3.0)
    method.after_stage(clip, [batch])
    assert method.loss(clip, batch)["penalty"].item() == 0
    before = [p.detach().clone() for p in clip.parameters()]
    shaken(clip)
    pairs = zip(clip.parameters(), before, strict=True)
    moved = torch.cat([(p - q).flatten() for p, q in pairs]).double()
    expected = 1.5 * float((method.fisher.double() * moved**2).sum())
    penalty = method.loss(clip, batch)["penalty"].item()
    assert penalty == pytest.approx(expected, rel=1e-4) and expected > 0
    assert list(METHODS["ewc"]().loss(clip, batch)) == ["task"]  # no anchor yet


def test_a_stage_without_images_leaves_the_anchor(clip, batch):
    method = METHODS["ewc"]()
    method.after_stage(clip, [batch])
    fisher, anchor = method.fisher, method.anchor
    method.after_stage(shaken(clip), [])
    assert method.fisher is fisher and method.anchor is anchor


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_consolidated_weights_stay_nearer_to_where_they_were(monkeypatch, tiny, tuner):
    """From the end of the first stage, which is the same for both, to the end of the second; most
    where F is large."""
    config = tiny.replace(tuner=tuner, lr=1e-2 if tuner == "lora" else 1e-3, steps_per_batch=3)
    moved, starts, fishers = {}, {}, []
    for name in ("ewc", "finetune"):
        method, at = METHODS[name](), starts.setdefault(name, [])
        method.before_stage = lambda clip, *_, method=method, at=at: (
            at.append(weights(clip)), fishers.append(getattr(method, "fisher", None)))
        register(monkeypatch, "watched", method)
        _, steps, clip = learn(config.replace(method="watched"))
        moved[name] = weights(clip) - at[1]
        penalty = [row["value"] for row in steps if row["term"] == "penalty"]
        assert (len(penalty) == 12 and max(penalty) > 0.01) if name == "ewc" else not penalty
    assert torch.equal(starts["ewc"][1], starts["finetune"][1])
    fisher = fishers[1]
    weighted = {name: float((fisher * m**2).sum()) for name, m in moved.items()}
    assert moved["ewc"].norm() < moved["finetune"].norm()
    assert weighted["ewc"] < 0.5 * weighted["finetune"]


def test_the_start_can_be_an_anchor(tiny):
    _, steps, _ = learn(tiny.replace(method="ewc", method_args={"anchor_start": True}))
    penalty = [row["value"] for row in steps if row["term"] == "penalty" and row["stage"] == 1]
    assert penalty[0] == 0 and len(penalty) == 4 and max(penalty) > 0


# ---- one session and several (VR-LwF, arXiv 2207.09248): every method with every tuner


@pytest.mark.parametrize("tuner", ["full", "lora", "adapter", "prompts", "rescale"])
@pytest.mark.parametrize("name", ["finetune", "lwf", "vr_lwf", "geodl", "imm", "wise_ft", "zscl", "agem", "ewc"])
def test_a_method_runs_in_one_session_and_in_several_with_every_tuner(tiny, name, tuner):
    point = tiny.replace(method=name, method_args={"candidates": "phase"}, tuner=tuner, lr=1e-3,
                         epochs=2, benchmark_args={"images": 4})
    for stream, stages in (("joint", 1), ("disjoint", 2)):
        options = {"tasks": 2} if stages == 2 else {}
        evals, steps, _ = learn(point.replace(stream=stream, stream_args=options))
        assert np.isfinite(values(evals)).all() and np.isfinite(values(steps)).all()
        assert max(row["stage"] for row in evals) == stages
        assert {row["stage"] for row in steps} == set(range(1, stages + 1))
        assert {"task 1", "shades", "drawings: image to text"} <= {row["set"] for row in evals}
