"""The tuned weights of a model as values, and the models between two of them.

    θ(α) = (1 − α) θ_start + α θ_end

Only what is tuned moves. With LoRA these are the factors, so the path is straight in A and B and
curved in the weights W + (alpha / rank) B A that they make. A path between the saved models of two
runs:

    one, other = load_tuned(first), load_tuned(second)
    start, end = tuned(one), tuned(other)
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        evaluate(put(one, between(start, end, alpha)), …)
"""
import torch
from jaxtyping import Float
from torch import Tensor

from clstudy.models.clip import Clip

Values = dict[str, Tensor]  # by the parameter's name


def tuned(clip: Clip) -> Values:
    """Return copies of what is tuned, in the order of the parameters."""
    return {name: p.detach().clone() for name, p in clip.named_parameters() if p.requires_grad}


def between(start: Values, end: Values, share: float | Values) -> Values:
    """Return start + share · (end − start), exact at 0 and 1.

    share: one number, or a tensor for each name. ValueError: the names differ."""
    if other := sorted(start.keys() ^ end.keys()):
        raise ValueError(f"not between two models of one kind: only one has {other[0]}")
    shares = share if isinstance(share, dict) else dict.fromkeys(start, float(share))
    return {name: torch.lerp(value, end[name], shares[name]) for name, value in start.items()}


@torch.no_grad()
def put(clip: Clip, values: Values) -> Clip:
    """Put these parameters or buffers into a model, in place. ValueError: it has none so named."""
    own = dict(clip.named_parameters()) | dict(clip.named_buffers())
    for name, value in values.items():
        if name not in own:
            raise ValueError(f"the model has no weights {name!r}")
        own[name].copy_(value)
    return clip


def put_beside(other: Clip, clip: Clip, values: Values) -> Clip:
    """Put these values, and the buffers of `clip` as they are now, into `other`, a copy of it."""
    return put(other, dict(clip.named_buffers()) | values)


def named(row: Float[Tensor, " weights"], like: Values) -> Values:
    """Turn all weights in a row, in the order of `like`, into values of its names and shapes."""
    parts = row.split([value.numel() for value in like.values()])
    return {name: part.view_as(value)
            for (name, value), part in zip(like.items(), parts, strict=True)}
