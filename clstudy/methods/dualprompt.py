"""DualPrompt has prompts for all stages, and an expert prompt for each. Wang et al. 2022, arXiv
2204.04799, on CLIP.

    L = −(1/B) Σ_i log p_{i,y_i}  +  λ · (1/B) Σ_i (1 − cos(q_i, κ_e))
        └──────── task ────────┘     └───────────── pull ────────────┘

    symbol  field       unit     meaning
    p_ik    –           –        softmax of s f_i·t_k over the candidates
    –       candidates  classes  whose texts compete: "seen", or "batch" as in SIT
    λ       weight      –        of the pull of the stage's key to the queries
    q, κ    –           –        query of an image, key of an expert (tuner `dualprompt`)
    e       –           –        in training the expert of the stage; in evaluation the used one
                                 with the nearest key

Estimator: exact on the batch. It is told where stages begin, also in a blurred stream, where images
of one class train several experts. The expert of a stage starts as a copy of the one before, its
key does not (released code); with more stages than experts, each image of the later ones takes the
nearest (the same). Departures: CLIP's texts classify, the released code trains a linear layer, and
lets only the classes of the current task compete in training. See `models/tuners/prompt_pool.py`
for those of the pool.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.losses.functional import match
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip
from clstudy.models.tuners.prompt_pool import pool_of


@dataclass
class DualPrompt(Method):
    """Trains prompts for all stages, and an expert prompt for each stage."""

    title = "DualPrompt"
    source = "Wang et al. 2022, DualPrompt, arXiv 2204.04799"
    family = "prompt pool"
    needs_tuner = "dualprompt"
    place_on_map = Beside(
        "finetune", "chooses prompts from a pool by keys, which have a term of their own")
    checked = "on CLIP instead of a classifier"

    weight: Annotated[float, Ge(0)] = 1.0  # of the pull
    candidates: Literal["seen", "batch"] = "seen"  # which texts compete

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded, pool = clip.encode(batch), pool_of(clip)
        pool.tally()
        return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target),
                "pull": self.weight * pool.distance().mean()}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        pool_of(clip).open(stage.number - 1)
