"""Frozen CLIP classifies among all classes seen so far. Thengane et al. 2022, Continual-CLIP, arXiv
2210.03114.

    no objective; prediction = argmax_k f_i·t_k over the classes seen so far

It is the reference that a tuned model has to beat on the stream. On what a tuned model has
forgotten, frozen CLIP is better.
"""
from dataclasses import dataclass

from torch import Tensor

from clstudy.data.types import Batch
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip


@dataclass
class Frozen(Method):
    """CLIP without training, among all classes seen so far."""

    title = "frozen CLIP"
    source = "Thengane et al. 2022, Continual-CLIP, arXiv 2210.03114"
    family = "frozen"
    dash = (1, 1)
    trains = False
    place_on_map = Beside(None, "learns nothing, so it has no objective")
    checked = "the protocol; its CIFAR-100 numbers need weights that are not embedded"

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {}
