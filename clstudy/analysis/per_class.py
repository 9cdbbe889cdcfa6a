"""Class by class: the weights that a method gives to classes, and which classes gain or lose."""
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clstudy.runs.run import Run

Weights = pd.DataFrame  # columns seed, stage, step, class, weight, age


def class_weights(runs: Sequence[Run]) -> Weights:
    """Return the weights that `gdro` gave, step by step. age: "new" in the stage in which a class
    came first, "old" after."""
    found = []
    for run in runs:
        table = run.probe("method")
        first = table.groupby("class").stage.transform("min")
        age = np.where(table.stage == first, "new", "old")
        found.append(table.assign(seed=run.config.seed, age=age))
    return pd.concat(found, ignore_index=True)


def by_age(weights: Weights) -> pd.DataFrame:
    """Return the mean weight of old and of new classes at each step: columns seed, stage, step,
    age, weight."""
    return weights.groupby(["seed", "stage", "step", "age"], as_index=False).weight.mean()


def old_against_new(weights: Weights) -> pd.Series:
    """Return the mean weight of old classes minus that of new ones, for each seed, over the steps
    that have both."""
    wide = by_age(weights).pivot(index=["seed", "step"], columns="age", values="weight").dropna()
    return (wide.old - wide.new).groupby("seed").mean()


def hard_classes(runs: Sequence[Run], class_names: Sequence[str]) -> list[float]:
    """Return for each run the rank correlation, over classes, of the weight at the end of the
    stream with the error 1 − a_c of the model before training. Above 0: hard classes weigh more."""
    found = []
    for run in runs:
        table = run.probe("method")
        last = table[table.step == table.step.max()].set_index("class").weight
        weight = last.rename(index=dict(enumerate(class_names)))
        both = pd.concat([weight, -run.classes("all").loc[0]], axis=1)
        found.append(float(both.corr("spearman").iloc[0, 1]))  # NaN where one is constant
    return found


def effective(weights: Weights) -> float:
    """Return how many classes share the weight at the end of a stream: the mean over seeds of
    1 / Σ p², as a share of all classes."""
    found = []
    for _, one in weights.groupby("seed"):
        p = one[one.step == one.step.max()].weight
        found.append(p.sum()**2 / (p**2).sum() / len(p))
    return float(np.mean(found))
