"""The rows of `evals`: what was measured, among which candidates, and the value."""
import numpy as np


def row(name: str, candidates: str, right: np.ndarray, metric: str = "accuracy") -> list[dict]:
    if not len(right):
        return []
    value = float(np.mean(right))
    return [{"set": name, "candidates": candidates, "metric": metric, "value": value, "count": len(right)}]
