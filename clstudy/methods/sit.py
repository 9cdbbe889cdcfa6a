"""Symmetric image-text tuning: only the classes present in the batch compete. Wang et al. 2024,
SIT, arXiv 2405.15155.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └──────── task ────────┘

    symbol  field  unit     meaning
    s       –      –        inverse temperature, frozen
    K       –      classes  classes in the batch: `batch.present()`

Estimator: the exact loss of the batch. "Symmetric" says that the texts and the images of the loss
cover the same classes; it does not mean CLIP's two-direction loss, and there is no text-to-image
term (released code). A text that is absent from the batch is not in the graph: its direct gradient
is zero. With a memory (off in the paper) the batch is the stream's images joined with those
replayed, and K the classes of both. Evaluation offers all classes seen, as for every method.
Departures: one softmax; the released code applies a second one, which `double_softmax` repeats; and
the released code silently takes all classes seen for K as soon as there is a memory, here K stays
symmetric (see DEVIATIONS.md).
"""
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from clstudy.data.types import Batch
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Rehearsal
from clstudy.models.clip import Clip


@dataclass
class SIT(Rehearsal):
    """Symmetric: only the classes of the batch compete, with or without a memory."""

    title = "symmetric (SIT)"
    source = "Wang et al. 2024, SIT, arXiv 2405.15155"
    family = "symmetric"
    published = {"SIT": {}}
    checked = "loss and gradients against their closed forms; no published number to compare with"

    size: Annotated[int, Ge(0)] = 0  # of the memory, in images; 0: none
    double_softmax: bool = False  # cross-entropy of softmax(p), as in the released code

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch.present(), self.double_softmax)}

    @property
    def place_on_map(self) -> dict[str, Any] | Beside:
        if self.double_softmax:
            return Beside("sit", "takes a second softmax, as the released code does")
        return {"candidates": "batch", "size": self.size, "replay": self.replay}
