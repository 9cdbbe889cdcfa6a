"""Metrics under weights of concepts: ones give the metrics of the run; whole numbers give those of a
run whose test images come so often."""
import math
from dataclasses import dataclass, replace

import conftest
import numpy as np
import pandas as pd
import pytest

from clstudy import load_or_train
from clstudy.analysis import resampling, scores
from clstudy.analysis.resampling import concepts_of, under_weights
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.types import Labelled
from clstudy.evaluation import metrics
from clstudy.evaluation.accuracy import _complete
from clstudy.evaluation.rows import row
from clstudy.runs.run import Run

B = 4  # sets of weights


@dataclass
class Styled(conftest.Toy):
    """The toy with concepts of two images, in two styles, and a set of other classes that shares
    concepts with the test set; its pairs show the first concepts."""

    shift: int = 0  # of the ids of the test set's concepts

    def load(self):
        data = super().load()
        concepts = np.arange(24) // 2 + self.shift
        test = replace(data.test, concepts=concepts, domains=np.arange(24) % 2,
                       domain_names=("flat", "round"))
        others = replace(data.held_out["shades"], concepts=np.array([3, 40, 41, 41]))
        pairs = replace(data.retrieval["drawings"], concepts=np.array([0, 0, 1, 50, 51, 51]))
        return replace(data, test=test, retrieval={"drawings": pairs},
                       held_out={"shades": data.held_out["shades"], "other classes": others})


STREAMS = {"disjoint": {"tasks": 3},
           "si_blurry": {"tasks": 3, "disjoint_share": 50, "blurry_share": 50}}


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_model):
    """Runs of three stages on each stream, with periodic checkpoints and without."""
    from clstudy import RunConfig

    BENCHMARKS["toy"] = Styled
    config = RunConfig(benchmark="toy", model=str(toy_model), tuner="full", method="finetune",
                       lr=1e-2, batch_size=4, steps_per_batch=2, stream="disjoint",
                       stream_args=STREAMS["disjoint"])
    folder = tmp_path_factory.mktemp("runs")
    runs = {(stream, every): load_or_train(
        config.replace(stream=stream, stream_args=args, eval_every=every), folder)
            for stream, args in STREAMS.items() for every in (None, 10)}
    runs["other"] = load_or_train(config.replace(benchmark_args={"shift": 1}), folder)
    yield runs
    del BENCHMARKS["toy"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The toy has four images of each class."""
    monkeypatch.setattr(metrics, "ENOUGH", 1)
    scores.metrics_of.cache_clear()


RUNS = [(stream, every) for stream in STREAMS for every in (None, 10)]
every_run = pytest.mark.parametrize("which", RUNS, ids=str)


@every_run
def test_ones_give_every_metric_of_the_run(made, which):
    run = made[which]
    expected = scores.metrics_of(run)
    concepts = concepts_of([run], list(expected))
    found = under_weights(run, [*expected, "seconds"], concepts, np.ones((B, len(concepts))))
    assert list(found) == list(expected) and {each.shape for each in found.values()} == {(B,)}
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=1e-13, nan_ok=True), name
    unknown = {name for name, value in expected.items() if math.isnan(value)}
    assert unknown == (set() if which[1] else {"A_auc"})


def repeated(run: Run, often: dict[int, int]) -> Run:
    """The run, with each image so often in its tests as its concept tells."""
    tests, evals = run.tests, []
    for at, rows in run.bits.groupby(["stage", "images_seen", "stage_end"]):
        where = dict(zip(("stage", "images_seen", "stage_end"), at, strict=True))
        for line in again(run, tests, often, rows, *at):
            evals.append({**where, **line})
    many = Run(run.config, run.folder)
    many.__dict__.update(bits=run.bits, evals=pd.DataFrame(evals))
    return many


def again(run, tests, often, rows, stage, images, end) -> list[dict]:
    """The rows of `evals` at one point, from single images, as `evaluate` counts them."""
    right, found = {}, []
    for name, candidates, count, bits in rows[["set", "candidates", "count", "bits"]].to_numpy():
        one = tests[tests["set"] == name]
        times = one.concept.map(often).to_numpy()
        hit = np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)
        right[name, candidates] = np.repeat(hit, times)
        if candidates in ("image-to-text", "text-to-image"):
            pairs = name.removesuffix(": captions")
            found += row("retrieval", pairs, "all", right[name, candidates],
                         f"{candidates} recall@1")
        elif name != "test":
            found += row("held-out set", name, "own", right[name, candidates])
    test = tests[tests["set"] == "test"]
    test = test.loc[np.repeat(test.index, test.concept.map(often))]
    known = Styled().load().test
    labelled = Labelled(known.images[:0], test.label.to_numpy().astype(int), known.class_names, "{}",
                        test.domain.to_numpy().astype(int), known.domain_names)
    first = tests[tests["set"] == "test"].drop_duplicates("label").sort_values("label")
    arrived = ((first.arrived >= 0) & (first.arrived <= images)).to_numpy()
    found += row("all", "seen classes", "seen", right["test", "seen"][arrived[labelled.labels]])
    if end:
        mine = {name: right["test", name] for name in ("own", "seen", "all")}
        found += _complete(mine, labelled, 3, first.task.to_numpy() - 1, arrived)
    return found


def noisy(run: Run) -> Run:
    """The run, right and wrong by chance: the toy's model gets whole classes right or wrong."""
    rng, found = np.random.default_rng(0), Run(run.config, run.folder)
    bits = [rng.integers(256, size=len(packed)).astype(np.uint8).tobytes()
            for packed in run.bits.bits]
    found.__dict__["bits"] = run.bits.assign(bits=bits)
    return repeated(found, dict.fromkeys(run.tests.concept, 1))


@every_run
def test_whole_weights_are_images_that_come_so_often(made, which):
    """Also where classes, tasks or a set have no image left."""
    run, rng = noisy(made[which]), np.random.default_rng(1)
    names = list(scores.metrics_of(run))
    concepts = concepts_of([run], names)
    weights = rng.multinomial(len(concepts), np.full(len(concepts), 1 / len(concepts)), size=B)
    weights[0, :6] = 0  # whole classes have none, nor has a held-out set
    weights[:, concepts >= 40] += 1  # without any of its images a run would have no ZS-Acc
    found = under_weights(run, names, concepts, weights)
    for draw in range(B):
        many = repeated(run, dict(zip(concepts.tolist(), weights[draw].tolist(), strict=True)))
        expected = scores.metrics_of(many)
        for name in names:
            value = expected.get(name, math.nan)  # no row, where nothing is left of a set
            assert found[name][draw] == pytest.approx(value, rel=1e-12, nan_ok=True), (name, draw)
    constant = {name for name, values in found.items()
                if len(set(values[~np.isnan(values)].round(9))) < 2}
    assert len(constant) < len(found) / 4  # a few, by chance


def test_weights_reach_the_matrix_of_domains(tmp_path, toy_model, monkeypatch):
    class Drawn(Styled):
        def load(self):
            data = super().load()
            train = replace(data.train, domains=np.arange(60) // 6 % 2,
                            domain_names=data.test.domain_names)
            return replace(data, train=train)

    from clstudy import RunConfig

    monkeypatch.setitem(BENCHMARKS, "drawn", Drawn)
    run = load_or_train(RunConfig(benchmark="drawn", model=str(toy_model), tuner="full", lr=1e-2,
                                  method="finetune", stream="domains", seed=3), tmp_path)
    assert scores.arrival(run) == [1, 0]  # round before flat
    rng = np.random.default_rng(0)
    bits = [rng.integers(256, size=len(packed)).astype(np.uint8).tobytes()
            for packed in run.bits.bits]
    monkeypatch.setitem(run.__dict__, "bits", run.bits.assign(bits=bits))
    test = run.tests[run.tests["set"] == "test"]
    right, concepts = run.correct(candidates="all"), concepts_of([run], ["domain forgetting"])
    weights = rng.poisson(1, (B, len(concepts))) + (np.arange(len(concepts)) < 2)
    names = ["average domain", "worst domain", "domain forgetting", "domain transfer"]
    found = under_weights(run, names, concepts, weights)
    for draw, each in enumerate(weights):
        often = test.concept.map(dict(zip(concepts, each, strict=True))).to_numpy()
        R = 100 * np.array([[np.average(row, weights=often * (test.domain == domain))
                             for domain in (1, 0)] for row in right])
        expected = [R[2].mean(), R[2].min(), R[1, 0] - R[2, 0], R[1, 1] - R[0, 1]]
        assert [found[name][draw] for name in names] == pytest.approx(expected), draw


def test_concepts_are_those_of_the_sets_that_the_metrics_read(made):
    run = made["disjoint", None]
    one, others, pairs = set(range(12)), {3, 40, 41}, {0, 1, 50, 51}
    for metric, expected in (("A_last", one), ("ZS-Acc", others), ("A-Acc before", one | others),
                             ("R@1 image to text", pairs), ("R@1 text to image", pairs),
                             ("shades", {0, 1, 2, 3}), ("seconds", set())):
        found = concepts_of([run, made["si_blurry", 10]], [metric])
        assert found.tolist() == sorted(expected), metric
    assert concepts_of([run], ["ZS-Acc", "R@1 image to text"]).tolist() == [0, 1, 3, 40, 41, 50, 51]


def test_runs_that_were_tested_on_other_images_are_refused(made):
    runs = [made["disjoint", 10], made["other"]]
    with pytest.raises(ValueError, match="not tested on the same images: set 'test'") as error:
        concepts_of(runs, ["A_last", "ZS-Acc"])
    assert all(run.id in str(error.value) for run in runs)
    assert concepts_of(runs, ["ZS-Acc"]).tolist() == [3, 40, 41]  # these are the same


def test_what_is_wrong_with_weights(made):
    run = made["disjoint", None]
    with pytest.raises(ValueError, match=r"weights: got shape \(2, 5\) for \(12,\) concepts"):
        under_weights(run, ["A_last"], np.arange(12), np.ones((2, 5)))
    with pytest.raises(ValueError, match="concepts: 11 is missing.*set 'test'"):
        under_weights(run, ["A_last"], np.arange(11), np.ones((2, 11)))


def test_a_set_of_which_no_single_tests_are_stored_is_left_out(made, monkeypatch):
    run = made["disjoint", None]
    monkeypatch.setitem(run.__dict__, "bits", run.bits[run.bits.candidates != "all"])
    resampling._counts.cache_clear()
    concepts = concepts_of([run], ["A_last", "forgetting"])
    found = under_weights(run, ["A_last", "forgetting", "Transfer (MTIL)"], concepts,
                          np.ones((1, 12)))
    assert list(found) == ["A_last", "Transfer (MTIL)"]
    monkeypatch.setitem(run.__dict__, "bits", run.bits.drop(columns="images_seen"))  # an old run
    assert under_weights(run, ["A_last"], concepts, np.ones((1, 12))) == {}
    assert not concepts_of([run], ["A_last"]).size


def test_at_equal_distances_a_time_is_the_mean_of_all_points(made):
    run = made["si_blurry", 10]
    points = run.curve()
    widths = np.diff(points.images_seen, prepend=0)
    assert scores.metrics_of(run)["A_time"] == pytest.approx(
        100 * (points.value * widths).sum() / points.images_seen.iloc[-1])
    periodic = run.evals[~run.evals.stage_end]
    assert scores.metrics_of(run)["A_auc"] == pytest.approx(100 * periodic.value.mean())


def test_a_checkpoint_at_a_stage_end_is_one_of_the_periodic_ones(made):
    """20 images in a stage, a checkpoint every 10: the second lies at the stage's end."""
    evals = made["disjoint", 10].evals
    seen = evals[evals["name"] == "seen classes"]
    periodic, ends = (seen[seen.stage_end == end].images_seen.tolist() for end in (False, True))
    assert ends == [20, 40, 60] and set(ends) <= set(periodic) and len(periodic) == 6
