"""Replay in feature space: image features drawn from a normal distribution of each old class take
the place of old images. The form of the covariance is a choice; one is REMIX's (Krukowski et al.
2026, arXiv 2605.11804).

    L = CE(batch) + β · −(1/n) Σ_j log p_{j,y_j},   f_j ~ N(μ_{y_j}, Σ_{y_j}), made unit-norm
        └─ task ─┘  └────────── replay ─────────┘

    symbol  field       unit      meaning
    p       –           –         softmax of s f_j·t_k over all classes seen so far
    n       count       features  drawn for each step, of classes of earlier stages alike
    β       weight      –         of the replay
    Σ       covariance  –         "diagonal", "full" or "laplace" (`losses/class_statistics.py`)
    r       spread      –         factor of the standard deviations; 0: the means are replayed
    –       candidates  classes   of the task: "seen", "phase" or "batch"

Estimator: μ and Σ at the end of a stage, by one pass over its images without augmentation, with the
features of that moment; no image is kept. Draws are new in each step. `count=0` is fine-tuning.

What moves: the drawn features are constants, so the replay teaches the texts alone (and the
temperature, if that is trained). With a frozen image tower they stay what they are. Where the image
tower is trained, μ and Σ are those of the tower as it was: nothing carries them along, and the
texts are held to places that images of old classes have left. The probe `drift` measures by how
much; `slca` slows it down. Where the text tower is frozen, the replay has no gradient and this is
fine-tuning.

Departures: REMIX inverts a network to pictures and has its covariance in the layers; this is the
half of it that replays features. Unit-norm features are not normal; the draws are brought back to
the sphere. One mean for all images, and one for all draws, so that β does not depend on the batch.
"""
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from clstudy.data.types import Batch, Candidates
from clstudy.losses.class_statistics import ClassStatistics, Covariance
from clstudy.losses.functional import match
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class ReplayFeatures(Method):
    """Replays image features drawn from a normal distribution of each old class."""

    title = "feature replay"
    source = "covariance of REMIX, Krukowski et al. 2026, arXiv 2605.11804; or diagonal, or full"
    family = "feature replay"
    place_on_map = Beside("finetune", "also classifies features drawn from old classes' statistics")
    checked = "moments against scipy, draws and terms by hand; no published number for CLIP alone"

    count: Annotated[int, Ge(0)] = 32  # features drawn for each step; 0: fine-tuning
    weight: Annotated[float, Ge(0)] = 1.0  # of the replay
    covariance: Covariance = "full"  # of the features of a class
    spread: Annotated[float, Ge(0)] = 1.0  # factor of the standard deviations; 0: means
    candidates: Candidates = "seen"  # which texts compete in the task term
    statistics: ClassStatistics = state()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.statistics = ClassStatistics(self.covariance)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        offered = encoded.text[batch.rows(among)]
        terms = {"task": match(encoded.image, offered, encoded.scale, among.target)}
        if self.count and self.statistics.labels:
            image, labels = self.statistics.draw(self.count, self.spread)
            target = replace(batch, labels=labels).target
            terms["replay"] = self.weight * match(image, encoded.text, encoded.scale, target)
        return terms

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        if self.count:
            self.statistics.add(clip, batches)

    @property
    def memory_bytes(self) -> int:
        """Bytes of means and covariances; no image is kept."""
        return self.statistics.bytes
