"""The Fisher information against its exact value over all label draws, and its draws against the
model's p."""
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from clstudy.models import fisher


def test_the_estimate_of_the_fisher_is_unbiased(monkeypatch, clip, batch):
    """Over all label draws of three images, weighted by their probability, it is the exact
    diagonal."""
    clip.requires_grad_(False)
    parameters = [p.requires_grad_() for p in (clip.model.visual.proj, clip.model.text_projection)]
    few = replace(batch, image=batch.image[:3], labels=batch.labels[:3], index=(0, 1, 2)).among(
        (5, 0, 2))
    log_p = (clip.scale() * clip.encode_image(few.image)
             @ clip.encode_text(few.text).T).log_softmax(-1)
    exact = 0
    for i, k in product(range(3), range(3)):
        score = parameters_to_vector(torch.autograd.grad(log_p[i, k], parameters,
                                                         retain_graph=True))
        exact = exact + log_p[i, k].exp().detach() * score**2
    expected = 0
    for labels in product(range(3), repeat=3):
        monkeypatch.setattr(fisher, "draw_labels",
                            lambda logits, labels=labels: torch.tensor(labels))
        chance = sum(log_p[i, k] for i, k in enumerate(labels)).exp().detach()
        expected = expected + chance * fisher.squared_scores(clip, parameters, few, draws=1)
    assert torch.allclose(expected, exact, rtol=1e-3, atol=1e-7 * exact.max())


def test_labels_are_drawn_with_the_models_probabilities():
    torch.manual_seed(0)
    p = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.05, 0.05, 0.9]])
    labels = torch.stack([fisher.draw_labels(p.log()) for _ in range(2000)])
    shares = torch.stack([(labels == k).float().mean(0) for k in range(3)], -1)
    assert (shares - p).abs().max() < 0.03 and (labels[:, 1] == 1).all()


def test_the_fisher_has_mean_one_and_nothing_stays_nothing():
    assert torch.equal(fisher.mean_one(torch.tensor([1.0, 0.0, 4.0])), torch.tensor(
        [0.4, 0.0, 1.6]))  # over two
    assert torch.equal(fisher.mean_one(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("draws", [1, 3])
def test_a_parameter_that_the_answers_do_not_reach_has_no_information(clip, batch, draws):
    reached, other = clip.model.visual.proj, torch.nn.Parameter(torch.ones(4))
    found = fisher.squared_scores(clip, [other, reached], batch, draws)
    assert found.shape == (4 + reached.numel(), ) and (found[:4] == 0).all() and (found[4:]
                                                                                  > 0).any()
