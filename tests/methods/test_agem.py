"""A-GEM: the projection by hand, the replayed pairs, and what both do to a run."""
import math
from dataclasses import dataclass, field

import pytest
import torch
from small_runs import register, train
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parameters_to_vector

from clstudy.methods import METHODS
from clstudy.methods.agem import projected, together
from clstudy.models.tuners import TUNERS
from tests.training.test_device import moved, taken


def row(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def weights(clip) -> torch.Tensor:
    return parameters_to_vector([p for p in clip.parameters() if p.requires_grad]).detach().clone()


# ---- the projection


def test_the_projection_by_hand():
    g = [torch.tensor([1.0, 0.0]), torch.tensor([[-3.0]])]
    r = [torch.tensor([1.0, 2.0]), torch.tensor([[1.0]])]
    found = projected(g, r)  # g·r = −2, |r|² = 6
    assert found[0].tolist() == pytest.approx([1 + 1 / 3, 2 / 3])
    assert found[1].tolist() == [[pytest.approx(-3 + 1 / 3)]]
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in g]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_against_the_reference_and_what_agrees_is_untouched(seed):
    generator = torch.Generator().manual_seed(seed)
    g, r = ([torch.randn(shape, generator=generator) for shape in ((30, 4), (7, ), ())]
            for _ in range(2))
    product = float(row(g) @ row(r))
    found = projected(g, r)
    if product >= 0:
        assert all(torch.equal(a, b) for a, b in zip(g, found, strict=True))
    else:
        assert abs(float(row(found) @ row(r))) < 1e-5 * abs(product) + 1e-5
        assert row(found).norm() < row(g).norm()
        along = product / float(row(r).square().sum()) * row(r)
        assert torch.allclose(row(g) - row(found), along, atol=1e-6)
    against = projected(g, [-b for b in g])
    assert row(against).abs().max() < 1e-6  # nothing but what hurts
    assert all(torch.equal(a, b) for a, b in zip(g, projected(g, [0 * b for b in r]), strict=True))


# ---- the pairs


def test_equal_captions_and_captions_of_one_image_belong_together():
    found = together(["a", "b", "a", "c", 3, 3], [0, 0, 1, 2, -2, -1])
    assert found.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0],
                              [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]


def replay(clip, batch, **options):
    """A method with pairs of the reference, and of a finished stage, drawn for this batch."""
    method = METHODS["agem"](**options)
    method.after_stage(clip, [batch])
    torch.manual_seed(2)
    assert method.rehearse(clip, batch) is batch
    return method


def test_the_replayed_loss_by_hand(clip, batch, toy):
    """All 18 pairs of the reference and 4 images kept; each direction a mean over its positives."""
    method, pairs = replay(clip, batch, replay=99, size=4), toy().load().reference()
    memory, names = method.kept[0], list(pairs.captions)
    pixels = pairs.images[pairs.owner], memory.image
    tokens = clip.tokenize(names), batch.prompts[memory.labels]
    image = torch.cat([clip.encode_image(part) for part in pixels])
    text = torch.cat([clip.encode_text(part) for part in tokens])
    captions = names + [("class", label) for label in memory.labels]
    owner = [*pairs.owner.tolist(), *(("kept", i) for i in range(4))]
    z = (clip.scale() * image @ text.T).double().tolist()
    total = 0.0
    for logits in (z, [list(column) for column in zip(*z, strict=True)]):
        for i, values in enumerate(logits):
            log_sum = math.log(sum(map(math.exp, values)))
            mine = [j for j in range(22) if captions[i] == captions[j] or owner[i] == owner[j]]
            total -= sum(values[j] - log_sum for j in mine) / len(mine) / 22 / 2
    assert len(memory) == 4 and method.replayed(clip).item() == pytest.approx(total, rel=1e-4)


def test_pairs_are_drawn_anew_from_the_reference_and_from_what_was_kept(clip, batch, toy):
    pairs, method = toy().load().reference(), METHODS["agem"](replay=5, size=6)
    method.rehearse(clip, batch)
    assert set(method.drawn) == {"same", "pixels", "tokens"}
    assert method.drawn["same"].shape == (5, 5)
    method.after_stage(clip, [batch])
    method.after_stage(clip, [])  # a stage without images
    assert [len(memory) for memory in method.kept] == [6]
    own, drawn = 0, set()
    for _ in range(60):
        method.rehearse(clip, batch)
        pixels, kept = method.drawn.get("pixels", []), method.drawn.get("own pixels", [])
        assert len(pixels) + len(kept) == 5 == len(method.drawn["same"])
        for image, tokens in zip(pixels, method.drawn.get("tokens", []), strict=True):
            rows = {i for i, one in enumerate(pairs.images) if torch.equal(one, image)}
            captions = [c for c, i in zip(pairs.captions, pairs.owner, strict=True) if i in rows]
            padded = torch.nn.functional.pad(clip.tokenize(captions), (0, 9))[:, :len(tokens)]
            assert (padded == tokens).all(1).any()  # one of its own captions
            drawn |= rows
        for image, tokens in zip(kept, method.drawn.get("own tokens", []), strict=True):
            known = zip((batch.image * 255).round(), batch.labels, strict=True)
            label = next(label for one, label in known if torch.equal(one, image.float()))
            assert torch.equal(tokens, batch.prompts[label])
        own += len(kept)
    assert 45 < own < 105  # 6 of 24 pairs are kept ones: 75 of 300 expected
    assert drawn == set(range(12))


def test_nothing_is_kept_and_nothing_drawn_where_nothing_is_wanted(clip, batch):
    method = replay(clip, batch, size=0)
    assert method.kept == [] and "own pixels" not in method.drawn
    none, state = METHODS["agem"](replay=0), torch.get_rng_state()
    none.rehearse(clip, batch)
    assert none.drawn == {} and torch.equal(torch.get_rng_state(), state)


def test_the_images_of_all_stages_count_as_memory(clip, batch):
    method = replay(clip, batch, size=4)
    method.after_stage(clip, [batch])
    assert method.memory_bytes == sum(memory.image.nbytes for memory in method.kept) > 0


def test_pairs_are_scored_on_the_device_without_waiting(clip, batch):
    method = replay(clip, batch, replay=20, size=6)
    assert {"pixels", "own pixels"} <= set(method.drawn)
    with FakeTensorMode():
        method.drawn = taken(method.drawn)
        loss = method.replayed(moved(clip))
        g = [torch.empty(3, 2, device="cuda"), torch.empty(4, device="cuda")]
        assert loss.device.type == "cuda" and {a.device.type for a in projected(g, g)} == {"cuda"}


# ---- gradients


def reference_gradient(method, clip) -> list[torch.Tensor]:
    return list(torch.autograd.grad(method.replayed(clip), method.trainable(clip),
                                    allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_gradients_are_edited_only_where_they_are_against_the_pairs(clip, batch, tuner):
    TUNERS[tuner]().apply(clip, "both")
    method = replay(clip, batch, replay=12, size=6)
    parameters, r = method.trainable(clip), reference_gradient(method, clip)
    torch.manual_seed(0)
    noise = [0.1 * b.norm() * torch.randn(b.shape) for b in r]
    for sign in (1, -1):
        g = [sign * b + n for b, n in zip(r, noise, strict=True)]
        assert sign * float(row(g) @ row(r)) > 0
        for p, gradient in zip(parameters, g, strict=True):
            p.grad = gradient.clone()
        method.edit_gradients(clip)
        after = [p.grad for p in parameters]
        if sign == 1:
            assert all(torch.equal(a, b) for a, b in zip(g, after, strict=True))
        else:
            assert abs(float(row(after) @ row(r))) < 1e-4 * float(row(r).square().sum())
            assert not torch.allclose(row(after), row(g))


def test_what_the_loss_does_not_reach_takes_no_part(clip, batch):
    TUNERS["full"]().apply(clip, "both")
    method = replay(clip, batch, replay=12)
    for name, p in clip.named_parameters():
        p.grad = torch.ones_like(p) if name == "model.visual.proj" else None
    method.edit_gradients(clip)
    reached = [name for name, p in clip.named_parameters() if p.grad is not None]
    assert reached == ["model.visual.proj"]


# ---- runs


@dataclass
class Counting(METHODS["agem"]):
    """A-GEM of which the products with the reference gradient are written down, before and after
    the edit."""

    before: list = field(default_factory=list, init=False)
    after: list = field(default_factory=list, init=False)

    def edit_gradients(self, clip):
        parameters = [p for p in self.trainable(clip) if p.grad is not None]
        r = torch.autograd.grad(self.replayed(clip), parameters, allow_unused=True,
                                materialize_grads=True)
        g = row([p.grad for p in parameters])
        self.before.append(float(g @ row(r)))
        super().edit_gradients(clip)
        after = row([p.grad for p in parameters])
        self.after.append(float(after @ row(r)) / float(after.norm() * row(r).norm()))
        assert torch.equal(g, after) == (self.before[-1] >= 0)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_in_a_run_no_gradient_is_left_against_the_replayed_pairs(monkeypatch, tiny, tuner):
    method = Counting(size=10)
    register(monkeypatch, "counting", method)
    train(tiny.replace(method="counting", tuner=tuner, steps_per_batch=3, lr=1e-3))
    assert len(method.after) == 24 and min(method.after) > -1e-4
    assert 0 < sum(product < 0 for product in method.before) < 24  # some are edited, some are not
    assert [len(memory) for memory in method.kept] == [10, 10]


def test_a_run_depends_on_the_pairs_that_are_replayed(monkeypatch, tiny, toy):
    """Other captions, another run: the replayed batch is really used."""
    from dataclasses import replace

    from clstudy.training import loop as module
    from clstudy.training import setup

    ends = []
    train(tiny.replace(method="agem"), keep=ends.append)
    pairs = toy().load().reference()
    wrong = replace(pairs, captions=pairs.captions[::-1])

    def prepare(config):
        clip, benchmark, stages = setup.prepare(config)
        return clip, replace(benchmark, reference=lambda: wrong), stages

    monkeypatch.setattr(module, "prepare", prepare)
    train(tiny.replace(method="agem"), keep=ends.append)
    assert (weights(ends[0]) - weights(ends[1])).abs().max() > 1e-4


def test_the_loss_on_the_pairs_is_lower_than_after_fine_tuning(tiny, toy):
    from clstudy.losses.functional import contrastive

    pairs, found = toy().load().reference(), {}
    for name in ("finetune", "agem"):
        ends = []
        train(tiny.replace(method=name, optimizer="sgd", lr=0.05, tuner="full", steps_per_batch=3),
              keep=ends.append)
        clip = ends[0].eval()
        captions = list(pairs.captions)
        same = together(captions, pairs.owner.tolist())
        with torch.no_grad():
            image = clip.encode_image(pairs.images[pairs.owner])
            text = clip.encode_text(clip.tokenize(captions))
            found[name] = contrastive(image, text, clip.scale(), same).item()
    assert found["agem"] < found["finetune"] - 1e-3
