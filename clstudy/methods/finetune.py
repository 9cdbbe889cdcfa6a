"""Asymmetric tuning: every class seen so far competes. Baseline of Wang et al. 2024, SIT, arXiv 2405.15155; with the
classes of the phase alone, of Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m),   K = candidates
        └──────── task ────────┘

    symbol   field        meaning                                                             unit
    s        –            inverse temperature, frozen                                         –
    K        candidates   "seen": classes seen so far; "phase": those of the stage (VR-LwF)   classes

Estimator: the exact loss of the batch. A class that was seen earlier but is absent from the batch gets no attraction,
only repulsion: ∂L/∂t_k = (s/B) Σ_i p_ik f_i. Departures: one softmax; the released code applies a second one, which
`double_softmax` repeats (see DEVIATIONS.md).
"""
from dataclasses import dataclass

from torch import Tensor

from clstudy.data.types import CANDIDATES, Batch
from clstudy.losses.functional import match
from clstudy.methods.base import Method
from clstudy.models.clip import Clip
from clstudy.utils.validation import choose


@dataclass
class Finetune(Method):
    double_softmax: bool = False  # cross-entropy of softmax(p), as in the released code
    candidates: str = "seen"  # which texts compete: "seen", "phase", or "batch", which is `sit`

    def __post_init__(self):
        choose("candidates", self.candidates, CANDIDATES)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded = clip.encode(batch)
        return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target,
                              double_softmax=self.double_softmax)}
