"""Every notebook: stored stripped, in the skeleton of the house, its parameters and profiles fit;
one is executed."""
import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from clstudy.notebooks import cells as documents
from clstudy.notebooks import parameters
from clstudy.notebooks.execute import run_notebook
from clstudy.utils.paths import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
OPENING = ("**Question.**", "**What you will see.**", "**Time.**", "two CPU cores", "GPU")
SECTIONS = ("## Try it", "## Exercises", "## Questions", "## References")
LINES = 8  # the aim is 5; a longer cell is a function that has not found its module, or carries the tag `long`
TRAINING = re.compile(r"\.backward\(\)|torch\.optim\b")
PLOTTING = re.compile(r"^\s*(import|from) (matplotlib|seaborn|plotly)", re.M)
every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tagged(path: Path, tag: str) -> list:
    return documents.tagged(cells(path), tag)


def names(path: Path, *tags: str) -> set[str]:
    """The names under which the cells with a tag save figures and tables."""
    trees = [ast.parse(cell.source) for tag in tags for cell in tagged(path, tag)]
    calls = [node for tree in trees for node in ast.walk(tree)
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "save"
             and getattr(node.func.value, "id", "") != "primary"]
    return {call.args[1].value for call in calls}


@every
def test_its_tags_are_known_and_say_what_the_cells_are(path: Path) -> None:
    found = nbformat.read(path, as_version=4).cells
    assert {tag for cell in found for tag in documents.tags(cell)} <= documents.TAGS.keys()
    kinds = {
        "code": ("parameters", "claim", "figure", "table", "long"),
        "markdown": ("answer", "questions")
    }
    for kind, only in kinds.items():
        assert {cell.cell_type for tag in only for cell in documents.tagged(found, tag)} <= {kind}
    for cell in cells(path):
        assert ("plots.save(" in cell.source) == ("figure" in documents.tags(cell)), cell.id
        assert ("export.save(" in cell.source) == ("table" in documents.tags(cell)), cell.id
    assert len(documents.tagged(found, "main")) <= 1 and len(documents.tagged(found,
                                                                              "questions")) == 1


@every
def test_it_is_stored_stripped_with_readable_ids(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) <= {"clstudy", "kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert not re.fullmatch(r"[0-9a-f]{8}",
                                cell["id"]), f"{cell['id']}: a random id; name the cell"
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None


@every
def test_it_follows_the_skeleton(path: Path) -> None:
    text = cells(path, "markdown")
    opening = "\n".join(cell.source for cell in text[:2])
    assert opening.startswith("# ")
    assert [part for part in OPENING if part not in opening] == []
    titles = [line for cell in text for line in cell.source.splitlines() if line.startswith("## ")]
    assert tuple(titles[-4:]) == SECTIONS
    assert len(titles) > 4  # something to read before


@every
def test_parameters_and_both_profiles_fit(path: Path) -> None:
    assert len(tagged(path, "parameters")) == 1
    assert all(parameter.help
               for parameter in parameters.parameters(path)), "each parameter says what it means"
    assert {"quick", "full"} <= set(parameters.profiles(path))
    for profile in parameters.profiles(path):
        parameters.profile_parameters(path, profile)


@every
def test_cells_are_short(path: Path) -> None:
    free = {cell.id for tag in ("parameters", "long") for cell in tagged(path, tag)} | {"imports"}
    lengths = {
        cell.id: sum(bool(line.strip()) for line in cell.source.splitlines())
        for cell in cells(path)
    }
    assert {name: count for name, count in lengths.items()
            if count > LINES and name not in free} == {}


@every
def test_it_holds_no_plotting_code_and_training_only_where_it_is_the_subject(path: Path) -> None:
    source = "\n".join(cell.source for cell in cells(path))
    assert not PLOTTING.search(source)
    assert path.stem == "02_the_loop" or not TRAINING.search(source)


@every
def test_each_figure_is_followed_by_a_claim(path: Path) -> None:
    code = cells(path)
    for cell, following in zip(code, [*code[1:], None], strict=True):
        if "figure" in documents.tags(cell):
            assert following and "claim" in documents.tags(
                following), f"{cell.id}: no claim after the figure"
            assert "print(" in following.source, f"{cell.id}: no sentence after the figure"


@every
def test_exercises_are_checked_against_the_package(path: Path) -> None:
    exercises = tagged(path, "exercise")
    assert exercises
    assert [cell.id for cell in exercises
            if not re.search(r"\bcheck\(\w+, like=", cell.source)] == []
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert "<summary>Hint</summary>" in text and re.search(r"\((easy|medium|hard), \d+ minutes",
                                                           text)


def test_each_figure_is_claimed_by_one_notebook_and_bears_its_number() -> None:
    claimed: dict[str, str] = {}
    for path in PATHS:
        for name in names(path, "figure", "table"):
            assert name.startswith(path.stem[:2]), f"{path.stem} draws {name}"
            assert name not in claimed, f"{name} is drawn by {claimed.get(name)} and {path.stem}"
            claimed[name] = path.stem


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own; the others run in this process, in test_notebooks_toy.py."""
    stem, small = "00_start_here", {"things": ["dog", "pizza"], "extra": ["an animal"]}
    monkeypatch.setenv("CLSTUDY_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CLSTUDY_FIGURES", str(tmp_path / "figures"))
    done = run_notebook(NOTEBOOKS / f"{stem}.ipynb", small, tmp_path, timeout=300,
                        progress=False)
    assert done.ok, done.error
    drawn = names(NOTEBOOKS / f"{stem}.ipynb", "figure")
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == drawn
    shown = [
        output for cell in cells(done.path) for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= len(drawn)
