"""Tables and sentences about streams with a small memory: over its size, over classes and their weights, over domains.

Everything is computed from finished runs. `estimates.py` looks at the memory and at moving averages themselves."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from . import metrics, tables
from .data import Benchmark
from .metrics import Interval
from .record import Run
from .streams import STREAMS

Weights = pd.DataFrame  # columns seed, stage, step, class, weight, age


# ---- over the size of the memory


def over_sizes(groups: Mapping[tuple[str, float | None], Sequence[Run]], names: Mapping[str, str]) -> pd.DataFrame:
    """Metrics over the size of the memory, for `memory_plots.sizes`: columns panel, method, x, mean, half_width.

    Keys: (method, size); None where there is no memory, which becomes NaN. names: metric → title of its panel."""
    rows = []
    for (method, size), runs in groups.items():
        for name, panel in names.items():
            if name in ("A_auc", "A_avg") and runs[0].evals.stage.max() == 1:
                continue  # joint training: a mean over one stage is no mean over stages
            point = tables._point([tables.scores(run)[name] for run in runs])
            rows.append({"panel": panel, "method": method, "x": np.nan if size is None else size, **point})
    return pd.DataFrame(rows)


def growth(ours: Mapping[float, Sequence[Run]], theirs: Mapping[float, Sequence[Run]], metric: str) -> Interval:
    """By how much ours − theirs is larger at the smallest memory than at the largest, paired by seed. Keys: sizes."""
    small, large = min(ours), max(ours)
    gaps = [[tables.scores(a)[metric] - tables.scores(b)[metric] for a, b in zip(ours[x], theirs[x], strict=True)]
            for x in (small, large)]
    return metrics.paired_interval(*gaps)


# ---- what was claimed


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


# ---- the weights of classes


def class_weights(runs: Sequence[Run]) -> Weights:
    """The weights that `gdro` gave, step by step. age: "new" in the stage in which a class came first, "old" after."""
    found = []
    for run in runs:
        table = run.probe("method")
        first = table.groupby("class").stage.transform("min")
        found.append(table.assign(seed=run.config.seed, age=np.where(table.stage == first, "new", "old")))
    return pd.concat(found, ignore_index=True)


def by_age(weights: Weights) -> pd.DataFrame:
    """The mean weight of old and of new classes at each step: columns seed, stage, step, age, weight."""
    keys = ["seed", "stage", "step", "age"]
    return weights.groupby(keys, as_index=False).weight.mean()


def old_against_new(weights: Weights) -> Interval:
    """Mean weight of old classes minus that of new ones, over the steps in which there are both; over seeds."""
    wide = by_age(weights).pivot(index=["seed", "step"], columns="age", values="weight").dropna()
    return metrics.interval((wide.old - wide.new).groupby("seed").mean().tolist())


def hard_classes(runs: Sequence[Run], class_names: Sequence[str]) -> Interval:
    """Rank correlation, over classes, of the weight at the end of the stream with the error 1 − a_c of the model before
    training; over seeds. Above 0: hard classes weigh more."""
    found = []
    for run in runs:
        table = run.probe("method")
        last = table[table.step == table.step.max()].set_index("class").weight
        weight = last.rename(index=dict(enumerate(class_names)))
        found.append(_rank_correlation(weight, -run.classes("all").loc[0]))
    return metrics.interval(found)


def effective(weights: Weights) -> float:
    """How many classes share the weight at the end of a stream: the mean over seeds of 1 / Σ p², as a share of all."""
    found = []
    for _, one in weights.groupby("seed"):
        p = one[one.step == one.step.max()].weight
        found.append(p.sum()**2 / (p**2).sum() / len(p))
    return float(np.mean(found))


def _rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's; NaN where one of them is constant."""
    both = pd.concat([a, b], axis=1).dropna().rank()
    return float(both.iloc[:, 0].corr(both.iloc[:, 1])) if both.nunique().min() > 1 else float("nan")


# ---- which classes pay


def class_changes(ours: Sequence[Run], theirs: Sequence[Run]) -> pd.DataFrame:
    """Per class: accuracy before training, and at the end of ours − theirs, in points, paired by seed; the mean over
    seeds. Columns class, before, difference.

    Difficulty is that of the model before training: the final accuracy of one side would fall together with the
    difference by chance alone (regression to the mean)."""
    pairs = zip(ours, theirs, strict=True)
    gaps = [100 * (a.classes("seen").iloc[-1] - b.classes("seen").iloc[-1]) for a, b in pairs]
    before = pd.concat([100 * run.classes("all").loc[0] for run in ours], axis=1).mean(axis=1)
    table = pd.DataFrame({"before": before, "difference": pd.concat(gaps, axis=1).mean(axis=1)})
    return table.dropna().rename_axis("class").reset_index()


def payers(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Interval]:
    """What ours − theirs is for the half of the classes that was hardest before training, and for the other half, in
    points; each the mean over classes, paired by seed."""
    halves: dict[str, list[float]] = {"hard half": [], "easy half": []}
    for a, b in zip(ours, theirs, strict=True):
        table = class_changes([a], [b]).sort_values(["before", "class"])
        hard = np.arange(len(table)) < len(table) // 2
        halves["hard half"].append(float(table.difference[hard].mean()))
        halves["easy half"].append(float(table.difference[~hard].mean()))
    return {name: metrics.interval(values) for name, values in halves.items()}


# ---- domains


def arrival(run: Run, benchmark: Benchmark) -> list[str]:
    """The domains of a stream `domains`, in their order of arrival."""
    options = {"domains": benchmark.train.domains, **run.config.stream_args}
    seed = run.config.seed if run.config.stream_seed is None else run.config.stream_seed
    stages = STREAMS["domains"](benchmark.train.labels, seed, **options)
    return [benchmark.train.domain_names[benchmark.train.domains[stage.index[0]]] for stage in stages]


def domain_matrix(run: Run, benchmark: Benchmark) -> np.ndarray:
    """R[s, t]: accuracy on the domain that came as number t + 1, after stage s; row 0 is before training. All classes
    are candidates. Metrics that take a matrix take it (`metrics.METRICS`)."""
    return run.domains("all")[arrival(run, benchmark)].to_numpy()


def domain_means(groups: Mapping[str, Sequence[Run]], benchmark: Benchmark) -> dict[str, np.ndarray]:
    """The mean of `domain_matrix` over runs. With other orders of arrival, a column is a place in the order."""
    return {label: np.mean([domain_matrix(run, benchmark) for run in runs], axis=0) for label, runs in groups.items()}


def domain_scores(run: Run, benchmark: Benchmark) -> dict[str, float]:
    """In points, of the matrix of domains: "average" of its last row, "worst domain" of it, "forgetting" (Chaudhry et
    al. 2018), and "transfer": by how much a domain is better just before it comes than before training (FWT, Lopez-Paz
    and Ranzato 2017). Of a stream that is not of domains, the first two; the others are NaN."""
    last = 100 * run.domains("all").iloc[-1].to_numpy()
    found = {"average": float(last.mean()), "worst domain": metrics.worst_domain(last), "forgetting": float("nan"),
             "transfer": float("nan")}
    if run.config.stream == "domains":
        R = 100 * domain_matrix(run, benchmark)
        found |= {"forgetting": metrics.forgetting(R), "transfer": metrics.forward_transfer(R)}
    return found


def domain_summary(groups: Mapping[str, Sequence[Run]], benchmark: Benchmark, side: Sequence[str] = ()
                   ) -> pd.DataFrame:
    """`domain_scores` of each group, and the accuracy on side sets: mean ± half width of the 95 % interval over
    seeds."""
    rows = {}
    for label, runs in groups.items():
        found = pd.DataFrame([domain_scores(run, benchmark) | {name: tables.scores(run)[name] for name in side}
                              for run in runs])
        texts = {name: tables._text(metrics.interval(found[name].tolist())) for name in found}
        rows[label] = {name: "-" if text.startswith("nan") else text for name, text in texts.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def domain_gains(groups: Mapping[str, Sequence[Run]], benchmark: Benchmark) -> pd.DataFrame:
    """By how much domains that have come, and those that have not, are better than before training after each stage,
    in points, for `plots.series`: columns panel, method, x, mean, half_width. After the last stage none is to come."""
    rows = []
    for label, runs in groups.items():
        gains = [100 * (R - R[0]) for R in (domain_matrix(run, benchmark) for run in runs)]
        for stage in range(1, len(gains[0])):
            parts = {"have come": slice(None, stage), "are still to come": slice(stage, None)}
            rows += [{"panel": panel, "method": label, "x": stage,
                      **tables._point([float(gain[stage, part].mean()) for gain in gains])}
                     for panel, part in parts.items() if gains[0][stage, part].size]
    return pd.DataFrame(rows)


def domain_interval(runs: Sequence[Run], benchmark: Benchmark, name: str, against: Sequence[Run] = ()) -> Interval:
    """One of `domain_scores` over seeds; against: the difference to other runs, paired by seed."""
    values = [domain_scores(run, benchmark)[name] for run in runs]
    if not against:
        return metrics.interval(values)
    return metrics.paired_interval(values, [domain_scores(run, benchmark)[name] for run in against])


def in_every_domain(benchmark: Benchmark, things: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One training image of each thing in each domain, uint8 (things × domains, 3, height, width), thing after thing,
    and a title for each: the domain. A thing is a class, or what a caption begins with. White where a domain has none.
    ValueError: a thing that no domain has."""
    train, names = benchmark.train, list(benchmark.train.class_names)
    begins = [caption.split(":")[0] for caption in benchmark.captions]
    empty, pictures = np.full(train.images.shape[1:], 255, np.uint8), []
    for thing in things:
        mine = np.array([thing in (begin, names[label]) for begin, label in zip(begins, train.labels, strict=True)])
        if not mine.any():
            raise ValueError(f"things: no training image is of {thing!r}, by its class or the begin of its caption")
        for domain in range(len(train.domain_names)):
            rows = np.flatnonzero(mine & (train.domains == domain))
            first = torch.from_numpy(rows[:1]).to(train.images.device)
            pictures.append(train.images[first][0].cpu().numpy() if len(rows) else empty)
    return np.stack(pictures), list(train.domain_names) * len(things)
