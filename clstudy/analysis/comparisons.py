"""What intervals of paired differences allow to say."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from clstudy.analysis.scores import means, scores
from clstudy.evaluation import metrics
from clstudy.evaluation.metrics import Interval
from clstudy.runs.run import Run


def growth(ours: Mapping[float, Sequence[Run]], theirs: Mapping[float, Sequence[Run]], metric: str) -> Interval:
    """By how much ours − theirs is larger at the smallest memory than at the largest, paired by seed. Keys: sizes."""
    small, large = min(ours), max(ours)
    gaps = [[scores(a)[metric] - scores(b)[metric] for a, b in zip(ours[x], theirs[x], strict=True)]
            for x in (small, large)]
    return metrics.paired_interval(*gaps)


def outcome(found: Interval) -> str:
    """What an interval says of a claim that its number is above 0."""
    if np.isnan(found.half_width):
        return "cannot be told from one seed"
    if found.mean - found.half_width > 0:
        return "holds here"
    return "not reproduced here: the opposite" if found.mean + found.half_width < 0 else "no difference told"


def judged(claim: str, found: Mapping[str, Interval], unit: str = " points", digits: int = 1) -> str:
    """A claim and what the intervals say of it, in words. found: a name of what is above 0 if the claim is true → its
    interval."""
    words = [outcome(one) for one in found.values()]
    held, against = words.count("holds here"), sum(word.endswith("opposite") for word in words)
    said = words[0] if len(set(words)) == 1 else (f"holds in {held} of {len(words)} cases"
                                                  + (f", the opposite in {against}" if against else ""))
    lines = [f"    {name}: {_signed(one, unit, digits)}: {word}"
             for (name, one), word in zip(found.items(), words, strict=True)]
    return "\n".join([f"“{claim}”: {said}.", *lines])


def _signed(found: Interval, unit: str, digits: int) -> str:
    mean = f"{found.mean:+.{digits}f}{unit}"
    if np.isnan(found.half_width):
        return mean
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{mean}, 95 % interval {low:+.{digits}f} to {high:+.{digits}f}"


def difference(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> metrics.Interval:
    """Mean and 95 % half width of ours − theirs, paired by seed, in points. ValueError: the seeds differ."""
    seeds = [[run.config.seed for run in runs] for runs in (ours, theirs)]
    if seeds[0] != seeds[1]:
        raise ValueError(f"a paired difference needs the same seeds on both sides, got {seeds[0]} and {seeds[1]}")
    return metrics.paired_interval([scores(run)[metric] for run in ours], [scores(run)[metric] for run in theirs])


def verdict(found: metrics.Interval, higher: str, lower: str) -> str:
    """What an interval of a difference allows to say, in words."""
    if np.isnan(found.mean):
        return "is not defined for these runs"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    said = f"{found.mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    if np.isnan(found.half_width):
        return f"{said.split(',')[0]}: one seed, so nothing can be said"
    return f"{said}: {higher if low > 0 else lower if high < 0 else 'no difference can be told'}"


def moved(runs: Sequence[Run], metric: str) -> str:
    """Whether a metric is higher or lower after the stream than before, in words."""
    found = pd.DataFrame([scores(run) for run in runs])
    change = metrics.interval((found[metric] - found[f"{metric} before"]).tolist())
    return f"    {metric} {verdict(change, 'raised', 'lowered')}"


def claim(groups: Mapping[tuple, Sequence[Run]], metric: str, said: str, lower: bool = False) -> str:
    """Whether `sit` beats `finetune` in `metric`, over all combinations, in words: holds, holds in part, or not."""
    lines, signs = [], []
    for (*where, method), runs in groups.items():
        if method == "sit":
            found = difference(runs, groups[*where, "finetune"], metric)
            good, bad = ("symmetric is lower", "asymmetric is lower") if lower else ("symmetric", "asymmetric")
            words = (good, bad) if lower else (f"{good} is higher", f"{bad} is higher")
            lines.append(f"    {', '.join(where)}: {metric} {verdict(found, *(reversed(words) if lower else words))}")
            low, high = found.mean - found.half_width, found.mean + found.half_width
            signs.append((1 if low > 0 else -1 if high < 0 else 0) * (-1 if lower else 1))
    if not signs:
        raise ValueError("a claim needs runs of method 'sit', and of 'finetune' on the same streams")
    held, against = signs.count(1), signs.count(-1)
    outcome = ("cannot be told from one seed" if all(len(runs) == 1 for runs in groups.values()) else
               "holds here" if held == len(signs) else "not reproduced here" if not held else
               f"holds in {held} of {len(signs)} cases" + (f", the opposite in {against}" if against else ""))
    return f"“{said}”: {outcome}.\n" + "\n".join(lines)


def contest(ours: Sequence[Run], theirs: Sequence[Run], metric: str, higher: str, lower: str) -> str:
    """Which of two groups of runs is higher in a metric, paired by seed, in words."""
    return f"    {metric} {verdict(difference(ours, theirs, metric), higher, lower)}"


def same_order(groups: Mapping[tuple, Sequence[Run]], first: str, second: str, metric: str) -> str:
    """Whether methods stand in the same order on two benchmarks: Spearman's rank correlation of their mean values, in
    words. Keys begin with the benchmark; what follows names the method."""
    found = [pd.Series({key[1:]: means(runs, metric)[0] for key, runs in groups.items() if key[0] == name})
             for name in (first, second)]
    both = pd.concat(found, axis=1).dropna()
    value = both.rank().corr().iloc[0, 1]
    return f"    {metric}, {len(both)} methods on {first} and on {second}: rank correlation {value:+.2f}"


def above(groups: Mapping[tuple, Sequence[Run]], frozen: Mapping[str, Sequence[Run]], metric: str) -> str:
    """Whether tuning was worth it: each group against frozen CLIP on the same stream, paired by seed."""
    rows = [f"    {', '.join(key)}: {metric} {verdict(difference(runs, frozen[key[0]], metric), 'above', 'below')}"
            for key, runs in groups.items()]
    return "Against frozen CLIP:\n" + "\n".join(rows)
