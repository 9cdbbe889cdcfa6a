"""The diagonal of the Fisher information of a model's answers, estimated on batches.

    F_j = E_x E_{y ~ p(y|x)} (∂ log p_y / ∂θ_j)²

Labels are drawn from the model's own p over the candidates, not taken from the data. Then the
gradients of different images are independent with mean zero, so the squared gradient of a batch's
*sum* is, in expectation, the sum of the squared gradients: unbiased at one backward pass per batch
and draw.
"""
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.models.clip import Clip


def squared_scores(clip: Clip, parameters: list, batch: Batch,
                   draws: int) -> Float[Tensor, " weights"]:
    """Estimate Σ_i E_y (∂ log p_iy / ∂θ)² over the images of a batch, times `draws`; unbiased."""
    encoded = clip.encode(batch)
    logits = encoded.scale * encoded.image @ encoded.text.T
    total = 0
    for _ in range(draws):
        loss = F.cross_entropy(logits, draw_labels(logits.detach()), reduction="sum")
        scores = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True,
                                     materialize_grads=True)
        total = total + in_a_row(scores)**2
    return total


def in_a_row(tensors: Iterable[Tensor]) -> Float[Tensor, " weights"]:
    """Return all numbers of some tensors in a row, whatever their layout in memory."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def draw_labels(logits: Float[Tensor, "batch texts"]) -> Int[Tensor, " batch"]:
    """Draw one label per row from softmax(logits); the random numbers come from the host."""
    uniform = torch.rand(len(logits), 1, device="cpu").to(logits.device)
    return (logits.softmax(-1).cumsum(-1) < uniform).sum(-1).clamp(max=logits.shape[-1] - 1)


def mean_one(fisher: Float[Tensor, " weights"]) -> Float[Tensor, " weights"]:
    """Return F / mean_j F_j, so that it counts the same for every model and stage.

    (A confident model's Fisher is almost zero.) The mean is over weights that some image reaches:
    not over the embeddings of words that no prompt has."""
    mean = fisher.sum() / (fisher > 0).sum().clamp(min=1)
    return fisher / mean.clamp(min=torch.finfo(fisher.dtype).tiny)
