"""Global contrastive loss with moving averages, on a stream with a small memory. King et al. 2026,
"Memory-Efficient Continual Learning with CLIP Models", arXiv 2605.03866: a reconstruction from the
same group's SogCLR, arXiv 2202.12387, for labelled data. The paper's own objective and settings are
not public.

    L = (1/B) Σ_i τ log(ε + u1_i)  +  (1/B) Σ_i τ log(ε + u2_i)
        └────── image_anchor ────┘    └────── text_anchor ─────┘

    symbol  field        unit     meaning
    u1, u2  –            –        moving averages of exp(d / τ) over the negatives of an image, and
                                  of its class text (`losses/global_contrastive.py`)
    γ       gamma        –        weight of a new estimate; `decay`: steps from 1 down to it
    τ       temperature  –        "fixed" at 1/s; "individual": iSogCLR; "global": FastCLIP v3
    –       size         images   of the memory, equally many for each class seen
    –       selection    –        which images of a class: "random" or "herding"
    –       replay       images   images of the memory that join each step
    –       candidates   classes  classes whose texts are negatives: "seen", "phase" or "batch"

Estimator: SogCLR's, u of an image by its stable id; kept for images of the memory across stages,
dropped with those that leave. u1 is exact, not averaged, up to `exact` classes: the texts of all
are in every step. The value of a term is of u, its gradient ∇ĝ / (ε + u). Departures: SogCLR counts
every other pair as negative; here labels repeat, so equal classes are not. Anything that the paper
says of its buffer beyond "equal per class" is not known.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor

from clstudy.data.replay_buffer import Selection
from clstudy.data.types import Batch, Candidates
from clstudy.losses.global_contrastive import GlobalContrast, Temperature
from clstudy.methods.base import Rehearsal, state
from clstudy.models.clip import Clip


@dataclass
class GCL(Rehearsal):
    """Estimates CLIP's loss over all data by moving averages, with other classes as negatives."""

    title = "GCL"
    source = ("reconstruction of King et al. 2026, arXiv 2605.03866, from SogCLR 2202.12387, "
              "iSogCLR 2305.11965, FastCLIP 2407.01445")
    reconstructed = True
    family = "contrastive"
    published = {"GCL, reconstructed": {}}
    checked = "estimators and gradients against naive loops; the paper's objective is not public"

    policy = "quota"
    selection: Selection = "random"  # which images of a class stay
    gamma: Annotated[float, Gt(0), Le(1)] = 0.8  # weight of a new estimate
    decay: Annotated[int, Ge(0)] = 0  # steps of a cosine from 1 to gamma; 0: constant
    exact: Annotated[int, Ge(0)] = 2000  # classes up to which the text negatives are summed exactly
    temperature: Temperature = "fixed"  # or learned: "individual", "global"
    candidates: Candidates = "seen"  # classes whose texts are negatives
    contrast: GlobalContrast = state()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.contrast = GlobalContrast(self.gamma, self.decay, self.exact, self.temperature)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded = clip.encode(batch)
        image, text = self.contrast.losses(encoded, batch)
        return {"image_anchor": image.mean(), "text_anchor": text.mean()}

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        super().after_stage(clip, batches)
        self.contrast.keep(self.memory.index)

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options(temperature="tau") | {"denominator": "moving", "policy": "quota"}
