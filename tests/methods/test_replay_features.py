"""Replay in feature space, and SLCA: limits, terms by hand, what moves."""
from dataclasses import replace

import pytest
import torch
from small_runs import register, train
from torch.nn.utils import parameters_to_vector

from clstudy.losses.functional import match
from clstudy.methods import METHODS
from clstudy.training.setup import prepare


def ends(config) -> torch.Tensor:
    """The tuned weights at the end of a run."""
    kept = []
    train(config, keep=kept.append)
    return parameters_to_vector([p for p in kept[0].parameters() if p.requires_grad]).detach()


@pytest.mark.parametrize(("tower", "name", "args"), [
    ("both", "replay_features", {"count": 0}),
    ("image", "replay_features", {}),  # constants teach no image tower
    ("both", "slca", {"count": 0, "slow": 1.0, "candidates": "seen"}),
    ("text", "slca", {"count": 0, "candidates": "seen"})])
def test_limits_are_fine_tuning_exactly(tiny, tower, name, args):
    config = tiny.replace(tower=tower, benchmark_args={"images": 4})
    assert torch.equal(ends(config.replace(method=name, method_args=args)),
                       ends(config.replace(method="finetune")))


@pytest.mark.parametrize("covariance", ["diagonal", "full", "laplace"])
def test_the_replay_by_hand(clip, batch, covariance):
    """Over all classes seen, whatever competes in the task; it teaches the texts alone."""
    method = METHODS["replay_features"](count=5, weight=0.3, covariance=covariance,
                                        candidates="phase")
    assert list(method.loss(clip, batch)) == ["task"]
    method.after_stage(clip, [batch])
    assert sorted(method.statistics.labels) == [0, 2, 5] and method.memory_bytes > 0
    torch.manual_seed(0)
    drawn, labels = method.statistics.draw(5)
    torch.manual_seed(0)
    terms = method.loss(clip, batch)
    image, text = clip.encode_image(batch.image), clip.encode_text(batch.text)
    z = (clip.scale() * drawn @ text.T).log_softmax(-1)
    expected = -sum(z[i, batch.classes.index(label)] for i, label in enumerate(labels)) / 5
    assert terms["replay"].item() == pytest.approx(0.3 * expected.item(), rel=1e-5)
    phase = batch.phase()
    assert torch.allclose(terms["task"], match(image, clip.encode_text(phase.text), clip.scale(),
                                               phase.target))
    terms["replay"].backward()
    assert clip.model.visual.proj.grad is None and clip.model.text_projection.grad.any()


def test_statistics_are_of_the_plain_images_in_evaluation_mode(monkeypatch, tiny):
    """With a tower that rests they are those of the pretrained model; classes come in order."""
    method = METHODS["replay_features"](covariance="diagonal")
    register(monkeypatch, "watched", method)
    config = tiny.replace(method="watched", tower="text", tuner="adapter")
    train(config)
    clip, benchmark, stages = prepare(config)
    with torch.no_grad():
        image = clip.eval().encode_image(benchmark.train.images)
    found = method.statistics
    assert set(found.labels[:3]) == set(stages[0].classes) and found.counts == [10] * 6
    for label, mean in zip(found.labels, found.means, strict=True):
        own = image[torch.from_numpy(benchmark.train.labels == label)]
        assert torch.allclose(mean, own.mean(0), atol=1e-5)


def test_old_classes_are_better_kept(tiny):
    """Where the image tower rests: the loss on the test images of the first task."""
    config = tiny.replace(tower="text", lr=2e-2, steps_per_batch=4, augmentation="none")
    loss = {}
    for name, args in (("finetune", {}), ("replay_features", {})):
        kept = []
        train(config.replace(method=name, method_args=args), keep=kept.append)
        clip, benchmark, stages = prepare(config)
        clip = kept[0].eval()
        old = torch.tensor([label in stages[0].classes for label in benchmark.test.labels])
        with torch.no_grad():
            image = clip.encode_image(benchmark.test.images[old])
            text = clip.encode_text(clip.class_text(list(benchmark.test.class_names),
                                                    benchmark.test.template))
            target = torch.from_numpy(benchmark.test.labels)[old]
            loss[len(loss)] = match(image, text, clip.scale(), target).item()
    assert loss[1] < 0.8 * loss[0]


# ---- SLCA


def test_the_alignment_by_hand(clip, batch):
    """The batch's own features stand beside the draws, and neither teaches the image tower."""
    method = METHODS["slca"](count=3, weight=0.5)
    method.after_stage(clip, [batch])
    torch.manual_seed(0)
    drawn, labels = method.statistics.draw(3)
    torch.manual_seed(0)
    terms = method.loss(clip, batch)
    image, text = clip.encode_image(batch.image), clip.encode_text(batch.text)
    target = replace(batch, labels=(*batch.labels, *labels)).target
    expected = match(torch.cat([image, drawn]), text, clip.scale(), target)
    assert terms["align"].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    terms["align"].backward()
    assert clip.model.visual.proj.grad is None and clip.model.text_projection.grad.any()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_every_step_of_the_image_tower_is_the_optimisers_with_a_smaller_rate(clip, batch,
                                                                            optimizer):
    """Against two groups of parameters, over three steps on a batch and one on the next. (A key's
    bias has no gradient but rounding, of which Adam makes a step.)"""
    from copy import deepcopy

    method, other = METHODS["slca"](slow=0.1, count=0), deepcopy(clip)
    step = optimizer(clip.parameters(), lr=1e-2, weight_decay=0.1)
    image = {name for name, _ in other.tower("image")}
    slow, fast = ([p for name, p in other.named_parameters() if (name in image) is own]
                  for own in (True, False))
    groups = optimizer([{"params": slow, "lr": 1e-3}, {"params": fast}], lr=1e-2, weight_decay=0.1)
    for number in range(4):
        for model, by in ((clip, step), (other, groups)):
            if model is clip:
                method.rehearse(clip, batch)
            by.zero_grad()
            method.loss(model, batch)["task"].backward()
            if model is clip:
                method.edit_gradients(clip)
            by.step()
        if number >= 2:
            method.after_step(clip, batch)
    for (name, one), two in zip(clip.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-5) or name.endswith("qkv.bias"), name


def test_at_rate_zero_the_image_tower_rests(tiny):
    kept = []
    config = tiny.replace(method="slca", method_args={"slow": 0.0}, steps_per_batch=2)
    train(config, keep=kept.append)
    start = dict(prepare(config)[0].named_parameters())
    moved = {name for name, p in kept[0].named_parameters() if not torch.equal(p, start[name])}
    assert moved and not any(name.startswith("model.visual.") for name in moved)


@pytest.mark.parametrize(("name", "args", "message"), [
    ("replay_features", {"count": -1}, "count=-1: must be at least 0"),
    ("replay_features", {"spread": -0.5}, "spread=-0.5: must be at least 0"),
    ("replay_features", {"covariance": "diag"}, "covariance='diag' is unknown.*diagonal"),
    ("slca", {"slow": 1.5}, "slow=1.5: must be from 0 to 1")])
def test_impossible_options_are_refused(tiny, name, args, message):
    with pytest.raises(ValueError, match=message):
        tiny.replace(method=name, method_args=args)
