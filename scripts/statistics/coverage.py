"""How often three 95 % intervals hold the true difference, on simulated studies.

    python scripts/statistics/coverage.py

A row per setting: seeds S, test concepts C (two images each), and the standard deviations, in
points, of the paired difference between seeds, between concepts, and of their interaction.
Columns: the interval over seeds × concepts (`intervals.two_way`), Student t over seeds, and
percentiles of the bootstrap that draws both seeds and concepts. Each
rests on 1,000 studies: ± 1.4 points."""
from functools import cache

import numpy as np
import pandas as pd

from clstudy.analysis.intervals import two_way

STUDIES, REPLICATES, TRUTH = 1000, 500, 3.0
SETTINGS = [(0, 0, 0), (5, 0, 0), (0, 20, 0), (2, 20, 0), (4, 15, 10), (10, 10, 10), (2, 5, 20)]


def main() -> None:
    rows = []
    for S in (3, 5, 8, 16):
        for C in (150, 850):
            for sds in SETTINGS:
                covered = np.mean([study(S, C, sds, number) for number in range(STUDIES)], axis=0)
                rows.append([S, C, *sds, *(100 * covered)])
        columns = ["S", "C", "seeds", "concepts", "interaction", "two_way", "t over seeds",
                   "percentiles"]
        print(pd.DataFrame(rows, columns=columns).round(1).to_string(index=False), flush=True)
        rows = []


def study(S: int, C: int, sds: tuple[float, float, float], number: int) -> list[bool]:
    """Return whether each of the three intervals holds the truth in one simulated study."""
    rng = np.random.default_rng([S, C, number])
    effect = sum(sd / 100 * np.sqrt(3) * rng.uniform(-1, 1, shape)
                 for sd, shape in zip(sds, ((S, 1), (1, C), (S, C)), strict=True))
    half = (TRUTH / 100 + effect) / 2
    right = sum(50.0 * sign * (rng.random((S, C)) < .6 + sign * half)
                for sign in (1, -1) for _ in range(2))
    drawn = weights(C) @ right.T
    found = two_way(right.mean(axis=1), drawn, C)
    seeds = rng.integers(S, size=(REPLICATES, S))
    low, high = np.quantile(np.take_along_axis(drawn, seeds, axis=1).mean(axis=1), [.025, .975])
    return [found.low <= TRUTH <= found.high, found.low_seeds <= TRUTH <= found.high_seeds,
            low <= TRUTH <= high]


@cache
def weights(C: int) -> np.ndarray:
    drawn = np.random.default_rng(0).poisson(1, (REPLICATES, C))
    return drawn / drawn.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
