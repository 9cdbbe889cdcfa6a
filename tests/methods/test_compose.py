"""One objective, four choices: weights and units by hand, what is refused, what is left out where
nobody asks."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import train

from clstudy.data.streams import Stage
from clstudy.methods import METHODS

Compose = METHODS["compose"]


def each(clip, batch, denominator: str) -> torch.Tensor:
    """The loss of each image of a batch, among its classes, by hand."""
    f, t = clip.encode_image(batch.image), clip.encode_text(batch.prompts[list(batch.labels)])
    z = (clip.scale() * f @ t.T).detach().double()
    if denominator == "batch":
        texts = [batch.labels.index(label) for label in sorted(set(batch.labels))]
        return torch.stack([z[i, texts].logsumexp(0) - z[i, i] for i in range(len(z))])
    rows = []
    for i, y in enumerate(batch.labels):
        mine = [j for j, other in enumerate(batch.labels) if other == y]
        rows.append(
            -sum(z[i].log_softmax(0)[j] + z[:, i].log_softmax(0)[j] for j in mine) / len(mine) / 2)
    return torch.stack(rows)


@pytest.mark.parametrize("denominator", ["batch", "pairs"])
@pytest.mark.parametrize("form", ["balanced", "kl"])
def test_class_weights_go_with_every_denominator(clip, batch, denominator, form):
    """λ is in units of similarity: of τ times a cross-entropy."""
    found = Compose(denominator=denominator, class_weights=form, strength=0.05).loss(
        clip, batch)["task"].item()
    losses, labels = each(clip, batch, denominator), np.array(batch.labels)
    F = {c: losses[labels == c].mean() for c in sorted(set(batch.labels))}
    score = torch.stack([value / clip.scale().double() / 0.05 for value in F.values()])
    p = score.softmax(0) if form == "kl" else torch.full((3,), 1 / 3, dtype=torch.float64)
    expected = sum(
        weight * value for weight, value in zip(p, F.values(), strict=True))  # Σ_c p_c F_c
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert found != pytest.approx(losses.mean().item(), rel=1e-4)


def test_the_mean_of_the_pairs_is_clips_loss(clip, batch):
    expected = METHODS["clip_loss"]().loss(clip, batch)["pairs"].item()
    assert each(clip, batch, "pairs").mean().item() == pytest.approx(expected, rel=1e-4)


def taught(clip, batch, stage: int = 1, **options):
    """A method whose teacher is the model before it moved, and its terms in that stage."""
    method = Compose(vocabulary="random", **options)
    method.before_stage(clip, batch.stage)
    with torch.no_grad():
        for p in clip.parameters():
            p.mul_(1.05)
    return method.loss(clip,
                       replace(batch, stage=Stage(stage, batch.stage.classes, batch.stage.index)))


def test_with_moving_averages_a_nat_is_the_temperature(clip, batch):
    """So a distillation weighs as much beside them as beside a cross-entropy."""
    start = {key: value.clone() for key, value in clip.state_dict().items()}
    plain = taught(clip, batch)["vocabulary"]
    clip.load_state_dict(start)
    moving = taught(clip, batch, denominator="moving")["vocabulary"]
    assert plain > 0 and moving.item() == pytest.approx(plain.item() / clip.scale().item(),
                                                        rel=1e-5)


def test_terms_are_there_when_they_are_asked_for(clip, batch):
    assert set(Compose().loss(clip, batch)) == {"task"}
    assert set(taught(clip, batch)) == {"task", "vocabulary"}
    assert set(taught(clip, batch, stage=2)) == {"task", "vocabulary", "classes"}
    assert set(taught(clip, batch, stage=2, classes=False)) == {"task", "vocabulary"}
    method = Compose(vocabulary="classes")
    method.before_stage(clip, batch.stage)
    terms = method.loss(clip, batch)
    assert set(terms) == {"task", "classes"} and terms["classes"].item() == pytest.approx(
        0, abs=1e-6)


def test_texts_that_nobody_asks_for_are_not_encoded(monkeypatch, clip, batch):
    rows, encode = [], clip.encode_text
    monkeypatch.setattr(clip, "encode_text",
                        lambda tokens: rows.append(len(tokens)) or encode(tokens))
    Compose().loss(clip, batch)
    Compose(candidates="seen", denominator="moving").loss(clip, batch)
    assert rows == [3, 6]


def test_without_a_weight_the_vocabulary_changes_nothing(tiny):
    ends = []
    for options in ({}, {"vocabulary": "random", "weight": 0.0}):
        _, steps = train(
            tiny.replace(method="compose", method_args=options | {"candidates": "seen"}))
        ends.append([row["value"] for row in steps if row["term"] == "task"])
    assert ends[0] == ends[1] and len(ends[0]) == 8


def test_a_point_that_is_no_method_learns_the_toy_world(tiny):
    options = {
        "denominator": "moving", "class_weights": "kl", "vocabulary": "random", "size": 12,
        "policy": "quota", "draw": "balanced"
    }
    config = tiny.replace(method="compose", method_args=options, stream="joint", stream_args={},
                          lr=3e-2, epochs=4)
    evals, _ = train(config)
    found = {row["stage"]: row["value"] for row in evals if row["set"] == "all classes"}
    assert found[1] > found[0] + 0.3


def test_the_weights_of_a_run_are_kept_if_classes_have_any(clip, batch):
    weighted, plain = Compose(class_weights="kl"), Compose()
    for method in (weighted, plain):
        method.loss(clip, batch)
    assert plain.table() == [] and [row["class"] for row in weighted.table()] == list(batch.classes)


@pytest.mark.parametrize(("options", "said"), [
    ({"candidates": "all"}, "candidates='all' is unknown"),
    ({"denominator": "average"}, "denominator='average' is unknown. Choices: batch, moving, pairs"),
    ({"class_weights": "max"}, "class_weights='max' is unknown. Choices: balanced, cvar, eg, kl, uniform"),
    ({"vocabulary": "word"}, "vocabulary='word' is unknown. Did you mean words"),
    ({"denominator": "pairs", "candidates": "seen"}, "candidates='seen' means nothing with denominator='pairs'"),
    ({"tau": "global"}, "tau='global' means nothing with denominator='batch'"),
    ({"denominator": "moving", "tau": "own"}, "tau='own' is unknown"),
    ({"selection": "herding"}, "selection='herding' means nothing with policy='reservoir'"),
    ({"draw": "balanced"}, "draw='balanced' means nothing with size=0"),
    ({"draw": "balanced", "size": 9, "replay": 0}, "draw='balanced' means nothing with size=9 and replay=0"),
    ({"weight": -1}, "weight=-1: must be at least 0"), ({"replay": -1}, "replay=-1"), ({"texts": 0}, "texts=0"),
    ({"length": 0}, "length=0"), ({"temperature": 0}, "temperature=0: must be above 0"), ({"size": -1}, "size=-1"),
    ({"gamma": 0}, "gamma=0"), ({"class_weights": "kl", "cap": 0}, "cap=0: must be above 0")])
def test_what_is_impossible_or_means_nothing_is_refused_early(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.replace(method="compose", method_args=options)
