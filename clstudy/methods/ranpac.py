"""RanPAC: ridge regression on a random projection of the features, kept up as a sum. McDonnell et
al. 2023, arXiv 2307.02251, without its tuning on the first stage.

    no objective; prediction = argmax_k of (h(f) W)_k

    h(f) = relu(f P),   G = Σ_i h_i h_iᵀ,   C = Σ_i h_i y_iᵀ,   W = (G + λ I)⁻¹ C

    symbol  field  unit      meaning
    f       –      –         unit-norm feature of the image
    P       width  features  dim × width draws from N(0, 1), made once; 0: none, h(f) = f
    y       –      –         1 at the class of the image, else 0
    λ       ridge  –         strength of the ridge; None: chosen

Estimator: exact; G and C are sums over all images so far, in double precision, and do not depend on
the order in which images come. An image is encoded once, without augmentation, when its batch
arrives. P is drawn on the host from the run's seed when the first image comes.

λ is chosen as in the released code: of 10⁻⁸, 10⁻⁷, …, 10⁸ the one whose W, fitted on four fifths of
the stage's images alone, has the smallest squared error on the other fifth; W is then fitted with
it on all images of all stages. That error is Σ (W ∘ (G' W)) − 2 Σ (W ∘ C') + number of images, with
the sums G', C' of the fifth, so that no feature needs to be kept. Between two stage ends the choice
is of what the stage has brought so far; without both parts it is that of the stage before, or 1.
With fewer images than features all small λ have one error up to rounding; so the largest λ is taken
whose error (less the constant) is within 10⁻⁵ of the smallest, relative to it.

Limits: with λ → ∞, λ W → C: an image gets the class with the largest sum of products h·h_i, which,
where classes have equally many images, is the one with the largest product with the mean of h.
Without a projection it is ridge regression (no intercept) on the features.

Departures: which fifth is tried out is drawn for each image by its id (there: the last fifth of a
shuffled stage), so that the order does not matter, nor does rounding. CLIP's projected unit-norm
features, there raw ones of a ViT; width 1,000 for features of 256: an evaluation inside a stage
solves 18 systems of that size, half a second of a CPU at 1,000, three at 2,000. Between stages G, C
and P are kept; inside one, G and C are three (before, fit, tried). Classes not seen compete by their
texts, standardised for each image (`frozen_features.py`).
"""
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.methods.base import state
from clstudy.methods.frozen_features import FrozenFeatures
from clstudy.models.clip import Clip

RIDGES = tuple(10.0**power for power in range(-8, 9))
TRIED = 0.2  # share of a stage's images on which λ is tried out
EQUAL = 1e-5  # relative difference of two errors up to which the larger λ is taken


@dataclass
class RanPAC(FrozenFeatures):
    """Trains nothing: regresses the classes on a random projection of the features."""

    title = "RanPAC"
    source = "McDonnell et al. 2023, RanPAC, arXiv 2307.02251"
    checked = "against least squares, in any order; without its tuning on the first stage"

    width: Annotated[int, Ge(0)] = 1000  # features of the random projection; 0: none
    ridge: Annotated[float, Gt(0)] | None = None  # strength; None: chosen on a fifth of each stage
    projection: Tensor | None = state(default=None)  # (dim, width)
    # sums of h [h, y]ᵀ, (width, width + classes): of the stages that are over; of this stage, what
    # is fitted, and what is tried out
    past: Tensor | None = state(default=None)
    fit: Tensor | None = state(default=None)
    tried: Tensor | None = state(default=None)
    ridges: list[float] = state(default_factory=list)  # of each stage that is over

    def add(self, image: Float[Tensor, "new dim"], member: Float[Tensor, "new classes"],
            batch: Batch) -> None:
        if self.width and self.projection is None:
            self.projection = torch.randn(image.shape[1], self.width).to(image.device)
        h = self.projected(image)
        both = torch.cat([h, exact(member)], 1)
        out = [random.Random(image).random() < TRIED for image in batch.index]
        for part, wanted in (("fit", False), ("tried", True)):
            rows = [row for row, one in enumerate(out) if one is wanted]
            if rows:
                before, more = getattr(self, part), h[rows].T @ both[rows]
                setattr(self, part, more if before is None else before + more)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        if self.counts is None:
            return
        self.ridges.append(self.strength())
        self.past = self.total()
        self.fit = self.tried = None

    def values(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], rows: Int[Tensor, " texts"]
               ) -> Float[Tensor, "images texts"]:
        return (self.projected(image) @ self.weights()).to(image)[:, rows]

    def table(self) -> list[dict]:
        return [{"stage": stage, "ridge": ridge} for stage, ridge in enumerate(self.ridges, 1)]

    def projected(self, image: Float[Tensor, "images dim"]) -> Float[Tensor, "images width"]:
        h = exact(image)
        return h if self.projection is None else F.relu(h @ exact(self.projection))

    def total(self) -> Float[Tensor, "width width_and_classes"]:
        """Return the sums over all images so far."""
        return sum(part for part in (self.past, self.fit, self.tried) if part is not None)

    def strength(self) -> float:
        """Return λ: the option, or the choice by what this stage has brought so far."""
        if self.ridge is not None:
            return self.ridge
        if self.fit is None or self.tried is None:
            return self.ridges[-1] if self.ridges else 1.0
        errors = [float(squared_error(self.fit, self.tried, ridge)) for ridge in RIDGES]
        enough = min(errors) + EQUAL * abs(min(errors))
        return max(ridge for ridge, error in zip(RIDGES, errors, strict=True) if error <= enough)

    def weights(self) -> Float[Tensor, "width classes"]:
        total = self.total()
        gram, sums = total.tensor_split([len(total)], 1)
        return torch.linalg.solve(ridged(gram, self.strength()), sums)


def exact(values: Tensor) -> Tensor:
    """Return values in double precision; on the host where the device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def ridged(gram: Float[Tensor, "width width"], ridge: float) -> Float[Tensor, "width width"]:
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def squared_error(fit: Float[Tensor, "width both"], tried: Float[Tensor, "width both"],
                  ridge: float) -> Float[Tensor, ""]:
    """Return the sum of squared errors on the images tried, less their number, of weights fitted on
    the others; ∞ where rounding leaves no solution."""
    gram, sums = fit.tensor_split([len(fit)], 1)
    factor, failed = torch.linalg.cholesky_ex(ridged(gram, ridge))
    weights = torch.cholesky_solve(sums, factor)
    gram, sums = tried.tensor_split([len(tried)], 1)
    error = (weights * (gram @ weights)).sum() - 2 * (weights * sums).sum()
    return torch.where((failed == 0) & error.isfinite(), error, torch.inf)
