"""Geodesic distillation: features may move, but not along the path between what they span now and
what they spanned before the stage. Simon et al. 2021, GeoDL, arXiv 2104.08572; in the CLIP form of
Ding et al. 2022, VR-LwF, arXiv 2207.09248 (released code).

    L = CE(z) + α · (1/B) Σ_i (f_i − f°_i)ᵀ G (f_i − f°_i) + α · (1/K) Σ_k (t_k − t°_k)ᵀ G' (t_k − t°_k)
        └task┘  └─────────────── geo_image ──────────────┘   └─────────────── geo_text ────────────────┘

    symbol   field        meaning                                                                         unit
    f°, t°   –            features by the teacher: a copy of the model at the start of the stage          –
    G, G'    –            flow kernels of the subspaces of f and f°, of t and t° (`losses.geodesic`)      –
    –        candidates   of the task: "seen", or "phase" as in VR-LwF's code; the text term's are        classes
                          always all classes seen so far
    α        weight       of both terms                                                                   –

Estimator: the subspaces are those of the batch, with two dimensions fewer than it has images, or
texts; the smaller a batch, the more directions are free. Below three rows a term is 0. G is a
constant to the gradient. Each model encodes the texts with its own text tower; a tower that is
frozen has a term of exactly 0. α = 0.5 as in the code. GeoDL's own loss is 1 − cosine of f and f°
under G, and its weight grows with the classes; VR-LwF's code takes the squared distance.
Departures: the kernel is exact. The code keeps 60 columns of an arbitrary basis of the null space,
which cannot hold the way from one subspace to the other, and diagonalises by two approximate
inverses (see DEVIATIONS.md). By default all classes seen compete in the task term.
"""
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import geodesic, match
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip


@dataclass
class GeoDL(Method):
    """Features may not move along the path between old and new subspace."""

    title = "GeoDL"
    source = "Simon et al. 2021, GeoDL, arXiv 2104.08572, as in VR-LwF's code"
    family = "distillation"
    dash = (1, 1)
    place_on_map = Beside("finetune", "also holds features along a path of subspaces: no texts")
    checked = "the kernel against numerical integration"

    weight: Annotated[float, Ge(0)] = 0.5  # of each of the two terms on features
    candidates: Candidates = "seen"  # which texts compete in the task term
    teacher: Clip | None = field(default=None, init=False, repr=False)
    texts: dict[tuple, Tensor] = field(default_factory=dict, init=False,
                                       repr=False)  # the teacher's, by candidates

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        image, text = self.taught(batch)
        return {
            "task": match(encoded.image, encoded.text[batch.rows(among)], encoded.scale,
                          among.target), "geo_image": self.weight * geodesic(encoded.image, image),
            "geo_text": self.weight * geodesic(encoded.text, text)
        }

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.teacher, self.texts = deepcopy(clip).eval().requires_grad_(False), {}

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's features. Its texts are encoded when the candidates change, which is when a
        class arrives."""
        if batch.classes not in self.texts:
            self.texts = {batch.classes: self.teacher.encode_text(batch.text)}
        return self.teacher.encode_image(batch.image), self.texts[batch.classes]
