"""Compose combines the choices of three papers in one objective. SIT, arXiv 2405.15155, decides
which texts compete; VR-LwF, arXiv 2207.09248, on which texts the model stays as it was;
"Memory-Efficient Continual Learning with CLIP Models", arXiv 2605.03866 (a reconstruction), how a
denominator is estimated and how much each class counts.

    L = (1/B) Σ_i w_i ℓ_i + α ν KL over the texts v ∈ V + α ν KL over the classes seen
        └───── task ────┘   └─────── vocabulary ──────┘   └──────── classes ────────┘

    choice         value          what it is
    candidates     seen           K = all classes seen so far
                   phase          K = the classes of the stage
                   batch          K = the classes of the batch
    denominator    batch          ℓ_i = −log softmax_{k ∈ K}(s f_i·t_k) at y_i
                   pairs          ℓ_i = the mean of that over the batch's texts and over its images
                   moving         ℓ_i = τ log(ε + u1_i) + τ log(ε + u2_i), u: moving averages
                                  (`losses/global_contrastive.py`)
    class_weights  uniform        w_i = 1: every image counts the same
                   balanced       w_i = 1 / (C r_c): every class counts the same (c = y_i)
                   kl, cvar, eg   w_i = p_c / r_c: classes with a higher loss count more
                                  (`losses/class_weights.py`)
    vocabulary     none           no teacher
                   classes        the classes seen: the term `classes` alone
                   any other      texts drawn anew at each step (`losses/vocabularies.py`); from
                                  the second stage on the classes, too, if `classes`

    symbol  field     unit  meaning
    s, τ    –         –     inverse temperature, frozen, and 1/s
    α       weight    –     of the distillation: KL from the model as it was before the stage
    ν       –         –     what a nat is in ℓ: τ with moving averages, 1 otherwise
    r_c     correct   –     share of the class among the images drawn in the stage
    λ       strength  –     of "kl"; F_c, the class's loss, is in units of similarity (τ ℓ / ν)

All other fields are those of the methods that a choice comes from: `er` (size, replay, policy,
draw), `gcl` (gamma, decay, exact, and tau, there temperature), `gdro` (strength to cap), `vr_lwf`
(texts, there size; length; classes). Estimator: that of each choice's method. ν keeps the meaning
of α and λ when the denominator changes. `analysis/design_space.py` says which points are published;
there this file is that method exactly, up to the order of sums. Departures: the temperature is that
of both distillations, whereas VR-LwF has 1 for the classes.
"""
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.replay_buffer import Draw, Policy, Selection
from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses import vocabularies
from clstudy.losses.class_weights import ClassWeights, Weighting
from clstudy.losses.functional import distillation
from clstudy.losses.global_contrastive import GlobalContrast, Temperature
from clstudy.methods.base import Rehearsal, frozen_copy, state
from clstudy.models.clip import Clip, Encoded

Each = Float[Tensor, " batch"]


@dataclass
class Compose(Rehearsal):
    """Combines choices of three papers: candidates, denominator, class weights, vocabulary."""

    title = "composed"
    source = "SIT, VR-LwF; GCL and GDRO, reconstructed"
    family = "contrastive"
    dash = (5, 1.5, 1, 1.5)
    checked = "equal to each published method at its point, in losses and gradients"

    candidates: Candidates = "batch"  # which texts compete with an image
    denominator: Literal["batch", "pairs", "moving"] = "batch"  # what its own text is compared with
    class_weights: Literal["uniform", Weighting] = "uniform"  # which images count more
    vocabulary: str = "none"  # or "classes", "random", "words", "captions", "file:PATH"
    weight: Annotated[float, Ge(0)] = 0.5  # of each distillation
    temperature: Annotated[float, Gt(0)] = 1.0  # of each distillation
    texts: Annotated[int, Ge(1)] = 100  # of the vocabulary, drawn at each step
    length: Annotated[int, Ge(1)] = 8  # tokens of each, where they are drawn token by token
    classes: bool = True  # with other texts: after stage 1 distil on the classes seen, too
    size: Annotated[int, Ge(0)] = 0  # of the memory, in images; 0: none
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
    teacher: Clip | None = state(default=None)
    draws: torch.Generator | None = state(default=None)
    contrast: GlobalContrast = state()
    robust: ClassWeights | None = state(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.contrast = GlobalContrast(self.gamma, self.decay, self.exact, self.tau)
        if self.class_weights != "uniform":
            weights = (self.strength, self.share, self.rate, self.beta, self.correct, self.cap)
            self.robust = ClassWeights(self.class_weights, *weights)

    def check(self) -> None:
        if self.vocabulary != "none":
            vocabularies.check(self.vocabulary)
        if self.denominator == "pairs" and self.candidates != "batch":
            self.refuse("candidates", "denominator", reason="the texts of the batch's images "
                        "compete. Choose candidates='batch'")
        if self.tau != "fixed" and self.denominator != "moving":
            self.refuse("tau", "denominator", reason="only 'moving' learns temperatures")
        if self.selection != "random" and self.policy != "quota":
            self.refuse("selection", "policy", reason="it belongs to policy='quota'")
        if self.draw != "uniform" and not (self.size and self.replay):
            self.refuse("draw", "size", "replay", reason="nothing is drawn")

    def refuse(self, field: str, *others: str, reason: str) -> None:
        given = [f"{name}={getattr(self, name)!r}" for name in (field, *others)]
        raise ValueError(f"{given[0]} means nothing with {' and '.join(given[1:])}: {reason}")

    @property
    def needs_reference(self) -> bool:
        return self.vocabulary == "captions"

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Return the terms `task`, and where they are asked for `vocabulary` and `classes`."""
        among, named = batch.narrow(self.candidates), self.on_classes(batch)
        encoded = clip.encode(batch if named else among)  # only texts that a term needs, each once
        offered = replace(encoded, text=encoded.text[batch.rows(among)]) if named else encoded
        each = DENOMINATORS[self.denominator](offered, among, self.contrast)
        tau = 1 / encoded.scale.detach()
        nat = tau if self.denominator == "moving" else 1.0
        counts = self.robust.of_images(each * tau / nat, batch) if self.robust else 1.0
        terms = {"task": (counts * each).mean()}
        if self.vocabulary not in ("none", "classes"):
            tokens = vocabularies.draw(self.vocabulary, clip, batch, self.texts, self.length,
                                       self.draws)
            moved = self.moved(encoded, clip.encode_text(tokens), tokens, batch)
            terms["vocabulary"] = self.weight * nat * moved
        if named:
            moved = self.moved(encoded, encoded.text, batch.text, batch)
            terms["classes"] = self.weight * nat * moved
        return terms

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        if self.vocabulary != "none":
            self.teacher = frozen_copy(clip)
            self.draws = self.draws or torch.Generator().manual_seed(torch.initial_seed())
        if self.robust:
            self.robust.stage()

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        super().after_stage(clip, batches)
        self.contrast.keep(self.memory.index)

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options()

    def table(self) -> list[dict]:
        """Return the weight of each class at each step, if classes have weights."""
        return self.robust.table() if self.robust else []

    def on_classes(self, batch: Batch) -> bool:
        """Return whether this step distils on the names of the classes seen."""
        other = self.vocabulary not in ("none", "classes")
        return self.vocabulary == "classes" or (other and self.classes and batch.stage.number > 1)

    def moved(self, encoded: Encoded, text: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
        """Return the KL divergence of the answers over these texts from the teacher's."""
        with torch.no_grad():
            image = self.teacher.encode_image(batch.image)
            taught = self.teacher.scale() * image @ self.teacher.encode_text(tokens).T
        return distillation(encoded.scale * encoded.image @ text.T, taught, self.temperature)


def mini_batch(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """Return the cross-entropy of matching each image to its text among the candidates."""
    logits = encoded.scale * encoded.image @ encoded.text.T
    return F.cross_entropy(logits, batch.target, reduction="none")


def pairs(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """Return CLIP's loss of each pair in both directions; pairs of one class are positives."""
    logits = encoded.scale * encoded.image @ encoded.text[batch.target].T
    same = (batch.target[:, None] == batch.target[None]).float()
    positive = same / same.sum(1, keepdim=True)
    return 0.5 * sum(F.cross_entropy(z, positive, reduction="none") for z in (logits, logits.T))


def moving(encoded: Encoded, batch: Batch, contrast: GlobalContrast) -> Each:
    """Return the global contrastive loss of each image, as anchor and through its text."""
    return sum(contrast.losses(encoded, batch))


DENOMINATORS = {"batch": mini_batch, "pairs": pairs, "moving": moving}
