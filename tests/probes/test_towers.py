"""Exchanged towers: equal to the evaluation, to a model with a tower put back, and to what was."""
from copy import deepcopy

import numpy as np
import pytest
from small_runs import train

from clstudy.evaluation.accuracy import evaluate
from clstudy.training import loop
from clstudy.training.setup import prepare

WHERE = ["stage", "task", "candidates"]


@pytest.fixture(scope="module")
def kept():
    return {}


def run(tiny, kept, monkeypatch, **changes):
    """A run with the probe: its table, its evaluations, and the model at each stage end."""
    key = str(changes)
    if key not in kept:
        models, notes, measure = [], {}, loop.evaluate

        def watched(model, *args):
            if args[3]:  # complete
                models.append(deepcopy(model))
            return measure(model, *args)

        monkeypatch.setattr(loop, "evaluate", watched)
        config = tiny.replace(**{"method": "finetune", "lr": 3e-2, "eval_every": 16,
                                 "stream_args": {"tasks": 3}, **changes})
        evals, _ = train(config, probes=["towers"], notes=notes)
        kept[key] = config, notes["towers"], evals, models
    return kept[key]


def part(table, image: str, text: str):
    rows = table[(table.image == image) & (table.text == text)]
    return rows.set_index(WHERE).drop(columns=["image", "text"])


def shares(rows: list[dict]) -> dict:
    return {(row["stage"], int(row["name"]), row["candidates"]): row["value"] for row in rows
            if row["kind"] == "task" and row["metric"] == "accuracy" and row["stage_end"]}


@pytest.mark.parametrize("method", ["finetune", "wise_ft", "class_means"])
def test_both_towers_of_now_are_what_was_evaluated(tiny, kept, monkeypatch, method):
    """Whatever is deployed, and however the method ranks."""
    _, table, evals, _ = run(tiny, kept, monkeypatch, method=method)
    now, evaluated = part(table, "now", "now"), shares(evals)
    assert len(now) == 3 * 3 * 2 and (now["count"] == 8).all()
    for key, row in now.iterrows():
        assert row.right / row["count"] == evaluated[key]
        bits = np.unpackbits(np.frombuffer(row.bits, np.uint8), count=row["count"])
        assert bits.sum() == row.right


def test_an_exchange_is_the_accuracy_of_a_model_with_that_tower_put_back(tiny, kept, monkeypatch):
    config, table, _, models = run(tiny, kept, monkeypatch, tuner="full", lr=3e-3)
    _, benchmark, stages = prepare(config)
    tasks = [stage.classes for stage in stages]
    found = {(i, t): part(table, i, t).right for i, t in
             [("start", "start"), ("start", "now"), ("now", "start"), ("now", "now")]}
    assert len({tuple(each) for each in found.values()}) > 2
    for stage in (1, 2, 3):
        seen = [label for classes in tasks[:stage] for label in classes]
        for (i, t), right in found.items():
            swapped = deepcopy(models[stage])
            first = dict(models[0].named_parameters())
            for name, p in swapped.named_parameters():
                if (i if name.startswith("model.visual.") else t) == "start":
                    p.data.copy_(first[name])
            rows = evaluate(swapped, benchmark, tasks, seen, sides=False).rows
            expected = shares([{**row, "stage": stage, "stage_end": True} for row in rows])
            for task in (1, 2, 3):
                for candidates in ("seen", "all"):
                    key = stage, task, candidates
                    assert right[key] / 8 == pytest.approx(expected[key])


def test_learned_is_the_end_of_the_tasks_own_stage(tiny, kept, monkeypatch):
    """With candidates "all", which are the same then and later."""
    _, table, _, _ = run(tiny, kept, monkeypatch, method="finetune")
    learned, now = part(table, "learned", "learned"), part(table, "now", "now")
    assert sorted({key[:2] for key in learned.index}) == [(2, 1), (3, 1), (3, 2)]
    for (_, task, candidates), row in learned.iterrows():
        if candidates == "all":
            assert row.bits == now.bits[task, task, "all"]
    for pair in (("now", "learned"), ("learned", "now")):
        assert part(table, *pair).index.equals(learned.index)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_is_frozen_carries_nothing(tiny, kept, monkeypatch, tower):
    _, table, _, _ = run(tiny, kept, monkeypatch, tower=tower)
    still, moved = (("image", "text") if tower == "text" else ("text", "image"))
    pair = {still: "start", moved: "now"}
    one, now = part(table, pair["image"], pair["text"]), part(table, "now", "now")
    assert one.equals(now) and not now.equals(part(table, "start", "start"))
