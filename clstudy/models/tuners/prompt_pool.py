"""Prompts that each image chooses for itself, in the image tower: L2P (Wang et al. 2021, arXiv 2112.08654), DualPrompt
(Wang et al. 2022, arXiv 2204.04799) and MVP (Moon et al. 2023, arXiv 2308.09303), made for ViT classifiers, on CLIP.

    q = ln_post(class token behind the last block), without prompts     query: a frozen forward pass before the other
    d_k = 1 − cos(q, κ_k)                                               distance to key κ_k, one per prompt
    l2p         [class, patches, P_k1 … P_kN]  →  all blocks            tokens of the N nearest prompts
    dualprompt  attention(Q, [P; K], [P'; V]) in block b                more keys and values: P = G_b, or E_kb
    mvp         [class, patches, P]  →  block b  →  [class, patches]    tokens that one block sees: P = G_b, or E_kb
    G_b: general, for every image.   E_kb: of the expert k that the image has

All else is frozen, and class texts are the classifier. On ViT-B/16 the defaults have 46,080 (l2p), 944,640 (dualprompt)
and 481,280 (mvp) parameters. An untrained pool does change the model: prompts take part in attention.

Departures. In L2P's paper the prompts' own outputs are averaged into the feature; here, as in the other two, the
feature is read where CLIP reads it, at the class token. Prompts join behind ln_pre and have no position embedding.
L2P's `batchwise` choice is that of training only: in evaluation no image chooses for another. DualPrompt's keys compete
in evaluation only once they were used; in its code also those of tasks to come. MVP's code reads the query before the
last block unless told otherwise, starts prompts and keys as N(0, 1), and masks by a number per class; see `Pool.mask`.
"""
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clstudy.models.attention import Attention
from clstudy.models.clip import Clip
from clstudy.models.tuners.base import transformer_owners
from clstudy.utils.validation import at_least

IMAGE_ONLY = "its prompts are chosen by the image and read by the image tower"


class Pool(nn.Module):
    """An image transformer with general prompts and a pool of `size` prompts with keys. Names of its blocks stay.

    general, expert: tokens in each of `general_blocks`, and of each prompt of the pool in each of `expert_blocks`.
    top: how many prompts an image chooses. form: what tokens are, "stay", "block" or "prefix" (see above).
    batchwise: in training the images of a batch vote for prompts that all of them take.
    balanced: distances are multiplied by 1 + how often a prompt was used. mask: dimension of a vector per prompt.
    Left by the last forward pass: `query` (batch, width), `choice` (batch, top), and `distance()`."""

    needs_whole_batch = True  # images of a batch vote, and the loss reads what was chosen

    def __init__(self, visual: nn.Module, size: int, top: int, expert: int, expert_blocks: Sequence[int],
                 general: int = 0, general_blocks: Sequence[int] = (), form: str = "stay", batchwise: bool = False,
                 balanced: bool = False, mask: int = 0):
        super().__init__()
        self.resblocks, self._norm = visual.transformer.resblocks, (visual.ln_post,)  # a tuple registers nothing
        self.top, self.form, self.batchwise, self.balanced = top, form, batchwise, balanced
        self.expert_blocks, self.general_blocks = tuple(expert_blocks), tuple(general_blocks)
        width, kinds = visual.ln_post.normalized_shape[0], 2 if form == "prefix" else 1  # a prefix: keys and values
        self.general = drawn(len(self.general_blocks), kinds, general, width)
        self.expert = drawn(size, len(self.expert_blocks), kinds, expert, width)
        self.keys = drawn(size, width)
        self.mask = nn.Parameter(torch.zeros(size, mask)) if mask else None
        self.register_buffer("used", torch.zeros(size, dtype=torch.long))  # images trained with each, if counted
        self.only: int | None = None  # in training every image takes this prompt
        self.query: Tensor | None = None
        self.choice: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch read width"]:
        length = x.shape[1]
        with torch.no_grad():
            self.query = self.ask(x)
            self.choice = self.choose(1 - F.cosine_similarity(self.query[:, None], self.keys, dim=-1))
        for number, block in enumerate(self.resblocks):
            more = self.at(number, len(x))
            if more is None:
                x = block(x)
            elif self.form == "prefix":
                x = with_prefix(block, x, *more.unbind(1))
            else:
                x = block(torch.cat([x, more[:, 0].to(x.dtype)], dim=1))
                x = x if self.form == "stay" else x[:, :length]
        return x[:, :length]

    def ask(self, x: Tensor) -> Float[Tensor, "batch width"]:
        """The frozen feature, before its projection."""
        for block in self.resblocks:
            x = block(x)
        return self._norm[0](x[:, 0].float())

    def choose(self, distance: Float[Tensor, "batch size"]) -> Int[Tensor, "batch top"]:
        """Which prompts each image takes. Nothing here is read by the host."""
        if self.training and self.only is not None:
            return torch.full_like(distance[:, :1], self.only, dtype=torch.long)
        if self.balanced:
            distance = distance * (1 + self.used)
        else:  # where usage is counted, a prompt that no image was trained with does not compete
            distance = distance.masked_fill((self.used == 0) & self.used.any(), torch.inf)
        nearest = distance.argsort(dim=1, stable=True)[:, :self.top]  # ties: the first, on every device
        if not (self.batchwise and self.training):
            return nearest
        return self.votes(nearest).argsort(descending=True, stable=True)[:self.top].expand_as(nearest)

    def votes(self, choice: Int[Tensor, "batch top"]) -> Int[Tensor, " size"]:
        """How often each prompt was chosen."""
        return (choice[:, :, None] == torch.arange(len(self.keys), device=choice.device)).sum((0, 1))

    def distance(self) -> Float[Tensor, "batch top"]:
        """1 − cos(q, κ) to the keys of the last choice; differentiable in the keys."""
        return 1 - F.cosine_similarity(self.query[:, None], self.keys[self.choice], dim=-1)

    def tally(self) -> None:
        """Count the last choice as used."""
        self.used += self.votes(self.choice)

    def at(self, block: int, batch: int) -> Float[Tensor, "batch kinds tokens width"] | None:
        """The tokens of a block for each image: general ones, then those of its prompts."""
        parts = []
        if self.general is not None and block in self.general_blocks:
            parts.append(self.general[self.general_blocks.index(block)].expand(batch, -1, -1, -1))
        if self.expert is not None and block in self.expert_blocks:
            chosen = self.expert[:, self.expert_blocks.index(block)][self.choice]  # (batch, top, kinds, tokens, width)
            parts.append(chosen.transpose(1, 2).flatten(2, 3))
        return torch.cat(parts, dim=2) if parts else None

    def open(self, number: int) -> None:
        """From now on every image is trained with this prompt of the pool, which starts as the one before it.

        Past the end of the pool each image takes the nearest."""
        self.only = number if number < len(self.keys) else None
        if self.only and self.expert is not None:
            with torch.no_grad():
                self.expert[number] = self.expert[number - 1]


def drawn(*shape: int) -> nn.Parameter | None:
    """Uniform between −1 and 1, as in L2P's and DualPrompt's code; None where there is nothing to draw."""
    return nn.Parameter(2 * torch.rand(shape) - 1) if math.prod(shape) else None


def with_prefix(block: nn.Module, x: Float[Tensor, "batch tokens width"], key: Float[Tensor, "batch length width"],
                value: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch tokens width"]:
    """open_clip's block, with more keys and values in its attention."""
    attn = block.attn
    q, k, v = attn.qkv(block.ln_1(x)).chunk(3, dim=-1)
    k, v = torch.cat([key.to(k.dtype), k], dim=1), torch.cat([value.to(v.dtype), v], dim=1)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + block.ls_1(attn.out_proj(out))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def pool_of(clip: Clip) -> Pool:
    """The pool that a tuner put into the image tower. ValueError: there is none."""
    pool = getattr(clip.model.visual, "transformer", None)
    if not isinstance(pool, Pool):
        raise ValueError("the model has no pool of prompts. Choices: tuner='l2p', 'dualprompt', 'mvp'")
    return pool


def l2p(clip: Clip, tower: str, pool: int = 10, length: int = 5, top: int = 5, batchwise: bool = True) -> None:
    """A pool of prompts in front of the image tower, of which each image takes the nearest `top` (L2P).

    pool: prompts; length: tokens of each; batchwise: in training a batch votes for the `top` that all its images take
    (L2P's released code; off in SIT's). ValueError: tower, pool, length, top, and other kinds of image towers."""
    visual = image_tower(clip, tower, "l2p")
    check_l2p(tower, pool, length, top, batchwise)
    put(clip, Pool(visual, pool, top, length, (0,), batchwise=batchwise))


def dualprompt(clip: Clip, tower: str, general: int = 5, general_blocks: Sequence[int] | None = None, expert: int = 20,
               expert_blocks: Sequence[int] | None = None, experts: int = 10) -> None:
    """General prompts, and an expert per stage, as keys and values in the attention of some blocks (DualPrompt).

    general, expert: their lengths, 0 for none; experts: how many there are. general_blocks, expert_blocks: where they
    stand, by default blocks 0, 1 and 2, 3, 4; in a model of fewer than five blocks 0 and all others.
    ValueError: tower, lengths, experts, blocks that the model does not have, and other kinds of image towers."""
    visual = image_tower(clip, tower, "dualprompt")
    if not all(isinstance(block.attn, Attention) for block in visual.transformer.resblocks):
        raise ValueError(f"tuner='dualprompt' needs open_clip's attention; that of model={clip.name!r} is another")
    check_dual(tower, general, general_blocks, expert, expert_blocks, experts)
    options = _dual_options(visual, general, general_blocks, expert, expert_blocks)
    put(clip, Pool(visual, experts, 1, **options, form="prefix"))


def mvp(clip: Clip, tower: str, general: int = 5, general_blocks: Sequence[int] | None = None, expert: int = 20,
        expert_blocks: Sequence[int] | None = None, experts: int = 10) -> None:
    """General prompts, and experts shared by usage, as tokens in some blocks; and a mask of the logits (MVP).

    Options and errors as `dualprompt`. The mask is a vector μ_e per expert, from which the method makes a factor
    2σ(μ_e·t_k) for class k: any set of classes has one. It starts at zero, so at factor 1."""
    visual = image_tower(clip, tower, "mvp")
    check_dual(tower, general, general_blocks, expert, expert_blocks, experts)
    options = _dual_options(visual, general, general_blocks, expert, expert_blocks)
    put(clip, Pool(visual, experts, 1, **options, form="block", balanced=True, mask=visual.output_dim))


def _dual_options(visual: nn.Module, general: int, general_blocks: Sequence[int] | None, expert: int,
                  expert_blocks: Sequence[int] | None) -> dict:
    depth = len(visual.transformer.resblocks)
    first = 2 if depth >= 5 else min(1, depth - 1)  # where the experts begin
    places = {"general_blocks": tuple(range(max(first, 1))) if general_blocks is None else general_blocks,
              "expert_blocks": tuple(range(first, min(5, depth))) if expert_blocks is None else expert_blocks}
    for field, blocks in places.items():
        if not set(blocks) <= set(range(depth)):
            raise ValueError(f"tuner_args {field}={blocks!r}: must be different numbers from 0 to {depth - 1}, the "
                             f"blocks of the image tower")
    return {"general": general, "expert": expert, **places}


def check_l2p(tower: str, pool: Any, length: Any, top: Any, batchwise: Any) -> None:
    at_least("tuner_args pool", pool, 1)
    at_least("tuner_args length", length, 0)
    if not isinstance(top, int) or not 1 <= top <= pool:
        raise ValueError(f"tuner_args top={top!r}: must be from 1 to pool={pool}")


def check_dual(tower: str, general: Any, general_blocks: Any, expert: Any, expert_blocks: Any, experts: Any) -> None:
    """What can be refused without the model, which has a number of blocks."""
    at_least("tuner_args general", general, 0)
    at_least("tuner_args expert", expert, 0)
    at_least("tuner_args experts", experts, 1)
    for field, blocks in (("general_blocks", general_blocks), ("expert_blocks", expert_blocks)):
        if blocks is None:
            continue
        whole = isinstance(blocks, list | tuple) and all(isinstance(block, int) and block >= 0 for block in blocks)
        if not whole or len(set(blocks)) < len(blocks):
            raise ValueError(f"tuner_args {field}={blocks!r}: must be a list of different numbers, the first block of "
                             "the image tower is 0")


def image_tower(clip: Clip, tower: str, tuner: str) -> nn.Module:
    if tower != "image":
        raise ValueError(f"tower={tower!r} does not go with tuner={tuner!r}: {IMAGE_ONLY}. Choices: image")
    return transformer_owners(clip, tower, tuner)[0]


def put(clip: Clip, pool: Pool) -> None:
    """Freeze the model and put the pool, which is free, in place of its image transformer."""
    clip.requires_grad_(False)
    clip.model.visual.transformer = pool.to(clip.device)
