"""Straight lines between two models in weight space, and what the models on them can do (Wortsman
et al. 2021, WiSE-FT, arXiv 2109.01903; linear mode connectivity: Frankle et al. 2019, arXiv
1912.05671).

    θ(share) = θ_start + share · (θ_end − θ_start)

LoRA and RKR are folded into the weights first, so that the line is straight in what the model
computes with."""
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from clstudy.analysis.comparisons import _paired, corrected
from clstudy.analysis.tables import _point
from clstudy.evaluation.accuracy import evaluate
from clstudy.models.clip import Clip
from clstudy.models.loading import load_clip
from clstudy.models.merging import merge
from clstudy.models.weight_space import Values, between, put
from clstudy.runs.run import Run, load_tuned
from clstudy.runs.workers import default, local
from clstudy.training.setup import prepare
from clstudy.utils.progress import bar
from clstudy.utils.validation import choose

Pair = tuple[Run | None, Run]


def lines(pairs: Mapping[str, Sequence[Pair]], shares: Sequence[float],
          held_out: Sequence[str] = ("other classes", )) -> pd.DataFrame:
    """`along` for each pair of a start and an end, under its label: its rows with the columns label
    and seed (of the end). Worker processes divide the cores.

    Errors as `along`: the first is raised, and the lines made before it are kept."""
    every = [pair for labelled in pairs.values() for pair in labelled]
    todo = [pair for pair in every if not _file(*pair, shares, held_out).exists()]
    workers = default([end.config for _, end in every])
    with bar(total=len(every), initial=len(every) - len(todo), desc="lines", unit="line") as shown:
        with closing(local(partial(_make, shares=shares, held_out=held_out), todo,
                           workers)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                shown.update()
    tables = [along(start, end, shares, held_out).assign(label=label, seed=end.config.seed)
              for label, labelled in pairs.items() for start, end in labelled]
    return pd.concat(tables, ignore_index=True)


def _make(pair: Pair, shares: Sequence[float], held_out: Sequence[str]) -> None:
    along(*pair, shares, held_out)


def _file(start: Run | None, end: Run, shares: Sequence[float], held_out: Sequence[str]) -> Path:
    asked = json.dumps([start and start.id, list(map(float, shares)), list(held_out)])
    return end.folder / f"path-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.parquet"


def along(start: Run | None, end: Run, shares: Sequence[float],
          held_out: Sequence[str] = ("other classes", )) -> pd.DataFrame:
    """Evaluations on the line from `start` (None: the model before any training) to `end`: the rows
    of `evaluate`, with a column share. Accuracy on all classes of the stream, each task and class,
    and the held-out sets named.

    The table is kept in the folder of `end` and read when it is there. A share below 0 or above 1
    lies beyond an end. ValueError: two different models or benchmarks, an unknown held-out set, a
    tuner that cannot be folded into the weights. FileNotFoundError: a run without its weights
    (`load_or_train(config, keep_model=True)`)."""
    kept = _file(start, end, shares, held_out)
    with suppress(OSError, ValueError):  # not there, or damaged: it is made again
        return pd.read_parquet(kept)
    first = None if start is None else merge(load_tuned(start))
    last = merge(load_tuned(end))
    for field in ("model", "pretrained", "benchmark", "benchmark_args"):
        if start and getattr(start.config, field) != getattr(end.config, field):
            raise ValueError(
                f"{field} differs: {getattr(start.config, field)!r} and {getattr(end.config, field)!r}"
            )
    table = _table(first or load_clip(end.config.model, end.config.pretrained), last, end, shares,
                   held_out)
    draft = kept.with_suffix(".new")
    table.to_parquet(draft)
    draft.rename(kept)
    return table


def _table(first: Clip, last: Clip, end: Run, shares: Sequence[float],
           held_out: Sequence[str]) -> pd.DataFrame:
    _, benchmark, stages = prepare(end.config)
    unknown = set(held_out) - set(benchmark.held_out)
    if unknown:
        raise ValueError(
            f"held_out={sorted(unknown)[0]!r} is unknown. Choices: {', '.join(benchmark.held_out)}")
    benchmark = replace(benchmark, held_out={name: benchmark.held_out[name] for name in held_out},
                        retrieval={})
    tasks, theta = [stage.classes for stage in stages], _values(first)
    seen = [label for task in tasks for label in task]
    goal, last.precision = _values(last), end.config.precision
    rows = []
    for share in shares:
        put(last, between(theta, goal, float(share)))
        rows += [{"share": float(share), **row}
                 for row in evaluate(last, benchmark, tasks, seen).rows]
    return pd.DataFrame(rows)


@torch.no_grad()
def _values(clip: Clip) -> Values:
    return {name: p.detach().clone().to(clip.device) for name, p in clip.named_parameters()}


# ---- tables of `lines` → tables for figures and sentences


def accuracies(table: pd.DataFrame, sets: Mapping[str, str]) -> pd.DataFrame:
    """A row for each point of each line: columns label, seed, share, and an accuracy (percent) for
    each of `sets`.

    sets: what a metric is called → its set and candidates, as "all classes/all"."""
    key, columns = ["label", "seed", "share"], []
    for name, of in sets.items():
        where, candidates = of.split("/")
        here = (table["name"] == where) & (table.candidates == candidates) & (table.metric
                                                                              == "accuracy")
        columns.append(100 * table[here].set_index(key).value.rename(name))
    return pd.concat(columns, axis=1).reset_index()


def points(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `accuracies` for `plots.series`: columns label, metric, share, mean, half_width
    (95 %, over seeds)."""
    metrics = table.columns.drop(["label", "seed", "share"])
    return pd.DataFrame(
        [{"label": label, "metric": metric, "share": share, **_point(rows[metric].tolist())}
         for metric in metrics
         for (label, share), rows in table.groupby(["label", "share"], sort=False)])


def road(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """A table of `accuracies` for `plots.frontier`: columns label, share, and two metrics as in
    `tables.pairs`."""
    rows = []
    for (label, share), found in table.groupby(["label", "share"], sort=False):
        at, over = (_point(found[name].tolist()) for name in (x, y))
        rows.append({"label": label, "share": share, "x": at["mean"], "x_half": at["half_width"],
                     "y": over["mean"], "y_half": over["half_width"]})
    return pd.DataFrame(rows)


ENDS = {"the mean of the ends": (0.0, 1.0), "the start": (0.0,), "the end": (1.0,)}


def middle(table: pd.DataFrame, metrics: Sequence[str],
           base: str = "the mean of the ends") -> pd.DataFrame:
    """The middle of each line of `accuracies` against its ends: the columns of `compare`, paired by
    seed.

    base: "the mean of the ends", "the start" or "the end"."""
    rows = []
    for label, line in table.groupby("label", sort=False):
        wide = line.pivot(index="seed", columns="share", values=list(metrics))
        for metric in metrics:
            ends = wide[metric][list(ENDS[choose("base", base, ENDS)])].mean(axis=1)
            rows.append({"label": label, "at": "half-way", "base": base, "metric": metric,
                         **_paired(wide[metric][0.5], ends)})
    return corrected(pd.DataFrame(rows))
