"""A run in another process: what it tells, that it can be held, stopped and taken up, and that
watching changes no number."""
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clstudy import RunConfig
from clstudy.runs import background
from clstudy.runs.run import find
from clstudy.runs.store import load_or_train
from clstudy.training.checkpoint import Position
from clstudy.widgets import live as view
from clstudy.widgets import live_training


@pytest.fixture
def config(toy_model, tmp_path, monkeypatch) -> RunConfig:
    """A run of 64 batches on a folder of pictures, which another process can read too."""
    monkeypatch.setenv("CLSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLSTUDY_SAVE_EVERY", "0.05")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("apple", "bridge", "cat", "door")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(15):
            colour = rng.integers(0, 60, (64, 64, 3)) + 60 * number
            Image.fromarray(colour.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return RunConfig(benchmark=f"folder:{tmp_path / 'pictures'}", stream="disjoint",
                     stream_args={"tasks": 2}, model=str(toy_model), tuner="lora", method="sit",
                     lr=1e-2, batch_size=8, steps_per_batch=1, eval_every=16, epochs=8)


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def training(config, runs):
    one = background.Training(config, runs=runs)
    yield one
    if one.process is not None and one.process.poll() is None:
        one.go_on()
        one.process.kill()
        one.process.wait()


def until(what, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_that_is_held_stopped_and_taken_up_is_the_run_that_nobody_watched(
        training, config, runs, tmp_path):
    assert training.state == "ready" and training.left is None
    training.start()
    first, process = {"steps": [], "evals": [], "drift": []}, training.process
    training.start()
    assert training.process is process  # a second press changes nothing

    def some() -> bool:
        for name, rows in training.read().items():
            first[name] += rows
        return len(first["steps"]) > 0

    until(some)
    training.pause()
    assert training.state == "paused"
    time.sleep(0.8)
    training.read()
    held = training.share
    time.sleep(0.8)
    training.read()
    assert training.share == held < 1  # nothing moves
    training.go_on()
    assert training.state == "running"
    training.stop(wait=60)
    assert training.state == "stopped" and find(config, runs) is None
    assert list((runs / f"{config.run_id}.draft").glob("state-*.pt"))

    training.start()
    second = {"steps": [], "evals": [], "drift": []}

    def finished() -> bool:
        state = training.state
        for name, rows in training.read().items():
            second[name] += rows
        return state not in ("running", "paused")

    until(finished)
    assert training.state == "finished" and training.share == 1 and training.left is None
    run, alone = find(config, runs), load_or_train(config, tmp_path / "alone", probes=["drift"])
    assert run.result["resumed"] == 1
    assert run.steps.equals(alone.steps) and run.evals.equals(alone.evals)
    assert run.probe("drift").equals(alone.probe("drift"))
    assert second == view.told(alone) or json.loads(json.dumps(second)) == json.loads(
        json.dumps(view.told(alone)))
    assert first["steps"] == second["steps"][:len(
        first["steps"])]  # a taken-up run tells all from its beginning


def test_a_run_that_fails_says_why(config, runs, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2; echo there is no model >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    broken = background.Training(config, runs=runs)
    broken.start()
    broken.process.wait(120)
    assert broken.read() == {"steps": [], "evals": [], "drift": []}
    assert broken.state == "failed" and broken.error == "there is no model"


def test_a_pause_by_a_watcher_that_is_gone_holds_nothing(runs):
    """Told of a parent that is not its own, as after the death of the kernel: the batch after the
    pause is made."""
    place = runs / "place"
    place.mkdir(parents=True)
    (place / "pause").touch()
    feed = background.Feed(place, parent=os.getpid())  # not our parent: held for nobody
    feed.begin(Position(), SimpleNamespace(probes={}), 8)
    feed.update(8)
    feed.close()
    assert json.loads((place / "feed.jsonl").read_text().splitlines()[0]) == {
        "share": 0, "left": None, "steps": [], "evals": [], "drift": []}


def test_probes_are_checked_before_anything_starts(config):
    with pytest.raises(ValueError, match="probes='drifts'"):
        background.Training(config, probes=["drifts"])


# ---- the widget


@pytest.fixture
def shown(config, runs, monkeypatch):
    """The widget as in a notebook, with two runs to choose from, and its parts."""
    monkeypatch.delenv("CLSTUDY_HEADLESS")
    one = view._Live({"symmetric": config, "asymmetric": config.replace(method="finetune")}, runs)
    yield one
    for training in one.trainings.values():
        if training.process is not None and training.process.poll() is None:
            training.go_on()
            training.process.kill()
            training.process.wait()


def test_the_widget_starts_holds_and_ends_a_run_and_draws_it(shown, config, runs):
    assert not shown.start.disabled and shown.hold.disabled and shown.end.disabled and not shown.lines
    shown.start.click()
    assert shown.start.disabled and not shown.hold.disabled and "running" in shown.time.value
    until(lambda: shown.look() or len(shown.lines) >= 4)
    shown.hold.click()
    assert shown.hold.description == "go on" and "paused" in shown.time.value
    shown.hold.click()
    assert shown.hold.description == "pause"
    until(lambda: shown.look() or shown.training.state == "finished")
    shown.look()
    run = find(config, runs)
    drawn = {trace.name: (list(trace.x), list(trace.y)) for trace in shown.lines.values()}
    assert set(drawn) >= {"loss: task", "seen classes", "all classes", "texts", "images"}
    assert drawn["loss: task"][1] == pytest.approx(run.steps.value.tolist())
    curve = run.curve("seen classes")
    assert drawn["seen classes"][1][-1] == pytest.approx(100 * curve.value.iloc[-1])
    assert shown.bar.value == 1 and shown.end.disabled and "Finished" in shown.said.value


def test_another_run_has_lines_of_its_own_and_a_finished_one_is_read_from_the_disk(
        shown, config, runs):
    load_or_train(config.replace(method="finetune"), runs, probes=["drift"])
    shown.choice.value = "asymmetric"
    assert shown.start.disabled and "finished" in shown.time.value
    assert {trace.name for trace in shown.figure.data
            if trace.showlegend and len(trace.x)} >= {"loss: task", "texts"}
    shown.choice.value = "symmetric"
    assert not shown.start.disabled and all(len(trace.x) == 0 for trace in shown.lines.values())


def test_the_twin_draws_a_finished_run_and_says_when_there_is_none(config, runs):
    with pytest.raises(FileNotFoundError, match="example="):
        live_training(config, runs=runs)
    run = load_or_train(config, runs, probes=["drift"])
    figure = live_training({"one": config}, runs=runs)
    assert [axis.get_ylabel()
            for axis in figure.axes] == ["loss", "accuracy, %", "1 − cosine to the start"]
    losses = figure.axes[0].lines[0].get_ydata()
    assert losses == pytest.approx(run.steps.value.to_numpy())
    without = load_or_train(config.replace(seed=1), runs)
    assert not live_training(config, example=without, runs=runs).axes[2].lines
