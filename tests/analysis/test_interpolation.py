"""Lines between two models: the ends are the models, the middle is between the weights, and nothing
is made twice."""
import pickle
from dataclasses import replace

import pytest
import torch
from small_runs import said

from clstudy import load_or_train
from clstudy.analysis import interpolation
from clstudy.evaluation import accuracy
from clstudy.evaluation.accuracy import evaluate
from clstudy.models.loading import load_clip
from clstudy.models.merging import merge
from clstudy.runs.run import load_tuned
from clstudy.training.setup import prepare


@pytest.fixture
def runs(tiny, tmp_path):
    """A function: a finished run with its weights."""
    def make(**changes):
        config = tiny.replace(tuner="full", method="finetune", lr=3e-3, **changes)
        return load_or_train(config, runs=tmp_path, keep_model=True, progress=None)
    return make


def values(rows) -> dict[tuple, float]:
    return {(said(row), row["candidates"], row["metric"]): row["value"] for row in rows}


def at(table, share: float) -> dict[tuple, float]:
    return values(table[table.share == share].to_dict("records"))


def looked_at(clip, run) -> dict[tuple, float]:
    _, benchmark, stages = prepare(run.config)
    tasks = [stage.classes for stage in stages]
    seen = [label for task in tasks for label in task]
    return values(evaluate(clip, replace(benchmark, retrieval={}), tasks, seen).rows)


def test_the_ends_of_a_line_are_the_two_models(runs):
    run = runs()
    table = interpolation.along(None, run, [0, 1], ["shades"])
    assert at(table, 0.0) == looked_at(load_clip(run.config.model), run)
    assert at(table, 1.0) == looked_at(load_tuned(run), run)
    assert at(table, 0.0) != at(table, 1.0)


def test_a_share_is_a_share_of_every_weight(runs, monkeypatch):
    run, seen = runs(), []
    real = accuracy.evaluate
    monkeypatch.setattr(interpolation, "evaluate", lambda clip, *rest: seen.append(
        {name: p.detach().clone() for name, p in clip.named_parameters()}) or real(clip, *rest))
    interpolation.along(None, run, [0.25, 1.5], ["shades"])
    start = dict(load_clip(run.config.model).named_parameters())
    for name, end in load_tuned(run).named_parameters():
        for share, found in zip((0.25, 1.5), seen, strict=True):
            expected = start[name] + share * (end - start[name])
            assert torch.allclose(found[name], expected.detach(), atol=1e-6), name


def test_lora_is_folded_into_the_weights_before_the_line_is_drawn(tiny, tmp_path, monkeypatch):
    run = load_or_train(tiny.replace(method="finetune", lr=5e-2), runs=tmp_path, keep_model=True)
    seen, real = [], accuracy.evaluate
    monkeypatch.setattr(interpolation, "evaluate", lambda clip, *rest: seen.append(
        {name: p.detach().clone() for name, p in clip.named_parameters()}) or real(clip, *rest))
    interpolation.along(None, run, [0.5], ["shades"])
    start, end = dict(load_clip(run.config.model).named_parameters()), dict(
        merge(load_tuned(run)).named_parameters())
    name = "model.visual.transformer.resblocks.0.attn.qkv.weight"
    assert not torch.equal(start[name], end[name])
    assert torch.allclose(seen[0][name], ((start[name] + end[name]) / 2).detach(), atol=1e-6)
    assert not [key for key in seen[0] if "lora" in key]


def test_a_line_between_two_runs_starts_at_the_first(runs):
    one, other = runs(), runs(seed=1, stream_seed=0)
    table = interpolation.along(one, other, [0, 0.5, 1], ["shades"])
    key = ("all classes", "all", "accuracy")
    assert at(table, 0.0)[key] == looked_at(load_tuned(one), one)[key]
    assert at(table, 1.0)[key] == looked_at(load_tuned(other), other)[key]


def test_a_line_is_drawn_once(runs, monkeypatch):
    run = runs()
    table = interpolation.along(None, run, [0, 1], ["shades"])
    monkeypatch.setattr(interpolation, "evaluate", None)
    again = interpolation.along(None, run, [0.0, 1.0], ["shades"])
    assert again.equals(table) and list(table.columns)[0] == "share"
    with pytest.raises(TypeError):
        interpolation.along(None, run, [0, 0.5, 1], ["shades"])  # another line is another table


def test_what_cannot_be_a_line_is_refused(runs, tiny, tmp_path):
    run = runs()
    with pytest.raises(ValueError, match="held_out='shade' is unknown. Did you mean shades"):
        interpolation.along(None, run, [0, 1], ["shade"])
    with pytest.raises(ValueError, match="benchmark_args differs"):
        interpolation.along(run, runs(benchmark_args={"images": 9}), [0, 1], ["shades"])
    bare = load_or_train(tiny.replace(method="finetune"), runs=tmp_path)
    with pytest.raises(FileNotFoundError, match="keep_model=True"):
        interpolation.along(None, bare, [0, 1], ["shades"])
    bent = load_or_train(tiny.replace(method="finetune", tuner="adapter"), runs=tmp_path,
                         keep_model=True)
    with pytest.raises(ValueError, match="not linear in the weights"):
        interpolation.along(None, bent, [0, 1], ["shades"])


def test_lines_are_handed_to_workers_once_each(runs, monkeypatch):
    handed = []

    def here(function, items, workers):
        for item in items:
            handed.append(item)
            made, given = pickle.loads(pickle.dumps(
                (function, item)))  # as they reach another process
            try:
                yield item, made(given)
            except ValueError as error:
                yield item, error

    monkeypatch.setattr(interpolation, "local", here)
    one, other = runs(), runs(seed=1, stream_seed=0)
    first = interpolation.along(None, one, [0, 0.5], ["shades"])
    pairs = [(None, one), (None, other), (one, other)]
    found = interpolation.lines({"from the start": pairs[:2], "between": pairs[2:]}, [0, 0.5],
                                ["shades"])
    assert handed == pairs[1:]  # the first line was there
    labels, seeds, size = ["from the start"] * 2 + ["between"], [0, 1, 1], len(first)
    for i, pair in enumerate(pairs):
        part = found[i * size:(i + 1) * size]
        assert set(part.label) == {labels[i]} and set(part.seed) == {seeds[i]}
        table = part.drop(columns=["label", "seed"]).reset_index(drop=True)
        assert table.equals(interpolation.along(*pair, [0, 0.5], ["shades"]))
    with pytest.raises(ValueError, match="held_out='shade' is unknown"):
        interpolation.lines({"path": pairs}, [0], ["shade"])
