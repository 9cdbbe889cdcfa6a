"""Geodesic distillation: features may not move along the path between the subspace that they span
now and the one before the stage. Simon et al. 2021, GeoDL, arXiv 2104.08572; in the CLIP form of
Ding et al. 2022, VR-LwF, arXiv 2207.09248 (released code).

    L = CE(z) + α (1/B) Σ_i (f_i − f°_i)ᵀ G (f_i − f°_i) + α (1/K) Σ_k (t_k − t°_k)ᵀ G' (t_k − t°_k)
        └task┘  └────────────── geo_image ─────────────┘   └────────────── geo_text ───────────────┘

    symbol  field       unit     meaning
    f°, t°  –           –        features by the teacher: the model at the start of the stage
    G, G'   –           –        flow kernels of the subspaces of f, f° and of t, t° (`geodesic`)
    –       candidates  classes  of the task: "seen", or "phase" as in VR-LwF's code; the text
                                 term's are always all classes seen so far
    α       weight      –        of both terms

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
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import geodesic, match
from clstudy.methods.base import Beside, Method, frozen_copy, state
from clstudy.models.clip import Clip


@dataclass
class GeoDL(Method):
    """Keeps features from moving along the path between their old and new subspaces."""

    title = "GeoDL"
    source = "Simon et al. 2021, GeoDL, arXiv 2104.08572, as in VR-LwF's code"
    family = "distillation"
    dash = (1, 1)
    place_on_map = Beside("finetune", "also holds features along a path of subspaces: no texts")
    checked = "the kernel against numerical integration"

    weight: Annotated[float, Ge(0)] = 0.5  # of each of the two terms on features
    candidates: Candidates = "seen"  # which texts compete in the task term
    teacher: Clip | None = state(default=None)
    texts: dict[tuple, Tensor] = state(default_factory=dict)  # the teacher's, by candidates

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        image, text = self.taught(batch)
        offered = encoded.text[batch.rows(among)]
        return {"task": match(encoded.image, offered, encoded.scale, among.target),
                "geo_image": self.weight * geodesic(encoded.image, image),
                "geo_text": self.weight * geodesic(encoded.text, text)}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.teacher, self.texts = frozen_copy(clip), {}

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's features. Texts are encoded again when a class has arrived."""
        if batch.classes not in self.texts:
            self.texts = {batch.classes: self.teacher.encode_text(batch.text)}
        return self.teacher.encode_image(batch.image), self.texts[batch.classes]
