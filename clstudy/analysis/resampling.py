"""Metrics when the concepts of the test images weigh differently, as in a bootstrap over concepts."""
from collections.abc import Sequence

import numpy as np

from clstudy.runs.run import Run


def concepts_of(runs: Sequence[Run], metrics: Sequence[str]) -> np.ndarray:
    """Return the ids of the concepts of the stream's test images, rising.

    ValueError: runs that were tested on other images."""
    tables = [run.tests[run.tests["set"] == "test"] for run in runs]
    if any(not one[["label", "concept"]].equals(tables[0][["label", "concept"]]) for one in tables):
        raise ValueError("the runs were not tested on the same images: compare runs of one benchmark")
    return np.unique(tables[0].concept)


def under_weights(run: Run, metrics: Sequence[str], concepts: np.ndarray, weights: np.ndarray
                  ) -> dict[str, np.ndarray]:
    """Return A_last, in percent, for each row of weights, (B,); other metrics are left out."""
    if "A_last" not in metrics:
        return {}
    tests = run.tests[run.tests["set"] == "test"]
    of_image = weights[:, np.searchsorted(concepts, tests.concept)] * (tests.arrived >= 0).to_numpy()
    return {"A_last": 100 * of_image @ run.correct()[-1] / of_image.sum(axis=1)}
