"""Weight-space ensemble: fine-tuning, but the model that is evaluated lies between the first and
the current weights. Wortsman et al. 2021, WiSE-FT, arXiv 2109.01903; as a baseline of continual
learning Zheng et al. 2023, ZSCL, arXiv 2303.06628.

    L = −(1/B) Σ_i log p_{i,y_i};   evaluated:  θ_0 + α (θ − θ_0)
        └──────── task ────────┘

    symbol  field       unit     meaning
    α       alpha       –        mixing coefficient
    θ_0     –           –        tuned weights before any training; θ: as they are now
    –       candidates  classes  whose texts compete: "seen", "phase" or "batch"

Estimator: training never sees the ensemble, so one run of fine-tuning serves every α. α = 0.5,
which the paper advises where it cannot be chosen. What is mixed is what is tuned: with LoRA the
factors A and B, so the path is not straight in the weights that they make (B starts at zero, so at
α the update is α² B A plus α (1 − α) B A_0); buffers are those of θ. Departures: the paper
fine-tunes once; here θ moves through all stages and θ_0 stays. It has a classifier head, made from
texts, beside the image tower; here the texts' tower is mixed where it is tuned.
"""
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip
from clstudy.models.weight_space import Values, between, put_beside, tuned


@dataclass
class WiSEFT(Method):
    """Averages the weights of CLIP and of the tuned model for evaluation."""

    title = "WiSE-FT"
    source = "Wortsman et al. 2021, WiSE-FT, arXiv 2109.01903"
    family = "weight averaging"
    dash = (4, 1.5)
    place_on_map = Beside("finetune", "is evaluated between CLIP and the tuned weights")
    checked = "both ends"

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5  # 1: fine-tuning, 0: the model before training
    candidates: Candidates = "seen"  # which texts compete
    start: Values | None = state(default=None)  # θ_0
    mixed: Clip | None = state(default=None)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.narrow(self.candidates))}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        if self.start is None:
            self.start, self.mixed = tuned(clip), deepcopy(clip)

    def deploy(self, clip: Clip) -> Clip:
        if self.start is None:
            return clip
        return put_beside(self.mixed, clip, between(self.start, tuned(clip), self.alpha))
