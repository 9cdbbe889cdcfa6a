"""A bottleneck behind attention and behind the MLP of every block, the same one at both places, in SIT's form
(arXiv 2405.15155, released code; after AdaptFormer, Chen et al. 2022, arXiv 2205.13535).

    h  →  h + scale · W_up · dropout(relu(W_down h + b_down)) + scale · b_up

h is what attention, or the MLP, adds to the stream. W_down (width × d) is Kaiming-uniform, W_up (d × width) and both
biases start at zero, so an untrained adapter changes nothing. With width 64 on ViT-B/16: 1,189,632 (image) + 793,344
(text) = 1,982,976 parameters. Where a model scales its branches (LayerScale), the adapter stands before the scale.
"""
import math
from typing import Any

from torch import Tensor, nn

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import transformer_owners
from clstudy.utils.validation import at_least


class Bottleneck(nn.Module):
    """d → width → d beside the identity."""

    def __init__(self, dim: int, width: int, scale: float, dropout: float):
        super().__init__()
        self.scale = scale
        self.down, self.drop, self.up = nn.Linear(dim, width), nn.Dropout(dropout), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.up(self.drop(self.down(x).relu()))


def adapter(clip: Clip, tower: str, width: int = 64, scale: float = 0.1, dropout: float = 0.1) -> None:
    """A bottleneck of `width` behind attention and MLP of each block, shared by the two.

    scale: of what it adds; dropout: share of the bottleneck that is dropped in training. ValueError: width, scale,
    dropout, and towers that are not open_clip's transformer."""
    check_adapter(tower, width, scale, dropout)
    owners = transformer_owners(clip, tower, "adapter")
    clip.requires_grad_(False)
    for owner in owners:
        for block in owner.transformer.resblocks:
            dim = block.mlp.c_proj.out_features
            shared = Bottleneck(dim, width, scale, dropout).to(clip.device)
            # attention's output passes ls_1 and the MLP's ls_2 on their way to the stream, in every model
            block.ls_1, block.ls_2 = nn.Sequential(shared, block.ls_1), nn.Sequential(shared, block.ls_2)


def check_adapter(tower: str, width: Any, scale: Any, dropout: Any) -> None:
    at_least("tuner_args width", width, 1)
    if not (isinstance(scale, int | float) and scale > 0):
        raise ValueError(f"tuner_args scale={scale!r}: must be above 0, otherwise nothing is trained")
    if not (isinstance(dropout, int | float) and 0 <= dropout < 1):
        raise ValueError(f"tuner_args dropout={dropout!r}: must be from 0 to below 1")
