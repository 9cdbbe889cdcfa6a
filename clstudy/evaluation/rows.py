"""The rows of `evals`: what was measured, with which candidates, and the value.

    kind               name                             candidates       metric
    all                seen classes                     seen             accuracy
    all                all classes                      all              accuracy
    task               1, 2, …                          own, seen, all   accuracy, class-balanced accuracy
    class, domain      its name                         seen, all        accuracy
    held-out set       its name                         own              accuracy
    retrieval          name of the image-caption pairs  all              image-to-text recall@k, text-to-image recall@k

Candidates are the classes whose texts compete: own (task-incremental), seen (class-incremental),
all (zero-shot)."""
from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Rows of `evals`, and which images were right: (set, candidates) → one truth value for each
    image of the set."""

    rows: list[dict]
    correct: dict[tuple[str, str], np.ndarray]


def row(kind: str, name: str, candidates: str, right: np.ndarray,
        metric: str = "accuracy") -> list[dict]:
    """One row: the mean of `right` over its images (or captions, or classes). None where there are
    none."""
    if not len(right):
        return []
    value = float(np.mean(right))
    return [{"kind": kind, "name": name, "candidates": candidates, "metric": metric, "value": value,
             "count": len(right)}]
