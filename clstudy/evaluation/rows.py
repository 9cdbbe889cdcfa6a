"""The rows of `evals`: what was measured, with which candidates, and the value.

    kind            name           candidates       metric
    all             seen classes   seen             accuracy
    all             all classes    all              accuracy
    task            1, 2, …        own, seen, all   accuracy, class-balanced accuracy
    class, domain   its name       seen, all        accuracy
    held-out set    its name       own              accuracy
    retrieval       of the pairs   all              image-to-text recall@k, text-to-image recall@k

Candidates are the classes whose texts compete: own (task-incremental), seen (class-incremental),
all (zero-shot)."""
from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Rows of `evals`, and which images were right."""

    rows: list[dict]
    # (set, candidates) → a truth value for each image of the set, of retrieval for each caption too
    correct: dict[tuple[str, str], np.ndarray]


def row(kind: str, name: str, candidates: str, right: np.ndarray,
        metric: str = "accuracy") -> list[dict]:
    """Return one row, the mean of `right` over images, captions or classes; no row without any."""
    if not len(right):
        return []
    value = float(np.mean(right))
    return [{"kind": kind, "name": name, "candidates": candidates, "metric": metric, "value": value,
             "count": len(right)}]
