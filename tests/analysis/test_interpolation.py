"""Points on the line from CLIP to a tuned model: the ends are the models, between them lies what
WiSE-FT evaluates, image by image, and nothing is made twice."""
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from clstudy import compare, load_or_train
from clstudy.analysis import interpolation
from clstudy.analysis.scores import metrics_of, scores
from clstudy.evaluation.accuracy import evaluate
from clstudy.runs import evidence
from clstudy.runs.run import Runs, load_tuned
from clstudy.training.setup import prepare

METRICS = ["all classes", "shades", "A_last"]


@pytest.fixture
def runs(tiny, tmp_path, monkeypatch):
    """A function: a finished run with its weights. Lines are made in this process."""
    monkeypatch.setattr(interpolation, "local", lambda function, items, workers:
                        ((item, function(item)) for item in items))

    def make(keep_model=True, **changes):
        usual = {"tuner": "full", "method": "finetune", "lr": 3e-3}
        config = tiny.replace(**{**usual, **changes})
        return load_or_train(config, tmp_path, keep_model, progress=None)
    return make


def rows(run, stage):
    """What a run measured at the end of a stage, but for retrieval."""
    evals, bits = (table[(table.stage == stage) & table.stage_end] for table in (run.evals, run.bits))
    evals, bits = evals[evals.kind != "retrieval"], bits[~bits["set"].str.startswith("drawings")]
    return [table.drop(columns=["stage", "images_seen"]).values.tolist() for table in (evals, bits)]


def test_the_ends_of_a_line_are_the_two_models(runs):
    run = runs()
    start, end = interpolation.points([run], [0, 1])
    assert rows(start, 0) == rows(end, 0) == rows(run, 0)
    assert rows(end, 2) == rows(run, 2) != rows(run, 0)
    for name in ("all classes", "shades"):
        found = [metrics_of(one)[name] for one in (start, end)]
        assert found == [metrics_of(run)[f"{name} before"], metrics_of(run)[name]]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_point_is_the_end_of_the_same_run_of_wise_ft(runs, tuner):
    how = {"tuner": tuner, "lr": {"full": 3e-3, "lora": 5e-2}[tuner]}
    (point,) = interpolation.points([runs(**how)], [0.3])
    trained = runs(method="wise_ft", method_args={"alpha": 0.3}, **how)
    assert point.config == trained.config
    for stage in (0, 2):
        assert rows(point, stage) == rows(trained, stage)
    assert rows(point, 2) != rows(runs(**how), 2) and point.tests.equals(trained.tests)


def test_a_share_is_a_share_of_every_weight(runs, monkeypatch):
    run, seen = runs(), []
    monkeypatch.setattr(interpolation, "evaluate", lambda clip, *rest: seen.append(
        {name: p.detach().clone() for name, p in clip.named_parameters()}) or evaluate(clip, *rest))
    interpolation.points([run], [0.25, 0.75])
    start = dict(prepare(run.config)[0].named_parameters())
    for name, end in load_tuned(run).named_parameters():
        for share, found in zip((0.25, 0.75), seen, strict=True):
            expected = start[name] + share * (end - start[name])
            assert torch.allclose(found[name], expected.detach(), atol=1e-6), name


def test_points_are_compared_as_runs_are(runs):
    ends = [runs(), runs(seed=1)]
    points = interpolation.points(ends, [0, 0.5, 1])
    assert isinstance(points, Runs) and len({point.folder for point in points}) == 6
    table = scores(points, METRICS)
    assert table[["seed", "alpha"]].values.tolist() == [[s, a] for s in (0, 1) for a in (0, .5, 1)]
    found = compare(points, ["all classes", "shades"], "alpha", 0.0)
    assert found.alpha.tolist() == [0.5, 0.5, 1, 1] and set(found.interval) == {"seeds × concepts"}
    gained = [metrics_of(end)["all classes"] - metrics_of(end)["all classes before"] for end in ends]
    assert found.difference[2] == pytest.approx(np.mean(gained))


def test_a_line_is_drawn_once(runs, monkeypatch):
    run = runs()
    first = interpolation.points([run], [0, 0.5])
    monkeypatch.setattr(interpolation, "evaluate", None)
    again = interpolation.points([run], [0, 0.5, 1])  # the tuned model is there anyway
    pd.testing.assert_frame_equal(first[1].evals, again[1].evals)
    assert rows(first[1], 2) == rows(again[1], 2)
    with pytest.raises(TypeError):
        interpolation.points([run], [0.25, 0.5])  # another line is another table


def test_a_stored_line_is_read_without_the_weights(runs, tmp_path):
    run = runs()
    first = interpolation.points([run], [0, 0.5, 1])
    path = tmp_path / "runs.parquet"
    evidence.pack([run], path, tables={run.id: run.tables()})
    (run.folder / "model.safetensors").unlink()
    again = interpolation.points(evidence.load(path), [0, 0.5, 1])
    assert [rows(point, 2) for point in again] == [rows(point, 2) for point in first]
    found = [compare(points, METRICS, "alpha", 0.0) for points in (again, first)]
    pd.testing.assert_frame_equal(*found)


def test_lines_are_handed_to_workers_once_each(runs, monkeypatch):
    handed = []

    def here(function, items, workers):
        for item in items:
            handed.append(item)
            made, given = pickle.loads(pickle.dumps((function, item)))  # as another process has them
            yield item, made(given)

    one, other = runs(), runs(seed=1, stream_seed=0)
    interpolation.points([one], [0.5])
    monkeypatch.setattr(interpolation, "local", here)
    assert len(interpolation.points([one, other], [0.5])) == 2 and handed == [other]
    monkeypatch.setattr(interpolation, "local", lambda function, items, workers:
                        ((item, OSError("no room")) for item in items))
    with pytest.raises(OSError, match="no room"):
        interpolation.points([one, other], [0.25])


def test_what_cannot_be_a_line_is_refused(runs):
    with pytest.raises(ValueError, match=r"shares=1.5: must be from 0 \(CLIP\) to 1"):
        interpolation.points([runs()], [0, 1.5])
    with pytest.raises(ValueError, match="method of a run='sit' is unknown. Choices: finetune"):
        interpolation.points([runs(method="sit")], [0.5])
    with pytest.raises(FileNotFoundError, match="keep_model=True"):
        interpolation.points([runs(keep_model=False, seed=5)], [0.5])
