"""Averaged gradient episodic memory: the gradient is projected so that it does not raise the loss
on replayed pairs. Chaudhry et al. 2019, A-GEM, arXiv 1812.00420, eq. 11; on CLIP with image-caption
pairs like those of pretraining, Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i};   step along  g − min(0, g·r / |r|²) r
        └──────── task ────────┘

    symbol  field       unit     meaning
    g       –           –        gradient of L
    r       –           –        gradient of CLIP's contrastive loss on the replayed pairs
    –       replay      pairs    drawn anew at each step; 0: none, which is fine-tuning
    –       size        images   kept of each finished stage, with class prompts as captions
    –       candidates  classes  whose texts compete: "seen", "phase" (VR-LwF) or "batch"

Estimator: one inner product over all tuned parameters. Pairs are drawn uniformly from the
benchmark's reference pairs and all images kept together, as the code's loader would
(github.com/yxding95/CL-CLIP); what is kept is a uniform draw of the stage. Equal captions, and
captions of one image, are positives of each other. No augmentation of the replayed images. The
constraint is on the gradient, not on the step of an optimiser that rescales it. Departures: the
released code fetches its replay batch and then takes the current one instead, so that nothing is
replayed there; here it is used. Its captions are all different to the loss. Parameters that L does
not reach take no part.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import contrastive, match_batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class AGEM(Method):
    """Projects the gradient so that it does not raise the loss on replayed pairs."""

    title = "A-GEM"
    source = "Chaudhry et al. 2019, A-GEM, arXiv 1812.00420"
    family = "regularization"
    dash = (1, 1)
    needs_reference = True
    place_on_map = Beside("finetune", "projects the gradient, with a memory beside the loss")
    checked = "the projection; the replay is really used"

    replay: Annotated[int, Ge(0)] = 64  # pairs in each step; 0: none
    size: Annotated[int, Ge(0)] = 250  # images kept of each finished stage
    candidates: Candidates = "seen"  # which texts compete
    kept: list[ReplayBuffer] = state(default_factory=list)  # one per finished stage
    drawn: dict[str, Tensor] = state(default_factory=dict)  # the pairs of this step

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.narrow(self.candidates))}

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        """Draw the pairs of this step, and return the batch as it is."""
        if self.replay:
            self.draw(clip, batch)
        return batch

    def edit_gradients(self, clip: Clip) -> None:
        reached = [p for p in self.trainable(clip) if p.grad is not None]
        if self.drawn and reached:
            r = torch.autograd.grad(self.replayed(clip), reached, allow_unused=True,
                                    materialize_grads=True)
            edited = projected([p.grad for p in reached], list(r))
            for p, gradient in zip(reached, edited, strict=True):
                p.grad = gradient

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        memory = ReplayBuffer(self.size, "reservoir")
        for batch in batches:
            memory.add(batch)
        if len(memory):
            self.kept.append(memory)

    @property
    def memory_bytes(self) -> int:
        return sum(memory.bytes for memory in self.kept)

    def draw(self, clip: Clip, batch: Batch) -> None:
        """Draw reference pairs, then kept pairs: their pixels and tokens, and which are alike."""
        pairs, device = batch.reference(), clip.device
        kept = [(memory, slot) for memory in self.kept for slot in range(len(memory))]
        rows = torch.randperm(len(pairs.captions) + len(kept))[:self.replay].sort().values.tolist()
        first = [row for row in rows if row < len(pairs.captions)]
        own = [kept[row - len(pairs.captions)] for row in rows[len(first):]]
        labels = [memory.labels[slot] for memory, slot in own]
        captions, owner = [pairs.captions[row] for row in first], pairs.owner[first]
        same = together([*captions, *labels], [*owner.tolist(), *range(-len(own), 0)])
        self.drawn = {"same": same.to(device)}
        if first:
            self.drawn["pixels"] = pairs.images[torch.from_numpy(owner)].to(device)
            self.drawn["tokens"] = clip.tokenize(captions).to(device)
        if own:
            self.drawn["own pixels"] = torch.stack([memory.image[slot] for memory, slot in own])
            self.drawn["own tokens"] = batch.prompts[torch.tensor(labels, device=device)]

    def replayed(self, clip: Clip) -> Tensor:
        """Return the contrastive loss on the pairs drawn. The two kinds may differ in size."""
        pixels = [self.drawn[key] for key in ("pixels", "own pixels") if key in self.drawn]
        tokens = [self.drawn[key] for key in ("tokens", "own tokens") if key in self.drawn]
        image = torch.cat([clip.encode_image(part) for part in pixels])
        text = torch.cat([clip.encode_text(part) for part in tokens])
        return contrastive(image, text, clip.scale(), self.drawn["same"])


def together(captions: list, owners: list[int]) -> Float[Tensor, "pairs pairs"]:
    """Return 1 where two pairs have an equal caption or the same image, 0 elsewhere."""
    number = {}
    ids = torch.tensor([number.setdefault(caption, len(number)) for caption in captions])
    owner = torch.tensor(owners)
    return ((ids[:, None] == ids) | (owner[:, None] == owner)).float()


def projected(g: list[Tensor], r: list[Tensor]) -> list[Tensor]:
    """Return g − min(0, g·r / |r|²) r. The host reads nothing, so it does not wait for a GPU."""
    product = sum((a * b).sum() for a, b in zip(g, r, strict=True))
    length = sum(b.square().sum() for b in r)
    against = torch.where(product < 0, product / length, 0.0)
    return [a - against * b for a, b in zip(g, r, strict=True)]
