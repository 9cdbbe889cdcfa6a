"""The metrics of runs when the test concepts weigh differently: what `intervals.two_way` needs of
them.

A concept has weights of its own, Poisson with mean and variance 1, drawn from its id: the
interval of a comparison does not depend on what else is compared, and is the same each time."""
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from clstudy.runs.run import Damaged, Run

REPLICATES = 1000


def differences(ours: Sequence[Run], theirs: Sequence[Run], names: Mapping[str, str]
                ) -> dict[str, tuple[np.ndarray, int]]:
    """Return the differences of pairs of runs under each draw of weights, (REPLICATES, pairs) in
    points, and the number of concepts, for each metric of ours that has them.

    names: metric of ours → metric of theirs. Nothing has them where a run has no tables of its
    test images, or runs were tested on different images; a metric has none where it does not come
    from single images. Damaged: a table of a run."""
    from clstudy.analysis.resampling import concepts_of  # imports torch

    runs = list(dict.fromkeys([*ours, *theirs]))
    metrics = tuple(dict.fromkeys([*names, *names.values()]))
    if not all(run.has_tests() for run in runs):
        return {}
    try:
        concepts = concepts_of(runs, metrics)
    except Damaged:
        raise
    except ValueError:  # tested on different images
        return {}
    key = concepts.astype(np.int64).tobytes()
    sides = [[_replicates(run, metrics, key) for run in side] for side in (ours, theirs)]
    found = {}
    for name, other in names.items():
        pair = [[one.get(metric) for one in side]
                for side, metric in zip(sides, (name, other), strict=True)]
        if not any(values is None for values in [*pair[0], *pair[1]]):
            drawn = np.subtract(*pair).T
            found[name] = drawn, len(concepts_of(runs[:1], [name, other]))
    return found


@lru_cache(maxsize=1024)
def _replicates(run: Run, metrics: tuple[str, ...], key: bytes) -> dict[str, np.ndarray]:
    from clstudy.analysis.resampling import under_weights

    return under_weights(run, metrics, np.frombuffer(key, np.int64), _weights(key))


@lru_cache(maxsize=1)
def _weights(key: bytes) -> np.ndarray:
    """Return the weights of each concept, (REPLICATES, concepts)."""
    columns = [np.random.default_rng([0, concept]).poisson(1, REPLICATES)
               for concept in np.frombuffer(key, np.int64)]
    return np.array(columns, float).reshape(-1, REPLICATES).T
