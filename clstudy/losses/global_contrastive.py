"""The global contrastive loss, estimated by a moving average for each image. SogCLR, arXiv
2202.12387, eq. 5 and algorithm 1; temperatures: iSogCLR, arXiv 2305.11965, and FastCLIP, arXiv
2407.01445 (v3).

    d1_ik = f_i·t_k − f_i·t_{y_i},  k ≠ y_i          image anchor; negatives: texts of other classes
    d2_ij = f_j·t_{y_i} − f_i·t_{y_i},  y_j ≠ y_i    text anchor; negatives: images of other classes
    g_i = mean exp(d_i / τ_i),     u_i ← (1 − γ) u_i + γ ĝ_i
    ℓ_i = τ_i log(ε + u_i),       ∇ℓ_i = τ_i ∇ĝ_i / (ε + u_i)

u is kept as log u, so that nothing overflows at τ = 0.01, in fp32 or bf16. That
"Memory-Efficient Continual Learning with CLIP Models" (arXiv 2605.03866) uses this form is a
reconstruction: its objective is not public."""
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clstudy.data.types import Batch
from clstudy.models.clip import Encoded
from clstudy.utils.options import Options

Rows = Float[Tensor, " batch"]
EPSILON = math.log(1e-14)
Temperature = Literal["fixed", "individual", "global"]


def negatives(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
              target: Int[Tensor, " batch"]
              ) -> list[tuple[Float[Tensor, "batch others"], Bool[Tensor, "batch others"]]]:
    """Return d1 and d2 of a batch (SogCLR, arXiv 2202.12387), and where the class is another."""
    similarity, own = image @ text.T, text[target]
    match = (image * own).sum(1, keepdim=True)
    other = torch.arange(len(text), device=text.device)[None] != target[:, None]
    return [(similarity - match, other), (own @ image.T - match, target[:, None] != target[None])]


def log_mean_exp(d: Float[Tensor, "batch others"], other: Bool[Tensor, "batch others"]) -> Rows:
    """Return the log of the mean of exp(d) over the negatives of each row.

    A row without negatives has −∞, and no gradient."""
    some, count = other.any(1), other.sum(1)
    filled = torch.where(some[:, None], d.masked_fill(~other, -torch.inf), torch.zeros_like(d))
    return torch.where(some, filled.logsumexp(1) - count.clamp(min=1).log(), -torch.inf)


def traced(log_g: Rows, log_u: Rows) -> Rows:
    """Return log(ε + u) with the gradient ∇ĝ / (ε + u) of the estimate ĝ."""
    value = torch.logaddexp(log_u, torch.full_like(log_u, EPSILON)).detach()
    some = log_g.detach().isfinite()
    safe = torch.where(some, log_g, torch.zeros_like(log_g))
    share = torch.where(some, (log_g.detach() - value).exp(), torch.zeros_like(log_g))
    return value + share * (safe - safe.detach())


@dataclass
class Average:
    """log u by the stable id of an image; NaN where an image was not seen."""

    log_u: Tensor | None = None

    def update(self, index: Int[Tensor, " batch"], size: int, log_g: Rows, gamma: float) -> Rows:
        """Take in the estimates of a batch, and return log u of its images.

        size: ids lie below. The first estimate of an image counts fully, and so does one where u is
        not finite. An estimate of −∞, without negatives, is left out."""
        if self.log_u is None or len(self.log_u) < size:
            grown = torch.full((size,), torch.nan, device=log_g.device)
            if self.log_u is not None:
                grown[:len(self.log_u)] = self.log_u
            self.log_u = grown
        before, new = self.log_u[index], log_g.detach().float()
        mixed = new
        if 0 < gamma < 1:
            mixed = torch.logaddexp(before + math.log1p(-gamma), new + math.log(gamma))
        found = torch.where(before.isfinite(), torch.where(new.isfinite(), mixed, before), new)
        self.log_u[index] = found
        return found

    def drop(self, keep: set[int]) -> None:
        """Forget all but these ids."""
        if self.log_u is not None:
            gone = [i for i in range(len(self.log_u)) if i not in keep]
            self.log_u[torch.tensor(gone, dtype=torch.long, device=self.log_u.device)] = torch.nan


@dataclass
class GlobalContrast(Options):
    """The loss of each image, as anchor and through its text, and the averages that it needs.

    temperature: "fixed" at 1 / s; "individual": one for each image and side (iSogCLR); "global":
    one for all (FastCLIP v3). The last two are learned by steps of their own."""

    gamma: Annotated[float, Gt(0), Le(1)] = 0.8  # γ
    decay: Annotated[int, Ge(0)] = 0  # steps of a cosine from 1 to `gamma` (FastCLIP); 0: constant
    exact: Annotated[int, Ge(0)] = 2000  # classes up to which g1 is computed, not averaged
    temperature: Temperature = "fixed"
    rho: float = 6.0  # robustness ρ
    rate: float = 1e-3  # size of a step of a temperature
    bounds: tuple[float, float] = (0.005, 0.1)  # of a temperature
    averages: tuple[Average, Average] = field(
        default_factory=lambda: (Average(), Average()), init=False)
    taus: list[Tensor | None] = field(default_factory=lambda: [None, None], init=False)
    momenta: list[Tensor | None] = field(default_factory=lambda: [None, None], init=False)
    steps: int = field(default=0, init=False)

    def check(self) -> None:
        if not 0 < self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds!r}: must be two temperatures, lower one first")

    def losses(self, encoded: Encoded, batch: Batch) -> tuple[Rows, Rows]:
        """Return ℓ1 and ℓ2 of each image, in units of similarity (τ log u)."""
        gamma, self.steps = self.rate_of_averages(), self.steps + 1
        index, size = torch.tensor(batch.index, device=encoded.image.device), max(batch.index) + 1
        found = []
        for side, (d, other) in enumerate(negatives(encoded.image, encoded.text, batch.target)):
            tau = self.tau(side, index, size, 1 / encoded.scale.detach())
            log_g = log_mean_exp(d / tau[:, None], other)
            fresh = side == 0 and len(encoded.text) <= self.exact
            log_u = self.averages[side].update(index, size, log_g, 1.0 if fresh else gamma)
            found.append(tau * traced(log_g, log_u))
            self.learn(side, index, tau, d.detach(), other, log_u)
        return found[0], found[1]

    def keep(self, index: list[int]) -> None:
        """Forget the averages of all images but these: at the end of a stage, the memory's."""
        for average in self.averages:
            average.drop(set(index))

    def rate_of_averages(self) -> float:
        """Return γ at this step."""
        if self.steps >= self.decay:
            return self.gamma
        cosine = math.cos(math.pi * self.steps / self.decay)
        return self.gamma + 0.5 * (1 + cosine) * (1 - self.gamma)

    def tau(self, side: int, index: Tensor, size: int, start: Tensor) -> Rows:
        """Return τ of each image of the batch; a new image starts at 1 / s."""
        if self.temperature == "fixed":
            return start.expand(len(index))
        which, rows = self.place(side, index)
        need = 1 if self.temperature == "global" else size
        held, momentum = self.taus[which], self.momenta[which]
        if held is None:
            held = momentum = start.new_empty(0)
        if len(held) < need:
            new = start.clamp(*self.bounds).repeat(need - len(held))
            self.taus[which] = torch.cat([held, new])
            self.momenta[which] = torch.cat([momentum, torch.zeros_like(new)])
        return self.taus[which][rows]

    def place(self, side: int, index: Tensor) -> tuple[int, Tensor]:
        """Return where the temperatures of images stand: the number of the list, and rows."""
        return (0, torch.zeros_like(index)) if self.temperature == "global" else (side, index)

    @torch.no_grad()
    def learn(self, side: int, index: Tensor, tau: Rows, d: Tensor, other: Tensor, log_u: Rows,
              beta: float = 0.9) -> None:
        """Make a step of the temperatures.

        ∂/∂τ = log u + ρ − mean_j w_j d_j / τ, w_j = exp(d_j / τ) / u, clipped to ± 5."""
        if self.temperature == "fixed":
            return
        share = (d / tau[:, None] - log_u[:, None]).exp().masked_fill(~other, 0)
        slope = log_u + self.rho - (share * d / tau[:, None]).sum(1) / other.sum(1).clamp(min=1)
        slope = torch.where(log_u.isfinite(), slope, torch.zeros_like(slope)).clamp(-5, 5)
        which, rows = self.place(side, index)
        if self.temperature == "global":
            slope = slope.mean().expand(len(rows))
        momentum = (1 - beta) * self.momenta[which][rows] + beta * slope
        self.momenta[which][rows] = momentum
        self.taus[which][rows] = (self.taus[which][rows] - self.rate * momentum).clamp(*self.bounds)
