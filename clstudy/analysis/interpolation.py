"""Straight lines between two models in weight space, and what the models on them can do (Wortsman et al. 2021, WiSE-FT,
arXiv 2109.01903; linear mode connectivity: Frankle et al. 2019, arXiv 1912.05671).

    θ(share) = θ_start + share · (θ_end − θ_start)

LoRA and RKR are folded into the weights first, so that the line is straight in what the model computes with."""
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from clstudy.analysis.comparisons import verdict
from clstudy.analysis.tables import _point
from clstudy.evaluation import metrics
from clstudy.evaluation.accuracy import evaluate
from clstudy.models.clip import Clip
from clstudy.models.loading import load_clip
from clstudy.models.merging import merge
from clstudy.models.weight_space import Values, between, put
from clstudy.runs.run import Run, load_tuned
from clstudy.runs.workers import default, local
from clstudy.training.setup import prepare
from clstudy.utils.progress import bar

Pair = tuple[Run | None, Run]


def lines(pairs: Sequence[Pair], shares: Sequence[float], held_out: Sequence[str] = ("other classes",)
          ) -> list[pd.DataFrame]:
    """`along` for each pair of a start and an end, in worker processes with the cores divided among them.

    Errors as `along`: the first is raised, and the lines made before it are kept."""
    todo = [pair for pair in pairs if not _file(*pair, shares, held_out).exists()]
    workers = default([end.config for _, end in pairs])
    with bar(total=len(pairs), initial=len(pairs) - len(todo), desc="lines", unit="line") as shown:
        with closing(local(partial(_make, shares=shares, held_out=held_out), todo, workers)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                shown.update()
    return [along(*pair, shares, held_out) for pair in pairs]


def _make(pair: Pair, shares: Sequence[float], held_out: Sequence[str]) -> None:
    along(*pair, shares, held_out)


def _file(start: Run | None, end: Run, shares: Sequence[float], held_out: Sequence[str]) -> Path:
    asked = json.dumps([start and start.id, list(map(float, shares)), list(held_out)])
    return end.folder / f"path-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.parquet"


def along(start: Run | None, end: Run, shares: Sequence[float], held_out: Sequence[str] = ("other classes",)
          ) -> pd.DataFrame:
    """Evaluations on the line from `start` (None: the model before any training) to `end`: the rows of `evaluate`, with
    a column share. Accuracy on all classes of the stream, each task and class, and the held-out sets named.

    The table is kept in the folder of `end` and read when it is there. A share below 0 or above 1 lies beyond an end.
    ValueError: two different models or benchmarks, an unknown held-out set, a tuner that cannot be
    folded into the weights.
    FileNotFoundError: a run without its weights (`load_or_train(config, keep_model=True)`)."""
    kept = _file(start, end, shares, held_out)
    with suppress(OSError, ValueError):  # not there, or damaged: it is made again
        return pd.read_parquet(kept)
    first = None if start is None else merge(load_tuned(start))
    last = merge(load_tuned(end))
    for field in ("model", "pretrained", "benchmark", "benchmark_args"):
        if start and getattr(start.config, field) != getattr(end.config, field):
            raise ValueError(f"{field} differs: {getattr(start.config, field)!r} and {getattr(end.config, field)!r}")
    table = _table(first or load_clip(end.config.model, end.config.pretrained), last, end, shares, held_out)
    draft = kept.with_suffix(".new")
    table.to_parquet(draft)
    draft.rename(kept)
    return table


def _table(first: Clip, last: Clip, end: Run, shares: Sequence[float], held_out: Sequence[str]) -> pd.DataFrame:
    _, benchmark, stages = prepare(end.config)
    unknown = set(held_out) - set(benchmark.held_out)
    if unknown:
        raise ValueError(f"held_out={sorted(unknown)[0]!r} is unknown. Choices: {', '.join(benchmark.held_out)}")
    benchmark = replace(benchmark, held_out={name: benchmark.held_out[name] for name in held_out}, retrieval={})
    tasks, theta = [stage.classes for stage in stages], _values(first)
    seen = [label for task in tasks for label in task]
    goal, last.precision = _values(last), end.config.precision
    rows = []
    for share in shares:
        put(last, between(theta, goal, float(share)))
        rows += [{"share": float(share), **row} for row in evaluate(last, benchmark, tasks, seen).rows]
    return pd.DataFrame(rows)


@torch.no_grad()
def _values(clip: Clip) -> Values:
    return {name: p.detach().clone().to(clip.device) for name, p in clip.named_parameters()}


def road(tables: Mapping[str, Sequence[pd.DataFrame]], x: str, y: str) -> pd.DataFrame:
    """Tables of `paths.along`, one per seed, as a line for `plots.frontier`; x, y: a set and its candidates, as
    "all classes/all". The weight is the share."""
    rows = []
    for label, seeds in tables.items():
        wide = [{key: 100 * _at(table, key) for key in (x, y)} for table in seeds]
        for share in wide[0][x].index:
            at, over = (_point([one[key][share] for one in wide]) for key in (x, y))
            rows.append({"label": label, "weight": share, "x": at["mean"], "x_half": at["half_width"],
                         "y": over["mean"], "y_half": over["half_width"]})
    return pd.DataFrame(rows)


def profile(lines: Mapping[str, Sequence[pd.DataFrame]], sets: Mapping[str, str]) -> pd.DataFrame:
    """Tables of `paths.along`, one per seed, for `plots.series`: a panel per line, the metrics over the share.

    sets: what a metric is called → its set and candidates, as "all classes/all"."""
    rows = []
    for panel, seeds in lines.items():
        for name, key in sets.items():
            values = pd.concat([100 * _at(table, key) for table in seeds], axis=1)
            for share, one in values.iterrows():
                rows.append({"panel": panel, "method": name, "x": share, **_point(one.tolist())})
    return pd.DataFrame(rows)


def midway(seeds: Sequence[pd.DataFrame], sets: Mapping[str, str]) -> str:
    """Whether the middle of a line is above or below the mean of its ends, for each metric, in words."""
    said = []
    for name, key in sets.items():
        values = [100 * _at(table, key) for table in seeds]
        found = metrics.interval([float(one[0.5] - (one[0.0] + one[1.0]) / 2) for one in values])
        said.append(f"    {name} half-way against the mean of the ends: {verdict(found, 'a hill', 'a valley')}")
    return "\n".join(said)


def hill(seeds: Sequence[pd.DataFrame], sets: Mapping[str, str]) -> str:
    """Whether the middle of a line has a higher mean of the metrics than each end, paired by seed, in words."""
    values = [sum(100 * _at(table, key) for key in sets.values()) / len(sets) for table in seeds]
    said = []
    for share, end in ((0.0, "the start"), (1.0, "the end")):
        found = metrics.interval([float(one[0.5] - one[share]) for one in values])
        said.append(f"    mean of {' and '.join(sets)} half-way against {end}: {verdict(found, 'better', 'worse')}")
    return "\n".join(said)


def _at(table: pd.DataFrame, key: str) -> pd.Series:
    name, candidates = key.split("/")
    rows = table[(table["name"] == name) & (table.candidates == candidates) & (table.metric == "accuracy")]
    return rows.set_index("share").value
