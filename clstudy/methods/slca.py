"""Slow learner with classifier alignment: the backbone learns at a small rate, the classifier is
aligned by the statistics of all classes. Zhang et al. 2023, SLCA, arXiv 2303.05118; on CLIP, where
the backbone is the image tower and the texts are the classifier.

    L = CE(batch, classes of the stage) + β · CE(f of batch ∪ f_j ~ N(μ_{y_j}, Σ_{y_j}), all seen)
        └──────────── task ───────────┘   └─────────────────────── align ────────────────────────┘
    θ_image ← θ_image + ρ Δ,   Δ: what the optimiser's step would add

    symbol  field       unit      meaning
    ρ       slow        –         rate of the image tower, as a share of the run's; 1: not slow
    f       –           –         image features, constants: the term teaches the texts alone
    μ, Σ    –           –         mean and full covariance of a class's features at the end of its
                                  stage (`losses/class_statistics.py`)
    –       count       features  drawn for each step, of classes of earlier stages alike; 0: no
                                  alignment
    β       weight      –         of the alignment
    –       candidates  classes   of the task: "phase" as in the paper, "seen" or "batch"

Estimator: as `replay_features`, and the features of the batch beside the draws. ρ = 0.01 as in the
released code. ρ scales the step, not the gradient: Adam divides a gradient by its own size, so that
one scaled by ρ would make the same step. It needs no second group of parameters in the optimiser:
the weights before a step are kept, and the step is shortened after it, weight decay included. As in
the paper the first stage has no alignment.

Departures: in the paper the alignment comes after the stage, with an optimiser of its own, on 256
draws of each class for 5 epochs; a method does not step an optimiser, so here it is a term of every
step, in which the classes of the stage stand with their own images instead of draws. The last stage
therefore has its alignment while it is trained, not behind it. Left out: normalisation of the
logits (texts have norm 1, so no class can outgrow another), and smaller means for older classes
(features are made unit-norm).
"""
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from clstudy.data.types import Batch, Candidates
from clstudy.losses.class_statistics import ClassStatistics
from clstudy.losses.functional import match
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip
from clstudy.models.weight_space import Values


@dataclass
class SLCA(Method):
    """Slows the image tower down, and aligns the texts by the statistics of all classes."""

    title = "SLCA"
    source = "Zhang et al. 2023, SLCA, arXiv 2303.05118"
    family = "feature replay"
    dash = (4, 1.5)
    place_on_map = Beside(
        "finetune", "also classifies features drawn from old classes' statistics, and slows the "
                    "image tower down")
    checked = "steps and alignment by hand; on CLIP instead of a classifier"

    slow: Annotated[float, Ge(0), Le(1)] = 0.01  # rate of the image tower, as a share of the run's
    count: Annotated[int, Ge(0)] = 32  # features drawn for each step; 0: no alignment
    weight: Annotated[float, Ge(0)] = 1.0  # of the alignment
    candidates: Candidates = "phase"  # which texts compete in the task term
    statistics: ClassStatistics = state()
    before: Values | None = state(default=None)  # the image tower before a step, until it is slowed

    def __post_init__(self) -> None:
        super().__post_init__()
        self.statistics = ClassStatistics("full")

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        self.shorten(clip)
        return batch

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        offered = encoded.text[batch.rows(among)]
        terms = {"task": match(encoded.image, offered, encoded.scale, among.target)}
        if self.count and self.statistics.labels:
            drawn, labels = self.statistics.draw(self.count)
            target = replace(batch, labels=batch.labels + labels).target
            image = torch.cat([encoded.image.detach(), drawn])
            terms["align"] = self.weight * match(image, encoded.text, encoded.scale, target)
        return terms

    def edit_gradients(self, clip: Clip) -> None:
        if self.slow < 1:
            self.before = {name: p.detach().clone() for name, p in clip.tower("image")
                           if p.requires_grad}

    def after_step(self, clip: Clip, batch: Batch) -> None:
        self.shorten(clip)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        if self.count:
            self.statistics.add(clip, batches)

    @property
    def memory_bytes(self) -> int:
        """Bytes of means and covariances; no image is kept."""
        return self.statistics.bytes

    @torch.no_grad()
    def shorten(self, clip: Clip) -> None:
        """Shorten the last step of the image tower, once."""
        if self.before is not None:
            own = dict(clip.named_parameters())
            for name, start in self.before.items():
                own[name].copy_(torch.lerp(start, own[name], self.slow))
            self.before = None
