"""Class means: nothing is trained; an image gets the class whose mean feature is nearest. Janson et
al. 2022, arXiv 2210.04428, and Zhou et al. 2023, SimpleCIL, arXiv 2303.07338, on frozen CLIP;
`text` mixes in the text of each class.

    no objective; prediction = argmax_k of

    k seen      z_k = [f·p_k − mean_j(f·p_j)] / sd_j(f·p_j)       mean and sd over all j seen
    not seen    z_k = [f·t_k − mean_j(f·t_j)] / sd_j(f·t_j)       the same
                p_k = (1 − w) m_k + w t_k, made unit-norm

    symbol  field  unit  meaning
    f, t    –      –     unit-norm features of the image, and of the text of each class
    m       –      –     unit-norm mean of the class's unit-norm image features
    w       text   –     share of the text in what stands for a class; 0: means only, as published

Estimator: running sums, exact up to rounding. An image is encoded once, without augmentation, when
its batch arrives; its sum and its number are kept, the image is not. Between two stage ends the
means are of all images so far.

Images are nearer to means of images than to any text (the gap between the modalities), so that a
class without a mean would never be chosen among all classes. Therefore similarities are
standardised for each image over the classes seen: to their mean and spread among the p for a class
seen, among the texts for a class not seen (`frozen_features.py`). At w = 1 all is as with frozen
CLIP.

Departures: w > 0 and the standardisation are ours, as is the use beside classes that were not seen.
The nearest that is published is Tip-Adapter (`text_cache.py`) with one key for each class; it adds
to s f·t_k a term α exp(−β (1 − f·m_k)) instead of mixing m and t.
"""
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.methods.base import state
from clstudy.methods.frozen_features import FrozenFeatures
from clstudy.models.clip import Clip


@dataclass
class ClassMeans(FrozenFeatures):
    """Trains nothing: chooses the class whose mean image feature, mixed with its text, is nearest."""

    title = "class means"
    source = "Janson et al. 2022, arXiv 2210.04428; Zhou et al. 2023, SimpleCIL, arXiv 2303.07338"
    dash = (5, 1.5, 1, 1.5)
    checked = "means and ranking by hand, both ends; the mix with texts is ours"

    text: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the text; 0: means only, 1: frozen CLIP
    sums: Tensor | None = state(default=None)  # (classes, dim): of the unit-norm image features

    def add(self, image: Float[Tensor, "new dim"], member: Float[Tensor, "new classes"],
            batch: Batch) -> None:
        if self.sums is None:
            self.sums = torch.zeros_like(member.T @ image)
        self.sums += member.T @ image

    def values(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], rows: Int[Tensor, " texts"]
               ) -> Float[Tensor, "images texts"]:
        means = F.normalize(self.sums[rows], dim=-1)
        return image @ F.normalize((1 - self.text) * means + self.text * text, dim=-1).T

    @property
    def texts_alone(self) -> bool:
        return self.text == 1
