"""Experience replay: some images of a memory join every step. Rolnick et al. 2019, arXiv
1811.11682; in the form of Chaudhry et al. 2019, ER with a tiny memory, arXiv 1902.10486, algorithm
1.

    L = −(1/(B+M)) Σ_{i ∈ batch ∪ draw} log p_{i,y_i}
        └─────────────────── task ───────────────────┘
    p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)

    symbol  field   unit     meaning
    s       –       –        inverse temperature, frozen
    K       –       classes  candidates: classes seen so far
    M       replay  images   images drawn from the memory, anew at each step
    –       size    images   of the memory
    –       policy  –        which images stay: "reservoir", "balanced", "quota"
    –       draw    –        "uniform" over the images; or "balanced": over the classes first

Estimator: one mean over stream and memory together, so a replayed image weighs as much as a new
one. With the uniform draw the memory's part is the mean over its images; with the balanced one it
is, in expectation, the mean over its classes of their means, as long as a class has M / C images or
more; the stream's part is as the stream comes. The paper offers several ways to write the memory
and finds the reservoir best unless it is tiny; that is the default. Departures: the memory takes a
batch after its last step (several steps may be made on a batch), so that an image is not replayed
beside itself.
"""
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clstudy.data.replay_buffer import Draw, Policy
from clstudy.data.types import Batch
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Rehearsal
from clstudy.models.clip import Clip


@dataclass
class ER(Rehearsal):
    """Joins images of a memory to every step."""

    title = "ER"
    source = "Chaudhry et al. 2019, arXiv 1902.10486"
    family = "memory"
    dash = (4, 1.5)
    published = {
        "experience replay with class names, baseline of the SIT paper and of GCL and GDRO": {}}
    checked = "reservoir and loss against naive code"

    policy: Policy = "reservoir"  # which images stay
    draw: Draw = "uniform"  # "balanced": each class of the memory equally often

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch)}

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"candidates": "seen"}
