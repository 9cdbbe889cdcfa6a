"""Mask and visual prompt tuning: prompts chosen by use, masked logits, and two corrections for each
image. Moon et al. 2023, MVP, arXiv 2308.09303, on CLIP.

    L = (1/B) Σ_i w_i · CE_i  −  λ log( A / (A + Q) + 1e-6 ),   CE_i = −log softmax(z_i)_{y_i}
        └─────── task ──────┘   └───────── contrast ────────┘

    z_ik = s f_i·t_k · 2σ(μ_e·t_k) / c_i                        2σ(…): instance-wise logit mask
    c_i = 1 − cos(t_y, f_i) + margin                            adaptive feature scaling
    w_i = (1 − α) + α (1 − cos(g_i, ḡ))^γ                       gradient similarity focusing
    g_i = ∂CE_i/∂t_y,   ḡ = ∂(mean CE)/∂t_y,   both at c = 1    w, c: constants to the gradient
    A = mean_ik exp(d(κ_e, κ_k) / m_e),   Q = mean_i exp(d(q_i, κ_e) / m_e),   d = 1 − cos

    symbol  field         unit     meaning
    e       –             –        expert of image i: the smallest m_k d(q_i, κ_k) (tuner `mvp`)
    m_k     –             images   1 + how many images were trained with expert k
    μ       –             –        mask vector of an expert, from 0 (tuner `mvp`)
    λ       weight        –        of the contrast: keys near queries, far from each other
    α, γ    alpha, gamma  –        strength and power of the focus on images whose gradient is
                                   unlike that of their class
    margin  margin        –        of the feature scaling; None: no scaling
    –       candidates    classes  whose texts compete: "seen", or "batch" as in SIT

Estimator: exact on the batch; g_i points along −f_i, so nothing is differentiated. α = 0.5, γ = 2,
margin = 0.5 as released. Departures. The mask has a number per class there, here μ_e·t_k, which
serves classes that were not known; evaluation compares features and texts as for every method, so
it masks in training only. The released code reduces CE_i to its mean before it is weighted, and in
A and Q divides each distance by the m_e of every image. On CLIP (MVP-CLIP in SIT's code) it
normalises f_i after the scaling, which undoes it, and the script has neither focus nor scaling:
alpha=0, margin=None, candidates="batch". See `models/tuners/prompt_pool.py` for those of the pool.
"""
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip
from clstudy.models.tuners.prompt_pool import Pool, pool_of


@dataclass
class MVP(Method):
    """Chooses prompts by their use, masks logits, and corrects the loss of each image twice."""

    title = "MVP"
    source = "Moon et al. 2023, MVP, arXiv 2308.09303"
    family = "prompt pool"
    dash = (1, 1)
    needs_tuner = "mvp"
    place_on_map = Beside("finetune", "chooses prompts by keys, and masks and weighs its logits")
    checked = "on CLIP instead of a classifier; the mask acts in training"

    weight: Annotated[float, Ge(0)] = 1.0  # of the contrastive prompt loss
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5  # of the focus; 0: every image counts the same
    gamma: Annotated[float, Ge(0)] = 2.0  # its power
    margin: Annotated[float, Gt(0)] | None = 0.5  # of the feature scaling; None: no scaling
    candidates: Literal["seen", "batch"] = "seen"  # which texts compete

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded, pool, target = clip.encode(batch), pool_of(clip), batch.target
        contrast = prompt_contrast(pool)
        pool.tally()  # after the contrast, which takes the usage that the choice was made with
        mask = 2 * (pool.mask[pool.choice[:, 0]] @ encoded.text.T).sigmoid()
        logits = encoded.scale * encoded.image @ encoded.text.T * mask
        with torch.no_grad():
            unlike = ignored(logits, mask, encoded.image, target)
            focus = 1 - self.alpha + self.alpha * unlike**self.gamma
            cosine = (encoded.image * encoded.text[target]).sum(-1)
            stretch = torch.ones_like(cosine) if self.margin is None else 1 - cosine + self.margin
        loss = F.cross_entropy(logits / stretch[:, None], target, reduction="none")
        return {"task": (focus * loss).mean(), "contrast": self.weight * contrast}


def ignored(logits: Float[Tensor, "batch texts"], mask: Float[Tensor, "batch texts"],
            image: Float[Tensor, "batch dim"], target: Int[Tensor, " batch"]
            ) -> Float[Tensor, " batch"]:
    """Return 1 − cos(g_i, ḡ), from 0 to 2: how unlike an image's gradient is that of the batch.

        ∂CE_i/∂t_k = s mask_ik (p_ik − 1[y_i = k]) f_i,   so g_i points along −f_i"""
    error = (logits.softmax(-1) - F.one_hot(target, logits.shape[1])) * mask
    total = F.normalize(error.T @ image, dim=-1)  # of the batch, for each text
    return 1 + (image * total[target]).sum(-1)


def prompt_contrast(pool: Pool) -> Float[Tensor, ""]:
    """Return −log(A / (A + Q) + 1e-6) of the last choice."""
    chosen, keys = pool.choice[:, 0], F.normalize(pool.keys, dim=-1)
    used = 1 + pool.used[chosen]
    apart = ((1 - keys[chosen] @ keys.T) / used[:, None]).exp().mean()
    near = (pool.distance()[:, 0] / used).exp().mean()
    return -(apart / (apart + near) + 1e-6).log()
