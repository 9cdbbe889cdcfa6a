"""The global contrastive loss: estimates against naive double loops in float64, the averages,
limits, overflow."""
import math
from dataclasses import replace

import pytest
import torch
from small_runs import train
from torch.nn import functional as F

from clstudy.losses.global_contrastive import Average, GlobalContrast, log_mean_exp, negatives, traced
from clstudy.methods import METHODS
from clstudy.models.clip import Encoded


def encoded(images: int = 6, texts: int = 4, scale: float = 8.0, seed: int = 0,
            grad: bool = False) -> Encoded:
    g = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, 5, generator=g, dtype=torch.float64), dim=-1)
                   for n in (images, texts))
    return Encoded(image.requires_grad_(grad), text.requires_grad_(grad),
                   torch.tensor(scale, dtype=torch.float64))


def world(batch, labels=(2, 5, 5, 0, 2, 2), classes=(0, 5, 2, 1), index=None):
    """The batch with these labels and candidates."""
    return replace(batch, image=batch.image[:len(labels)], labels=labels, classes=classes,
                   index=tuple(range(len(labels))) if index is None else index)


def naive(e: Encoded, target: list[int]) -> tuple[list[float], list[float]]:
    """g1 and g2 by double loops."""
    f, t, s = e.image.detach(), e.text.detach(), float(e.scale)
    first, second = [], []
    for i, y in enumerate(target):
        own = float(f[i] @ t[y])
        one = [math.exp(s * (float(f[i] @ t[k]) - own)) for k in range(len(t)) if k != y]
        two = [math.exp(s * (float(f[j] @ t[y]) - own)) for j in range(len(f)) if target[j] != y]
        first.append(sum(one) / len(one))
        second.append(sum(two) / len(two))
    return first, second


TARGET = [2, 1, 1, 0, 2, 2]  # of the labels above among the classes above


def test_estimates_are_means_over_negatives_of_other_classes():
    e = encoded()
    for (d, other), expected in zip(negatives(e.image, e.text, torch.tensor(TARGET)),
                                    naive(e, TARGET), strict=True):
        assert log_mean_exp(d * e.scale, other).exp().tolist() == pytest.approx(expected)


def test_a_row_without_negatives_is_minus_infinity_without_a_gradient():
    d = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    found = log_mean_exp(d, torch.tensor([[False, False], [True, False]]))
    assert found.tolist() == [-math.inf, 3.0]
    traced(found, torch.tensor([0.0, 3.0])).sum().backward()
    assert d.grad.tolist() == [[0.0, 0.0], [pytest.approx(1.0, rel=1e-5), 0.0]]


def test_with_gamma_1_the_loss_and_its_gradient_are_those_of_the_exact_logarithm(batch):
    e, one = encoded(grad=True), world(batch)
    image, text = GlobalContrast(gamma=1.0).losses(e, one)
    (image + text).sum().backward()
    got = e.image.grad.clone(), e.text.grad.clone()
    other = encoded(grad=True)
    exact = 0
    for i, y in enumerate(TARGET):
        own = other.image[i] @ other.text[y]
        g1 = torch.stack([((other.image[i] @ other.text[k] - own) * 8).exp() for k in range(4)
                          if k != y]).mean()
        foreign = [j for j in range(6) if TARGET[j] != y]
        g2 = torch.stack(
            [((other.image[j] @ other.text[y] - own) * 8).exp() for j in foreign]).mean()
        exact = exact + (1e-14 + g1).log() / 8 + (1e-14 + g2).log() / 8
    exact.backward()
    assert (image + text).sum().item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.allclose(got[0], other.image.grad, rtol=1e-4, atol=1e-7)
    assert torch.allclose(got[1], other.text.grad, rtol=1e-4, atol=1e-7)


def test_u_is_a_moving_average_by_the_id_of_the_image_and_the_gradient_is_divided_by_it(batch):
    contrast, one = GlobalContrast(gamma=0.3, exact=0), world(batch)
    first, second = encoded(seed=1), encoded(seed=2, grad=True)
    contrast.losses(first, one)
    u1, u2 = (torch.tensor(g) for g in naive(first, TARGET))
    back = world(batch, labels=(5, 2, 5, 2, 2, 0),
                 index=(1, 0, 2, 4, 5, 3))  # the same images in another order
    target = [1, 2, 1, 2, 2, 0]
    image, text = contrast.losses(second, back)
    g1, g2 = (torch.tensor(g) for g in naive(second, target))
    order = torch.tensor(back.index)
    for side, (u, g, found) in enumerate(((u1, g1, image), (u2, g2, text))):
        mixed = 0.7 * u[order] + 0.3 * g
        assert contrast.averages[side].log_u.exp()[order].tolist() == pytest.approx(
            mixed.tolist(), rel=1e-4)
        assert found.tolist() == pytest.approx((mixed.log() / 8).tolist(), rel=1e-4)
    image.sum().backward()
    slope = torch.zeros(6, 5, dtype=torch.float64)
    for i, y in enumerate(target):
        for k in range(4):
            if k != y:
                d = second.text[k] - second.text[y]
                e = math.exp(8 * float(second.image[i] @ d)) / 3
                slope[i] += e / float(0.7 * u1[order][i] + 0.3 * g1[i]) * d.detach()
    assert torch.allclose(second.image.grad, slope, rtol=1e-4, atol=1e-7)


def test_text_negatives_are_exact_up_to_a_number_of_classes(batch):
    for exact, averaged in ((4, False), (3, True)):
        contrast, one = GlobalContrast(gamma=0.5, exact=exact), world(batch)
        contrast.losses(encoded(seed=1), one)
        contrast.losses(encoded(seed=2), one)
        fresh = torch.tensor(naive(encoded(seed=2), TARGET)[0])
        assert torch.allclose(contrast.averages[0].log_u.exp(), fresh.float(),
                              rtol=1e-4) != averaged


def test_first_sight_counts_fully_and_what_is_dropped_is_seen_for_the_first_time(batch):
    average, index = Average(), torch.tensor([0, 3])
    average.update(index, 4, torch.tensor([0.0, 1.0]), 0.5)
    assert average.log_u.isnan().tolist() == [False, True, True, False]
    found = average.update(torch.tensor([3, 5]), 6, torch.tensor([1.0, 2.0]), 0.5)
    assert found.tolist() == pytest.approx([1.0, 2.0]) and len(average.log_u) == 6
    average.drop({3, 99})
    assert average.log_u.isnan().tolist() == [True, True, True, False, True, True]
    assert average.update(torch.tensor([0]), 6, torch.tensor([7.0]), 0.5).tolist() == [7.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_nothing_overflows_where_the_model_is_surely_wrong(batch, dtype, scale):
    image = torch.eye(5)[[0, 0, 1, 2, 0, 1]].to(dtype).requires_grad_()
    text = -torch.eye(5)[[0, 1, 2, 3]].to(dtype)  # each image is furthest from its own text
    e = Encoded(image, text, torch.tensor(scale))
    one = world(batch, labels=(0, 0, 5, 2, 0, 5))
    contrast = GlobalContrast()
    for _ in range(3):
        total = sum(loss.float().sum() for loss in contrast.losses(e, one))
        assert total.isfinite() and total > 0
    total.backward()
    assert image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_gamma_falls_along_a_cosine_and_stays():
    contrast, found = GlobalContrast(gamma=0.2, decay=4), []
    for contrast.steps in range(6):
        found.append(contrast.rate_of_averages())
    assert found == pytest.approx([1.0, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.6,
                                   0.2 + 0.8 * (1 - math.cos(math.pi / 4)) / 2, 0.2, 0.2])


@pytest.mark.parametrize("temperature", ["individual", "global"])
def test_temperatures_take_the_step_of_their_derivative(batch, temperature):
    """∂/∂τ of τ (log g(τ) + ρ), by finite differences, with γ = 1."""
    contrast = GlobalContrast(gamma=1.0, temperature=temperature, rate=1e-4, rho=0.5,
                              bounds=(0.01, 1.0))
    e, one = encoded(), world(batch)
    contrast.losses(e, one)

    def objective(side: int, i: int, tau: float) -> float:
        g = naive(replace_scale(e, 1 / tau), TARGET)[side][i]
        return tau * (math.log(g) + 0.5)

    slopes = [[(objective(side, i, 0.125 + 1e-5) - objective(side, i, 0.125 - 1e-5)) / 2e-5
               for i in range(6)] for side in (0, 1)]
    if temperature == "individual":
        for side in (0, 1):
            expected = [0.125 - 1e-4 * 0.9 * max(min(s, 5), -5)
                        for s in slopes[side]]  # the momentum was 0
            assert contrast.taus[side].tolist() == pytest.approx(expected, abs=2e-7)
    else:
        first, second = (sum(slope) / 6
                         for slope in slopes)  # the text side follows, at a τ that has hardly moved
        expected = 0.125 - 1e-4 * (0.9 * first + 0.1 * 0.9 * first + 0.9 * second)
        assert contrast.taus[0].item() == pytest.approx(expected, abs=3e-7)


def replace_scale(e: Encoded, scale: float) -> Encoded:
    return Encoded(e.image, e.text, torch.tensor(scale, dtype=torch.float64))


@pytest.mark.parametrize(("options", "said"), [
    ({"gamma": 0.0}, "gamma=0.0: must be above 0"), ({"gamma": 1.5}, "gamma=1.5"), ({"decay": -1}, "decay=-1"),
    ({"temperature": "own"}, "temperature='own' is unknown"), ({"bounds": (0.1, 0.05)}, "bounds=")])
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        GlobalContrast(**options)


# ---- the method


@pytest.mark.parametrize("temperature", ["fixed", "individual", "global"])
def test_gcl_learns_the_toy_world(tiny, temperature):
    evals, _ = train(tiny.replace(method="gcl", stream="joint", stream_args={}, lr=3e-2, epochs=4,
                              method_args={"temperature": temperature}))
    found = {row["stage"]: row["value"] for row in evals if row["set"] == "all classes"}
    assert found[1] > found[0] + 0.3


def test_gcl_remembers_images_of_the_memory_and_forgets_those_that_left(monkeypatch, tiny):
    kept = {}

    class Watched(METHODS["gcl"]):
        def after_stage(self, clip, batches):
            super().after_stage(clip, batches)
            known = self.contrast.averages[1].log_u
            kept[len(kept)] = set(torch.nonzero(~known.isnan()).flatten().tolist()), set(
                self.memory.index)

    monkeypatch.setitem(METHODS, "watched", Watched)
    train(tiny.replace(method="watched", method_args={"size": 12}))
    assert len(kept) == 2 and all(known and known <= held for known, held in kept.values())
    assert len(kept[1][1]) == 12


def test_the_order_of_a_batch_does_not_matter(clip, batch):
    ends = []
    for order in (list(range(8)), [3, 1, 7, 0, 2, 6, 5, 4]):
        method = METHODS["gcl"]()
        shuffled = replace(batch, image=batch.image[order], labels=tuple(
            batch.labels[i] for i in order), index=tuple(batch.index[i] for i in order))
        ends.append(sum(method.loss(clip, shuffled).values()).item())
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_clips_loss_has_shared_positives_over_the_batch(clip, batch):
    found = METHODS["clip_loss"]().loss(clip, batch)["pairs"].item()
    with torch.no_grad():
        f, t = clip.encode_image(batch.image), clip.encode_text(batch.prompts[list(batch.labels)])
    z = (clip.scale() * f @ t.T).double().detach()
    total = 0.0
    for i, y in enumerate(batch.labels):
        mine = [j for j, other in enumerate(batch.labels) if other == y]
        total -= sum(float(z[i].log_softmax(0)[j] + z[:, i].log_softmax(0)[j])
                     for j in mine) / len(mine)
    assert found == pytest.approx(total / 16, rel=1e-4)
