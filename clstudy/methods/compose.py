"""One objective, four choices: the papers of this project as points of one table. SIT, arXiv
2405.15155, decides which texts compete; VR-LwF, arXiv 2207.09248, on which texts the model stays as
it was; "Memory-Efficient Continual Learning with CLIP Models", arXiv 2605.03866 (a reconstruction),
how a denominator is estimated and how much each class counts.

    L = (1/B) Σ_i w_i ℓ_i + α ν KL over the texts v ∈ V + α ν KL over the classes seen
        └───── task ────┘   └─────── vocabulary ──────┘   └──────── classes ────────┘

    choice          value           what it is
    candidates      seen            K = all classes seen so far
                    phase           K = the classes of the stage
                    batch           K = the classes of the batch
    denominator     batch           ℓ_i = −log softmax_{k ∈ K}(s f_i·t_k) at y_i
                    pairs           ℓ_i = half of that over the texts of the batch's images, half over its images
                    moving          ℓ_i = τ log(ε + u1_i) + τ log(ε + u2_i), u: moving averages (`contrast.py`)
    class_weights   uniform         w_i = 1: every image counts the same
                    balanced        w_i = 1 / (C r_c): every class counts the same (c = y_i)
                    kl, cvar, eg    w_i = p_c / r_c: the worse the class does, the more it counts (`robust.py`)
    vocabulary      none            no teacher
                    classes         the classes seen: the term `classes` alone
                    random, words   drawn anew at each step (`vocabulary.py`), as captions, file:PATH; and from the
                                    second stage on the classes, if `classes`

    symbol   field     meaning                                                                       unit
    s, τ     –         inverse temperature, frozen, and 1/s                                          –
    α        weight    of the distillation: KL from the model as it was before the stage             –
    ν        –         what a nat is in ℓ: τ with moving averages, 1 otherwise                       –
    r_c      correct   share of the class among the images drawn in the stage                        –
    λ        strength  of "kl"; F_c, the class's loss, is in units of similarity (τ ℓ / ν)           –

All other fields are those of the methods that a choice comes from: `er` (size, replay, policy,
draw), `gcl` (gamma, decay, exact, and tau, there temperature), `gdro` (strength to cap), `vr_lwf`
(texts, there size; length; classes). Estimator: that of each choice's method. ν keeps the meaning
of α and λ when the denominator changes. `themap.py` says which points are published; there this
file is that method exactly, up to the order of sums. Departures: the temperature is that of both
distillations, whereas VR-LwF has 1 for the classes.
"""
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.replay_buffer import Draw, Policy, ReplayBuffer, Selection
from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses import vocabularies
from clstudy.losses.class_weights import ClassWeights, Weighting
from clstudy.losses.functional import distillation
from clstudy.losses.global_contrastive import GlobalContrast, Temperature
from clstudy.methods.base import Method
from clstudy.models.clip import Clip, Encoded

Each = Float[Tensor, " batch"]


@dataclass
class Compose(Method):
    """Any point of the map of three papers: candidates, denominator, class weights, vocabulary."""

    title = "composed"
    source = "SIT, VR-LwF; GCL and GDRO, reconstructed"
    family = "contrastive"
    dash = (5, 1.5, 1, 1.5)
    checked = "equal to each published method at its point, in losses and gradients"

    candidates: Candidates = "batch"  # which texts compete with an image
    denominator: Literal["batch", "pairs", "moving"] = "batch"  # what its own text is compared with
    class_weights: Literal["uniform", Weighting] = "uniform"  # which images count more
    vocabulary: str = "none"  # or "classes", "random", "words", "captions", "file:PATH": where nothing changes
    weight: Annotated[float, Ge(0)] = 0.5  # of each distillation
    temperature: Annotated[float, Gt(0)] = 1.0  # of each distillation
    texts: Annotated[int, Ge(1)] = 100  # of the vocabulary, drawn at each step
    length: Annotated[int, Ge(1)] = 8  # tokens of each, where they are drawn token by token
    classes: bool = True  # with other texts: from the second stage on distil on the classes seen, too (VR-LwF)
    size: Annotated[int, Ge(0)] = 0  # of the memory, in images; 0: none
    replay: Annotated[int, Ge(0)] = 32  # images of the memory that join each step
    policy: Policy = "reservoir"  # which images stay
    selection: Selection = "random"  # of "quota": which images of a class stay
    draw: Draw = "uniform"  # from the memory; "balanced": each class equally often
    gamma: Annotated[float, Gt(0), Le(1)] = 0.8  # of "moving": weight of a new estimate
    decay: Annotated[int, Ge(0)] = 0  # steps of a cosine from 1 to gamma; 0: constant
    exact: Annotated[int, Ge(0)] = 2000  # classes up to which the text negatives are summed exactly
    tau: Temperature = "fixed"  # of "moving", or learned: "individual", "global"
    strength: Annotated[float, Gt(0)] = 0.1  # λ of "kl"
    share: Annotated[float, Gt(0), Le(1)] = 0.3  # α of "cvar"
    rate: Annotated[float, Gt(0)] = 0.1  # η of "eg"
    beta: Annotated[float, Gt(0), Le(1)] = 0.1  # weight of a new class loss in its average
    correct: bool = True  # for how often a class is drawn
    cap: Annotated[float, Gt(0)] = 10.0  # largest weight of an image
    teacher: Clip | None = field(default=None, init=False, repr=False)
    draws: torch.Generator | None = field(default=None, init=False, repr=False)
    memory: ReplayBuffer = field(init=False, repr=False)
    contrast: GlobalContrast = field(init=False, repr=False)
    robust: ClassWeights | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, self.policy, self.selection, self.draw)
        self.contrast = GlobalContrast(self.gamma, self.decay, self.exact, self.tau)
        if self.class_weights != "uniform":
            weights = (self.strength, self.share, self.rate, self.beta, self.correct, self.cap)
            self.robust = ClassWeights(self.class_weights, *weights)

    def check(self) -> None:
        if self.vocabulary != "none":
            vocabularies.check(self.vocabulary)
        for wrong, reason in self.refused():
            if wrong:
                raise ValueError(reason)

    @property
    def needs_reference(self) -> bool:
        return self.vocabulary == "captions"

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Who competes, with what each is compared, who counts how much, and on which texts nothing
        should change."""
        among, named = batch.narrow(self.candidates), self.on_classes(batch)
        encoded = clip.encode(
            batch if named else among)  # each text once, and no text that nobody asks for
        offered = replace(encoded, text=encoded.text[batch.rows(among)]) if named else encoded
        each = DENOMINATORS[self.denominator](offered, among, self.contrast)
        tau = 1 / encoded.scale.detach()
        nat = tau if self.denominator == "moving" else 1.0
        counts = self.robust.of_images(each * tau / nat, batch) if self.robust else 1.0
        terms = {"task": (counts * each).mean()}
        if self.vocabulary not in ("none", "classes"):
            tokens = vocabularies.draw(self.vocabulary, clip, batch, self.texts, self.length,
                                       self.draws)
            terms["vocabulary"] = self.weight * nat * self.moved(encoded, clip.encode_text(tokens),
                                                                 tokens, batch)
        if named:
            terms["classes"] = self.weight * nat * self.moved(encoded, encoded.text, batch.text,
                                                              batch)
        return terms

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        if self.vocabulary != "none":
            self.teacher = deepcopy(clip).eval().requires_grad_(False)
            self.draws = self.draws or torch.Generator().manual_seed(torch.initial_seed())
        if self.robust:
            self.robust.stage()

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(batch, self.replay)

    def after_step(self, clip: Clip, batch: Batch) -> None:
        self.memory.add(batch)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        self.memory.refill(batches, clip)
        self.contrast.keep(self.memory.index)

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options()

    def table(self) -> list[dict]:
        """The weight of every class seen, step by step, if classes have weights."""
        return self.robust.table() if self.robust else []

    def on_classes(self, batch: Batch) -> bool:
        """Whether the names of the classes seen are distilled on in this step."""
        other = self.vocabulary not in ("none", "classes")
        return self.vocabulary == "classes" or (other and self.classes and batch.stage.number > 1)

    def moved(self, encoded: Encoded, text: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
        """KL of the images' answers over these texts from the teacher's."""
        with torch.no_grad():
            taught = self.teacher.scale() * self.teacher.encode_image(
                batch.image) @ self.teacher.encode_text(tokens).T
        return distillation(encoded.scale * encoded.image @ text.T, taught, self.temperature)

    def refused(self) -> list[tuple[bool, str]]:
        """Combinations that mean nothing, and why."""
        return [
            (self.denominator == "pairs" and self.candidates != "batch",
             f"candidates={self.candidates!r} means nothing with denominator='pairs': what competes there are the "
             "texts of the batch's own images. Choose candidates='batch'"),
            (self.tau != "fixed" and self.denominator != "moving",
             f"tau={self.tau!r} means nothing with denominator={self.denominator!r}: only denominator='moving' "
             "learns temperatures"),
            (self.selection != "random" and self.policy != "quota",
             f"selection={self.selection!r} means nothing with policy={self.policy!r}: it belongs to "
             "policy='quota'"),
            (self.draw != "uniform" and not (self.size and self.replay),
             f"draw={self.draw!r} means nothing with size={self.size!r} and replay={self.replay!r}: nothing is "
             "drawn")
        ]


def mini_batch(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """Cross-entropy of matching each image to its text among the candidates."""
    logits = encoded.scale * encoded.image @ encoded.text.T
    return F.cross_entropy(logits, batch.target, reduction="none")


def pairs(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """CLIP's loss of each pair, both directions; pairs of one class are positives of each other."""
    logits = encoded.scale * encoded.image @ encoded.text[batch.target].T
    same = (batch.target[:, None] == batch.target[None]).float()
    positive = same / same.sum(1, keepdim=True)
    return 0.5 * sum(F.cross_entropy(z, positive, reduction="none") for z in (logits, logits.T))


def moving(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """The global contrastive loss of each image: the image as anchor, and its text."""
    return sum(contrast.losses(encoded, batch))


DENOMINATORS = {"batch": mini_batch, "pairs": pairs, "moving": moving}
