"""Asymmetric tuning: all classes seen so far compete. Baseline of Wang et al. 2024, SIT, arXiv
2405.15155; with the classes of the phase alone, of Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └──────── task ────────┘

    symbol  field       unit     meaning
    s       –           –        inverse temperature, frozen
    K       candidates  classes  "seen": classes seen so far; "phase": those of the stage (VR-LwF)

Estimator: the exact loss of the batch. A class that was seen earlier but is absent from the batch
gets no attraction, only repulsion: ∂L/∂t_k = (s/B) Σ_i p_ik f_i. Departures: one softmax; the
released code applies a second one, which `double_softmax` repeats (see DEVIATIONS.md).
"""
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip


@dataclass
class Finetune(Method):
    """Asymmetric: all classes seen so far compete."""

    title = "asymmetric"
    source = "baseline of Wang et al. 2024, SIT, arXiv 2405.15155"
    family = "asymmetric"
    dash = (4, 1.5)
    published = {"asymmetric tuning, the baseline of the SIT paper": {},
                 "fine-tuning, the baseline of the VR-LwF paper (code)": {"candidates": "phase"}}
    checked = "loss and gradients against their closed forms; no published number to compare with"

    double_softmax: bool = False  # cross-entropy of softmax(p), as in the released code
    candidates: Candidates = "seen"  # which texts compete; "batch" is `sit`

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.narrow(self.candidates), self.double_softmax)}

    @property
    def place_on_map(self) -> dict[str, Any] | Beside:
        if self.double_softmax:
            return Beside("finetune", "takes a second softmax, as the released code does")
        return {"candidates": self.candidates}
