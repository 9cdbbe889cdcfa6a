"""Slides: what stands on them, what is left out, and that nothing comes from the network."""
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from clstudy.cli import app
from clstudy.notebooks import slides
from clstudy.utils import paths

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


DETAILS = {"tags": ["details"]}


def printed(text: str):
    return new_output("stream", name="stdout", text=text)


@pytest.fixture
def executed(tmp_path):
    """A notebook as it is after its execution."""
    picture = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"})
    table = new_output(
        "execute_result",
        data={"text/html": "<style>b {}</style><table><tr><td>1.5</td></tr></table>"})
    notebook = new_notebook(cells=[
        new_markdown_cell("# 42 · An <answer>\n\n**Question.** To what?\n\n**Time.** Long."),
        new_code_cell("seeds: list[int] = [0]", outputs=[printed("not on a slide")]),
        new_markdown_cell("## The runs\n\nEvery run.", metadata=DETAILS),
        new_code_cell("train_all()", outputs=[printed("made")], metadata=DETAILS),
        new_markdown_cell("## What came out\n\nLook *here*."),
        new_markdown_cell("<details><summary>Hint</summary>secret</details>", metadata=DETAILS),
        new_code_cell("plots.save()", outputs=[printed("runs:  50%|##  | 1/2\n"), picture]),
        new_code_cell("print()",
                      outputs=[printed("“it holds”: a < b\nWhere? You wrote no guess.\n")]),
        new_code_cell("check()", outputs=[printed("mine: not written yet.\n")],
                      metadata={"tags": ["exercise"]}),
        new_code_cell("table", outputs=[table]),
        new_code_cell("print()", outputs=[printed("\n".join(f"row {i}" for i in range(40)))]),
        new_markdown_cell("## Not asked for\n\nOnly with an option."),
        new_code_cell("if False: pass"),
        new_markdown_cell("## In words\n\nA section without code."),
        new_markdown_cell("## Exercises\n\nHomework.", metadata=DETAILS),
        new_code_cell("check()", outputs=[printed("mine: not written yet.")], metadata=DETAILS)
    ])
    path = tmp_path / "42_answer.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_section_its_figures_and_what_was_printed_are_slides(executed, tmp_path):
    page = slides.write(executed, tmp_path / "out").read_text()
    found = re.findall(r'<section data-number="(\d+)">(.*?)</section>', page, flags=re.DOTALL)
    assert [number for number, _ in found] == [str(number) for number in range(1, 9)]
    title, section, figure, table, more, _, still, words = (body for _, body in found)
    assert "<h1" in title and "To what?" in title and "Time" not in title
    assert "What came out" in section and "<em>here</em>" in section
    assert PIXEL in figure and "“it holds”: a &lt; b" in figure
    assert "<td>1.5</td>" in table and "row 5" in table and "row 6" not in table and "<style" not in table
    assert more.count("row") == slides.LINES and "row 39" in still
    assert "A section without code" in words
    for absent in ("train_all()", "Every run", "made", "secret", "50%", "not written", "no guess",
                   "Not asked for", "Homework", "seeds"):
        assert absent not in page


def test_a_deck_needs_no_network_and_no_draft_is_left(executed, tmp_path):
    page = slides.write(executed, tmp_path / "out")
    assert page.name == "42_answer.html" and [path.name for path in (tmp_path / "out").iterdir()
                                              ] == [page.name]
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page.read_text())
    assert "ArrowRight" in page.read_text() and "@page" in page.read_text()


def test_a_notebook_that_was_not_run_is_refused_with_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setattr(paths, "RUNS", tmp_path)
    done = CliRunner().invoke(app, ["slides", "03"])
    assert done.exit_code and "clstudy run 03_candidates" in done.output
    assert CliRunner().invoke(app, ["slides", "no such"]).exit_code
