"""Dark experience replay, DER++: old images keep their labels and their old similarities. Buzzega
et al. 2020, arXiv 2004.07211, eq. 6.

    L = CE(batch) + α · mean_{i ∈ draw 1, k ∈ K_i} (z_ik − z'_ik)² + β · CE(draw 2)
        └─ task ─┘  └───────────────── logits ──────────────────┘   └── replay ──┘
    z_ik = f_i·t_k / T

    symbol  field        unit     meaning
    CE      –            –        cross-entropy among the classes seen so far, scale s
    z'_i    –            –        z_i at the last step on the batch that brought image i
    K_i     –            classes  classes seen then; later columns are not compared
    α, β    alpha, beta  –        weights
    T       temperature  –        of the similarities that are compared
    –       replay       images   images of each of the two draws
    –       size         images   of the memory, a reservoir

Estimator: z' is taken from augmented images, and the images are stored plain and augmented again
when they are drawn (released code, github.com/aimagelab/mammoth). Departures: the paper compares
the logits of a classifier. CLIP's are cosines times s, and at OpenAI's s = 100 a drift of the
cosines by 0.05 would already cost 25; here cosines are divided by T, so that the term has the same
size for every model, and a drift by T counts as 1. The paper's classifier has all its outputs from
the start; here the columns of classes that come later do not exist for a stored image.
"""
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.types import Batch
from clstudy.losses.functional import match
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class DERpp(Method):
    """Keeps images with their labels and their old similarities."""

    title = "DER++"
    source = "Buzzega et al. 2020, DER++, arXiv 2004.07211"
    family = "memory"
    place_on_map = Beside(
        "er", "also keeps what the model said about each image of the memory: old answers, "
              "no teacher")
    checked = "equation 6, with cosines for logits"

    alpha: Annotated[float, Ge(0)] = 0.5  # weight of the logits term
    beta: Annotated[float, Ge(0)] = 0.5  # weight of the replay term
    temperature: Annotated[float, Gt(0)] = 0.1  # of the similarities that are compared
    size: Annotated[int, Ge(0)] = 500  # of the memory, in images; 0: none
    replay: Annotated[int, Ge(0)] = 32  # images of each of the two draws
    memory: ReplayBuffer = state()
    latest: Tensor | None = state(default=None)  # similarities of the stream at the last step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, "reservoir")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, target = clip.encode(batch), batch.target
        similarity = encoded.image @ encoded.text.T / self.temperature
        drawn, end = batch.replayed // 2, len(batch.index)
        stream = slice(end - 2 * drawn)
        first, second = slice(end - 2 * drawn, end - drawn), slice(end - drawn, end)
        self.latest = similarity[stream].detach()
        terms = {"task": match(encoded.image[stream], encoded.text, encoded.scale, target[stream])}
        if drawn:
            stored = self.memory.look_up("logits", batch.index[first])[:, self.columns(batch)]
            terms["logits"] = self.alpha * mean_square(similarity[first], stored)
            terms["replay"] = self.beta * match(encoded.image[second], encoded.text, encoded.scale,
                                                target[second])
        return terms

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(self.memory.join(batch, self.replay), self.replay)

    def after_step(self, clip: Clip, batch: Batch) -> None:
        if self.latest is not None:
            shape = len(batch.index), len(batch.prompts)
            logits = torch.full(shape, torch.nan, device=self.latest.device)
            logits[:, self.columns(batch)] = self.latest
            self.memory.add(batch, logits=logits)

    def columns(self, batch: Batch) -> Tensor:
        """Return the columns of the candidates in what is stored.

        That has a column for each class of the benchmark, NaN where it was not seen."""
        return torch.tensor(batch.classes, device=batch.prompts.device)


def mean_square(new: Tensor, stored: Tensor) -> Tensor:
    """Return the mean of (new − stored)² over the entries that were stored."""
    kept = ~stored.isnan()
    return torch.where(kept, new - stored.nan_to_num(), 0).square().sum() / kept.sum()
