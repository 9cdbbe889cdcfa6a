"""A bottleneck behind attention and behind the MLP of every block, the same one at both places, in
SIT's form (arXiv 2405.15155, released code; after AdaptFormer, Chen et al. 2022, arXiv 2205.13535).

    h  →  h + scale · W_up · dropout(relu(W_down h + b_down)) + scale · b_up

h is what attention, or the MLP, adds to the stream. W_down (width × d) is Kaiming-uniform, W_up (d
× width) and both biases start at zero, so an untrained adapter changes nothing. With width 64 on
ViT-B/16: 1,189,632 (image) + 793,344 (text) = 1,982,976 parameters. Where a model scales its
branches (LayerScale), the adapter stands before the scale.
"""
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner


class Bottleneck(nn.Module):
    """d → width → d beside the identity."""

    def __init__(self, dim: int, width: int, scale: float, dropout: float):
        super().__init__()
        self.scale = scale
        self.down, self.drop = nn.Linear(dim, width), nn.Dropout(dropout)
        self.up = nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.up(self.drop(self.down(x).relu()))


@dataclass
class Adapter(Tuner):
    """A bottleneck of `width` behind attention and MLP of each block, shared by the two."""

    title: ClassVar[str] = "Adapter"
    source: ClassVar[str] = "Chen et al. 2022, arXiv 2205.13535"
    neutral: ClassVar[bool] = True

    width: Annotated[int, Ge(1)] = 64  # of the bottleneck
    scale: Annotated[float, Gt(0)] = 0.1  # of what it adds
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1  # share of the bottleneck dropped in training

    def apply(self, clip: Clip, tower: str) -> None:
        owners = self.transformer_owners(clip, tower)
        clip.requires_grad_(False)
        for block in (block for owner in owners for block in owner.transformer.resblocks):
            dim = block.mlp.c_proj.out_features
            shared = Bottleneck(dim, self.width, self.scale, self.dropout).to(clip.device)
            # attention's output passes ls_1, and the MLP's ls_2, on their way to the stream
            block.ls_1 = nn.Sequential(shared, block.ls_1)
            block.ls_2 = nn.Sequential(shared, block.ls_2)
