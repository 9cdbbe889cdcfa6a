"""Weights of classes in four forms: equal, or robust, so that a class with a high loss counts more.

    balanced  p_c = 1 / C, which is "kl" with λ → ∞
    kl        p_c = exp(F_c / λ) / Σ exp(F / λ), the maximum of Σ p_c F_c − λ Σ p_c log(C p_c)
              (Qi et al. 2021, arXiv 2006.06138)
    cvar      p_c = 1 / (α C) for the worst α C classes (Rockafellar and Uryasev 2000; Curi 2020)
    eg        q_c ← q_c exp(η F_c), p = q / Σ q (group DRO, Sagawa et al. 2019, 1911.08731, alg. 1)

F_c is a moving average of the class's loss; a class that is not in the batch keeps its own. An
image of class c weighs w = p_c / r_c, r_c the share of the class among the images drawn: then Σ_c
p_c F_c is the expectation. Which of the forms "Memory-Efficient Continual Learning with CLIP
Models" (arXiv 2605.03866) uses is not public."""
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from jaxtyping import Float, Int
from torch import Tensor

from clstudy.data.types import Batch
from clstudy.utils.options import Options

Weighting = Literal["balanced", "kl", "cvar", "eg"]


@dataclass
class ClassWeights(Options):
    """How much each class counts, by its loss. `log`: stage, classes seen and p of each step."""

    form: Weighting = "kl"
    strength: Annotated[float, Gt(0)] = 0.1  # λ, the unit of the loss ("kl")
    share: Annotated[float, Gt(0), Le(1)] = 0.3  # α ("cvar")
    rate: Annotated[float, Gt(0)] = 0.1  # η ("eg")
    beta: Annotated[float, Gt(0), Le(1)] = 0.1  # weight of a new class loss in its average
    correct: bool = True  # for how often a class is drawn; False: r = 1 / C
    cap: Annotated[float, Gt(0)] = 10.0  # largest weight of an image
    average: Tensor | None = field(default=None, init=False)  # F_c; NaN: the class was never seen
    log_q: Tensor | None = field(default=None, init=False)  # of "eg"
    drawn: Tensor | None = field(default=None, init=False)  # images of each class in the stage
    log: list[tuple[int, tuple[int, ...], Tensor]] = field(default_factory=list, init=False)

    def stage(self) -> None:
        """Begin a stage: its classes are drawn at other rates."""
        self.drawn = None

    def of_images(self, loss: Float[Tensor, " batch"], batch: Batch) -> Float[Tensor, " batch"]:
        """Return the weight w = p / r of each image, a constant to the gradient; add p to `log`.

        loss: of each image. batch: with all classes seen as its candidates."""
        label = torch.tensor(batch.labels, device=loss.device)
        p = self.update(loss, label, len(batch.prompts))
        r = self.rates() if self.correct else torch.full_like(p, 1 / len(batch.classes))
        self.log.append((batch.stage.number, batch.classes, p))
        return (p / r)[label].clamp(max=self.cap)

    def update(self, loss: Float[Tensor, " batch"], label: Int[Tensor, " batch"], classes: int
               ) -> Float[Tensor, " classes"]:
        """Take in the losses of a batch. Return the weights p: their sum is 1; unseen have 0."""
        loss = loss.detach().float()
        if self.average is None:
            self.average = torch.full((classes,), torch.nan, device=loss.device)
            self.log_q = torch.zeros(classes, device=loss.device)
        zeros = torch.zeros(classes, device=loss.device)
        count = zeros.index_add(0, label, torch.ones_like(loss))
        mean = zeros.index_add(0, label, loss) / count.clamp(min=1)
        self.drawn = count if self.drawn is None else self.drawn + count
        here, known = count > 0, ~self.average.isnan()
        mixed = torch.where(known, (1 - self.beta) * self.average + self.beta * mean, mean)
        self.average = torch.where(here, mixed, self.average)
        self.log_q = self.log_q + torch.where(here, self.rate * mean, 0.0)
        return self.weights()

    def weights(self) -> Float[Tensor, " classes"]:
        """Return p of the class losses as they stand."""
        seen = ~self.average.isnan()
        if self.form == "cvar":
            return cvar(self.average, self.share)
        score = {"balanced": torch.zeros_like(self.log_q), "kl": self.average / self.strength,
                 "eg": self.log_q}[self.form]
        return torch.where(seen, score, -torch.inf).softmax(0)

    def rates(self) -> Float[Tensor, " classes"]:
        """Return the share of each class among the images drawn in this stage."""
        return self.drawn / self.drawn.sum()

    def table(self) -> list[dict]:
        """Return a row for each step and class seen: stage, step, class, weight (mean 1)."""
        return [{"stage": stage, "step": step, "class": label, "weight": len(classes) * value}
                for step, (stage, classes, p) in enumerate(self.log)
                for label, value in zip(classes, p[list(classes)].tolist(), strict=True)]


def cvar(loss: Float[Tensor, " classes"], share: float) -> Float[Tensor, " classes"]:
    """Return 1 / (share · C) for the worst classes; the last of them fills the sum up to 1.

    loss: NaN where a class was not seen."""
    seen = ~loss.isnan()
    top = 1 / (share * seen.sum())
    order = torch.where(seen, loss, -torch.inf).argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return torch.where(seen, (1 - place * top).clamp(torch.zeros_like(top), top), 0.0)
