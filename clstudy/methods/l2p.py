"""Learning to prompt: each image chooses prompts from a pool by its frozen feature. Wang et al.
2021, L2P, arXiv 2112.08654, eq. 5, on CLIP.

    L = −(1/B) Σ_i log p_{i,y_i}  +  λ · (1/BN) Σ_i Σ_{k ∈ N_i} (1 − cos(q_i, κ_k))
        └──────── task ────────┘     └────────────────── pull ────────────────────┘

    symbol  field       unit     meaning
    p_ik    –           –        softmax of s f_i·t_k over the candidates
    –       candidates  classes  whose texts compete: "seen", or "batch" as in SIT
    λ       weight      –        of the pull of the chosen keys to the queries
    q, κ    –           –        query of an image, key of a prompt (tuner `l2p`)
    N_i     –           prompts  the N = `top` prompts that image i takes (tuner `l2p`)

Estimator: exact on the batch. The choice itself has no gradient: prompts learn from the task, keys
from the pull. λ = 0.5 as in the paper, where the pull is summed over the N keys; the mean is that
of SIT's released code (0.5), and that of the L2P port on PyTorch has 0.1 and the sum. Departures:
CLIP's texts classify, the ports train a linear layer; those ports let only the classes of the
current task compete in training. See `models/tuners/prompt_pool.py` for those of the
pool.
"""
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from clstudy.data.types import Batch
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip
from clstudy.models.tuners.prompt_pool import pool_of


@dataclass
class L2P(Method):
    """Trains a pool of prompts, from which each image chooses by its frozen feature."""

    title = "L2P"
    source = "Wang et al. 2021, L2P, arXiv 2112.08654"
    family = "prompt pool"
    dash = (4, 1.5)
    needs_tuner = "l2p"
    place_on_map = Beside(
        "finetune", "chooses prompts from a pool by keys, which have a term of their own")
    checked = "on CLIP instead of a classifier"

    weight: Annotated[float, Ge(0)] = 0.5  # of the pull
    candidates: Literal["seen", "batch"] = "seen"  # which texts compete

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.narrow(self.candidates)),
                "pull": self.weight * pool_of(clip).distance().mean()}
