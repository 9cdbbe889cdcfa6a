"""Classes as normal distributions of image features, from which features are drawn in place of old
images.

    f = g / |g|,   g = μ_k + r Σ_k^½ ε,   ε ~ N(0, 1)

    covariance   Σ                                               kept for a class, beside μ
    "diagonal"   diag(S)                                         d numbers
    "full"       S                                               d²
    "laplace"    diag(v) + (w wᵀ) ∘ K,  K_ij = exp(−|a_i − a_j|)  3 d

μ, S: mean and covariance (of maximum likelihood, so divided by the number of images) of the class's
unit-norm features. Of few images S has few dimensions, and so have the draws. Σ^½ is the symmetric
root: where S is diagonal, "full" and "diagonal" draw the same. A class that comes again in a later
stage has mean and covariance of all its images, each with the features of its own stage.

"laplace" is REMIX's form (Krukowski et al. 2026, arXiv 2605.11804; v = softplus u), which the paper
has in a network's layers for the inversion of models; here it stands for image features. It is
positive definite for all v > 0, w and a. It is fitted as in the released code, by Adam on
|Σ − S|²_F, from v = softplus 0, w = 0.1, a from −1 to 1; here in units of the mean variance, with
all images at once, in 300 steps.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.models.clip import Clip

Covariance = Literal["diagonal", "full", "laplace"]
STEPS, RATES = 300, (0.01, 0.01, 0.12)  # of the fit: for u, w and a


@dataclass
class ClassStatistics:
    """Mean and covariance of each class, in the order in which the classes came."""

    covariance: Covariance
    labels: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # images of each class
    means: list[Tensor] = field(default_factory=list)  # μ
    kept: list[Tensor] = field(default_factory=list)  # what Σ is made of
    roots: list[Tensor] = field(default_factory=list)  # Σ^½, or its diagonal

    @torch.no_grad()
    def add(self, clip: Clip, batches: Iterable[Batch]) -> None:
        """Take in the images of a stage, as the model sees them now in evaluation mode."""
        clip.eval()
        found: dict[int, list[Tensor]] = {}
        for batch in batches:
            for label, feature in zip(batch.labels, clip.encode_image(batch.image), strict=True):
                found.setdefault(label, []).append(feature)
        self.put({label: torch.stack(features) for label, features in found.items()})

    @torch.no_grad()
    def put(self, found: dict[int, Float[Tensor, "_ dim"]]) -> None:
        """Take in the features of some classes."""
        moments = {label: self.joined(label, features) for label, features in found.items()}
        if not moments:
            return
        spreads = [spread for _, _, spread in moments.values()]
        if self.covariance == "laplace":
            spreads = list(fit_laplace(torch.stack(spreads)))
        for (label, (count, mean, _)), kept in zip(moments.items(), spreads, strict=True):
            known = laplace(kept) if self.covariance == "laplace" else kept
            values = (label, count, mean, kept, root(known))
            columns = (self.labels, self.counts, self.means, self.kept, self.roots)
            row = self.labels.index(label) if label in self.labels else len(self.labels)
            for column, value in zip(columns, values, strict=True):
                column[row:row + 1] = [value]

    def joined(self, label: int, features: Float[Tensor, "images dim"]
               ) -> tuple[int, Tensor, Tensor]:
        """Return count, mean and covariance (or its diagonal) with what is known of the class."""
        count, mean = len(features), features.mean(0)
        centred = features - mean
        spread = self.outer(centred) / count
        if label in self.labels:
            row = self.labels.index(label)
            total = count + self.counts[row]
            share, gap = count / total, (mean - self.means[row])[None]
            spread = torch.lerp(self.spread(row), spread, share)
            spread = spread + share * (1 - share) * self.outer(gap)
            count, mean = total, self.means[row] + share * gap[0]
        return count, mean, spread

    def outer(self, centred: Float[Tensor, "images dim"]) -> Tensor:
        """Return the sum of the images' outer products, or its diagonal."""
        diagonal = self.covariance == "diagonal"
        return centred.square().sum(0) if diagonal else centred.T @ centred

    def spread(self, row: int) -> Tensor:
        """Return Σ of a class, or its diagonal."""
        kept = self.kept[row]
        return laplace(kept) if self.covariance == "laplace" else kept

    def draw(self, count: int, spread: float = 1.0
             ) -> tuple[Float[Tensor, "count dim"], tuple[int, ...]]:
        """Draw unit-norm features and their classes, each class as likely as any other.

        spread: r, how far they lie from the mean, in standard deviations; 0: the means."""
        rows = torch.randint(len(self.labels), (count,), device="cpu").tolist()
        noise = torch.randn(count, len(self.means[0]), device="cpu").to(self.means[0].device)
        return self.at(rows, spread * noise), tuple(self.labels[row] for row in rows)

    def at(self, rows: list[int], noise: Float[Tensor, "count dim"]) -> Float[Tensor, "count dim"]:
        """Return the features that lie so many standard deviations from the means of classes."""
        mean = torch.stack([self.means[row] for row in rows])
        moved = [self.roots[row] * one if self.roots[row].ndim == 1 else self.roots[row] @ one
                 for row, one in zip(rows, noise, strict=True)]
        return F.normalize(mean + torch.stack(moved), dim=-1)

    @property
    def bytes(self) -> int:
        """Bytes of means and covariances. (Their roots can be computed from these.)"""
        return sum(tensor.nbytes for tensor in (*self.means, *self.kept))


def root(spread: Tensor) -> Tensor:
    """Return the symmetric root of a covariance, or of its diagonal."""
    if spread.ndim == 1:
        return spread.sqrt()
    values, vectors = torch.linalg.eigh(spread)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def laplace(kept: Float[Tensor, "*classes 3 dim"]) -> Float[Tensor, "*classes dim dim"]:
    """Return diag(v) + (w wᵀ) ∘ exp(−|a_i − a_j|) of the rows v, w, a."""
    v, w, a = kept.unbind(-2)
    kernel = (-(a[..., :, None] - a[..., None, :]).abs()).exp()
    return v.diag_embed() + w[..., :, None] * w[..., None, :] * kernel


@torch.enable_grad()
def fit_laplace(spread: Float[Tensor, "classes dim dim"]) -> Float[Tensor, "classes 3 dim"]:
    """Return v, w, a of each class, for which `laplace` is near the covariance; 0 where that is."""
    scale = spread.diagonal(dim1=1, dim2=2).mean(1).detach()
    target = spread.detach() / scale.clamp(min=torch.finfo(scale.dtype).tiny)[:, None, None]
    start = spread.new_zeros(len(spread), spread.shape[1])
    line = torch.linspace(-1, 1, spread.shape[1], device=start.device, dtype=start.dtype)
    u, w, a = (part.clone().requires_grad_() for part in (start, start + 0.1, start + line))
    optimizer = torch.optim.Adam([{"params": [part], "lr": rate}
                                  for part, rate in zip((u, w, a), RATES, strict=True)])
    for _ in range(STEPS):
        found = laplace(torch.stack([F.softplus(u), w, a], dim=1))
        loss = (found - target).square().sum() / spread.shape[1]
        part = torch.autograd.grad(loss, (u, w, a))
        for one, gradient in zip((u, w, a), part, strict=True):
            one.grad = gradient
        optimizer.step()
    factor = torch.stack([scale, scale.sqrt(), torch.ones_like(scale)], dim=1)[..., None]
    return factor * torch.stack([F.softplus(u), w, a], dim=1).detach()
