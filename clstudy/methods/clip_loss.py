"""CLIP's own loss over the pairs of a batch, joined with images of a memory. Radford et al. 2021,
CLIP, arXiv 2103.00020; the baseline that "Memory-Efficient Continual Learning with CLIP Models",
arXiv 2605.03866, starts from.

    L = ½ [ CE(rows of Z, P) + CE(rows of Zᵀ, P) ],   Z_ij = s f_i·t_{y_j}
        └──────────────── pairs ────────────────┘

    symbol   field       meaning                                                                  unit
    s        –           inverse temperature, frozen                                              –
    P        –           1 where i and j are of one class, rows divided by their sums             –
    –        size        of the memory, with the same number of images for each class seen        images
    –        selection   which images of a class: "random" or "herding"                           –
    –        replay      images of the memory that join each step                                 images
    –        draw        "uniform", or "balanced": each class of the memory equally often         –

Estimator: the sums are over the batch alone, so the loss depends on its size, and a class that is
neither in the batch nor drawn from the memory has no part in the step. With the balanced draw every
class of the memory is, in expectation, equally often among the images replayed (`memory.py`), hence
among the negatives too. Departures: CLIP counts every other pair as a negative; here labels repeat,
so pairs of one class are positives of each other.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from clstudy.data.replay_buffer import Draw, ReplayBuffer, Selection
from clstudy.data.types import Batch
from clstudy.losses.functional import contrastive
from clstudy.methods.base import Method
from clstudy.models.clip import Clip


@dataclass
class ClipLoss(Method):
    """CLIP's own loss over the batch, joined with a memory of equal quotas."""

    title = "CLIP loss (memory)"
    source = "Radford et al. 2021, CLIP, arXiv 2103.00020; baseline of arXiv 2605.03866"
    family = "contrastive"
    dash = (4, 1.5)
    published = {
        "CLIP's loss over the mini-batch, with a memory: where the GCL and GDRO paper starts": {}}
    checked = "against a naive loop"

    size: Annotated[int, Ge(0)] = 500  # of the memory, in images; 0: none
    replay: Annotated[int, Ge(0)] = 32  # images of the memory that join each step
    selection: Selection = "random"  # which images of a class stay
    draw: Draw = "uniform"  # "balanced": each class of the memory equally often
    memory: ReplayBuffer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, "quota", self.selection, self.draw)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.present()
        encoded = clip.encode(batch)
        label = torch.tensor(batch.labels, device=encoded.image.device)
        same = (label[:, None] == label[None]).float()
        return {
            "pairs": contrastive(encoded.image, encoded.text[batch.target], encoded.scale, same)
        }

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(batch, self.replay)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        self.memory.refill(batches, clip)

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"denominator": "pairs", "candidates": "batch", "policy": "quota"}
