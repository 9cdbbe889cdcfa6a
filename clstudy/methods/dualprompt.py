"""DualPrompt: prompts for all stages, and an expert prompt for each. Wang et al. 2022, arXiv 2204.04799, on CLIP.

    L = −(1/B) Σ_i log p_{i,y_i}  +  λ · (1/B) Σ_i (1 − cos(q_i, κ_e))
        └──────── task ────────┘     └───────────── pull ────────────┘

    symbol   field        meaning                                                              unit
    p_ik     –            softmax of s f_i·t_k over the candidates                             –
    –        candidates   "seen": all classes seen so far; "batch": those present (SIT)        classes
    λ        weight       of the pull of the stage's key to the queries                        –
    q, κ     –            query of an image, key of an expert (tuner `dualprompt`)             –
    e        –            in training the expert of the stage; in evaluation that of the nearest key, of those used

Estimator: exact on the batch. It is told where stages begin, also in a blurred stream, where images of one class train
several experts. The expert of a stage starts as a copy of the one before, its key does not (released code); with more
stages than experts, each image of the later ones takes the nearest (the same). Departures: CLIP's texts classify, the
released code trains a linear layer, and lets only the classes of the current task compete in training. See
`tuners/pool.py` for those of the pool.
"""
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.losses.functional import match
from clstudy.methods.base import Method
from clstudy.models.clip import Clip
from clstudy.models.tuners.prompt_pool import pool_of
from clstudy.utils.validation import choose


@dataclass
class DualPrompt(Method):
    needs: ClassVar[str] = "dualprompt"  # tuner
    weight: float = 1.0  # of the pull
    candidates: str = "seen"  # which texts compete; or "batch"

    def __post_init__(self):
        choose("candidates", self.candidates, ("seen", "batch"))
        if self.weight < 0:
            raise ValueError(f"weight={self.weight!r}: must be at least 0")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.present() if self.candidates == "batch" else batch
        encoded, pool = clip.encode(batch), pool_of(clip)
        pool.tally()
        return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target),
                "pull": self.weight * pool.distance().mean()}

    def before_stage(self, clip: Clip, stage: Stage) -> None:
        pool_of(clip).open(stage.number - 1)
