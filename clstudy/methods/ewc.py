"""Online elastic weight consolidation: weights that mattered are held near where they were. Kirkpatrick et al. 2017,
arXiv 1612.00796, eq. 3; online, with one anchor and a decaying Fisher: Schwarz et al. 2018, arXiv 1805.06370, and as
EWC++ Chaudhry et al. 2018, RWalk, arXiv 1801.10112.

    L = CE + (λ/2) Σ_j F_j (θ_j − θ*_j)²,   F ← γ F + F° / mean_j F°_j  at the end of each stage
        └task┘ └────────── penalty ─────────┘

    symbol   field    meaning                                                                            unit
    θ*       –        weights at the end of the last stage; only what is tuned                           –
    F°       –        diagonal of the stage's Fisher information, E_x E_{y ~ p(y|x)} (∂ log p_y / ∂θ)²    –
    λ        weight   of the penalty                                                                     –
    γ        gamma    what is left of the old Fisher after a stage                                       –
    –        draws    label draws per batch in the estimate                                              –

Estimator: labels are drawn from the model's own p over the classes seen so far, not taken from the data; see
`fisher.py`. One more pass over the stage, without augmentation and in evaluation mode. There is no penalty in the
first stage (as in the paper), although a pretrained model has something to lose there; `anchor_start` takes the start
for a stage with F = 1.
Departures: F° is divided by its mean over the weights that it reaches. The Fisher of a confident model is almost zero,
so that without this λ would have to be found anew for each model; with it λ is a weight per squared step of an average
parameter. EWC++ averages squared gradients of the training steps at the true labels, the empirical Fisher; here it is
the Fisher itself, at the end of the stage.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import CANDIDATES, Batch
from clstudy.losses.functional import match
from clstudy.methods.base import Method
from clstudy.models.clip import Clip
from clstudy.models.fisher import in_a_row, mean_one, squared_scores
from clstudy.utils.validation import choose


@dataclass
class EWC(Method):
    weight: float = 1.0  # of the penalty
    gamma: float = 0.9  # what is left of the old Fisher after a stage; 1: all
    draws: int = 4  # label draws per batch in the estimate of the Fisher
    anchor_start: bool = False  # hold the weights near the start in the first stage too
    candidates: str = "seen"  # which texts compete in the task term: "seen", "phase" or "batch"
    anchor: Tensor | None = field(default=None, init=False, repr=False)  # θ*, all tuned weights in a row
    fisher: Tensor | None = field(default=None, init=False, repr=False)  # F

    def __post_init__(self):
        choose("candidates", self.candidates, CANDIDATES)
        if self.weight < 0:
            raise ValueError(f"weight={self.weight!r}: must be at least 0")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma!r}: must be from 0 to 1")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws!r}: must be at least 1")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded = clip.encode(batch)
        terms = {"task": match(encoded.image, encoded.text, encoded.scale, batch.target)}
        if self.anchor is not None:
            moved = in_a_row(self.trainable(clip)) - self.anchor
            terms["penalty"] = self.weight / 2 * (self.fisher * moved**2).sum()
        return terms

    def before_stage(self, clip: Clip, stage: Stage) -> None:
        if self.anchor_start and self.anchor is None:
            self.anchor = in_a_row(self.trainable(clip)).detach().clone()
            self.fisher = torch.ones_like(self.anchor)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        parameters = self.trainable(clip)
        fisher = sum(squared_scores(clip.eval(), parameters, batch, self.draws) for batch in batches)
        if torch.is_tensor(fisher):  # the stage had images
            fisher = mean_one(fisher)
            self.fisher = fisher if self.fisher is None else self.gamma * self.fisher + fisher
            self.anchor = in_a_row(parameters).detach().clone()
