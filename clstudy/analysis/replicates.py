"""The metrics of runs when the test concepts weigh differently: what `intervals.two_way` needs of
them.

A concept has weights of its own, Poisson with mean and variance 1, drawn from its id: the interval of a
comparison does not depend on what else is compared, and is the same each time."""
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from clstudy.analysis.resampling import concepts_of, under_weights
from clstudy.runs.run import Damaged, Run

REPLICATES = 1000
Side = Sequence[tuple[Run, str]]  # a run and one of its metrics


def differences(ours: Side, theirs: Side) -> tuple[np.ndarray, int] | None:
    """Return the differences of pairs under each draw of weights, (REPLICATES, pairs) in points,
    and the number of concepts.

    None: a run without tables of its test images, runs that were tested on different images, or a
    metric that does not come from single images. Damaged: a table of a run."""
    runs, metrics = zip(*ours, *theirs, strict=True)
    if not all(_has_tables(run) for run in runs):
        return None
    try:
        concepts = concepts_of(list(dict.fromkeys(runs)), list(dict.fromkeys(metrics)))
    except Damaged:
        raise
    except ValueError:  # tested on different images
        return None
    if len(concepts) < 2:
        return None
    key = concepts.astype(np.int64).tobytes()
    sides = [[_replicates(run, metric, key) for run, metric in side] for side in (ours, theirs)]
    if any(values is None for side in sides for values in side):
        return None
    return np.subtract(*sides).T, len(concepts)


def _has_tables(run: Run) -> bool:
    return all((run.folder / f"{name}.parquet").exists() for name in ("correct", "tests"))


@lru_cache(maxsize=4096)
def _replicates(run: Run, metric: str, key: bytes) -> np.ndarray | None:
    concepts = np.frombuffer(key, np.int64)
    return under_weights(run, [metric], concepts, _weights(key)).get(metric)


@lru_cache(maxsize=1)
def _weights(key: bytes) -> np.ndarray:
    """Return the weights of each concept, (REPLICATES, concepts)."""
    concepts = np.frombuffer(key, np.int64)
    return np.stack([np.random.default_rng([0, concept]).poisson(1, REPLICATES)
                     for concept in concepts], axis=1).astype(float)
