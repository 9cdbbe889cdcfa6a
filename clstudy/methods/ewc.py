"""Online elastic weight consolidation: a penalty holds important weights near their old values.
Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3; online, with one anchor and a decaying Fisher:
Schwarz et al. 2018, arXiv 1805.06370. With `streaming` it is EWC++, whose Fisher information is
gathered in the steps of training: Chaudhry et al. 2018, RWalk, arXiv 1801.10112.

    L = CE + (λ/2) Σ_j F_j (θ_j − θ*_j)²
        └task┘ └────────── penalty ─────────┘
    online   F ← γ F + F° / mean_j F°_j         at the end of each stage
    EWC++    S ← δ S + (∂CE / ∂θ)²              at each step
             F ← S / mean_j S_j                 at the end of each stage

    symbol  field      unit  meaning
    θ*      –          –     weights at the end of the last stage; only what is tuned
    F°      –          –     the stage's Fisher information, E_x E_{y ~ p(y|x)} (∂ log p_y / ∂θ)²
    λ       weight     –     of the penalty
    γ       gamma      –     online: what is left of the old Fisher after a stage
    –       draws      –     online: label draws per batch in the estimate
    S       –          –     EWC++: a sum over the steps of all stages
    δ       streaming  –     EWC++: what is left of S after a step, which reaches 1 / (1 − δ) steps
                             back; 1: all, so that F is a plain mean; 0: the last step alone

Estimator, online: labels are drawn from the model's own p over the classes seen so far, not taken
from the data; see `models/fisher.py`. One more pass over the stage, without augmentation and in
evaluation mode. EWC++: the squared gradient of the batch's mean task term at the true labels (the
empirical Fisher, of a whole batch), as training sees the images; it costs no pass, for the gradient
of the penalty is known and taken off. There is no penalty in the first stage (as in the paper),
although a pretrained model has something to lose there; `anchor_start` takes the start for a stage
with F = 1.

Departures: F is divided by its mean over the weights that it reaches. The Fisher of a confident
model is almost zero, so that without this λ would have to be found anew for each model; with it λ
is a weight per squared step of an average parameter. Thereby the sum S stands for the moving
average (1 − δ) S with its start corrected. The released code of EWC++ brings F to [0, 1] by its
least and largest value, averages squared gradients over windows of ten steps or more before the
moving average takes them, with 0.9 for the new window, and starts with the first window.
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
    checked = "both Fishers and the penalty against naive code; normalised"

    weight: Annotated[float, Ge(0)] = 1.0  # of the penalty
    gamma: Annotated[float, Ge(0), Le(1)] = 0.9  # what a stage leaves of the old Fisher; 1: all
    draws: Annotated[int, Ge(1)] = 4  # label draws per batch in the estimate of the Fisher
    streaming: Annotated[float, Ge(0), Le(1)] | None = None  # EWC++: what a step leaves; 1: a mean
    anchor_start: bool = False  # hold the weights near the start in the first stage too
    candidates: Candidates = "seen"  # which texts compete in the task term
    anchor: Tensor | None = state(default=None)  # θ*, all tuned weights in a row
    fisher: Tensor | None = state(default=None)  # F
    streamed: Tensor | None = state(default=None)  # S

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

    @torch.no_grad()
    def edit_gradients(self, clip: Clip) -> None:
        """Take the squared gradient of the task term into S; no gradient is changed."""
        if self.streaming is None:
            return
        parameters = self.trainable(clip)
        gradient = in_a_row(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        if self.anchor is not None:
            gradient = gradient - self.weight * self.fisher * (in_a_row(parameters) - self.anchor)
        old = 0 if self.streamed is None else self.streaming * self.streamed
        self.streamed = old + gradient**2

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        parameters = self.trainable(clip)
        found = self.streamed if self.streaming is not None else sum(
            squared_scores(clip.eval(), parameters, batch, self.draws) for batch in batches)
        if torch.is_tensor(found):  # the stage had images
            found, online = mean_one(found), self.streaming is None and self.fisher is not None
            self.fisher = self.gamma * self.fisher + found if online else found
            self.anchor = in_a_row(parameters).detach().clone()
