"""The models on a straight line between CLIP and a tuned model in weight space, each as a run.

    θ(α) = θ_0 + α (θ − θ_0)        θ_0: what is tuned, before training; θ: at the end

This is WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903) after training: the point α of a run of
`finetune` is what the same run of `wise_ft` with this alpha evaluates at its end, without a second
training. So a point has the settings of that run, and everything that takes runs takes points.

    points(runs, [0, 0.5, 1])        0 is CLIP, 1 the tuned model
"""
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd

from clstudy.evaluation.accuracy import evaluate
from clstudy.models.weight_space import between, put, tuned
from clstudy.runs.run import Run, Runs, kept_name, load_tuned
from clstudy.runs.workers import default, local
from clstudy.training.setup import prepare
from clstudy.utils.progress import bar
from clstudy.utils.validation import choose

CORRECT = "correct"  # the metric of rows that hold which images were right
COLUMNS = ["share", "kind", "name", "candidates", "metric", "value", "count", "bits"]


@dataclass(frozen=True, eq=False)
class Point(Run):
    """The model at a share of the way, as a run that was measured before training and at its end.

    Its `folder` is that of the tuned run and the share, and does not exist. Retrieval is measured
    before training and at share 1 alone."""

    end: Run
    share: float
    measured: pd.DataFrame  # of `_measure`, at this share

    @cached_property
    def evals(self) -> pd.DataFrame:
        rows = self.measured[self.measured.metric != CORRECT]
        return self._whole(self.end.evals, rows)

    @cached_property
    def bits(self) -> pd.DataFrame:
        rows = self.measured[self.measured.metric == CORRECT]
        return self._whole(self.end.bits, rows.assign(set=rows["name"]))

    @cached_property
    def tests(self) -> pd.DataFrame:
        return self.end.tests

    def has_tests(self) -> bool:
        return self.end.has_tests()

    def _whole(self, table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `table` from before training, and those of the point at the end."""
        first = table[table.stage == 0]
        last = table[(table.stage == table.stage.max()) & table.stage_end]
        rows = last if self.share == 1 else rows
        when = last[["stage", "images_seen", "stage_end"]].iloc[0].to_dict()
        return pd.concat([first, rows.assign(**when)[table.columns]], ignore_index=True)


def points(ends: Sequence[Run], shares: Sequence[float]) -> Runs:
    """Return the points of the line to each of these tuned models, at shares from 0 to 1. What is
    measured is stored in the folder of the end, and read when it is there. Worker processes divide
    the cores.

    ValueError: a share below 0 or above 1, a run of another method than `finetune`.
    FileNotFoundError: a run without its weights (`train_all(configs, keep_model=True)`). The first
    error is raised, and the lines made before it are kept."""
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"shares={share!r}: must be from 0 (CLIP) to 1 (the tuned model)")
    for end in ends:
        choose("points: method of a run", end.config.method, ["finetune"])
    shares = list(map(float, shares))
    before = [share for share in shares if share < 1]
    todo = [end for end in ends if before and _name(before) not in end.tables()]
    workers = default([end.config for end in todo])
    with bar(total=len(ends), initial=len(ends) - len(todo), desc="lines", unit="line") as shown:
        with closing(local(partial(_line, shares=before), todo, workers)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                shown.update()
    return Runs(point for end in ends for point in _points(end, shares, before))


def _points(end: Run, shares: Sequence[float], before: Sequence[float]) -> list[Point]:
    table = _line(end, before)
    options = [{**end.config.method_args, "alpha": share} for share in shares]
    return [Point(end.config.replace(method="wise_ft", method_args=args), end.folder / f"{share:g}",
                  end, share, table[table.share == share])
            for share, args in zip(shares, options, strict=True)]


def _name(shares: Sequence[float]) -> str:
    return kept_name("line", list(shares))


def _line(end: Run, shares: Sequence[float]) -> pd.DataFrame:
    if not shares:
        return pd.DataFrame(columns=COLUMNS)
    return end.kept(_name(shares), lambda: _measure(end, shares))


def _measure(end: Run, shares: Sequence[float]) -> pd.DataFrame:
    """Return, with a column share, the rows of `evals` after the stream, and rows of the metric
    "correct" with the bits of each set (`Run.bits`)."""
    first, benchmark, stages = prepare(end.config)
    last = load_tuned(end)
    start, goal = tuned(first), tuned(last)
    benchmark = replace(benchmark, retrieval={})
    tasks = [stage.classes for stage in stages]
    seen = [label for task in tasks for label in task]
    rows = []
    for share in shares:
        found = evaluate(put(last, between(start, goal, share)), benchmark, tasks, seen)
        rows += [{"share": share, **row, "bits": b""} for row in found.rows]
        rows += [{"share": share, "kind": "", "name": name, "candidates": candidates,
                  "metric": CORRECT, "value": float(np.mean(right)), "count": len(right),
                  "bits": np.packbits(right).tobytes()}
                 for (name, candidates), right in found.correct.items()]
    return pd.DataFrame(rows, columns=COLUMNS)
