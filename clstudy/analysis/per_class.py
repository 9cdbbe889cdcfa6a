"""Class by class: the weights that classes get, and which classes gain or lose.
`moving_averages.py` looks at the memory and at the averages themselves."""
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clstudy.runs.run import Run

Weights = pd.DataFrame  # columns seed, stage, step, class, weight, age


# ---- the weights of classes


def class_weights(runs: Sequence[Run]) -> Weights:
    """The weights that `gdro` gave, step by step. age: "new" in the stage in which a class came
    first, "old" after."""
    found = []
    for run in runs:
        table = run.probe("method")
        first = table.groupby("class").stage.transform("min")
        found.append(
            table.assign(seed=run.config.seed, age=np.where(table.stage == first, "new", "old")))
    return pd.concat(found, ignore_index=True)


def by_age(weights: Weights) -> pd.DataFrame:
    """The mean weight of old and of new classes at each step: columns seed, stage, step, age,
    weight."""
    keys = ["seed", "stage", "step", "age"]
    return weights.groupby(keys, as_index=False).weight.mean()


def old_against_new(weights: Weights) -> pd.Series:
    """Mean weight of old classes minus that of new ones, over the steps in which there are both: a
    number per seed."""
    wide = by_age(weights).pivot(index=["seed", "step"], columns="age", values="weight").dropna()
    return (wide.old - wide.new).groupby("seed").mean()


def hard_classes(runs: Sequence[Run], class_names: Sequence[str]) -> list[float]:
    """Rank correlation, over classes, of the weight at the end of the stream with the error 1 − a_c
    of the model before training: a number per run. Above 0: hard classes weigh more."""
    found = []
    for run in runs:
        table = run.probe("method")
        last = table[table.step == table.step.max()].set_index("class").weight
        weight = last.rename(index=dict(enumerate(class_names)))
        found.append(_rank_correlation(weight, -run.classes("all").loc[0]))
    return found


def effective(weights: Weights) -> float:
    """How many classes share the weight at the end of a stream: the mean over seeds of 1 / Σ p², as
    a share of all."""
    found = []
    for _, one in weights.groupby("seed"):
        p = one[one.step == one.step.max()].weight
        found.append(p.sum()**2 / (p**2).sum() / len(p))
    return float(np.mean(found))


def _rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's; NaN where one of them is constant."""
    both = pd.concat([a, b], axis=1).dropna().rank()
    return float(both.iloc[:, 0].corr(both.iloc[:,
                                                1])) if both.nunique().min() > 1 else float("nan")


# ---- which classes pay


def class_changes(ours: Sequence[Run], theirs: Sequence[Run]) -> pd.DataFrame:
    """Per class: accuracy before training, and at the end of ours − theirs, in points, paired by
    seed; the mean over seeds. Columns class, before, difference.

    Difficulty is that of the model before training: the final accuracy of one side would fall
    together with the difference by chance alone (regression to the mean)."""
    pairs = zip(ours, theirs, strict=True)
    gaps = [100 * (a.classes("seen").iloc[-1] - b.classes("seen").iloc[-1]) for a, b in pairs]
    before = pd.concat([100 * run.classes("all").loc[0] for run in ours], axis=1).mean(axis=1)
    table = pd.DataFrame({"before": before, "difference": pd.concat(gaps, axis=1).mean(axis=1)})
    return table.dropna().rename_axis("class").reset_index()


def payers(ours: Sequence[Run], theirs: Sequence[Run]) -> pd.DataFrame:
    """What ours − theirs is, in points, for the half of the classes that was hardest before
    training and for the other half: a row per pair of runs, the mean over classes in the columns
    "hard half" and "easy half"."""
    rows = []
    for a, b in zip(ours, theirs, strict=True):
        table = class_changes([a], [b]).sort_values(["before", "class"])
        hard = np.arange(len(table)) < len(table) // 2
        rows.append({
            "hard half": table.difference[hard].mean(), "easy half": table.difference[~hard].mean()
        })
    return pd.DataFrame(rows)
