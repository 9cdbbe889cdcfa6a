"""Evaluate the models on a straight line between two models in weight space.

    θ(share) = θ_start + share · (θ_end − θ_start)

Sources: WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903; linear mode connectivity, Frankle et al.
2019, arXiv 1912.05671. LoRA and RKR are folded into the weights first, so that the line is straight
in what the model computes with."""
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from clstudy.analysis.comparisons import compare
from clstudy.evaluation.accuracy import evaluate
from clstudy.models.clip import Clip
from clstudy.models.loading import load_clip
from clstudy.models.merging import merge
from clstudy.models.weight_space import Values, between, put
from clstudy.runs.run import Run, kept_name, load_tuned
from clstudy.runs.workers import default, local
from clstudy.training.setup import prepare
from clstudy.utils.progress import bar
from clstudy.utils.validation import choose

Pair = tuple[Run | None, Run]
ENDS = {"the mean of the ends": (0.0, 1.0), "the start": (0.0,), "the end": (1.0,)}


def lines(pairs: Mapping[str, Sequence[Pair]], shares: Sequence[float],
          held_out: Sequence[str] = ("other classes",)) -> pd.DataFrame:
    """Evaluate the line of each pair of a start and an end, given under a label: the rows of
    `along`, with the columns label and seed (of the end). Worker processes divide the cores.

    Errors are those of `along`: the first is raised, and the lines made before it are kept."""
    every = [pair for group in pairs.values() for pair in group]
    todo = [(start, end) for start, end in every
            if _name(start, shares, held_out) not in end.tables()]
    make = partial(_make, shares=shares, held_out=held_out)
    workers = default([end.config for _, end in every])
    with bar(total=len(every), initial=len(every) - len(todo), desc="lines", unit="line") as shown:
        with closing(local(make, todo, workers)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                shown.update()
    tables = [along(start, end, shares, held_out).assign(label=label, seed=end.config.seed)
              for label, group in pairs.items() for start, end in group]
    return pd.concat(tables, ignore_index=True)


def _make(pair: Pair, shares: Sequence[float], held_out: Sequence[str]) -> None:
    along(*pair, shares, held_out)


def along(start: Run | None, end: Run, shares: Sequence[float],
          held_out: Sequence[str] = ("other classes",)) -> pd.DataFrame:
    """Evaluate the models on the line from `start` (None: the model before training) to `end`: the
    rows of `evaluate` with a column share, for all classes of the stream, each task and class, and
    the held-out sets named. A share below 0 or above 1 lies beyond an end.

    The table is stored in the folder of `end` and read when it is there. ValueError: two different
    models or benchmarks, an unknown held-out set, a tuner that cannot be folded into the weights.
    FileNotFoundError: a run without its weights (`load_or_train(config, keep_model=True)`)."""
    return end.kept(_name(start, shares, held_out),
                    lambda: _evaluated(start, end, shares, held_out))


def _name(start: Run | None, shares: Sequence[float], held_out: Sequence[str]) -> str:
    return kept_name("path", start and start.id, list(map(float, shares)), list(held_out))


def _evaluated(start: Run | None, end: Run, shares: Sequence[float],
               held_out: Sequence[str]) -> pd.DataFrame:
    for field in ("model", "pretrained", "benchmark", "benchmark_args") if start else ():
        one, other = getattr(start.config, field), getattr(end.config, field)
        if one != other:
            raise ValueError(f"{field} differs: {one!r} and {other!r}")
    if start is None:
        first = load_clip(end.config.model, end.config.pretrained)
    else:
        first = merge(load_tuned(start))
    return _table(first, merge(load_tuned(end)), end, shares, held_out)


def _table(first: Clip, last: Clip, end: Run, shares: Sequence[float],
           held_out: Sequence[str]) -> pd.DataFrame:
    _, benchmark, stages = prepare(end.config)
    for name in held_out:
        choose("held_out", name, benchmark.held_out)
    benchmark = replace(benchmark, held_out={name: benchmark.held_out[name] for name in held_out},
                        retrieval={})
    tasks = [stage.classes for stage in stages]
    seen = [label for task in tasks for label in task]
    theta, goal = _values(first), _values(last)
    last.precision = end.config.precision
    rows = []
    for share in map(float, shares):
        put(last, between(theta, goal, share))
        rows += [{"share": share, **row} for row in evaluate(last, benchmark, tasks, seen).rows]
    return pd.DataFrame(rows)


@torch.no_grad()
def _values(clip: Clip) -> Values:
    return {name: p.detach().clone().to(clip.device) for name, p in clip.named_parameters()}


# ---- tables of `lines` → tables for figures and sentences


def accuracies(table: pd.DataFrame, sets: Mapping[str, str]) -> pd.DataFrame:
    """Return a row per point of each line: columns label, seed, share, and an accuracy (percent)
    for each of `sets`, as `tables.points` and `tables.pairs` take them.

    sets: metric → its set and candidates, as "all classes/all"."""
    table = table[table.metric == "accuracy"].set_index(["label", "seed", "share"])
    columns = {}
    for metric, of in sets.items():
        name, candidates = of.split("/")
        here = (table["name"] == name) & (table.candidates == candidates)
        columns[metric] = 100 * table.value[here]
    return pd.concat(columns, axis=1).reset_index()


def middle(table: pd.DataFrame, metrics: Sequence[str],
           base: str = "the mean of the ends") -> pd.DataFrame:
    """Compare the middle of each line of `accuracies` with its ends: the columns of `compare`,
    paired by seed.

    base: "the mean of the ends", "the start" or "the end"."""
    ends = table[table.share.isin(ENDS[choose("base", base, ENDS)])]
    ends = ends.groupby(["label", "seed"], sort=False)[list(metrics)].mean().reset_index()
    half = table.loc[table.share == 0.5, ["label", "seed", *metrics]]
    sides = pd.concat([half.assign(at="half-way"), ends.assign(at=base)])
    return compare(sides, metrics, "at", base, by=["label"])
