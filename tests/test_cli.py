"""The `clstudy` command: what it starts, what it says, and its exit codes."""
import json
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from clstudy import cli
from clstudy.analysis import catalogue
from clstudy.runs import status, workers
from clstudy.utils import paths


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls the command with runs and notebooks in a folder of the test, and workers in this
    process."""
    def here(function, items, workers):
        for item in items:
            yield item, function(item)

    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(workers, "local", here)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def grid(tiny) -> list[str]:
    return [
        "benchmark=toy", f"model={tiny.model}", "stream_args.tasks=2", "batch_size=8",
        "steps_per_batch=1"
    ]


@pytest.fixture
def notebook(tmp_path) -> Path:
    cells = [
        nbformat.v4.new_code_cell("rate: float = 0.1  # step", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("assert rate < 1\nprint('rate', rate)")
    ]
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells,
                                 metadata={"clstudy": {"profiles": {"quick": {"rate": 0.5}}}}),
        tmp_path / "01_a.ipynb")
    return tmp_path / "01_a.ipynb"


def test_a_sweep_is_planned_made_shown_and_not_made_again(call, grid, tmp_path):
    planned = call("sweep", *grid, "seed=0..1", "--plan", "--name", "mine")
    assert planned.exit_code == 0 and "2 to do" in planned.stdout and not (tmp_path
                                                                           / "runs").exists()
    made = call("sweep", *grid, "seed=0..1", "--name", "mine")
    assert made.exit_code == 0 and "2 of 2 exist, 0 failed" in made.stdout
    assert "all made" in call("status").stdout and "done: 2" in call("status", "mine").stdout
    again = call("sweep", *grid, "seed=0..2")
    assert again.exit_code == 0 and "2 exist, 1 to do" in again.stdout


def test_a_failure_is_1_and_a_mistake_2(call, grid, tmp_path):
    failed = call("sweep", *grid, "stream_args.tasks=2,1000")
    assert failed.exit_code == status.FAILED == 1 and "FAILED stream_args" in failed.stdout
    for words in (("method=sitt", ), ("seed=3..1", ), ("--probe", "gradient"),
                  ("no_such_notebook", ), ("--name", "../up"),
                  (tmp_path / "a.toml", tmp_path / "b.toml"), (tmp_path / "none.toml", ),
                  ("seed=9", "--scheduler", "local", "--slurm", "x.toml")):
        assert call("sweep", *grid, *words).exit_code == 2, words
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 1
    assert call("status", "yours").exit_code == 2


def test_an_interrupt_is_130(call, grid, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(workers, "local", interrupted)
    done = call("sweep", *grid)
    assert done.exit_code == status.INTERRUPTED == 130 and "The same command goes on" in done.output


def test_words_beat_the_file_and_options_are_read_from_it(call, tiny, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f'benchmark = "toy"\nmodel = "{tiny.model}"\nseed = "0..3"\nbatch_size = 8\n'
                    '[stream_args]\ntasks = 2\n[sweep]\nkeep_model = true\nworkers = 1\n'
                    '[[grid]]\nmethod = "sit"\n[[grid]]\nmethod = "er"\n')
    done = call("sweep", file, "seed=0", "--name", "other")
    assert done.exit_code == 0 and "sweep other: 2 of 2" in done.stdout
    assert len(list((tmp_path / "runs").glob("*/model.safetensors"))) == 2
    assert "sweep mine: 8 in all, 2 exist" in call("sweep", file, "--plan").stdout


@pytest.mark.slow
def test_notebooks_are_swept_and_have_an_index(call, notebook, tmp_path):
    done = call("sweep", notebook, "rate=0.25,2")
    assert done.exit_code == 1 and "FAILED 01_a rate=2" in done.stdout and "1 of 2 exist" in done.stdout
    folder = tmp_path / "runs" / "notebooks"
    assert len(list(folder.glob("01_a-*/01_a.ipynb"))) == 1 == len(
        list(folder.glob("01_a-*/01_a.failed.ipynb")))
    page = (folder / "index.html").read_text()
    assert "2 notebooks, 1 failed" in page and "rate = 0.25" in page and "AssertionError" in page
    assert "1 exist, 1 to do" in call("sweep", notebook, "rate=0.25,2", "--plan").stdout


@pytest.mark.slow
def test_a_notebook_that_fails_is_not_0(call, notebook, tmp_path):
    out = tmp_path / "out"
    assert call("run", notebook, "-p", "rate=2", "--out", out).exit_code == 1
    assert (out / "01_a.failed.ipynb").exists() and "1 failed" in (out / "index.html").read_text()
    assert call("run", notebook, "-p", "rat=2", "--out", out).exit_code == 2
    assert call("run", notebook, "-p", "rate=fast", "--out", out).exit_code == 2


def test_clean_shows_and_removes_only_if_told(call, grid, tmp_path):
    call("sweep", *grid, "seed=0..1", "--name", "mine")
    (tmp_path / "figures").mkdir()
    kept, gone = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/result.json"))
    (tmp_path / "figures" / "a.json").write_text(json.dumps({"runs": [kept]}))
    shown = call("clean", "--figures", tmp_path / "figures")
    assert shown.exit_code == 0 and gone in shown.stdout and kept not in shown.stdout
    assert "nothing was removed" in shown.stdout and (tmp_path / "runs" / gone).exists()
    assert "removed" in call("clean", "--do", "--figures", tmp_path / "figures").stdout
    assert not (tmp_path / "runs" / gone).exists() and (tmp_path / "runs" / kept
                                                        / "result.json").exists()
    assert call("clean", "run").exit_code == 2


def test_what_is_listed_says_whole_sentences(call):
    assert catalogue.first_sentence("One line.\n\nMore.") == "One line."
    assert catalogue.first_sentence("A sentence that goes on\n    in the next line (arXiv 1.2). Then another.") \
        == "A sentence that goes on in the next line (arXiv 1.2)."
    for line in call("list", "methods").stdout.splitlines()[1:]:
        if not line.startswith(" " * 16):
            assert line.rstrip()[-1] in ".:;)", line
