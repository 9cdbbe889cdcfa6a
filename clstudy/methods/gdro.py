"""Global contrastive loss with robust class weights: hard classes count more, and small ones are not drowned. King et
al. 2026, "Memory-Efficient Continual Learning with CLIP Models", arXiv 2605.03866: a reconstruction, since the paper's
objective is not public; the identity behind the first form is standard (KL-regularised group DRO).

    L = (1/B) Σ_i w_i ℓ_i,   ℓ_i = τ log(ε + u1_i) + τ log(ε + u2_i),   w_i = p_{y_i} / r_{y_i}
        └── robust ───┘

    min_θ max_{p ∈ Δ_C} Σ_c p_c F_c − λ Σ_c p_c log(C p_c)  =  min_θ λ log( (1/C) Σ_c exp(F_c / λ) )

    symbol   field       meaning                                                                         unit
    ℓ_i      –           the loss of `gcl`, with its fields: size, replay, selection, gamma, decay,      –
                         exact, temperature, candidates
    F_c      beta        moving average of the class's ℓ; β is the weight of a new value                 –
    p        robust      "kl", "cvar", "eg" or "balanced" (`robust.py`); constants to the gradient       –
    λ        strength    of "kl": → ∞ is the mean over classes, → 0 the worst class                      –
    α        share       of "cvar": the worst α of the classes                                           –
    η        rate        of "eg"                                                                         –
    r_c      correct     share of the class among the images drawn in the stage, or 1/C if False         –

Estimator: with r the sum is, in expectation, Σ_c p_c F_c however seldom a class is drawn; without it, classes of which
the memory holds few images stay under-trained by the factor by which they are drawn less. w is cut at `cap` times its
mean 1, since a class may be drawn once in a stage. r is counted from the stage's start.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from clstudy.data.replay_buffer import Memory
from clstudy.data.streams import Stage
from clstudy.data.types import CANDIDATES, Batch
from clstudy.losses.class_weights import ClassWeights
from clstudy.losses.global_contrastive import GlobalContrast
from clstudy.methods.base import Method
from clstudy.models.clip import Clip
from clstudy.utils.validation import choose


@dataclass
class GDRO(Method):
    size: int = 500  # of the memory, in images; 0: none
    replay: int = 32  # images of the memory that join each step
    selection: str = "random"  # or "herding"
    gamma: float = 0.8
    decay: int = 0  # steps of a cosine from 1 to gamma; 0: constant
    exact: int = 2000  # classes up to which the text negatives are summed exactly
    temperature: str = "fixed"  # or "individual", "global"
    candidates: str = "seen"  # classes whose texts are negatives: "seen", "phase" or "batch"
    robust: str = "kl"  # or "cvar", "eg", "balanced"
    strength: float = 0.1  # λ of "kl"
    share: float = 0.3  # α of "cvar"
    rate: float = 0.1  # η of "eg"
    beta: float = 0.1  # weight of a new class loss in its average
    correct: bool = True  # for how often a class is drawn
    cap: float = 10.0  # largest weight of an image
    memory: Memory = field(init=False, repr=False)
    contrast: GlobalContrast = field(init=False, repr=False)
    weights: ClassWeights = field(init=False, repr=False)

    def __post_init__(self):
        choose("candidates", self.candidates, CANDIDATES)
        if self.replay < 0:
            raise ValueError(f"replay={self.replay!r}: must be at least 0 images")
        self.memory = Memory(self.size, "quota", self.selection)
        self.contrast = GlobalContrast(self.gamma, self.decay, self.exact, self.temperature)
        self.weights = ClassWeights(self.robust, self.strength, self.share, self.rate, self.beta, self.correct,
                                    self.cap)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        offered = batch.narrow(self.candidates)
        encoded = clip.encode(offered)
        each = sum(self.contrast.losses(encoded, offered))
        return {"robust": (self.weights.of_images(each, batch) * each).mean()}

    def before_stage(self, clip: Clip, stage: Stage) -> None:
        self.weights.stage()

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(batch, self.replay)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        self.memory.refill(batches, clip)
        self.contrast.keep(self.memory.index)

    def table(self) -> list[dict]:
        """The weight of every class seen, step by step: rows of stage, step, class, weight (mean 1)."""
        return self.weights.table()
