"""Incremental moment matching: after each stage, the models of its start and its end are merged.
Lee et al. 2017, arXiv 1703.08475; with CLIP as the first start, Ding et al. 2022, VR-LwF, arXiv
2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i};   at the end of the stage
        └──────── task ────────┘

    mean   θ ← (1 − α) θ° + α θ
    mode   θ ← ((1 − α) F° θ° + α F θ) / ((1 − α) F° + α F),   F° ← (1 − α) F° + α F

    symbol  field       unit     meaning
    α       alpha       –        share of the new weights
    θ°      –           –        tuned weights at the start of the stage
    F       –           –        diagonal Fisher information at θ (`models/fisher.py`)
    –       mode        –        "mean" or "mode"
    –       draws       –        label draws per batch in the estimate of F ("mode")
    –       carry       –        the next stage starts from the fused model (several sessions in
                                 VR-LwF); False: it is evaluated only, and training goes on from θ
                                 (its one session)
    –       candidates  classes  whose texts compete: "seen", "phase" (VR-LwF) or "batch"

Estimator: what is fused is what is tuned, with LoRA the factors A and B, so that the path between
the two models is not straight in the weights that they make; buffers are those of θ. An evaluation
in the middle of a stage is of the model that would be fused then, by the mean, since F is known at
the end only. In the first stage F° is that of the start on the images of this stage: those of
pretraining are not at hand. α = 0.5 as in the released code of VR-LwF. Departures: the paper's
other transfer techniques (L2 transfer, drop transfer) are left out, as in VR-LwF's code, which has
the mean only. Each stage's F is divided by its mean, so that α is the share of an average weight
for every model.
"""
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip
from clstudy.models.fisher import mean_one, squared_scores
from clstudy.models.weight_space import Values, between, named, put, put_beside, tuned


@dataclass
class IMM(Method):
    """Merges the models of a stage's start and end, by mean or by Fisher information."""

    title = "IMM"
    source = "Lee et al. 2017, IMM, arXiv 1703.08475"
    family = "weight averaging"
    place_on_map = Beside("finetune", "merges weights after a stage")
    checked = "by hand, and both ends"

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5  # share of the new weights; 1: fine-tuning
    mode: Literal["mean", "mode"] = "mean"  # "mode" weighs each weight by its Fisher information
    carry: bool = True  # the next stage starts from the fused model; False: for evaluation only
    draws: Annotated[int, Ge(1)] = 4  # label draws per batch in the estimate of the Fisher
    candidates: Candidates = "seen"  # which texts compete
    start: Values | None = state(default=None)  # θ°
    share: float | Values = state(default=1.0)  # of the model as it is, in the fused one
    fisher: Tensor | None = state(default=None)  # F°, all tuned weights in a row
    fused: Clip | None = state(default=None)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.narrow(self.candidates))}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.start, self.share = tuned(clip), self.alpha
        self.fused = deepcopy(clip) if self.fused is None else self.fused

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        if self.mode == "mode" and 0 < self.alpha < 1:  # at 0 and 1 the Fisher cancels
            self.share = self.precise(clip, batches)
        if self.carry:
            put(clip, between(self.start, tuned(clip), self.share))
            self.share = 1.0  # it is the fused one now

    def deploy(self, clip: Clip) -> Clip:
        if self.start is None:
            return clip
        return put_beside(self.fused, clip, between(self.start, tuned(clip), self.share))

    def precise(self, clip: Clip, batches: Iterable[Batch]) -> float | Values:
        """Return α F / ((1 − α) F° + α F) for each weight, α where both are zero; and keep F°."""
        before, old, new = put_beside(self.fused, clip, self.start), 0, 0
        for batch in (batch.narrow(self.candidates) for batch in batches):
            new = new + squared_scores(clip.eval(), self.trainable(clip), batch, self.draws)
            if self.fisher is None:
                old = old + squared_scores(before.eval(), self.trainable(before), batch, self.draws)
        if not torch.is_tensor(new):  # no images, no steps
            return self.alpha
        old, new = mean_one(old) if self.fisher is None else self.fisher, mean_one(new)
        total = (1 - self.alpha) * old + self.alpha * new
        self.fisher = total if self.carry else new
        return named(torch.where(total > 0, self.alpha * new / total, self.alpha), self.start)
