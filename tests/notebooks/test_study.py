"""A study: where it draws, which runs it packs, and what it says beside the stored evidence."""
import json
import os

import pytest
import small_runs
from typer.testing import CliRunner

from clstudy import cli
from clstudy.analysis import primary
from clstudy.notebooks import execute, parameters, study
from clstudy.runs import evidence
from clstudy.runs.run import Runs
from clstudy.utils import paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs, figures and three notebooks of a test: one takes runs, one computes, one is on
    memories."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path / "figures" / "runs.parquet")
    monkeypatch.delenv("CLSTUDY_FIGURES", raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "figures").mkdir()
    for stem, code, part in (("01_runs", "runs = train_all(configs)", "main"),
                             ("02_live", "trained = train(config)", "main"),
                             ("09_memory", "runs = evidence.known()", "memory")):
        about = {"study": part, "profiles": {"quick": {}, "full": {}}}
        cell = {"cell_type": "code", "source": code, "metadata": {}}
        (tmp_path / "notebooks" / f"{stem}.ipynb").write_text(
            json.dumps({"cells": [cell], "metadata": {"clstudy": about}}))
    found = sorted((tmp_path / "notebooks").glob("*.ipynb"))
    monkeypatch.setattr(parameters, "find_notebooks", lambda *_, **__: found)
    return tmp_path


def made(folder, seeds, last=.4) -> Runs:
    """Finished runs of two methods, in the folder of the study."""
    found = []
    for method, lead in (("finetune", 0), ("sit", .1)):
        for seed in seeds:
            run = small_runs.make(folder / f"{method}-{seed}", small_runs.evaluations(
                last=last + lead + .01 * seed))
            config = run.config.model_copy(update={"method": method, "seed": seed})
            (run.folder / "config.json").write_text(config.model_dump_json())
            found.append(type(run)(config, run.folder))
    return Runs(found)


def notebooks(*called, runs):
    """A stand-in for kernels: what notebook 01 does with these runs; the folders that it sees."""
    def execute_all(tasks, out, timeout=None, kernels=0):
        called[0].append({"tasks": [path.stem for path, _ in tasks], "kernels": kernels,
                          **{name: os.environ.get(name) for name in (
                              "CLSTUDY_FIGURES", paths.STORED, paths.ASKED)}})
        taken = runs()
        evidence.note([run.id for run in taken])
        primary.save("01", taken, "A_last")
        return 0

    return execute_all


def test_every_run_is_packed_and_a_small_study_stands_beside(folder, monkeypatch):
    seen, call = [], lambda *words: CliRunner().invoke(cli.app, ["study", *words])
    monkeypatch.setattr(study, "fill_readme", lambda: seen.append("readme"))
    all_runs = made(paths.RUNS, range(3))
    made(paths.RUNS, [7])  # no notebook asks for these
    monkeypatch.setattr(cli, "_execute", notebooks(seen, runs=lambda: all_runs))
    done = call("--profile", "full", "--part", "all", "--pack")
    assert done.exit_code == 0 and "packed: 6 runs" in done.output, done.output
    assert [run.id for run in evidence.load()] == sorted(run.id for run in all_runs)
    assert seen[0]["tasks"] == ["01_runs", "02_live", "09_memory"] and seen[0][paths.ASKED]
    assert seen[0]["CLSTUDY_FIGURES"] == str(folder / "figures")

    few = all_runs.where(seed=[0, 1])
    monkeypatch.setattr(cli, "_execute", notebooks(seen, runs=lambda: few))
    done = call()
    assert "01: 1 of 1 inside the stored interval" in done.output, done.output
    assert "6 runs are in both: 6 equal to the byte." in done.output
    assert (folder / "runs" / "figures" / "primary" / "01.csv").exists()
    assert seen[2]["CLSTUDY_FIGURES"] == str(folder / "runs" / "figures")
    assert primary.read("01", folder / "figures").n.tolist() == [3]  # that of the full study stays
    assert paths.FIGURES == folder / "figures" and paths.STORED not in os.environ


def test_figures_are_drawn_from_stored_runs_in_two_kernels(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(study, "fill_readme", lambda: None)
    evidence.pack(made(folder / "elsewhere", range(2)))
    monkeypatch.setattr(cli, "_execute", notebooks(seen, runs=evidence.known))
    words = ["study", "--profile", "full", "--part", "all", "--stored"]
    done = CliRunner().invoke(cli.app, words)
    assert "computed in the notebook, so their figures stay: 02_live" in done.output, done.output
    assert seen[0]["tasks"] == ["01_runs", "09_memory"] and seen[0]["kernels"] == 2
    assert seen[0][paths.STORED] == str(folder / "figures" / "runs.parquet")
    assert primary.read("01").n.tolist() == [2] and "equal" not in done.output
    assert CliRunner().invoke(cli.app, [*words, "--pack"]).exit_code == 2


def test_nothing_is_packed_where_a_notebook_failed_and_without_evidence_it_is_said(folder,
                                                                                 monkeypatch):
    monkeypatch.setattr(cli, "_execute", lambda *_, **__: 1)
    done = CliRunner().invoke(cli.app, ["study", "--profile", "full", "--pack"])
    assert done.exit_code == 1 and "not packed: a notebook failed" in done.output
    assert not paths.EVIDENCE.exists()
    assert "There is no stored evidence" in CliRunner().invoke(cli.app, ["study"]).output


def test_runs_that_are_no_longer_equal_are_so_far_apart(folder):
    evidence.pack(made(folder / "elsewhere", range(1)))
    made(paths.RUNS, range(1), last=.37)
    assert study.beside_stored().endswith(
        "2 runs are in both: 0 equal to the byte, the others up to 3 points apart.")


def test_tasks_end_in_one_code(folder, monkeypatch, tmp_path):
    ended = [(path, execute.Executed(path, path, 1.0, number == 0, None if number == 0 else "no"))
             for number, path in enumerate(parameters.find_notebooks())]
    monkeypatch.setattr(execute, "run_beside", lambda *_: iter(ended))
    assert cli._execute([(path, {}) for path, _ in ended], tmp_path, kernels=2) == 1
    assert cli._execute([(ended[0][0], {})], tmp_path, kernels=2) == 1
    ended[:] = ended[:1]
    assert cli._execute([(ended[0][0], {})], tmp_path, kernels=2) == 0
