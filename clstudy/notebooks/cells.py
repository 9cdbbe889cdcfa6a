"""The cells of a notebook, read as JSON (nbformat takes 1.5 s to import), and their tags."""
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TAGS = {  # what a tag says about a cell
    "parameters": "code: the default of each parameter",
    "claim": "code: prints what the results show; the student's version asks for a sentence",
    "answer": "text: reads the results; the student's version leaves it out",
    "guess": "text: asks for a guess; code: keeps it",
    "exercise": "text: sets an exercise; code: has its stub",
    "questions": "text: asks questions",
    "figure": "code: draws and saves a figure",
    "main": "code: draws the figure that the index of executed notebooks shows",
    "table": "code: saves a table",
    "details": "text and code for the reader of the notebook: slides leave it out",
    "long": "code that has to be longer than other cells",
}
Cell = Mapping[str, Any]


def read(notebook: Path) -> dict[str, Any]:
    """Read a notebook. ValueError: the file is no notebook."""
    try:
        document = json.loads(Path(notebook).read_text(encoding="utf-8"))
        for cell in document.get("cells", []):
            source(cell)
            if not isinstance(cell["cell_type"], str) or not isinstance(tags(cell), list):
                raise ValueError("a cell has another form")
        profiles = document.get("metadata", {}).get("clstudy", {}).get("profiles", {})
        if not all(isinstance(one, dict) for one in (profiles, *profiles.values())):
            raise ValueError("a profile is no object of parameters")
        return document
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook} is not a notebook: {type(error).__name__}: {error}") from None


def source(cell: Cell) -> str:
    """Return the text or the code of a cell."""
    return "".join(cell["source"])


def tags(cell: Cell) -> list[str]:
    """Return the tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def tagged(cells: Iterable[Cell], tag: str) -> list[Cell]:
    """Select the cells that have a tag."""
    return [cell for cell in cells if tag in tags(cell)]


def until(cells: Sequence[Cell], heading: str) -> list[Cell]:
    """Return the cells before the one that begins with a heading; all if none does."""
    end = next((place for place, cell in enumerate(cells) if source(cell).startswith(heading)),
               len(cells))
    return list(cells[:end])


def outputs(cells: Iterable[Cell]) -> Iterator[Any]:
    """Yield the outputs of all cells, one after the other."""
    for cell in cells:
        yield from cell.get("outputs", [])


def title(cells: Sequence[Cell]) -> str:
    """Return the heading of the first cell."""
    return source(cells[0]).partition("\n")[0].removeprefix("# ")


def question(cells: Sequence[Cell]) -> str:
    """Return the question that the first cell asks, empty where it asks none."""
    start = "**Question.**"
    for paragraph in source(cells[0]).split("\n\n"):
        if paragraph.strip().startswith(start):
            return paragraph.strip().removeprefix(start).strip()
    return ""
