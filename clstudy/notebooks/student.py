"""The student's version of a notebook: claims and answers are taken out, questions stay.

    tag of a cell      in the student's version
    claim              a cell for an own sentence; of the code stays what later cells need
    answer             nothing
    guess              the text, and a cell to write the guess down
    exercise           the text, and a cell to work in
    questions          the text, and a cell for the answers

A text whose next cell is code with the same tag, such as a stub, gets no cell. Stubs, checks and
hints stay. The version is derived from the notebook and never kept by hand."""
import ast
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from clstudy.notebooks.cells import tags
from clstudy.utils.files import write_text

BINDINGS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef)
HEAD = ("*Student's version. First write what you expect, then run the cell, then say in one "
        "sentence what you see. The stubs at the end are yours to fill in.*")
SENTENCE = ("**Your sentence.** What do the results above show? With one number, and what would "
            "speak against it.\n\n…")
GUESS = "**My guess**, written before the next cell is run:\n\n…"
ANSWERS = "**My answers.**\n\n1. …"
ADDED = {  # tag of a text → end of the id, kind and content of the cell that follows it
    "guess": ("mine", new_markdown_cell, GUESS),
    "exercise": ("work", new_code_cell, "pass  # your code"),
    "questions": ("mine", new_markdown_cell, ANSWERS),
}


def derive(notebook: NotebookNode) -> NotebookNode:
    """Derive the student's version of a notebook without outputs; the given one stays as it is."""
    cells, kept, needed = notebook.cells, [], set()
    for cell, following in reversed(list(zip(cells, [*cells[1:], None], strict=True))):
        new = _student(cell, following, needed)
        if new and kept and new[-1].source == kept[0].source == SENTENCE:
            new.pop()  # one sentence for two claims in a row
        needed = needed.union(*(names(one.source) for one in new if one.cell_type == "code"))
        kept = [*new, *kept]
    kept[0] = new_markdown_cell(kept[0].source.replace("\n", f"\n\n{HEAD}\n", 1), id=kept[0].id)
    copy = nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata,
                                    nbformat_minor=notebook.nbformat_minor)
    nbformat.validate(copy)
    return copy


def _student(cell: NotebookNode, following: NotebookNode | None,
             needed: set[str]) -> list[NotebookNode]:
    """Return what becomes of a cell. needed: names that later cells read."""
    if "claim" in tags(cell):
        return _without_claim(cell, needed)
    if "answer" in tags(cell):
        return []
    asked = ADDED.keys() & tags(cell) if cell.cell_type == "markdown" else set()
    if following is not None and following.cell_type == "code":
        asked -= set(tags(following))
    return [cell, *(new(text, id=f"{cell.id}-{end}") for end, new, text in map(ADDED.get, asked))]


def _without_claim(cell: NotebookNode, needed: set[str]) -> list[NotebookNode]:
    """Keep the statements that bind what later cells read; add a cell for a sentence."""
    lines, wanted = [], set(needed)
    for statement in reversed(ast.parse(cell.source).body):
        if isinstance(statement, BINDINGS) and bound(statement) & wanted:
            lines.insert(0, ast.get_source_segment(cell.source, statement))
            wanted |= names(lines[0])
    code = [new_code_cell("\n".join(lines), id=cell.id, metadata=cell.metadata)] if lines else []
    return [*code, new_markdown_cell(SENTENCE, id=f"{cell.id}-mine")]


def names(source: str) -> set[str]:
    """Find the names that code reads."""
    nodes = list(ast.walk(ast.parse(source)))
    stored = {id(node) for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)}
    stored -= {id(node.target) for node in nodes if isinstance(node, ast.AugAssign)}  # also read
    return {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in stored}


def bound(statement: ast.stmt) -> set[str]:
    """Find the names that a statement gives a value."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def write(path: Path, folder: Path, overwrite: bool = False) -> Path:
    """Write the student's version into a folder. FileExistsError: another version is there."""
    made = folder / path.name
    text = nbformat.writes(derive(nbformat.read(path, as_version=4))) + "\n"
    if made.resolve() == path.resolve():
        raise FileExistsError(f"{made} is the notebook itself; choose another --out")
    if made.exists() and not overwrite and made.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{made} exists and differs; somebody may have worked in it. "
                              "Add --overwrite, or choose another --out")
    return write_text(made, text)
