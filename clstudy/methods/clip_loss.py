"""CLIP's contrastive loss over the pairs of a batch, joined with a memory. Radford et al. 2021,
CLIP, arXiv 2103.00020; the baseline that "Memory-Efficient Continual Learning with CLIP Models",
arXiv 2605.03866, starts from.

    L = ½ [ CE(rows of Z, P) + CE(rows of Zᵀ, P) ],   Z_ij = s f_i·t_{y_j}
        └──────────────── pairs ────────────────┘

    symbol  field      unit    meaning
    s       –          –       inverse temperature, frozen
    P       –          –       1 where i and j are of one class, rows divided by their sums
    –       size       images  of the memory, equally many for each class seen
    –       selection  –       which images of a class: "random" or "herding"
    –       replay     images  images of the memory that join each step
    –       draw       –       "uniform", or "balanced": each class of the memory equally often

Estimator: the sums are over the batch alone, so the loss depends on its size, and a class that is
neither in the batch nor drawn from the memory has no part in the step. With the balanced draw every
class of the memory is, in expectation, equally often among the images replayed
(`data/replay_buffer.py`), hence among the negatives too. Departures: CLIP counts every other pair
as a negative; here labels repeat, so pairs of one class are positives of each other.
"""
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clstudy.data.replay_buffer import Draw, Selection
from clstudy.data.types import Batch
from clstudy.losses.functional import contrastive
from clstudy.methods.base import Rehearsal
from clstudy.models.clip import Clip


@dataclass
class ClipLoss(Rehearsal):
    """CLIP's contrastive loss over the batch, joined with a memory of equal quotas."""

    title = "CLIP loss (memory)"
    source = "Radford et al. 2021, CLIP, arXiv 2103.00020; baseline of arXiv 2605.03866"
    family = "contrastive"
    dash = (4, 1.5)
    published = {
        "CLIP's loss over the mini-batch, with a memory: where the GCL and GDRO paper starts": {}}
    checked = "against a naive loop"

    policy = "quota"
    selection: Selection = "random"  # which images of a class stay
    draw: Draw = "uniform"  # "balanced": each class of the memory equally often

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.present()
        encoded = clip.encode(batch)
        label = torch.tensor(batch.labels, device=encoded.image.device)
        same = (label[:, None] == label[None]).float()
        text = encoded.text[batch.target]
        return {"pairs": contrastive(encoded.image, text, encoded.scale, same)}

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"denominator": "pairs", "candidates": "batch", "policy": "quota"}
