"""Confidence intervals over seeds: of a mean, and of a difference that is paired by seed."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

Numbers = Sequence[float] | np.ndarray  # an array is no Sequence


class Interval(NamedTuple):
    mean: float
    half_width: float


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
        return Interval(float(values[0]), float("nan"))
    half_width = t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
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
