"""Confidence intervals: over seeds, and over seeds × test concepts.

**The question.** A method is better than another by d points. A reader who trains with another
seed, or draws another test set of the same kind, finds another d. An interval must hold both
causes.

**The model.** In seed s (its class order and its noise of training) the paired difference on test
concept c is

    y_sc = μ + α_s + γ_c + (αγ)_sc + noise

with independent effects: α of the seed, γ of the concept (one method may be better on all drawings
of a dog, in every seed), their interaction, and the noise of single images. All images of a
concept share γ_c, so concepts are drawn, not images. The estimate is the mean over S seeds and C
concepts; with e = Var((αγ) + noise) / (S C) its variance is

    Var = σ_α² / S + σ_γ² / C + e

Three numbers follow from one matrix, `resampled`, which holds the difference of each seed under
random weights of the concepts (the same for all seeds and both sides):

    a   variance of d_s over seeds, / S                       estimates σ_α² / S + e
    b   variance over weights of the mean over seeds          estimates σ_γ² / C + e
    r   the same of what is left of each seed after this
        mean is taken off, summed over seeds, / S (S − 1)     estimates e

so that a + (b − r) estimates Var without bias. For a difference that is a plain mean these are the
mean squares of a two-way analysis of variance (`tests/analysis/test_intervals.py` holds them
against it), and the sum is that of the variance for two-way clusters (Cameron, Gelbach and Miller
2011, J. Business & Economic Statistics 29). The weights only serve to get the same three numbers
for metrics that are no means, such as forgetting. What the concepts add is not negative:

    k = max(b − r, 0),   SE² = a + k,   1 / df = (a / SE²) / (S − 1) + (k / SE²) / (C − 1)

and the interval is d ± t_df · SE. Where concepts add nothing, this is the t interval over seeds,
exactly; where seeds add nothing, it is the one over concepts. More seeds shrink a, never k: where
k alone is too wide, only more test concepts help.

**Degrees of freedom.** Satterthwaite (1946, Biometrics Bulletin 2) squares the two shares of SE²
in 1 / df; so ours are never more than his. His interval covers 94 to 95 %, but a small a, by chance, makes
SE small and df large at once, and far out in the tail, where Holm looks, that counts: of 30
independent comparisons with five seeds and no difference, at least one was found in up to 14 % of
simulated families (eight seeds: 9 %), with the shares as they are in up to 6 % (5 %).

**Why no percentiles.** To draw seeds and concepts anew and take percentiles (the pigeonhole
bootstrap, Owen 2007, arXiv 0712.1111) counts e three times, and a few seeds drawn from themselves
vary too little. No bootstrap is exact for two crossed factors (McCullagh 2000, cited there).
Weights in place of draws are those of Owen and Eckles 2012, arXiv 1106.2125. In simulated settings
with 5 to 16 seeds the interval here covers 92 to 97 % (each ± 1.4 by chance; 95 on average), the t
interval over seeds 67 to 96 %, percentiles 86 to 99.9 %; with three seeds 92 to 96 %, 92 to 96 %
and 75 to 99.5 % (`scripts/statistics/coverage.py`).

**What it does not say.** It speaks of concepts and seeds like these: nothing of other data,
models or learning rates. A maximum over noisy accuracies, as in forgetting, is too high on a
small test set; the interval is of the metric on a test set of this size."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

Numbers = Sequence[float] | np.ndarray  # an array is no Sequence
NAN = float("nan")
BOTH, SEEDS, CONCEPTS, NONE = "seeds × concepts", "seeds", "concepts", "none"


class Interval(NamedTuple):
    mean: float
    half_width: float


class Parts(NamedTuple):
    """The two parts of the variance of a mean difference, in points²."""

    one_seed: float  # S · a: variance of the difference in one seed
    concepts: float = 0.0  # k: what the test concepts add, however many seeds there are
    count: float = float("inf")  # number of test concepts

    def at(self, seeds: float) -> tuple[float, float]:
        """Return SE (points) and degrees of freedom with this number of seeds, at least 2."""
        a, k = self.one_seed / seeds, self.concepts
        if a + k == 0:
            return 0.0, seeds - 1
        return (a + k)**0.5, (a + k) / (a / (seeds - 1) + k / (self.count - 1))

    def half_width(self, seeds: float, level: float = 0.95) -> float:
        """Return t · SE with this number of seeds."""
        se, df = self.at(seeds)
        return float(stdtrit(df, (1 + level) / 2)) * se


class Estimate(NamedTuple):
    """A mean paired difference, with its interval; all but the counts in the unit of the data."""

    difference: float
    low: float
    high: float
    se: float  # standard error; se² = se_seeds² + se_concepts²
    df: float
    p: float  # two-sided t test against zero; NaN with one seed
    low_seeds: float  # Student t over the seeds alone
    high_seeds: float
    n: int  # seeds
    se_seeds: float
    se_concepts: float
    concepts: float  # number of test concepts; NaN where they do not enter
    interval: str  # over what low to high is: "seeds × concepts", "seeds", "concepts" or "none"

    @property
    def parts(self) -> Parts:
        """The parts of the variance, to compute with other numbers of seeds. One seed has none."""
        count = np.inf if np.isnan(self.concepts) else self.concepts
        return Parts(self.n * self.se_seeds**2, self.se_concepts**2, count)


def interval(values: Numbers, level: float = 0.95) -> Interval:
    """Return the mean over seeds ± t_{(1+level)/2, n−1} · s/√n, s with divisor n − 1.

    One value has half-width NaN. A NaN value makes the result NaN. ValueError: no values, or a
    level outside (0, 1).

    >>> [round(x, 4) for x in interval([1., 2., 3.])]  # 4.3027 · 1 / √3
    [2.0, 2.4841]
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values: got shape {values.shape}; must be one-dimensional with at least "
                         "one value")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: must lie between 0 and 1")
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), NAN)
    half_width = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(half_width))


def paired_interval(a: Numbers, b: Sequence[float], level: float = 0.95) -> Interval:
    """Return the interval of a − b, where a[i] and b[i] share seed i, so that its effect cancels.

    >>> [round(x, 4) for x in paired_interval([.5, .7, .9], [.4, .6, .8])]
    [0.1, 0.0]
    """
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} values for {len(a)} of a; must be one per seed, in the "
                         "same order")
    return interval(np.subtract(a, b), level)


def two_way(per_seed: Numbers, resampled: np.ndarray | None = None, concepts: float = np.inf,
            level: float = 0.95) -> Estimate:
    """Return the mean of paired differences with its interval over seeds × concepts (see above).

    per_seed: (S,), the difference in each seed. resampled: (B, S), the same under B draws of
    weights of the test concepts, the same draws for all seeds and both sides; rows with NaN are
    left out. None, or NaN in more than half the rows: the interval is over seeds alone. concepts:
    their number C. With one seed the interval is over concepts alone, p is NaN, and nothing is
    known of other seeds. ValueError: shapes do not fit, or those of `interval`."""
    per_seed = np.asarray(per_seed, dtype=float)
    mean, half = interval(per_seed, level)
    n, of_concepts = len(per_seed), _of_concepts(per_seed, resampled, concepts)
    if n == 1:
        kind, se, df = (CONCEPTS, of_concepts[0]**0.5, concepts - 1) if of_concepts else (
            NONE, NAN, NAN)
        se_seeds, se_concepts = NAN, se
    else:
        kind = BOTH if of_concepts else SEEDS
        k = max(of_concepts[0] - of_concepts[1], 0.0) if of_concepts else 0.0
        parts = Parts(float(per_seed.var(ddof=1)), k, concepts)
        (se, df), se_seeds, se_concepts = parts.at(n), (parts.one_seed / n)**0.5, k**0.5
    wide = stdtrit(df, (1 + level) / 2) * se
    return Estimate(mean, float(mean - wide), float(mean + wide), se, df,
                    NAN if n == 1 else _p(mean, se, df), mean - half, mean + half, n, se_seeds,
                    se_concepts, concepts if of_concepts else NAN, kind)


def _of_concepts(per_seed: np.ndarray, resampled: np.ndarray | None, concepts: float
                 ) -> tuple[float, float] | None:
    """Return b and r of the docstring above, each without the bias of drawing C from C; with one
    seed r is 0."""
    if resampled is None:
        return None
    if resampled.ndim != 2 or resampled.shape[1] != len(per_seed):
        raise ValueError(f"resampled: got shape {resampled.shape} for {len(per_seed)} seeds; must "
                         "be (replicates, seeds)")
    known = resampled[~np.isnan(resampled).any(axis=1)]
    if 2 * len(known) <= len(resampled):
        return None
    S, unbiased = len(per_seed), 1 / (1 - 1 / concepts)
    means = known.mean(axis=1)
    left = (known - means[:, None]).var(axis=0).sum() / (S * (S - 1)) if S > 1 else 0.0
    return float(unbiased * means.var()), float(unbiased * left)


def _p(mean: float, se: float, df: float) -> float:
    """Return p of the two-sided t test against zero."""
    if se == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(df, -abs(mean) / se))
