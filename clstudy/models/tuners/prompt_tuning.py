"""Learned tokens in the first blocks: MaPLe (Khattak et al. 2022, arXiv 2210.03117) on both towers,
its text half, or deep visual prompts (VPT, Jia et al. 2022, arXiv 2203.12119).

    text    [start, P_1, words] → block 1 → [start, P_2, words] → block 2 → …
    image   [class, patches, Q_1] → block 1 → [class, patches, Q_2] → block 2 → …
    P_i: length × d, learned, i ≤ depth.  Q_i: learned; with both towers Q_i = W_i P_i + b_i with
    learned W_i, b_i

Each of the first `depth` blocks gets tokens of its own, in place of what the block before has made
of its tokens; later blocks work on with what they are given. All else is frozen. With length 3 and
depth 3 on ViT-B/16: 6,912 (image), 4,608 (text) and 1,186,560 (both) parameters.

Departures from MaPLe's code. The tokens are added to the prompt, where MaPLe's replace its first
words. They join behind the position embedding, so the words keep their positions, and P_1 starts
with the positions of the words that it is made from. They leave behind the last block, so the
feature is read where it always was. Q_1 does not pass the norm before the first block. Each W_i is
drawn on its own, where MaPLe's for i > 1 start equal. In VPT's code the start is uniform with a
range from the patch size; here it is N(0, 0.02).
"""
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner

WORDS = "a drawing of a"
DEPTH = 3  # as in SIT's released code


class Prompted(nn.Module):
    """open_clip's transformer with more tokens inside; the names of its blocks stay.

    prompts: the tokens of each block; at: where the first one goes, None for the end; project: a
    linear layer per block, which makes the tokens from `prompts`, and these then stay another
    tower's."""

    def __init__(self, source: nn.Module, prompts: nn.ParameterList, at: int | None = None,
                 project: nn.ModuleList | None = None):
        super().__init__()
        self.resblocks, self.at, self.project = source.resblocks, at, project
        self.depth, self.length = len(prompts), len(prompts[0])
        if project is None:
            self.prompts = prompts
        else:
            self.shared = (prompts,)  # a tuple registers nothing: a parameter has one tower

    def tokens(self, block: int) -> Tensor:
        if self.project is None:
            return self.prompts[block]
        return self.project[block](self.shared[0][block])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        at = x.shape[1] if self.at is None else self.at
        if attn_mask is not None:  # it is causal, and so is the larger one
            size = x.shape[1] + self.length
            attn_mask = torch.full((size, size), -torch.inf, device=x.device).triu(1)
        for number, block in enumerate(self.resblocks):
            if number < self.depth:
                behind = x[:, at + (self.length if number else 0):]
                own = self.tokens(number).to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, :at], own, behind], dim=1)
            x = block(x, attn_mask=attn_mask)
        return torch.cat([x[:, :at], x[:, at + self.length:]], dim=1)

    def get_cast_dtype(self) -> torch.dtype:
        """Return the type of the weights, which open_clip's `encode_text` asks for."""
        return self.resblocks[0].get_weight_dtype()


@dataclass
class Prompts(Tuner):
    """Trains tokens in the first blocks (MaPLe). Untrained, they already change the model."""

    title: ClassVar[str] = "Prompts"
    source: ClassVar[str] = "Khattak et al. 2022, arXiv 2210.03117"

    length: Annotated[int, Ge(1)] = 3  # tokens of each block
    depth: Annotated[int, Ge(1)] | None = None  # blocks that get tokens; None: 3, or all if fewer
    init: str | None = None  # words that P_1 starts as; None: "a drawing of a"; else N(0, 0.02)

    def check_tower(self, tower: str) -> None:
        super().check_tower(tower)
        if tower == "image" and self.init is not None:
            raise ValueError(f"tuner_args: init={self.init!r}: there are no words in tower='image'")

    def apply(self, clip: Clip, tower: str) -> None:
        self.check_tower(tower)
        owners = self.transformer_owners(clip, tower)
        depth = self.depth_in(min(len(owner.transformer.resblocks) for owner in owners))
        if tower != "image" and not clip.causal:
            raise ValueError(f"the tuner {self.title} needs a causal text tower whose feature is "
                             f"read at CLIP's end token; that of model={clip.name!r} is not. "
                             "Choices: tower='image'")
        words = WORDS if self.init is None else self.init
        start = [] if tower == "image" else [_words(clip, words, self.length)]
        clip.requires_grad_(False)
        width = _width(owners[-1].transformer)  # of the tower that learns its tokens
        drawn = [0.02 * torch.randn(self.length, width) for _ in range(depth - len(start))]
        learned = nn.ParameterList(nn.Parameter(p.to(clip.device)) for p in start + drawn)
        if tower != "image":
            owners[-1].transformer = Prompted(owners[-1].transformer, learned, at=1)
        if tower != "text":
            visual, project = clip.model.visual, None
            if tower == "both":
                made = (nn.Linear(width, _width(visual.transformer)) for _ in range(depth))
                project = nn.ModuleList(made).to(clip.device)
            visual.transformer = Prompted(visual.transformer, learned, project=project)

    def depth_in(self, blocks: int) -> int:
        """Return how many of a model's blocks get tokens. ValueError: it has fewer."""
        depth = min(DEPTH, blocks) if self.depth is None else self.depth
        if depth > blocks:
            raise ValueError(f"tuner_args: depth={depth!r}: must be from 1 to {blocks}, the number "
                             "of blocks")
        return depth


def _width(transformer: nn.Module) -> int:
    return transformer.resblocks[0].mlp.c_proj.out_features


def _words(clip: Clip, init: str, length: int) -> Tensor:
    """Return embeddings, with positions, of the first `length` tokens of a text."""
    row = clip.tokenizer([init])[0]
    count = int(row.argmax()) - 1  # between the start token and the end token
    if count < length:
        raise ValueError(f"tuner_args: init={init!r}: too short for length={length}, it has "
                         f"{count} tokens")
    text = clip.owner("text")
    words = text.token_embedding.weight[row[1:1 + length].to(clip.device)]
    return (words + text.positional_embedding[1:1 + length]).detach()
