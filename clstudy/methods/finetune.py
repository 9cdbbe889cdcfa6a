"""Asymmetric tuning: all classes seen so far compete. Baseline of Wang et al. 2024, SIT, arXiv
2405.15155; with the classes of the phase alone, of Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └──────── task ────────┘

    symbol  field        unit     meaning
    s       –            –        inverse temperature, frozen
    K       candidates   classes  "seen": classes seen so far; "phase": those of the stage (VR-LwF)
    –       absent_push  –        who feels what the texts of absent classes do: see below

Estimator: the exact loss of the batch. A class that was seen earlier but is absent from the batch
gets no attraction, only repulsion: ∂L/∂t_k = (s/B) Σ_i p_ik f_i.

An intervention of ours: `absent_push` says which side of z_ik = s f_i·t_k gets a gradient where
class k is absent from the batch. The loss has the same value, and the texts compete in it, in all
four; so p does not change, nor do the gradients on the texts of classes present.

    absent_push  text k, absent        image i: (s/B) (Σ_k p_ik t_k − t_{y_i}), the sum over
    both         (s/B) Σ_i p_ik f_i    all of K: the asymmetric loss
    image        0                     all of K
    text         (s/B) Σ_i p_ik f_i    the classes present
    none         0                     the classes present

"image" tells whether old texts must be pushed for old classes to be forgotten, "text" whether
images must move away from old texts. Even "none" is not SIT, in which the p of the classes present
sum to 1: here they sum to less, so images and texts of a class attract each other more. Through the
weights that all texts share, absent texts move in every form. The probe `classes` describes "both"
alone; for the others it says so (`unexplained`).

Departures: one softmax; the released code applies a second one, which `double_softmax` repeats (see
DEVIATIONS.md).
"""
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import Push, match_batch
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
    absent_push: Push = "both"  # who gets a gradient from texts of classes absent from the batch

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        among = batch.narrow(self.candidates)
        return {"task": match_batch(clip, among, self.double_softmax, self.absent_push)}

    @property
    def place_on_map(self) -> dict[str, Any] | Beside:
        if self.double_softmax:
            return Beside("finetune", "takes a second softmax, as the released code does")
        if self.absent_push != "both":
            return Beside("finetune", "lets absent texts compete, but not push both sides")
        return {"candidates": self.candidates}
