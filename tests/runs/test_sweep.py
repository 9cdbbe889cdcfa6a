"""Sweeps: planned first, carried on past failures, with a state on disk that tells the truth."""
import fcntl
import io
import json
import os
import subprocess
import sys
import time
import types
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from clstudy import RunConfig
from clstudy.runs import status, sweep
from clstudy.runs.run import find
from clstudy.runs.store import load_or_train
from clstudy.training import loop
from clstudy.utils import progress
from clstudy.utils.paths import REPOSITORY


def here(function, items):
    """An engine that is this process, which knows the toy benchmark."""
    for item in items:
        yield item, function(item)


@pytest.fixture
def grid(tiny) -> dict:
    return {
        "benchmark": "toy", "stream_args.tasks": 2, "model": tiny.model, "batch_size": 8,
        "steps_per_batch": 1, "method": ["sit", "finetune"], "seed": "0..1"
    }


def state(runs: Path, name: str = "mine") -> dict:
    return json.loads((runs / "sweeps" / name / "state.json").read_text())


def test_a_plan_says_what_exists_and_what_is_to_do(grid, tmp_path):
    first = sweep.plan({**grid, "seed": 0}, runs=tmp_path, workers=1)
    assert "2 in all, 0 exist, 2 to do, with 1 worker" in str(first) and not list(
        tmp_path.iterdir())
    sweep.sweep({**grid, "seed": 0}, runs=tmp_path, engine=here, show=False)
    again = sweep.plan(grid, runs=tmp_path, workers=2)
    assert [task.label for task in again.todo] == ["method=sit seed=1", "method=finetune seed=1"]
    head, *lines = str(again).splitlines()
    assert head.endswith("4 in all, 2 exist, 2 to do, with 2 workers")
    assert [line.split() for line in lines] == [
        ["method=sit", "seed=0", "exists"], ["method=sit", "seed=1", "to", "do"],
        ["method=finetune", "seed=0", "exists"], ["method=finetune", "seed=1", "to", "do"]]


def test_a_sweep_makes_all_and_then_nothing(grid, tmp_path, monkeypatch):
    made = sweep.sweep(grid, runs=tmp_path, name="mine", engine=here, show=False)
    assert made.code == 0 and len(made.runs) == 4 and "4 of 4 exist, 0 failed" in str(made)
    assert [run.config.method for run in made.runs] == ["sit", "sit", "finetune", "finetune"]
    kept = state(tmp_path)
    assert {one["state"] for one in kept["tasks"].values()
            } == {"done"} and kept["code"] == 0 and kept["finished"]
    monkeypatch.setattr(loop, "train", None)
    again = sweep.sweep(grid, runs=tmp_path, name="mine", engine=None, show=False)
    assert [run.id for run in again.runs] == [run.id
                                              for run in made.runs] and state(tmp_path) == kept


def test_a_failure_stops_no_other_and_is_told_with_its_reason(grid, tmp_path, capsys):
    grid = {**grid, "seed": 0, "stream_args.tasks": [2, 1000]}
    made = sweep.sweep(grid, runs=tmp_path, name="mine", engine=here)
    assert made.code == status.FAILED and len(made.runs) == 2 and len(made.failed) == 2
    for label, failure in made.failed.items():
        assert "1000" in label and "tasks=1000" in failure.error
        assert "Traceback" in Path(failure.log).read_text() and label in Path(
            failure.log).read_text()
    assert str(made).count("FAILED") == 2 and "2 of 4 exist" in str(made)
    said = status.status("mine", tmp_path)
    assert "failed: 2" in said and "tasks=1000" in said and "ended with failures" in said and "done: 2" in said
    shown = capsys.readouterr().err
    assert shown.count("FAILED") == 2 and shown.count("made  ") == 2
    assert sweep.plan(grid, runs=tmp_path).todo and not list(
        (tmp_path / "sweeps/mine/now").glob("*"))


def test_a_worker_that_dies_is_a_failure_in_words(grid, tmp_path):
    def dying(function, items):
        yield items[0], BrokenProcessPool("gone")
        yield items[1], function(items[1])

    made = sweep.sweep({**grid, "seed": 0}, runs=tmp_path, name="mine", engine=dying, show=False)
    assert made.code == status.FAILED and len(made.runs) == 1
    assert "killed or out of memory" in made.failed["method=sit"].error


def test_an_interrupt_is_told_and_the_next_sweep_goes_on(grid, tmp_path):
    def interrupted(function, items):
        yield items[0], function(items[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(grid, runs=tmp_path, name="mine", engine=interrupted, show=False)
    assert state(tmp_path)["code"] == status.INTERRUPTED
    said = status.status(None, tmp_path)
    assert "interrupted; start it again to go on" in said and "waiting: 3" in said
    assert len(sweep.sweep(grid, runs=tmp_path, name="mine", engine=here, show=False).runs) == 4
    assert [one["state"]
            for one in state(tmp_path)["tasks"].values()] == ["exists", "done", "done", "done"]


def test_nothing_starts_before_all_is_checked(grid, tmp_path):
    for wrong in ({"method": ["sit", "sitt"]}, {"seed": []}, {"sead": 1}):
        with pytest.raises(ValueError):
            sweep.sweep({**grid, **wrong}, runs=tmp_path, engine=here)
    for option in ({"probes": ["gradient"]}, {"name": "../up"}, {"workers": 0.5}):
        with pytest.raises((ValueError, TypeError), match="gradients|names a folder|workers"):
            sweep.arrange([], runs=tmp_path, **option) if "probes" not in option else sweep.plan(
                grid, **option)
    assert not list(tmp_path.iterdir())


def test_runs_are_given_as_a_grid_as_grids_or_as_themselves(grid, tiny, tmp_path):
    by_grid = sweep.plan(grid, runs=tmp_path).tasks
    by_grids = sweep.plan([{**grid, "seed": seed} for seed in (0, 1)], runs=tmp_path).tasks
    by_hand = sweep.plan([task.config for task in by_grid], runs=tmp_path).tasks
    assert {task.id for task in by_grid} == {task.id for task in by_grids} and by_hand == by_grid


def test_weights_and_probes_are_kept_where_asked_for(tiny, tmp_path):
    plain = sweep.sweep([tiny], runs=tmp_path, engine=here, show=False).runs[0]
    assert not (plain.folder / "model.safetensors").exists()
    options = {"runs": tmp_path, "keep_model": True, "probes": ["drift"]}
    assert len(sweep.plan([tiny], **options).todo) == 1
    kept = sweep.sweep([tiny], engine=here, show=False, **options).runs[0]
    assert (kept.folder / "model.safetensors").exists() and len(kept.probe("drift"))
    assert not sweep.plan([tiny], **options).todo


def test_a_second_sweep_of_the_same_name_has_a_folder_of_its_own(grid, tmp_path):
    def another(function, items):
        inner = sweep.sweep(grid, runs=tmp_path, name="mine", engine=here, show=False)
        assert inner.code == 0
        yield from here(function, items)

    assert sweep.sweep(grid, runs=tmp_path, name="mine", engine=another, show=False).code == 0
    assert sorted(path.name for path in (tmp_path / "sweeps").iterdir()) == ["mine", "mine~2"]
    assert all(one["state"] == "done" for one in state(tmp_path, "mine~2")["tasks"].values())


def test_what_another_process_makes_comes_last_and_is_waited_for(tiny, tmp_path):
    configs, order = [tiny, tiny.replace(seed=1)], []

    def watched(function, items):
        for item in items:
            order.append((item.config.seed, function.wait))
            if function.wait:
                lock.close()
            yield item, function(item)

    draft = tmp_path / f"{tiny.run_id}.draft"
    draft.mkdir()
    lock = open(draft / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    made = sweep.sweep(configs, runs=tmp_path, engine=watched, show=False)
    assert made.code == 0 and order == [(0, False), (1, False), (0, True)] and len(made.runs) == 2


def test_a_running_one_tells_how_far_it_is(tiny, tmp_path, monkeypatch):
    seen = []
    update = progress._Reported.update

    def watched(self, n=1):
        update(self, n)
        self.refresh()
        seen.append(status.now(tmp_path / "sweeps/mine"))

    monkeypatch.setattr("clstudy.utils.progress._Reported.update", watched)
    sweep.sweep([tiny], runs=tmp_path, name="mine", engine=here, show=False)
    told = [found[tiny.run_id] for found in seen if found]
    assert {one["pid"] for one in told} == {os.getpid()}
    shares = [one["share"] for one in told]
    assert shares == sorted(
        shares) and 0 <= shares[0] < 0.2 and shares[-1] == 1 and told[-1]["left"] == 0


@pytest.mark.slow
def test_a_killed_sweep_is_seen_to_be_dead_and_goes_on(toy_model, tmp_path):
    """A real process with real workers; its grid is of the embedded data, for workers know no
    toy."""
    config = RunConfig(benchmark_args={"families": ["streamline-emojis"]}, model=str(toy_model),
                       tuner="none", method="frozen", stream="joint")
    (tmp_path / "mine.toml").write_text(
        f'benchmark_args = {{families = [["streamline-emojis"]]}}\nmodel = "{toy_model}"\ntuner = "none"\n'
        'method = "frozen"\nstream = "joint"\nseed = "0..1"\n[sweep]\nworkers = 1\n')
    command = [sys.executable, "-m", "clstudy.cli", "sweep", str(tmp_path / "mine.toml")]
    surroundings = {**os.environ, "CLSTUDY_RUNS": str(tmp_path / "runs"),
                    "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            time.sleep(0.1)
            if list((tmp_path / "runs/sweeps/mine/now").glob("*.json")):
                break
        assert "running" in status.status("mine", tmp_path / "runs")
    finally:
        process.kill()
        process.wait()
    assert "killed; start it again to go on" in status.status("mine", tmp_path / "runs")
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert find(config, tmp_path / "runs") and find(config.replace(seed=1), tmp_path / "runs")


def test_what_is_left_takes_as_long_as_what_was_done(monkeypatch):
    monkeypatch.setattr(status.time, "time", lambda: 130.0)
    names = {"a": "done", "b": "failed", "c": "waiting", "d": "waiting", "e": "exists"}
    state = {"started": 100.0, "tasks": {id: {"state": one} for id, one in names.items()}}
    assert status.left(state, {}) == 30  # two of four in 30 seconds
    assert status.left(
        state,
        {"c": {"share": 0.5}, "d": {"share": None}, "a": {"share": 1.0}}) == pytest.approx(18)
    assert status.left({**state, "tasks": {"c": {"state": "waiting"}}}, {}) is None
    assert status.left({**state, "tasks": {"e": {"state": "exists"}}}, {}) is None


def test_there_is_a_line_for_each_worker():
    about = {"host": "a", "pid": 7, "share": None, "left": None}
    lines = status._running({"tasks": {"x": {"label": "seed=1"}}}, {
        "x": {**about, "pid": 9, "share": .5, "left": 90.0}, "y": about,
        "z": {**about, "pid": 8, "share": 1.0}
    })
    assert lines == [
        "  a:7  y  starting", "  a:8  z  last evaluation", "  a:9  seed=1   50%, 1:30 min left"
    ]


@pytest.fixture
def stand() -> tuple[dict, dict]:
    """A state and what runs."""
    tasks = {
        "x": {"label": "method=sit seed=1 [0.1]", "state": "waiting"},
        "y": {"label": "z", "state": "failed"}
    }
    running = {"x": {"host": "a", "pid": 9, "share": 0.5, "left": 90.0}}
    return {"name": "mine", "left": 65, "tasks": tasks, "started": 0.0}, running


def test_a_terminal_has_a_table_that_is_drawn_over(stand, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CLSTUDY_QUIET", raising=False)
    screen = status._Screen()
    screen.show(*stand)
    screen.say("made   it")
    screen.close()
    said = file.getvalue()
    assert "mine: 0 of 2 exist, 1 failed, 1:05 min left" in said and "made   it" in said and "━" in said
    assert "a:9" in said and "method=sit seed=1 [0.1]" in said and "50%, 1:30 min left" in said and "\x1b[2K" in said


def test_a_log_has_lines_that_are_whole_and_few(stand, capsys, monkeypatch):
    monkeypatch.delenv("CLSTUDY_QUIET", raising=False)
    screen = status._Screen()
    screen.say("made   " + 120 * "x")
    screen.show(*stand)
    screen.last -= status.LINES
    screen.show(*stand)
    screen.close()
    assert capsys.readouterr().err.splitlines() == [
        "made   " + 120 * "x", "mine: 0 of 2 exist, 1 failed, 1:05 min left",
        "  a:9  method=sit seed=1 [0.1]   50%, 1:30 min left"]
    monkeypatch.setenv("CLSTUDY_QUIET", "1")
    status._Screen().say("made   it")
    assert not capsys.readouterr().err


def test_a_notebook_has_one_table_that_changes(stand, monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.delenv("CLSTUDY_HEADLESS", raising=False)
    handle = types.SimpleNamespace(update=shown.append)
    monkeypatch.setattr("IPython.display.display", lambda what, display_id: handle)
    screen = status._Screen()
    screen.say("made   it")
    screen.show(*stand)
    screen.close()
    [table] = shown
    found = table._repr_mimebundle_((), ())
    assert "method=sit seed=1" in found["text/plain"] and "50%" in found["text/html"]


def test_a_driver_is_alive_by_its_process_and_its_signs(monkeypatch):
    mine = {
        "host": status.platform.node(), "pid": os.getpid(), "finished": None, "beat": time.time()
    }
    assert status.alive(mine) and status.alive({**mine, "host": "elsewhere", "pid": 1 << 22})
    assert not status.alive({**mine, "pid": 1 << 22}) and not status.alive(
        {**mine, "beat": time.time() - 61})
    assert not status.alive({**mine, "finished": time.time()}) and not status.alive(None)


def test_a_state_that_lacks_anything_it_has_counts_as_damaged(tmp_path):
    path = tmp_path / "state.json"
    whole = {name: 0 for name in status.STATE} | {"tasks": {}}
    path.write_text(json.dumps(whole))
    assert status.read(path) == whole and "left" in whole
    for name in whole:
        path.write_text(json.dumps({**{key: value for key, value in whole.items() if key != name}, "x": 0}))
        assert status.read(path) is None, name


def test_status_without_and_with_a_wrong_name(grid, tmp_path):
    assert "no sweep in" in status.status(None, tmp_path)
    (tmp_path / "sweeps/damaged").mkdir(parents=True)
    (tmp_path / "sweeps/damaged/state.json").write_text('{"name": "da')
    assert "no sweep in" in status.status(None, tmp_path)
    sweep.sweep({**grid, "seed": 0}, runs=tmp_path, name="mine", engine=here, show=False)
    with pytest.raises(ValueError, match="sweep='yours' is unknown. Choices: mine"):
        status.status("yours", tmp_path)


def test_what_somebody_else_made_meanwhile_is_seen(tiny, tmp_path):
    def interrupted(function, items):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        sweep.sweep([tiny], runs=tmp_path, name="mine", engine=interrupted, show=False)
    assert "(exists)" not in status.status("mine", tmp_path)
    load_or_train(tiny, tmp_path)
    assert "(exists)" in status.status("mine", tmp_path)
