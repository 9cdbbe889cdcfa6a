"""Online elastic weight consolidation: a penalty holds important weights near their old values.
Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3; online, with one anchor and a decaying Fisher:
Schwarz et al. 2018, arXiv 1805.06370, and as EWC++ Chaudhry et al. 2018, RWalk, arXiv 1801.10112.

    L = CE + (λ/2) Σ_j F_j (θ_j − θ*_j)²,   F ← γ F + F° / mean_j F°_j  at the end of each stage
        └task┘ └────────── penalty ─────────┘

    symbol  field   unit  meaning
    θ*      –       –     weights at the end of the last stage; only what is tuned
    F°      –       –     the stage's Fisher information, E_x E_{y ~ p(y|x)} (∂ log p_y / ∂θ)²
    λ       weight  –     of the penalty
    γ       gamma   –     what is left of the old Fisher after a stage
    –       draws   –     label draws per batch in the estimate

Estimator: labels are drawn from the model's own p over the classes seen so far, not taken from the
data; see `models/fisher.py`. One more pass over the stage, without augmentation and in evaluation
mode. There is no penalty in the first stage (as in the paper), although a pretrained model has
something to lose there; `anchor_start` takes the start for a stage with F = 1. Departures: F° is
divided by its mean over the weights that it reaches. The Fisher of a confident model is almost
zero, so that without this λ would have to be found anew for each model; with it λ is a weight per
squared step of an average parameter. EWC++ averages squared gradients of the training steps at the
true labels, the empirical Fisher; here it is the Fisher itself, at the end of the stage.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip
from clstudy.models.fisher import in_a_row, mean_one, squared_scores


@dataclass
class EWC(Method):
    """Holds important weights near their values after the last stage."""

    title = "online EWC"
    source = "Schwarz et al. 2018, arXiv 1805.06370; Chaudhry et al. 2018, EWC++, arXiv 1801.10112"
    family = "regularization"
    place_on_map = Beside("finetune", "also holds weights by their Fisher information")
    checked = "Fisher and penalty against naive code; normalised"

    weight: Annotated[float, Ge(0)] = 1.0  # of the penalty
    gamma: Annotated[float, Ge(0), Le(1)] = 0.9  # what a stage leaves of the old Fisher; 1: all
    draws: Annotated[int, Ge(1)] = 4  # label draws per batch in the estimate of the Fisher
    anchor_start: bool = False  # hold the weights near the start in the first stage too
    candidates: Candidates = "seen"  # which texts compete in the task term
    anchor: Tensor | None = state(default=None)  # θ*, all tuned weights in a row
    fisher: Tensor | None = state(default=None)  # F

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        terms = {"task": match_batch(clip, batch.narrow(self.candidates))}
        if self.anchor is not None:
            moved = in_a_row(self.trainable(clip)) - self.anchor
            terms["penalty"] = self.weight / 2 * (self.fisher * moved**2).sum()
        return terms

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        if self.anchor_start and self.anchor is None:
            self.anchor = in_a_row(self.trainable(clip)).detach().clone()
            self.fisher = torch.ones_like(self.anchor)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        parameters = self.trainable(clip)
        fisher = sum(squared_scores(clip.eval(), parameters, batch, self.draws)
                     for batch in batches)
        if torch.is_tensor(fisher):  # the stage had images
            fisher = mean_one(fisher)
            self.fisher = fisher if self.fisher is None else self.gamma * self.fisher + fisher
            self.anchor = in_a_row(parameters).detach().clone()
