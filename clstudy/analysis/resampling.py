"""Metrics when the concepts of the test images weigh differently, as in a bootstrap over concepts.

    concepts = concepts_of(runs, ["forgetting"])
    draws = rng.multinomial(len(concepts), np.full(len(concepts), 1 / len(concepts)), size=1000)
    under_weights(run, ["forgetting"], concepts, draws)["forgetting"]    # 1,000 values

Image i counts with the weight of its concept, and a caption with that of its image: all images of
one concept come or go together. The formulas are those of `scores.metrics_of`; only the accuracies
that they are given are weighted. What a run has right is summed by concept once; each set of
weights is then a column of one (sparse) matrix product.
"""
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from clstudy.analysis.scores import BALANCED, Measured, formulas
from clstudy.evaluation.retrieval import IMAGE_TO_TEXT
from clstudy.runs.run import Run

SAME = ["label", "concept", "domain"]  # columns of `Run.tests` in which compared runs agree
# accuracies of the whole stream → candidates, and which tests count
OF_STREAM = {"seen classes": ("seen", "seen"), "all classes": ("all", "streamed")}


def concepts_of(runs: Sequence[Run], metrics: Sequence[str]) -> np.ndarray:
    """Return the ids of the concepts, rising, in the sets of tests that these metrics read.

    Left out are metrics that do not come from single tests, and runs of before these were kept;
    without any others there are no concepts. ValueError: runs that were tested on other images,
    with the set and two of them."""
    found: dict[str, tuple[Run, pd.DataFrame]] = {}
    for run in filter(_keeps_tests, runs):
        known = formulas(run)
        read = {name for metric in metrics if metric in known for name in known[metric].sets}
        for name in sorted(read):
            table = _tests(run, name)
            first, theirs = found.setdefault(name, (run, table))
            if not table[SAME].equals(theirs[SAME]):
                raise ValueError(f"the runs {first.id} and {run.id} were not tested on the same "
                                 f"images: set {name!r}; compare runs of one benchmark")
    ids = [table.concept.to_numpy() for _, table in found.values()]
    return np.unique(np.concatenate(ids)) if ids else np.array([], int)


def under_weights(run: Run, metrics: Sequence[str], concepts: np.ndarray, weights: np.ndarray
                  ) -> dict[str, np.ndarray]:
    """Return each metric, in percent, for each row of weights: name → (B,).

    metrics: names of `scores.metrics_of`; what the run has no single tests of is left out.
    concepts: (C,) ids, as `concepts_of` returns them. weights: (B, C), not negative; ones give
    `metrics_of`. NaN: nothing with a weight above 0 was tested. ValueError: the shape of weights; a
    concept of the tests that is not among `concepts`."""
    concepts, weights = np.asarray(concepts), np.asarray(weights, dtype=float)
    if concepts.ndim != 1 or weights.ndim != 2 or weights.shape[1] != len(concepts):
        raise ValueError(f"weights: got shape {weights.shape} for {concepts.shape} concepts; must "
                         "be (replicates, concepts)")
    if not _keeps_tests(run):
        return {}
    known, measured, found = formulas(run), _Weighted(run, concepts, weights), {}
    for metric in metrics:
        with suppress(_NotStored):
            if metric in known:
                value = known[metric].value(measured)
                found[metric] = 100 * np.broadcast_to(value, len(weights))
    return found


def _keeps_tests(run: Run) -> bool:
    """Return whether the bits of a run can be read with its tests; those of old runs cannot."""
    return "images_seen" in run.bits


class _NotStored(LookupError):
    """The run does not hold which tests of a set were right."""


class _Weighted(Measured):
    """The accuracies of a run under each row of weights; arrays have the axis of rows in front."""

    def __init__(self, run: Run, concepts: np.ndarray, weights: np.ndarray) -> None:
        self._run, self._concepts, self._weights = run, pd.Index(concepts), weights
        self._columns: dict[str, np.ndarray] = {}  # weights of the concepts of a set, (C, B)
        self._found: dict[tuple, np.ndarray] = {}
        self._stages = int(run.bits.stage.max())

    def _shares(self, name: str, candidates: str, by: str, stage_ends: bool = True) -> np.ndarray:
        """Return the accuracy on each group of a set at each of its points, (B, points, groups)."""
        key = (name, candidates, by, stage_ends)
        if key not in self._found:
            counts = _counts(self._run, *key)
            weights = self._weights_of(name)
            right, tested = (each @ weights for each in (counts.right, counts.tested))
            shape = (-1, counts.groups, len(self._weights))
            shares = _ratio(right.reshape(shape), tested.reshape(shape))
            self._found[key] = np.moveaxis(shares, -1, 0)
        return self._found[key]

    def _weights_of(self, name: str) -> np.ndarray:
        if name not in self._columns:
            ids = _concepts(self._run, name)[0]
            at = self._concepts.get_indexer(ids)
            if (at < 0).any():
                raise ValueError(f"concepts: {ids[at < 0][0]} is missing, a concept of set {name!r}"
                                 f" of run {self._run.id}; take them from concepts_of")
            self._columns[name] = np.ascontiguousarray(self._weights.T[at])
        return self._columns[name]

    def matrix(self, candidates: str, accuracy: str = "accuracy") -> np.ndarray:
        if accuracy != BALANCED:
            return self._shares("test", candidates, "task")
        each, home = self._shares("test", candidates, "label"), _classes(self._run).task.to_numpy()
        belongs = (home[:, None] == 1 + np.arange(self._stages)).astype(float)
        known = ~np.isnan(each)
        return _ratio(np.where(known, each, 0) @ belongs, known @ belongs)

    def points(self, stage_ends: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = _counts(self._run, "test", "seen", "seen", stage_ends)
        values = self._shares("test", "seen", "seen", stage_ends)[..., 0]
        some = np.diff(at.tested.indptr) > 0  # points with tests of classes seen by then
        return at.stage[some], at.images[some], values[:, some]

    def classes(self, candidates: str) -> np.ndarray:
        at = _counts(self._run, "test", candidates, "label", True)
        values = self._shares("test", candidates, "label")
        if candidates == "seen":
            arrived = _classes(self._run).arrived.to_numpy()
            seen = (arrived >= 0) & (arrived <= at.images[:, None])
            values = np.where(seen, values, np.nan)
        return values[:, at.stage > 0]

    def tests(self) -> np.ndarray:
        return _classes(self._run).tests.to_numpy()

    def domains(self) -> np.ndarray:
        each = self._shares("test", "all", "domain")
        R = np.full((len(each), self._stages + 1, each.shape[-1]), np.nan)
        R[:, _counts(self._run, "test", "all", "domain", True).stage] = each
        return R

    def share(self, name: str, before: bool, metric: str = "accuracy") -> np.ndarray:
        if name in OF_STREAM:
            found = self._at("test", *OF_STREAM[name], before)
        elif metric == "accuracy":
            found = self._at(name, "own", "all", before)
        else:
            direction = metric.split()[0]
            of = name if direction == IMAGE_TO_TEXT else f"{name}: captions"
            found = self._at(of, direction, "all", before)
        return found[:, 0]

    def _at(self, name: str, candidates: str, by: str, before: bool) -> np.ndarray:
        """Return the accuracy on each group before training or at the end, (B, groups)."""
        stage = _counts(self._run, name, candidates, by, True).stage
        here = np.flatnonzero(stage == (0 if before else self._stages))
        if not len(here):
            raise _NotStored(name)
        return self._shares(name, candidates, by)[:, here[0]]


def _ratio(right: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return right / tested, NaN where nothing was tested."""
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return right / tested


# ---- what does not depend on the weights


@lru_cache(maxsize=512)
def _tests(run: Run, name: str) -> pd.DataFrame:
    """Return what the tests of a set are, a row for each."""
    return run.tests[run.tests["set"] == name].reset_index(drop=True)


def _concepts(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the concepts of a set, and for each test the position of its own."""
    return np.unique(_tests(run, name).concept.to_numpy(), return_inverse=True)


def _classes(run: Run) -> pd.DataFrame:
    """Return the task, the arrival and the number of tests of each class of the stream."""
    tests = _tests(run, "test")
    return tests[tests.task > 0].groupby("label").agg(
        task=("task", "first"), arrived=("arrived", "first"), tests=("task", "size"))


class _Counts(NamedTuple):
    """How many tests of each group and concept there are, and were right, at each point."""

    stage: np.ndarray  # (points,)
    images: np.ndarray  # (points,), seen
    groups: int
    right: csr_array  # (points × groups, concepts)
    tested: csr_array  # the same; or (groups, concepts), where all points have the same tests


@lru_cache(maxsize=512)
def _counts(run: Run, name: str, candidates: str, by: str, stage_ends: bool) -> _Counts:
    """Count the tests of a set by concept and by group.

    by: "task", "label" or "domain" of the stream's classes; "streamed", all of these; "seen", those
    of the classes seen by then; "all" tests of a set."""
    rows = run.bits[(run.bits["set"] == name) & (run.bits.candidates == candidates)]
    if not len(rows):
        raise _NotStored(f"{name}/{candidates}")
    (ids, concept), count = _concepts(run, name), int(rows["count"].iloc[0])
    rows = rows[rows.stage_end == stage_ends]
    packed = np.frombuffer(b"".join(rows.bits), np.uint8).reshape(len(rows), -(-count // 8))
    right = np.unpackbits(packed, axis=1, count=count).astype(bool)
    stage, images = rows.stage.to_numpy(), rows.images_seen.to_numpy()
    group, groups, tested = _groups(run, name, by, images)

    def sums(which: np.ndarray) -> csr_array:
        point, image = np.nonzero(which)
        at = (point * groups + group[image], concept[image])
        return csr_array((np.ones(len(point)), at), shape=(len(which) * groups, len(ids)))

    return _Counts(stage, images, groups, sums(right & tested), sums(tested))


def _groups(run: Run, name: str, by: str, images: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Return the group of each test, the number of groups, and which tests count: (points, tests),
    or (1, tests) where it is the same at each point. images: seen at each point."""
    tests = _tests(run, name)
    streamed = tests.task.to_numpy()[None] > 0
    if by == "task":
        return tests.task.to_numpy() - 1, int(run.bits.stage.max()), streamed
    if by in ("label", "domain"):
        values = tests[by].to_numpy()
        names = np.unique(values[streamed[0]])
        return np.searchsorted(names, values), len(names), streamed
    arrived = tests.arrived.to_numpy()
    counts = {"streamed": streamed, "all": np.ones_like(streamed),
              "seen": (arrived >= 0) & (arrived <= images[:, None])}
    return np.zeros(len(tests), int), 1, counts[by]
