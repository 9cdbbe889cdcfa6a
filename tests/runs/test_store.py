"""Runs on disk: read when finished, made when not, whole or not there at all; and the tables read
from them."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_runs
import torch

from clstudy import RunConfig
from clstudy.runs.run import Damaged, Run, find, finished, load_runs, load_tuned
from clstudy.runs.store import load_or_train
from clstudy.training import loop


def test_a_finished_run_is_read_and_not_made_again(tiny, runs, no_training):
    made = load_or_train(tiny, runs)
    assert find(tiny, runs).folder == made.folder == runs / tiny.run_id
    no_training()
    read = load_or_train(tiny, runs)
    assert read.evals.equals(made.evals) and read.steps.equals(
        made.steps) and read.result == made.result
    assert read.id == tiny.run_id == read.result["run_id"]
    load_or_train(tiny.replace(device="cpu"), runs)  # the device is not part of a run
    with pytest.raises(AssertionError, match="trained again"):
        load_or_train(tiny.replace(seed=1), runs)


def test_a_run_on_disk_holds_what_training_returned(tiny, runs):
    run = load_or_train(tiny, runs)
    made = loop.train(tiny)
    pd.testing.assert_frame_equal(run.evals, made.evals, check_exact=True)
    pd.testing.assert_frame_equal(run.steps, made.steps, check_exact=True)
    assert {file.name for file in run.folder.iterdir()} == {
        "config.json", "env.json", "evals.jsonl", "steps.jsonl", "correct.parquet", "tests.parquet",
        "result.json"
    }
    assert RunConfig.model_validate_json((run.folder / "config.json").read_text()) == tiny
    assert json.loads((run.folder / "env.json").read_text())["threads"] == torch.get_num_threads()


def test_which_test_images_were_right_at_stage_ends_gives_the_accuracies(tiny, runs):
    run = load_or_train(tiny, runs)
    right = run.correct(candidates="all")
    assert right.shape == (
        3, 24) and right.dtype == bool  # before training, and after each of two stages
    assert right.mean(1).tolist() == [run.final("all classes", stage=stage) for stage in range(3)]
    assert run.correct("shades", "own").mean(1)[-1] == run.final("shades")
    with pytest.raises(ValueError, match="shades/own"):
        run.correct("shade", "own")


@pytest.mark.parametrize("stream, args", [
    ("disjoint", {"tasks": 2}), ("si_blurry", {"tasks": 2, "blurry_share": 50,
                                               "random_sizes": False})])
def test_bits_and_what_they_are_of_give_every_accuracy_over_the_stream(tiny, runs, stream,
                                                                         args):
    run = load_or_train(tiny.replace(stream=stream, stream_args=args, eval_every=6,
                                     epochs=2), runs)
    tests, rows = run.tests[run.tests["set"] == "test"], run.evals
    assert len(run.bits[~run.bits.stage_end]) > 2
    of_test = run.bits[(run.bits["set"] == "test") & (run.bits.candidates == "seen")]
    for at in of_test.to_dict("records"):
        right = np.unpackbits(np.frombuffer(at["bits"], np.uint8), count=at["count"])
        seen = (tests.arrived >= 0) & (tests.arrived <= at["images_seen"])
        value = rows[(rows["name"] == "seen classes") & (rows.images_seen == at["images_seen"])
                     & (rows.stage_end == at["stage_end"])].value
        assert [right[seen].mean()] == value.tolist() if seen.any() else value.empty
    right = run.correct(candidates="all")
    for stage, found in enumerate(run.matrix("all")):
        expected = [right[stage][tests.task == task + 1].mean() for task in range(len(found))]
        np.testing.assert_array_equal(found, expected)
    for name, way in (("drawings", "image-to-text"), ("drawings: captions", "text-to-image")):
        assert run.correct(name, way).shape[1] == (run.tests["set"] == name).sum()
        assert run.correct(name, way)[-1].mean() == run.final("drawings", metric=f"{way} recall@1")


def test_a_run_without_steps_has_an_empty_table(tiny, runs):
    run = load_or_train(tiny.replace(method="frozen"), runs)
    assert list(run.steps) == ["stage", "images_seen", "step", "term", "value"] and len(
        run.steps) == 0


def test_two_configurations_have_two_folders(tiny, runs):
    made = [load_or_train(config, runs) for config in (tiny, tiny.replace(seed=1), tiny)]
    assert len({run.folder
                for run in made}) == 2 == len(list(runs.iterdir())) == len(finished(runs))
    assert not made[0].steps.equals(made[1].steps)


# ---- what is not finished


def test_a_draft_is_not_a_run_even_with_its_result(tiny, runs):
    run = load_or_train(tiny, runs)
    run.folder.rename(
        runs / f"{tiny.run_id}.draft-1234")  # killed between the last file and the renaming
    assert find(tiny, runs) is None and finished(runs) == [] and len(load_runs(runs)) == 0
    load_or_train(tiny, runs)
    assert [run.id for run in finished(runs)] == [tiny.run_id]


def test_a_folder_without_its_result_is_not_a_run_and_is_made_again(tiny, runs):
    run = load_or_train(tiny, runs)
    (run.folder / "result.json").unlink()
    assert find(tiny, runs) is None and finished(runs) == []
    assert load_or_train(tiny, runs).result["run_id"] == tiny.run_id


def test_an_error_before_the_first_saved_state_leaves_nothing_behind(tiny, runs):
    with pytest.raises(ValueError, match="tasks=7"):
        load_or_train(tiny.replace(stream_args={"tasks": 7}), runs)
    assert list(runs.iterdir()) == []


def test_a_run_that_another_host_finished_meanwhile_is_kept(monkeypatch, tiny, runs, tmp_path):
    """Where no lock passes between two hosts, both make it: the first to finish is kept, and nobody
    fails."""
    other, original = load_or_train(tiny, tmp_path / "other"), loop.train
    expected = other.evals

    def slow(*options):
        found = original(*options)
        other.folder.rename(runs / tiny.run_id)
        return found

    monkeypatch.setattr(loop, "train", slow)
    run = load_or_train(tiny, runs)
    assert [path.name for path in runs.iterdir()] == [tiny.run_id]
    assert run.evals.equals(expected)


# ---- damaged files of finished runs


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def cut_after_a_row(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def a_digit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = next(i for i in range(len(content) // 2, len(content)) if content[i:i + 1].isdigit())
    content[place] = ord("7") if content[place] != ord("7") else ord("3")
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("name", "how"), [
    ("evals.jsonl", cut), ("evals.jsonl", cut_after_a_row), ("evals.jsonl", a_digit), ("steps.jsonl", cut_after_a_row),
    ("config.json", cut), ("config.json", remove)])
def test_a_damaged_file_of_a_finished_run_is_named_and_never_read_in_part(tiny, runs, name, how):
    expected = load_or_train(tiny, runs).evals
    other = load_or_train(tiny.replace(seed=1), runs)
    how(other.folder / name)
    with pytest.raises(Damaged, match=f"{other.folder / name} is damaged"):
        if name == "config.json":
            finished(runs)
        else:
            getattr(Run(tiny, other.folder), name.removesuffix(".jsonl"))
    if name != "steps.jsonl":
        with pytest.raises(Damaged, match=name):
            load_runs(runs)
    with pytest.warns(UserWarning, match=f"the run is made again: .*{name} is damaged"):
        again = load_or_train(tiny.replace(seed=1), runs)
    assert len(again.evals) == len(expected) and len(load_runs(runs)) == 2 * len(expected)


@pytest.mark.parametrize("content", ["", '{"run_id"', "[]", "7", "\x00" * 99])
def test_a_damaged_result_is_named_and_the_run_is_made_again(tiny, runs, content):
    run = load_or_train(tiny, runs)
    (run.folder / "result.json").write_text(content)
    for read in (lambda: find(tiny, runs).evals, lambda: find(tiny, runs).result,
                 lambda: load_runs(runs)):
        with pytest.raises(Damaged, match="result.json is damaged"):
            read()
    with pytest.warns(UserWarning, match="the run is made again: .*result.json is damaged"):
        assert load_or_train(tiny, runs).evals.equals(run.evals)


def test_damaged_weights_and_probes_count_where_they_are_wanted(tiny, runs, no_training):
    run = load_or_train(tiny, runs, keep_model=True, probes=["drift"])
    for name in ("model.safetensors", "drift.parquet"):
        cut(run.folder / name)
    for read, name in ((lambda: load_tuned(run), "model.safetensors"), (lambda: run.probe("drift"),
                                                                        "drift.parquet")):
        with pytest.raises(Damaged, match=f"{name} is damaged .its checksum is wrong"):
            read()
    with pytest.warns(UserWarning, match="drift.parquet is damaged"):
        again = load_or_train(tiny, runs, probes=["drift"])
    assert len(again.probe("drift")) and load_tuned(again)
    no_training()
    load_or_train(tiny, runs, keep_model=True, probes=["drift"])


def test_a_run_of_before_without_checksums_is_read_and_seen_to_be_cut(tiny, runs, no_training):
    run = load_or_train(tiny, runs)
    old = {key: value for key, value in run.result.items() if key != "sha256"}
    (run.folder / "result.json").write_text(json.dumps(old))
    no_training()
    assert load_or_train(tiny, runs).evals.equals(run.evals)
    cut(run.folder / "evals.jsonl")
    with pytest.raises(Damaged, match="evals.jsonl is damaged .its last row is cut off"):
        _ = find(tiny, runs).evals
    (run.folder / "evals.jsonl").write_text("nothing\n")
    with pytest.raises(Damaged, match="evals.jsonl is damaged"):
        _ = find(tiny, runs).evals


# ---- the model of a run


@pytest.mark.parametrize("settings", [{}, {"tuner": "full", "tower": "image"}, {"method": "frozen", "tuner": "none"}],
                         ids=["lora", "full", "frozen"])
def test_a_kept_model_comes_back_with_equal_features(tiny, runs, batch, settings):
    config, kept = tiny.replace(**settings), []
    run = load_or_train(config, runs, keep_model=True)
    small_runs.train(config, keep=kept.append)
    with torch.inference_mode():
        tuned, expected = load_tuned(run).encode(batch), kept[0].eval().encode(batch)
    assert torch.equal(tuned.image, expected.image) and torch.equal(tuned.text, expected.text)


def test_a_model_that_was_not_kept_is_missed_and_made_on_request(tiny, runs, no_training):
    run = load_or_train(tiny, runs)
    with pytest.raises(FileNotFoundError, match="keep_model=True"):
        load_tuned(run)
    again = load_or_train(tiny, runs, keep_model=True)
    assert again.evals.equals(run.evals) and (again.folder / "model.safetensors").exists()
    no_training()
    load_or_train(tiny, runs, keep_model=True)


# ---- tables, on rows written by hand


def row(stage, images, name, candidates, value, end=True, metric="accuracy"):
    return small_runs.row(stage, name, candidates, value, metric, images, end)


ROWS = [
    row(0, 0, "task 1", "all", 0.5),
    row(0, 0, "task 2", "all", 0.4),
    row(0, 0, "task 1", "own", 0.8),
    row(0, 0, "task 2", "own", 0.7),
    row(0, 0, "side", "own", 0.9),
    row(0, 0, "class a", "all", 0.1),
    row(1, 20, "seen classes", "seen", 0.55, end=False),
    row(1, 30, "seen classes", "seen", 0.6, end=False),
    row(1, 30, "seen classes", "seen", 0.6),
    row(1, 30, "task 1", "all", 0.7),
    row(1, 30, "task 2", "all", 0.3),
    row(1, 30, "task 1", "own", 0.9),
    row(1, 30, "task 1", "seen", 0.9),
    row(1, 30, "task 2", "seen", 0.0),
    row(1, 30, "side", "own", 0.85),
    row(1, 30, "class a", "seen", 0.75),
    row(1, 30, "drawings: text to image", "all", 0.2, metric="recall@1"),
    row(2, 60, "seen classes", "seen", 0.5),
    row(2, 60, "task 1", "all", 0.45),
    row(2, 60, "task 2", "all", 0.65),
    row(2, 60, "task 1", "seen", 0.45),
    row(2, 60, "task 2", "seen", 0.65),
    row(2, 60, "side", "own", 0.7),
    row(2, 60, "class a", "seen", 0.5),
    row(2, 60, "class b", "seen", 0.25),
    row(2, 60, "drawings: text to image", "all", 0.25, metric="recall@1"),
    row(2, 60, "drawings: text to image", "all", 0.75, metric="recall@5"),
]


def by_hand(folder: Path, rows: list[dict], config: RunConfig) -> Run:
    folder.mkdir(parents=True)
    (folder / "evals.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "steps.jsonl").write_text("")
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "result.json").write_text(json.dumps({"run_id": folder.name, "seconds": 1.0}))
    return Run(config, folder)


@pytest.fixture
def run(runs) -> Run:
    return by_hand(runs / "aaaa", ROWS, RunConfig())


def test_the_matrix_has_the_row_before_training(run):
    assert run.matrix().tolist() == [[0.5, 0.4], [0.7, 0.3], [0.45, 0.65]]
    assert run.matrix("all").shape == (3, 2)
    np.testing.assert_equal(run.matrix("own"), [[0.8, 0.7], [0.9, np.nan], [np.nan, np.nan]])
    np.testing.assert_equal(run.matrix("seen"), [[np.nan, np.nan], [0.9, 0.0], [0.45, 0.65]])


def test_the_matrix_of_a_task_without_images_is_nan(runs):
    rows = [
        row(stage, 10 * stage, name, "all", 0.5) for stage in range(4)
        for name in ("task 1", "task 3")
    ]
    matrix = by_hand(runs / "bbbb", rows, RunConfig()).matrix()
    assert matrix.shape == (4, 3) and np.isnan(matrix[:, 1]).all() and (matrix[:, [0, 2]]
                                                                        == 0.5).all()


def test_a_curve_has_each_point_once(run):
    assert run.curve().to_dict("list") == {
        "stage": [1, 1, 2], "images_seen": [20, 30, 60], "value": [0.55, 0.6, 0.5]
    }
    assert run.curve("side").value.tolist() == [0.9, 0.85, 0.7]
    assert run.curve("drawings", metric="text-to-image recall@5").value.tolist() == [0.75]


def test_final_values(run):
    assert run.final("seen classes") == 0.5
    assert run.final("side") == 0.7 and run.final("side", stage=0) == 0.9 and run.final(
        "side", stage=1) == 0.85
    assert run.final("1", "all", kind="task") == 0.45 and run.final("1", "own", stage=1,
                                                                    kind="task") == 0.9
    assert run.final("drawings", metric="text-to-image recall@5") == 0.75
    assert np.isnan(run.final("nothing"))


def test_accuracies_of_classes(run):
    table = run.classes("seen")
    assert table.index.tolist() == [1, 2] and table.columns.tolist() == ["a", "b"]
    np.testing.assert_equal(table.to_numpy(), [[0.75, np.nan], [0.5, 0.25]])
    assert run.classes("all").to_numpy().tolist() == [[0.1]]


def test_many_runs_in_one_table(run, runs):
    other = by_hand(runs / "cccc", ROWS[:3],
                    RunConfig(method="finetune", seed=4, stream_args={"tasks": 2}))
    table = load_runs(runs)
    assert len(table) == len(ROWS) + 3
    assert table.groupby("run_id").size().to_dict() == {"aaaa": len(ROWS), "cccc": 3}
    mine = table[table.run_id == "cccc"]
    assert set(mine.method) == {"finetune"} and set(mine.seed) == {4}
    assert set(
        mine.stream_args) == {'{"tasks": 2}'}  # one cell each, so that runs can be grouped by it
    pd.testing.assert_frame_equal(load_runs([run, other]), table)
    assert set(RunConfig.model_fields) <= set(table.columns)


def test_no_runs_make_an_empty_table(tmp_path):
    assert len(load_runs(tmp_path)) == 0 and len(load_runs([])) == 0


# ---- probes of a run


PROBES = ["gradients", "classes", "drift"]


def test_probe_tables_come_back_as_they_were_measured(tiny, runs):
    config, notes = tiny.replace(method="finetune"), {}
    run = load_or_train(config, runs, probes=PROBES)
    small_runs.train(config, probes=PROBES, notes=notes)
    for name in PROBES:
        pd.testing.assert_frame_equal(run.probe(name), notes[name], check_exact=True)
        assert len(run.probe(name))
    assert {file.name for file in run.folder.iterdir()} == {
        "config.json", "env.json", "evals.jsonl", "steps.jsonl", "correct.parquet", "tests.parquet",
        "result.json",
        *(f"{name}.parquet" for name in PROBES)
    }
    assert run.result["parameters"] == notes["cost"]["parameters"] > 0 < run.result[
        "images_per_second"]


def test_the_probes_of_a_frozen_run_are_empty_but_for_its_start(tiny, runs):
    run = load_or_train(tiny.replace(method="frozen", tuner="none"), runs, probes=PROBES)
    assert [len(run.probe(name)) for name in PROBES] == [0, 0, 6]
    assert run.result["parameters"] == 0


def test_probes_are_no_part_of_a_run(tiny, runs, tmp_path):
    plain, probed = load_or_train(tiny, runs), load_or_train(tiny, tmp_path / "others",
                                                             probes=PROBES)
    assert plain.id == probed.id == tiny.run_id
    assert plain.evals.equals(probed.evals) and plain.steps.equals(probed.steps)


def test_a_run_that_lacks_a_probe_is_made_again_with_all_that_it_had(tiny, runs, no_training):
    run = load_or_train(tiny, runs, keep_model=True, probes=["drift"])
    evals, steps, drift = run.evals, run.steps, run.probe("drift")
    weights = (run.folder / "model.safetensors").read_bytes()
    again = load_or_train(tiny, runs, probes=["gradients"])
    assert again.evals.equals(evals) and again.steps.equals(steps) and len(again.probe("gradients"))
    assert (again.folder / "model.safetensors").read_bytes() == weights
    pd.testing.assert_frame_equal(again.probe("drift"), drift)
    assert [path.name for path in runs.iterdir()] == [tiny.run_id]
    no_training()
    for probes in ([], ["drift"], ["gradients", "drift"]):
        load_or_train(tiny, runs, keep_model=True, probes=probes)
    with pytest.raises(AssertionError, match="trained again"):
        load_or_train(tiny, runs, probes=["classes"])
    assert len(find(tiny, runs).probe("drift")) == len(drift)  # what was there is still there


def test_a_probe_that_was_not_stored_is_missed(tiny, runs):
    run = load_or_train(tiny, runs, probes=["drift"])
    with pytest.raises(FileNotFoundError,
                       match=rf"{run.id} has no classes.parquet.*load_or_train.*'classes'"):
        run.probe("classes")


def test_an_unknown_probe_is_refused_before_any_work(tiny, runs, no_training):
    no_training()
    with pytest.raises(
            ValueError,
            match="probes='gradient' is unknown. Did you mean gradients.*classes, drift"):
        load_or_train(tiny, runs, probes=["drift", "gradient"])
    assert not runs.exists()


def test_a_run_keeps_the_identity_that_it_began_with_and_says_that_its_files_changed(
        monkeypatch, tiny, runs):
    told = iter([["before"], ["after"]])
    monkeypatch.setattr(RunConfig, "fingerprints", lambda self: next(told, ["after"]))
    monkeypatch.setattr("clstudy.training.setup._benchmark",
                        lambda config, device: config.make("benchmark").load())
    with pytest.warns(UserWarning, match="its files changed while it was made"):
        run = load_or_train(tiny, runs)
    assert run.id == tiny.id_of(["before"]) == run.result["run_id"] and run.fingerprints == [
        "before"
    ]
    assert len(run.evals) and [path.name for path in runs.iterdir()] == [run.id]
