"""Symmetric Image-Text tuning: only the classes present in the batch compete. Wang et al. 2024, SIT, arXiv 2405.15155.

    L = −(1/B) Σ_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m),   K = classes in the batch
        └──────── task ────────┘

    symbol   field   meaning                                        unit
    s        –       inverse temperature, frozen                    –
    K        –       candidates: `batch.present()`                  classes

Estimator: the exact loss of the batch. "Symmetric" says that the texts and the images of the loss cover the same
classes; it does not mean CLIP's two-direction loss, and there is no text-to-image term (released code). A text that
is absent from the batch is not in the graph: its direct gradient is zero. Departures: one softmax; the released code
applies a second one (see DEVIATIONS.md). Evaluation offers all classes seen, as for every method.
"""
from dataclasses import dataclass

from torch import Tensor

from ..clip import Clip
from ..data import Batch
from ..losses import match
from .base import Method


@dataclass
class SIT(Method):
    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.present()
        encoded = clip.encode(batch)
        return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target)}
