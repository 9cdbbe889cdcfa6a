"""How many seeds a comparison needs.

    parts = two_way(per_seed, resampled, concepts).parts  # from a pilot
    power(2.0, parts, seeds=8)   # the probability to find 2 points with 8 seeds
    seeds_for_power(2.0, parts)  # the seeds that find them 80 % of the time

With S seeds the test statistic is d / SE(S), taken as a noncentral t with `Parts.at(S)`'s
degrees of freedom and noncentrality δ / SE(S), δ the true difference. The parts are taken as
known; from a pilot of few seeds they are rough, and so is the answer."""
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from scipy.special import nctdtr, stdtrit

from clstudy.analysis.intervals import Parts

MOST = 10**9  # seeds; where these do not suffice, none do


def power(effect: float, parts: Parts, seeds: float, level: float = 0.95) -> float:
    """Return the probability that an interval of this level excludes zero if the true difference
    is `effect` (points).

    >>> round(power(3.26, Parts(1.0), seeds=3), 2)  # three seeds need 3.3 standard deviations
    0.8
    """
    se, df = parts.at(seeds)
    if se == 0:
        return float(effect != 0)
    away, critical = abs(effect) / se, float(stdtrit(df, (1 + level) / 2))
    # scipy has NaN where the probability is next to 0
    missed, other_side = np.nan_to_num(nctdtr(df, away, [critical, -critical]))
    return float(1 - missed + other_side)


def seeds_for_power(effect: float, parts: Parts, wanted: float = 0.8, level: float = 0.95) -> float:
    """Return the fewest seeds, at least 2, with which `power` reaches `wanted`; inf: none do."""
    return _fewest(lambda seeds: power(effect, parts, seeds, level) >= wanted)


def seeds_for_width(half_width: float, parts: Parts, level: float = 0.95) -> float:
    """Return the fewest seeds, at least 2, whose interval is narrower than ± half_width; inf: the
    part of the test concepts alone is wider."""
    return _fewest(lambda seeds: parts.half_width(seeds, level) < half_width)


def _fewest(enough: Callable[[int], bool]) -> float:
    if not enough(MOST):
        return float("inf")
    return 2 + bisect_left(range(2, MOST), True, key=enough)
