"""EWC++: the Fisher information gathered in the steps of training, against naive sums."""
from dataclasses import replace

import pytest
import torch
from small_runs import register, train
from torch.nn.utils import parameters_to_vector

from clstudy.losses.functional import match_batch
from clstudy.methods import METHODS
from clstudy.models.fisher import mean_one

EWC = METHODS["ewc"]


def squared(clip, batch) -> torch.Tensor:
    """The squared gradient of the task term, weight by weight."""
    free = [p for p in clip.parameters() if p.requires_grad]
    found = torch.autograd.grad(match_batch(clip, batch), free, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(free, found, strict=True)]
    return torch.cat([part.flatten() for part in parts]).double()**2


def step(method, clip, batch) -> None:
    """What the loop does, without the optimiser."""
    clip.zero_grad(set_to_none=True)
    sum(method.loss(clip, batch).values()).backward()
    before = [p.grad.clone() for p in clip.parameters() if p.grad is not None]
    method.edit_gradients(clip)
    assert all(map(torch.equal, before, (p.grad for p in clip.parameters() if p.grad is not None)))


def some(batch, start: int):
    """Two images of the batch."""
    rows = slice(start, start + 2)
    return replace(batch, image=batch.image[rows], labels=batch.labels[rows],
                   index=batch.index[rows])


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_what_is_streamed_by_hand(clip, batch, share):
    """0 leaves the last step, 1 the sum over all of them: then F is that of the mean."""
    method, steps = EWC(streaming=share), [squared(clip, some(batch, i)) for i in (0, 2, 4)]
    for start in (0, 2, 4):
        step(method, clip, some(batch, start))
    expected = share**2 * steps[0] + share * steps[1] + steps[2]
    assert torch.allclose(method.streamed.double(), expected, rtol=1e-4, atol=1e-12)
    method.after_stage(clip, [])  # it needs no pass
    mean = {0: steps[2], 1: sum(steps) / 3}.get(share, expected)
    assert torch.allclose(method.fisher.double(), mean_one(mean), rtol=1e-3, atol=1e-6)
    assert method.fisher.std() > 0.5


def test_with_one_image_a_step_the_mean_is_the_accumulated_empirical_fisher(monkeypatch, tiny):
    """Over both stages of a run whose weights rest: the sum over images, in any order."""
    method, seen, total = EWC(streaming=1), [], []
    loss = method.loss

    def watched(clip, batch):
        seen.extend(batch.index)
        total.append(squared(clip, batch))
        return loss(clip, batch)

    method.loss = watched
    register(monkeypatch, "watched", method)
    train(tiny.replace(method="watched", batch_size=1, lr=1e-30, weight_decay=0.0,
                       benchmark_args={"images": 2}))
    assert sorted(seen) == list(range(12))
    assert torch.allclose(method.fisher.double(), mean_one(sum(total).float()).double(), rtol=1e-3,
                          atol=1e-6)


def test_the_gradient_of_the_penalty_is_taken_off(clip, batch):
    method = EWC(streaming=0, weight=5.0)
    step(method, clip, batch)
    method.after_stage(clip, [])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in clip.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    clip.zero_grad(set_to_none=True)
    method.loss(clip, batch)["penalty"].backward()
    assert max(p.grad.abs().max() for p in clip.parameters()) > 0.1
    step(method, clip, batch)
    expected = squared(clip, batch)
    assert (method.streamed - expected).abs().max() < 1e-3 * expected.max()


def test_a_stage_without_steps_leaves_everything(clip):
    method = EWC(streaming=0.9)
    method.after_stage(clip, [])
    assert method.fisher is method.anchor is method.streamed is None


def test_it_holds_other_weights_than_the_online_form(tiny):
    ends, config = [], tiny.replace(method="ewc", lr=1e-2)
    for args in ({"streaming": 0.9, "weight": 30.0}, {"weight": 30.0}, {"weight": 0.0}):
        train(config.replace(method_args=args), keep=lambda clip: ends.append(parameters_to_vector(
            [p for p in clip.parameters() if p.requires_grad]).detach()))
    streamed, online, none = ends
    assert min((streamed - online).abs().max(), (streamed - none).abs().max()) > 1e-4


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_is_a_share(tiny, value):
    with pytest.raises(ValueError, match=f"streaming={value}: must be .*from 0 to 1"):
        tiny.replace(method="ewc", method_args={"streaming": value})
