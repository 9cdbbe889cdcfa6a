"""Frozen CLIP among all classes seen so far. Thengane et al. 2022, Continual-CLIP, arXiv
2210.03114.

    no objective; prediction = argmax_k f_i·t_k over the classes seen so far

The reference that every tuned model has to beat on the stream, and cannot beat on what it knew
before but forgot.
"""
from dataclasses import dataclass

from torch import Tensor, nn

from clstudy.data.types import Batch
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip


@dataclass
class Frozen(Method):
    """CLIP as it is, among all classes seen."""

    title = "frozen CLIP"
    source = "Thengane et al. 2022, Continual-CLIP, arXiv 2210.03114"
    family = "frozen"
    dash = (1, 1)
    place_on_map = Beside(None, "learns nothing, so it has no objective")
    checked = "the protocol; its CIFAR-100 numbers need weights that are not embedded"

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {}

    def trainable(self, clip: Clip) -> list[nn.Parameter]:
        return []
