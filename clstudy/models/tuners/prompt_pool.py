"""Prompts that each image chooses for itself, in the image tower: L2P (Wang et al. 2021, arXiv
2112.08654), DualPrompt (Wang et al. 2022, arXiv 2204.04799) and MVP (Moon et al. 2023, arXiv
2308.09303), made for ViT classifiers, on CLIP.

    q = ln_post(class token behind the last block), no prompts     query: a frozen forward pass
    d_k = 1 − cos(q, κ_k)                                          distance to key κ_k of a prompt
    l2p         [class, patches, P_k1 … P_kN] → all blocks         tokens of the N nearest prompts
    dualprompt  attention(Q, [P; K], [P'; V]) in block b           more keys and values
    mvp         [class, patches, P] → block b → [class, patches]   tokens that one block sees
    P is G_b, general, for every image; or E_kb, of the expert k that the image has

All else is frozen, and class texts are the classifier. On ViT-B/16 the defaults have 46,080 (l2p),
944,640 (dualprompt) and 481,280 (mvp) parameters. An untrained pool already changes the model:
prompts take part in attention.

Departures. In L2P's paper the prompts' own outputs are averaged into the feature; here, as in the
other two, the feature is read where CLIP reads it, at the class token. Prompts join behind ln_pre
and have no position embedding. L2P's `batchwise` choice is that of training only: in evaluation no
image chooses for another. DualPrompt's keys compete in evaluation only once they were used; in its
code also those of tasks to come. MVP's code reads the query before the last block unless told
otherwise, starts prompts and keys as N(0, 1), and masks by a number per class; see `Pool.mask`.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner

Blocks = Sequence[Annotated[int, Ge(0)]] | None


class Pool(nn.Module):
    """An image transformer with general prompts and a pool of `size` prompts with keys. Names of
    its blocks stay.

    general, expert: tokens in each of `general_blocks`, and of each prompt of the pool in each of
    `expert_blocks`. top: how many prompts an image chooses. form: what tokens are, "stay", "block"
    or "prefix" (see above). batchwise: in training the images of a batch vote for prompts that all
    of them take. balanced: distances are multiplied by 1 + how often a prompt was used. mask:
    dimension of a vector per prompt. Left by the last forward pass: `query` (batch, width),
    `choice` (batch, top), and `distance()`."""

    needs_whole_batch = True  # images of a batch vote, and the loss reads what was chosen

    def __init__(self, visual: nn.Module, size: int, top: int, expert: int,
                 expert_blocks: Sequence[int], general: int = 0, general_blocks: Sequence[int] = (),
                 form: str = "stay", batchwise: bool = False, balanced: bool = False,
                 mask: int = 0):
        super().__init__()
        self.resblocks = visual.transformer.resblocks
        self._norm = (visual.ln_post,)  # a tuple registers nothing
        self.top, self.form, self.batchwise, self.balanced = top, form, batchwise, balanced
        self.expert_blocks, self.general_blocks = tuple(expert_blocks), tuple(general_blocks)
        width = visual.ln_post.normalized_shape[0]
        kinds = 2 if form == "prefix" else 1  # keys and values
        self.general = drawn(len(self.general_blocks), kinds, general, width)
        self.expert = drawn(size, len(self.expert_blocks), kinds, expert, width)
        self.keys = drawn(size, width)
        self.mask = nn.Parameter(torch.zeros(size, mask)) if mask else None
        used = torch.zeros(size, dtype=torch.long)  # images trained with each prompt, if counted
        self.register_buffer("used", used)
        self.only: int | None = None  # in training every image takes this prompt
        self.query: Tensor | None = None
        self.choice: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch read width"]:
        length = x.shape[1]
        with torch.no_grad():
            self.query = self.ask(x)
            cosine = F.cosine_similarity(self.query[:, None], self.keys, dim=-1)
            self.choice = self.choose(1 - cosine)
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
        """Return the frozen feature, before its projection."""
        for block in self.resblocks:
            x = block(x)
        return self._norm[0](x[:, 0].float())

    def choose(self, distance: Float[Tensor, "batch size"]) -> Int[Tensor, "batch top"]:
        """Return which prompts each image takes. The host reads nothing here."""
        if self.training and self.only is not None:
            return torch.full_like(distance[:, :1], self.only, dtype=torch.long)
        if self.balanced:
            distance = distance * (1 + self.used)
        else:  # where usage is counted, a prompt that no image was trained with does not compete
            distance = distance.masked_fill((self.used == 0) & self.used.any(), torch.inf)
        nearest = distance.argsort(dim=1, stable=True)[:, :self.top]  # ties: the first prompt
        if not (self.batchwise and self.training):
            return nearest
        popular = self.votes(nearest).argsort(descending=True, stable=True)
        return popular[:self.top].expand_as(nearest)

    def votes(self, choice: Int[Tensor, "batch top"]) -> Int[Tensor, " size"]:
        """Return how often each prompt was chosen."""
        prompts = torch.arange(len(self.keys), device=choice.device)
        return (choice[:, :, None] == prompts).sum((0, 1))

    def distance(self) -> Float[Tensor, "batch top"]:
        """Return 1 − cos(q, κ) to the keys of the last choice; differentiable in the keys."""
        return 1 - F.cosine_similarity(self.query[:, None], self.keys[self.choice], dim=-1)

    def tally(self) -> None:
        """Count the last choice as used."""
        self.used += self.votes(self.choice)

    def at(self, block: int, batch: int) -> Float[Tensor, "batch kinds tokens width"] | None:
        """Return the tokens of a block for each image: general ones, then those of its prompts."""
        parts = []
        if self.general is not None and block in self.general_blocks:
            parts.append(self.general[self.general_blocks.index(block)].expand(batch, -1, -1, -1))
        if self.expert is not None and block in self.expert_blocks:
            experts = self.expert[:, self.expert_blocks.index(block)]
            chosen = experts[self.choice]  # (batch, top, kinds, tokens, width)
            parts.append(chosen.transpose(1, 2).flatten(2, 3))
        return torch.cat(parts, dim=2) if parts else None

    def open(self, number: int) -> None:
        """Train every image from now on with this prompt, which starts as a copy of the last one.

        Past the end of the pool each image takes the nearest."""
        self.only = number if number < len(self.keys) else None
        if self.only and self.expert is not None:
            with torch.no_grad():
                self.expert[number] = self.expert[number - 1]


def drawn(*shape: int) -> nn.Parameter | None:
    """Draw uniformly from −1 to 1, as in L2P's and DualPrompt's code; None for an empty shape."""
    return nn.Parameter(2 * torch.rand(shape) - 1) if math.prod(shape) else None


def with_prefix(block: nn.Module, x: Float[Tensor, "batch tokens width"],
                key: Float[Tensor, "batch length width"],
                value: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch tokens width"]:
    """Run open_clip's block with more keys and values in its attention."""
    attn = block.attn
    q, k, v = attn.qkv(block.ln_1(x)).chunk(3, dim=-1)
    k, v = torch.cat([key.to(k.dtype), k], dim=1), torch.cat([value.to(v.dtype), v], dim=1)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + block.ls_1(attn.out_proj(out))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def pool_of(clip: Clip) -> Pool:
    """Return the pool that a tuner put into the image tower. ValueError: there is none."""
    pool = getattr(clip.model.visual, "transformer", None)
    if not isinstance(pool, Pool):
        raise ValueError("the model has no pool of prompts. Choices: tuner='l2p', 'dualprompt', "
                         "'mvp'")
    return pool


@dataclass
class PoolTuner(Tuner):
    """A tuner that puts a trainable pool of prompts around the image transformer."""

    towers: ClassVar[tuple[str, ...]] = ("image",)
    reason: ClassVar[str] = "its prompts are chosen by the image and read by the image tower"
    inside: ClassVar[bool] = False  # whether its prompts go into the blocks' attention

    def apply(self, clip: Clip, tower: str) -> None:
        self.check_tower(tower)
        (visual,) = self.transformer_owners(clip, tower, self.inside)
        if visual.pool_type != "tok" or visual.attn_pool is not None:
            raise ValueError(f"the tuner {self.title} asks the class token of the image tower; the "
                             f"feature of model={clip.name!r} is not read there. Choices: "
                             "tuner='prompts', 'lora', 'adapter', 'rescale', 'full'")
        pool = self.pool_for(visual)
        clip.requires_grad_(False)
        visual.transformer = pool.to(clip.device)

    def pool_for(self, visual: nn.Module) -> Pool:
        """Return the pool for the transformer of this tower."""
        raise NotImplementedError


@dataclass
class L2PPool(PoolTuner):
    """A pool of prompts in front of the image tower; each image takes the nearest `top` (L2P)."""

    title: ClassVar[str] = "L2P"
    source: ClassVar[str] = "Wang et al. 2021, arXiv 2112.08654"

    pool: Annotated[int, Ge(1)] = 10  # prompts
    length: Annotated[int, Ge(0)] = 5  # tokens of each
    top: Annotated[int, Ge(1)] = 5  # prompts that an image takes
    batchwise: bool = True  # in training a batch votes for them (L2P's code; off in SIT's)

    def check(self) -> None:
        if self.top > self.pool:
            raise ValueError(f"top={self.top!r}: must be from 1 to pool={self.pool}")

    def pool_for(self, visual: nn.Module) -> Pool:
        return Pool(visual, self.pool, self.top, self.length, (0,), batchwise=self.batchwise)


@dataclass
class ExpertTuner(PoolTuner):
    """General prompts and experts in some blocks, by default in blocks 0, 1 and in 2, 3, 4.

    In a model of fewer than five blocks the defaults are block 0 and all others."""

    general: Annotated[int, Ge(0)] = 5  # length of the general prompts; 0: none
    general_blocks: Blocks = None  # where they stand; None: the first two
    expert: Annotated[int, Ge(0)] = 20  # length of the experts; 0: none
    expert_blocks: Blocks = None  # where they stand; None: the next three
    experts: Annotated[int, Ge(1)] = 10  # how many there are

    def check(self) -> None:
        for field in ("general_blocks", "expert_blocks"):
            blocks = getattr(self, field) or ()
            if len(set(blocks)) < len(blocks):
                raise ValueError(f"{field}={blocks!r}: must be a list of different numbers, the "
                                 "first block of the image tower is 0")

    def places(self, visual: nn.Module) -> dict:
        """Return lengths and blocks as Pool takes them. ValueError: the model has no such block."""
        depth = len(visual.transformer.resblocks)
        first = 2 if depth >= 5 else min(1, depth - 1)  # where the experts begin
        usual = {"general_blocks": range(max(first, 1)),
                 "expert_blocks": range(first, min(5, depth))}
        places = {}
        for field, blocks in usual.items():
            given = getattr(self, field)
            places[field] = tuple(blocks) if given is None else given
            if not set(places[field]) <= set(range(depth)):
                raise ValueError(f"tuner_args: {field}={given!r}: must be different numbers from 0 "
                                 f"to {depth - 1}, the blocks of the image tower")
        return {"general": self.general, "expert": self.expert, **places}


@dataclass
class DualPromptPool(ExpertTuner):
    """General prompts, and an expert per stage, as keys and values in some blocks (DualPrompt)."""

    title: ClassVar[str] = "DualPrompt"
    source: ClassVar[str] = "Wang et al. 2022, arXiv 2204.04799"
    inside: ClassVar[bool] = True

    def pool_for(self, visual: nn.Module) -> Pool:
        return Pool(visual, self.experts, 1, **self.places(visual), form="prefix")


@dataclass
class MVPPool(ExpertTuner):
    """General prompts, experts chosen by use, as tokens in some blocks, and a logit mask (MVP).

    The mask is a vector μ_e per expert, from which the method makes a factor 2σ(μ_e·t_k) for class
    k, so that it serves any set of classes. It starts at zero, so at factor 1."""

    title: ClassVar[str] = "MVP"
    source: ClassVar[str] = "Moon et al. 2023, arXiv 2308.09303"

    def pool_for(self, visual: nn.Module) -> Pool:
        return Pool(visual, self.experts, 1, **self.places(visual), form="block", balanced=True,
                    mask=visual.output_dim)
