"""Global contrastive loss with robust class weights: classes with a higher loss count more. King et
al. 2026, "Memory-Efficient Continual Learning with CLIP Models", arXiv 2605.03866: a
reconstruction, since the paper's objective is not public; the identity behind the first form is
standard (KL-regularised group DRO).

    L = (1/B) Σ_i w_i ℓ_i,   ℓ_i = τ log(ε + u1_i) + τ log(ε + u2_i),   w_i = p_{y_i} / r_{y_i}
        └── robust ───┘

    min_θ max_{p ∈ Δ_C} Σ_c p_c F_c − λ Σ_c p_c log(C p_c)  =  min_θ λ log( (1/C) Σ_c exp(F_c / λ) )

    symbol  field     unit  meaning
    ℓ_i     –         –     the loss of `gcl`, with its fields: size, replay, selection, gamma,
                            decay, exact, temperature, candidates
    F_c     beta      –     moving average of the class's ℓ; β is the weight of a new value
    p       robust    –     "kl", "cvar", "eg" or "balanced" (`losses/class_weights.py`)
    λ       strength  –     of "kl": → ∞ is the mean over classes, → 0 the worst class
    α       share     –     of "cvar": the worst α of the classes
    η       rate      –     of "eg"
    r_c     correct   –     share of the class among the images drawn; False: 1/C

Estimator: with r the sum is, in expectation, Σ_c p_c F_c however seldom a class is drawn; without
it, classes of which the memory holds few images stay under-trained by the factor by which they are
drawn less. w is cut at `cap` times its mean 1, since a class may be drawn once in a stage. r is
counted from the stage's start.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor

from clstudy.data.replay_buffer import Selection
from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.class_weights import ClassWeights, Weighting
from clstudy.losses.global_contrastive import GlobalContrast, Temperature
from clstudy.methods.base import Rehearsal, state
from clstudy.models.clip import Clip


@dataclass
class GDRO(Rehearsal):
    """Weights the loss of `gcl` by class: robust, by KL, CVaR or exponentiated gradient."""

    title = "GDRO"
    source = "reconstruction of King et al. 2026, arXiv 2605.03866; group DRO, arXiv 1911.08731"
    reconstructed = True
    family = "contrastive"
    dash = (1, 1)
    published = {
        "GDRO, reconstructed, KL-regularised": {},
        "GDRO, reconstructed, if it is CVaR": {"robust": "cvar"},
        "GDRO, reconstructed, if it is an exponentiated gradient": {"robust": "eg"}}
    checked = "weights by hand, both limits"

    policy = "quota"
    selection: Selection = "random"  # which images of a class stay
    gamma: Annotated[float, Gt(0), Le(1)] = 0.8  # weight of a new estimate
    decay: Annotated[int, Ge(0)] = 0  # steps of a cosine from 1 to gamma; 0: constant
    exact: Annotated[int, Ge(0)] = 2000  # classes up to which the text negatives are summed exactly
    temperature: Temperature = "fixed"  # or learned: "individual", "global"
    candidates: Candidates = "seen"  # classes whose texts are negatives
    robust: Weighting = "kl"  # how classes get weights
    strength: Annotated[float, Gt(0)] = 0.1  # λ of "kl"
    share: Annotated[float, Gt(0), Le(1)] = 0.3  # α of "cvar"
    rate: Annotated[float, Gt(0)] = 0.1  # η of "eg"
    beta: Annotated[float, Gt(0), Le(1)] = 0.1  # weight of a new class loss in its average
    correct: bool = True  # for how often a class is drawn
    cap: Annotated[float, Gt(0)] = 10.0  # largest weight of an image
    contrast: GlobalContrast = state()
    weights: ClassWeights = state()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.contrast = GlobalContrast(self.gamma, self.decay, self.exact, self.temperature)
        weights = (self.strength, self.share, self.rate, self.beta, self.correct, self.cap)
        self.weights = ClassWeights(self.robust, *weights)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        offered = batch.narrow(self.candidates)
        encoded = clip.encode(offered)
        each = sum(self.contrast.losses(encoded, offered))
        return {"robust": (self.weights.of_images(each, batch) * each).mean()}

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.weights.stage()

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        super().after_stage(clip, batches)
        self.contrast.keep(self.memory.index)

    @property
    def place_on_map(self) -> dict[str, Any]:
        found = self.options(temperature="tau", robust="class_weights")
        return found | {"denominator": "moving", "policy": "quota"}

    def table(self) -> list[dict]:
        """Return a row for each step and class seen: stage, step, class, weight (mean 1)."""
        return self.weights.table()
