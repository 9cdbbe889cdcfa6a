"""Rectified layers: every linear layer of the blocks gets a low-rank correction and a scale per
output. RKR, Singh et al. 2021, Rectification-based Knowledge Retention, arXiv 2103.16597; in the
form of VR-LwF's code (arXiv 2207.09248).

    W x + b  →  σ ⊙ (W x + b + U D x)

D (rank × inputs) starts at zero and σ (one per output) at one, so an untrained tuner changes
nothing; U (outputs × rank) is uniform between −1/√rank and 1/√rank. All else is frozen, and the
whole can be folded into W and b. The layers of a block are qkv and out_proj of attention, and c_fc
and c_proj of the MLP: with rank 4 on ViT-B/32 672,768 (image) + 448,512 (text) = 1,121,280
parameters, of which the scales are 82,944 + 55,296.

Departures. In VR-LwF's code the fused q, k, v projection is a bare parameter, which its search for
linear layers does not find: `qkv=False` leaves it alone too (497,664 + 331,776 parameters). There
"text tower only" also rectifies the image tower, whose blocks are found under the same name; and
with both towers and scales alone, each layer of the image tower gets two scales. RKR itself, for
task-incremental learning, has rectifications for each task; here one set moves on.
"""
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner


class Rescaled(nn.Linear):
    """The linear layer that it is made from, rectified; weight and bias keep their names."""

    def __init__(self, source: nn.Linear, rank: int | None):
        super().__init__(source.in_features, source.out_features, source.bias is not None,
                         device="meta")
        self.weight, self.bias = source.weight, source.bias
        device = source.weight.device
        self.sigma = nn.Parameter(torch.ones(source.out_features, device=device))
        self.register_parameter("down", None)
        self.register_parameter("up", None)
        if rank:
            start = 2 * torch.rand(source.out_features, rank) - 1  # drawn on the host
            start = start / math.sqrt(rank)
            self.down = nn.Parameter(torch.zeros(rank, source.in_features, device=device))
            self.up = nn.Parameter(start.to(device))

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        if self.down is not None:
            out = out + F.linear(F.linear(x, self.down), self.up)
        return out * self.sigma.to(out.dtype)  # bf16 under autocast, as of a plain layer

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """Return the same function as a linear layer: σ ⊙ (W + U D) and σ ⊙ b."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = self.weight if self.down is None else self.weight + self.up @ self.down
        layer.weight = nn.Parameter(self.sigma[:, None] * weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.sigma * self.bias, requires_grad=False)
        return layer


@dataclass
class Rescale(Tuner):
    """A low-rank correction and a scale per output on every linear layer of the blocks (RKR)."""

    title: ClassVar[str] = "Rescale"
    source: ClassVar[str] = "Singh et al. 2021, arXiv 2103.16597"
    neutral: ClassVar[bool] = True

    rank: Annotated[int, Ge(1)] = 4  # of the correction
    low_rank: bool = True  # False: the scales alone
    qkv: bool = True  # False: the q, k, v projection stays as it is

    def apply(self, clip: Clip, tower: str) -> None:
        owners = self.transformer_owners(clip, tower, attention=True)
        blocks = [block for owner in owners for block in owner.transformer.resblocks]
        clip.requires_grad_(False)
        rank = self.rank if self.low_rank else None
        for block in blocks:
            for name, layer in list(block.named_modules()):
                if isinstance(layer, nn.Linear) and (self.qkv or name != "attn.qkv"):
                    parent, _, last = name.rpartition(".")
                    setattr(block.get_submodule(parent), last, Rescaled(layer, rank))
