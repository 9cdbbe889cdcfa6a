"""Learning without forgetting: the model as it was before the stage says how old and new classes
compare. Li and Hoiem 2016, arXiv 1606.09282; in the CLIP form of Ding et al. 2022, VR-LwF, arXiv
2207.09248.

    L = CE(z) + α T² · (1/B) Σ_i KL( softmax(z°_i / T) ‖ softmax(z_i / T) ),   z_ik = s f_i·t_k
        └task┘  └────────────────────────── distil ──────────────────────────┘

    symbol   field         meaning                                                                        unit
    z°       –             the same by the teacher: a copy of the model at the start of the stage         –
    –        candidates    of the task: "seen", or "phase" as in VR-LwF's code; the distillation's are    classes
                           always all classes seen so far
    α        weight        of the distillation                                                            –
    T        temperature   of the distillation                                                            –

Estimator: exact on the batch, both models see the same augmented images. Each model encodes the
texts with its own text tower. In the first stage the teacher is the pretrained CLIP, which unlike a
classifier has an opinion on every class. α = 0.5 and T = 1 as in the released code of VR-LwF
(github.com/yxding95/CL-CLIP); the first paper has T = 2. Departures: by default all classes seen
compete in the task term; there is no warm-up of a new head, since there is none.
"""
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import distillation, match
from clstudy.methods.base import Method
from clstudy.models.clip import Clip


@dataclass
class LwF(Method):
    """Similarities to all classes seen stay those of the stage's start."""

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
    teacher: Clip | None = field(default=None, init=False, repr=False)
    texts: dict[tuple, Tensor] = field(default_factory=dict, init=False,
                                       repr=False)  # the teacher's, by candidates

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        z = encoded.scale * encoded.image @ encoded.text.T
        return {
            "task": match(encoded.image, encoded.text[batch.rows(among)], encoded.scale,
                          among.target),
            "distil": self.weight * distillation(z, self.taught(batch), self.temperature)
        }

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.teacher, self.texts = deepcopy(clip).eval().requires_grad_(False), {}

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"vocabulary": "classes"}

    @torch.no_grad()
    def taught(self, batch: Batch) -> Tensor:
        """The teacher's logits. Its texts are encoded when the candidates change, which is when a
        class arrives."""
        if batch.classes not in self.texts:
            self.texts = {batch.classes: self.teacher.encode_text(batch.text)}
        return self.teacher.scale() * self.teacher.encode_image(
            batch.image) @ self.texts[batch.classes].T
