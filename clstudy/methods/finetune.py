"""Asymmetric tuning: all classes seen so far compete. Baseline of Wang et al. 2024, SIT, arXiv
2405.15155; with the classes of the phase alone, of Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └──────── task ────────┘

    symbol  field        unit     meaning
    s       –            –        inverse temperature, frozen
    K       candidates   classes  "seen": classes seen so far; "phase": those of the stage (VR-LwF)
    –       absent_…     –        who feels what the texts of absent classes do: see below

Estimator: the exact loss of the batch. A class that was seen earlier but is absent from the batch
gets no attraction, only repulsion: ∂L/∂t_k = (s/B) Σ_i p_ik f_i.

Interventions of ours, which tell what the asymmetry does to images and what to texts: `absent_push`
says which side of z_ik = s f_i·t_k gets a gradient where class k is absent from the batch, and
`absent_competes` whether z_ik stays in the denominator of p for a side that gets none.

    absent_push  competes  text k, absent        image i: (s/B) (Σ_k p_ik t_k − t_{y_i}), the sum
    both                   (s/B) Σ_i p_ik f_i    over K: the asymmetric loss
    image        either    0                     over K
    text         True      (s/B) Σ_i p_ik f_i    over the classes present
    text         False     (s/B) Σ_i p_ik f_i    over the classes present, p among these: SIT's
    none         True      0                     over the classes present
    none         False     0                     SIT on both sides

Texts of classes present have the asymmetric gradient, or SIT's where texts get none and
`absent_competes` is False. So with False each side has the gradient of one of the two losses, and
the four values of `absent_push` are all their pairs. With True the value of the loss and p are
those of the asymmetric loss; but on the side without a push, the p of the classes present sum to
less than 1, so that attraction outweighs repulsion (images then gather around the texts of the
batch). Through the weights that all texts share, absent texts move in every form. The probe
`classes` describes "both" alone; for the others it says so (`unexplained`).

Departures: one softmax; the released code applies a second one, which `double_softmax` repeats (see
DEVIATIONS.md).
"""
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import Push, match_batch, match_sides
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
    absent_competes: bool = True  # with a side that gets none; False: that side has SIT's gradient

    def check(self) -> None:
        if self.absent_push == "both" and not self.absent_competes:
            raise ValueError("absent_competes=False means nothing with absent_push='both': choose "
                             "absent_push='image', 'text' or 'none'")
        if self.absent_push != "both" and self.double_softmax:
            raise ValueError(f"absent_push={self.absent_push!r} has one softmax: choose "
                             "double_softmax=False")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        among = batch.narrow(self.candidates)
        if self.absent_push == "both":
            return {"task": match_batch(clip, among, self.double_softmax)}
        encoded = clip.encode(among)
        return {"task": match_sides(encoded.image, encoded.text, encoded.scale, among.target,
                                    self.absent_push, self.absent_competes)}

    @property
    def place_on_map(self) -> dict[str, Any] | Beside:
        if self.double_softmax:
            return Beside("finetune", "takes a second softmax, as the released code does")
        if self.absent_push != "both":
            return Beside("finetune", "lets the texts of absent classes push one side, or none")
        return {"candidates": self.candidates}
