"""The student's version of a notebook: derived, valid, without what the results say, and it runs up
to its stubs."""
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from clstudy.cli import app
from clstudy.notebooks import parameters, student
from clstudy.utils.paths import NOTEBOOKS
from tests.notebooks.test_notebooks_toy import TOY, run, world  # noqa: F401  (world is a fixture)

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("student")
    for path in PATHS:
        student.write(path, made)
    return made


def notebook(*cells) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_markdown_cell("# 99 · Title\n\nText", id="title"), *cells])


def derived(*cells) -> dict[str, str]:
    return {cell.id: cell.source for cell in student.derive(notebook(*cells)).cells}


def code(id: str, source: str, *tags: str):
    return new_code_cell(source, id=id, metadata={"tags": list(tags)})


def text(id: str, source: str, *tags: str):
    return new_markdown_cell(source, id=id, metadata={"tags": list(tags)})


def test_of_a_claim_stays_what_later_cells_read_and_no_more() -> None:
    source = "import numpy as np\nbest, unread = np.max(x), 1\nother = 2\nprint(best)\nassert best > other"
    found = derived(code("a", "x = [1]"), code("a-claim", source, "claim"), code("b", "best + 1"))
    assert found["a-claim"] == "import numpy as np\nbest, unread = np.max(x), 1"
    assert found["a-claim-mine"] == student.SENTENCE
    assert (found["a"], found["b"]) == ("x = [1]", "best + 1")


def test_a_name_that_only_a_removed_line_reads_is_not_kept_for_it() -> None:
    found = derived(code("a-claim", "best = 1\nprint(best)", "claim"), text("m", "and"),
                    code("b-claim", "print(best)", "claim"))
    assert list(found) == ["title", "a-claim-mine", "m", "b-claim-mine"]


def test_what_is_updated_in_place_later_is_kept() -> None:
    found = derived(code("claim", "rows = {}\nprint(rows)", "claim"), code("b", "rows |= {1: 2}"))
    assert found["claim"] == "rows = {}"


def test_two_claims_in_a_row_ask_for_one_sentence_and_readings_go() -> None:
    found = derived(code("a", "print(1)", "claim"), code("b", "print(2)", "long", "claim"),
                    text("c", "So.", "answer"))
    assert len(found) == 2 and student.SENTENCE in found.values()


def test_text_about_a_claim_is_no_claim() -> None:
    assert "claim-text" in derived(text("claim-text", "## Do the claims hold here?", "details"))


def test_guesses_exercises_and_questions_get_a_cell_unless_there_is_one() -> None:
    asked = "**Guess before you look.** Which?"
    found = derived(text("guess", asked, "guess"), code("a", "1"), text("guess-b", asked, "guess"),
                    code("ask", 'g = guess("?", "ab")', "guess"),
                    text("exercises", "## Exercises\n\n**1. One** (easy, 5 minutes).", "exercise"),
                    code("exercise", "check()", "exercise"),
                    text("exercise-2", "**2. Two** (hard, 40 minutes; no `check`).", "exercise"),
                    text("questions", "## Questions", "questions"))
    assert list(found) == [
        "title", "guess", "guess-mine", "a", "guess-b", "ask", "exercises", "exercise",
        "exercise-2", "exercise-2-work", "questions", "questions-mine"
    ]
    assert found["title"].startswith(f"# 99 · Title\n\n{student.HEAD}\n")


def test_the_notebook_itself_stays_as_it_is() -> None:
    given = notebook(code("claim", "print(1)", "claim"))
    before = nbformat.writes(given)
    assert nbformat.writes(student.derive(given)) != before == nbformat.writes(given)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_is_a_valid_stripped_notebook_with_stubs_hints_and_no_claim(path: Path,
                                                                         folder: Path) -> None:
    made, given = nbformat.read(folder / path.name, as_version=4), nbformat.read(path, as_version=4)
    nbformat.validate(made)
    assert len({cell.id for cell in made.cells}) == len(made.cells)
    for cell in made.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert not ("claim" in cell.metadata.get("tags", []) and "print(" in cell.source)
    for part in ("raise NotImplementedError", "check(", "<summary>Hint</summary>",
                 "Guess before you look"):
        counts = [sum(cell.source.count(part) for cell in one.cells) for one in (given, made)]
        assert counts[0] == counts[1], part
    assert student.SENTENCE in [cell.source for cell in made.cells]
    assert parameters.parameters(folder / path.name) == parameters.parameters(path)
    assert parameters.profiles(folder / path.name) == parameters.profiles(path)


def test_no_name_is_missing_in_any(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", folder],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_runs_up_to_its_stubs(folder: Path, world, capsys) -> None:  # noqa: F811
    stem = "03_candidates"
    run(str(folder / stem), TOY[stem] | {"crossed": [], "variants": {}} | world)
    said = capsys.readouterr().out
    assert "not written yet." in said and "You wrote no guess" in said


def test_work_that_was_done_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    def command(*words: str):
        return CliRunner().invoke(app, ["student", "03", "--out", str(tmp_path), *words])

    made = tmp_path / "03_candidates.ipynb"
    assert command().exit_code == 0 and command().exit_code == 0  # the same bytes again
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    fresh = made.read_text()
    made.write_text(fresh.replace("raise NotImplementedError", "return 1"))
    refused = command()
    assert refused.exit_code == 2 and "--overwrite" in refused.output
    assert "return 1" in made.read_text()
    assert command("--overwrite").exit_code == 0 and made.read_text() == fresh


def test_the_notebooks_own_folder_is_refused() -> None:
    with pytest.raises(FileExistsError, match="the notebook itself"):
        student.write(PATHS[0], NOTEBOOKS, overwrite=True)


def test_an_unknown_notebook_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["student", "nonsense", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "notebook='nonsense' is unknown" in done.output
