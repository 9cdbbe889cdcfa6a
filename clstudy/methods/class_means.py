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
seen, among the texts for a class not seen. A ranking of the seen classes alone is that of f·p_k.
With few classes seen the spread is a rough estimate; with one it counts as 1, and the texts decide.
Held-out sets, retrieval, and everything before the first image are ranked by f·t. At w = 1 all is
as with frozen CLIP.

Departures: w > 0 and the standardisation are ours, as is the use beside classes that were not seen.
The nearest that is published is Tip-Adapter (Zhang et al. 2021, arXiv 2111.03930) with one key for
each class; it adds to s f·t_k a term α exp(−β (1 − f·m_k)) instead of mixing m and t.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class ClassMeans(Method):
    """Trains nothing: chooses the class whose mean image feature, mixed with its text, is nearest."""

    title = "class means"
    source = "Janson et al. 2022, arXiv 2210.04428; Zhou et al. 2023, SimpleCIL, arXiv 2303.07338"
    family = "frozen"
    dash = (5, 1.5, 1, 1.5)
    trains = False
    place_on_map = Beside(None, "learns nothing, so it has no objective")
    checked = "means and ranking by hand, both ends; the mix with texts is ours"

    text: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the text; 0: means only, 1: frozen CLIP
    sums: Tensor | None = state(default=None)  # (classes, dim): of the unit-norm image features
    counts: Tensor | None = state(default=None)  # (classes,): images in each sum
    known: set[int] = state(default_factory=set)  # the images that are in

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def after_step(self, clip: Clip, batch: Batch) -> None:
        """Add the images that are new to the sums; in a second epoch none is."""
        new = [row for row, image in enumerate(batch.index) if image not in self.known]
        if not new:
            return
        self.known.update(batch.index)
        clip.eval()
        image = clip.encode_image(batch.image[new])
        labels = torch.tensor([batch.labels[row] for row in new], device=image.device)
        member = F.one_hot(labels, len(batch.prompts)).T.to(image.dtype)
        if self.sums is None:
            self.sums = torch.zeros_like(member @ image)
            self.counts = torch.zeros_like(member[:, 0])
        self.sums += member @ image
        self.counts += member.sum(1)

    def scores(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], classes: Sequence[int] | None
               ) -> Float[Tensor, "images texts"]:
        similarity = image @ text.T
        if classes is None or self.sums is None or self.text == 1:
            return similarity
        rows = torch.tensor(list(classes), device=self.sums.device)
        seen = self.counts[rows] > 0
        means = F.normalize(self.sums[rows], dim=-1)
        stands = image @ F.normalize((1 - self.text) * means + self.text * text, dim=-1).T
        return torch.where(seen, standardised(stands, seen), standardised(similarity, seen))

    @property
    def memory_bytes(self) -> int:
        """Bytes of the sums; no image is kept."""
        return 0 if self.sums is None else self.sums.nbytes + self.counts.nbytes


def standardised(similarity: Float[Tensor, "images texts"], seen: Tensor
                 ) -> Float[Tensor, "images texts"]:
    """Return similarities less their mean over the classes seen, in units of their spread there."""
    among = similarity[:, seen]
    spread = among.std(1, correction=0, keepdim=True)
    return (similarity - among.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1)
