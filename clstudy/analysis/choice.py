"""Choose a setting, such as the learning rate, by validation, with the same rule for every method.

    best = chosen(tried, "validation", "lr")             of each method and tuner its best rate
    chosen(tried, ["validation", "validation, other classes"], ["lr", "weight"])
    train_all(with_seeds(best, range(8)))                few seeds choose, more of them tell"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from clstudy.analysis.scores import grouped, listed, metrics_of
from clstudy.runs.run import Run, Runs
from clstudy.training.config import RunConfig
from clstudy.utils.validation import choose

DIGITS = 9  # means that differ by less are equal: sums of the same numbers depend on their order


def chosen(runs: Sequence[Run], metric: str | Sequence[str], among: str | Sequence[str],
           by: Sequence[str] = ("method", "tuner")) -> Runs:
    """Return, of each combination of `by`, the runs at the value of `among` with the highest mean
    of a metric over runs; of equal ones the smaller. An only value is taken without a look at the
    metric.

    metric: of a set that chooses and does not test; several count by their mean. among: one setting
    or several, of which combinations are compared, the first first where they are equal. A run
    without the setting has None, the smallest. ValueError: an unknown setting or metric; a metric
    that is not measured; values of `among` with different numbers of runs (fewer tries)."""
    metrics, among, by = listed(metric), listed(among), list(by)
    candidates: dict[tuple, dict[tuple, list[Run]]] = {}
    for key, group in grouped(runs, [*by, *among]).items():
        candidates.setdefault(key[:len(by)], {})[key[len(by):]] = group
    return Runs(run for found in candidates.values() for run in _best(found, metrics, among))


def with_seeds(runs: Sequence[Run], seeds: Sequence[int]) -> list[RunConfig]:
    """Return the configurations of runs with each of the seeds instead of their own, each once."""
    every = (run.config.replace(seed=seed) for run in runs for seed in seeds)
    return list({config.run_id: config for config in every}.values())


def _best(candidates: dict[tuple, list[Run]], metrics: list[str], among: list[str]) -> list[Run]:
    """Return the runs of the best of several values."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    names = {value: ", ".join(f"{name}={one}" for name, one in zip(among, value, strict=True))
             for value in candidates}
    by_count = sorted(candidates, key=lambda value: len(candidates[value]))
    few, many = by_count[0], by_count[-1]
    if len(candidates[few]) < len(candidates[many]):
        counts = [f"{names[value]} has {len(candidates[value])}" for value in (few, many)]
        raise ValueError(f"chosen: {counts[0]} run{'s' * (len(candidates[few]) > 1)}, {counts[1]}; "
                         "each value needs as many as the others")
    means = {value: _mean(group, metrics, names[value]) for value, group in candidates.items()}
    return candidates[min(means, key=lambda value: (-means[value], *map(_rank, value)))]


def _mean(runs: Sequence[Run], metrics: Sequence[str], name: str) -> float:
    found = [metrics_of(run) for run in runs]
    for metric in metrics:
        if any(np.isnan(values[choose("metric", metric, values)]) for values in found):
            raise ValueError(f"chosen: {metric} is not measured in a run of {name}")
    return round(np.mean([values[metric] for values in found for metric in metrics]), DIGITS)


def _rank(value: Any) -> tuple[bool, Any]:
    return value is not None, 0 if value is None else value
