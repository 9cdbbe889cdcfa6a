"""Learning without forgetting: the model before the stage teaches the similarities to all classes.
Li and Hoiem 2016, arXiv 1606.09282; in the CLIP form of Ding et al. 2022, VR-LwF, arXiv 2207.09248.

    L = CE(z) + α T² · (1/B) Σ_i KL( softmax(z°_i / T) ‖ softmax(z_i / T) ),   z_ik = s f_i·t_k
        └task┘  └────────────────────────── distil ──────────────────────────┘

    symbol  field        unit     meaning
    z°      –            –        the same by the teacher: the model at the start of the stage
    –       candidates   classes  of the task: "seen", or "phase" as in VR-LwF's code; the
                                  distillation's are always all classes seen so far
    α       weight       –        of the distillation
    T       temperature  –        of the distillation

Estimator: exact on the batch, both models see the same augmented images. Each model encodes the
texts with its own text tower. In the first stage the teacher is the pretrained CLIP, which unlike a
classifier has an opinion on every class. α = 0.5 and T = 1 as in the released code of VR-LwF
(github.com/yxding95/CL-CLIP); the first paper has T = 2. Departures: by default all classes seen
compete in the task term; there is no warm-up of a new head, since there is none.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import distillation, match
from clstudy.methods.base import Method, frozen_copy, state
from clstudy.models.clip import Clip


@dataclass
class LwF(Method):
    """Distils the similarities to all classes seen from the model before the stage."""

    title = "LwF"
    source = "Li and Hoiem 2016, LwF, arXiv 1606.09282, as in VR-LwF's code"
    family = "regularization"
    dash = (4, 1.5)
    published = {"LwF among all classes seen": {},
                 "LwF as in the VR-LwF paper (code)": {"candidates": "phase"}}
    checked = "the loss; published on other models"

    weight: Annotated[float, Ge(0)] = 0.5  # of the distillation
    temperature: Annotated[float, Gt(0)] = 1.0  # of the distillation
    candidates: Candidates = "seen"  # which texts compete in the task term
    teacher: Clip | None = state(default=None)
    texts: dict[tuple, Tensor] = state(default_factory=dict)  # the teacher's, by candidates

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        z = encoded.scale * encoded.image @ encoded.text.T
        offered = encoded.text[batch.rows(among)]
        return {"task": match(encoded.image, offered, encoded.scale, among.target),
                "distil": self.weight * distillation(z, self.taught(batch), self.temperature)}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.teacher, self.texts = frozen_copy(clip), {}

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"vocabulary": "classes"}

    @torch.no_grad()
    def taught(self, batch: Batch) -> Tensor:
        """Return the teacher's logits. Texts are encoded again when a class has arrived."""
        if batch.classes not in self.texts:
            self.texts = {batch.classes: self.teacher.encode_text(batch.text)}
        image = self.teacher.encode_image(batch.image)
        return self.teacher.scale() * image @ self.texts[batch.classes].T
