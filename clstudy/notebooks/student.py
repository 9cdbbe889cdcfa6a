"""A student's version of a notebook, derived and never kept by hand: what results say is taken out, what asks stays.

    cell                                     in the student's version
    a claim (`claim`, `…-claim`, `claim-…`)  a cell for an own sentence; of its code what later cells need
    a reading (`note`, `…-note`, `…-end`)    gone
    "Guess before you look"                  followed by a cell to write the guess down
    an exercise without a cell of its own    followed by one to work in
    *Questions*                              followed by a cell for the answers

Stubs, checks and hints stay. The kind of a cell is read from its id, which the notebooks choose by these rules.
"""
import ast
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

CLAIM = re.compile(r"(^|-)claim(-(?!text)|$)")
READING = re.compile(r"(^|-)(note|end)$")
EXERCISE = re.compile(r"^\*\*\d+\. .*\((easy|medium|hard), ", re.M)
BINDINGS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef)
HEAD = ("*Student's version. First write what you expect, then run the cell, then say in one sentence what you see. "
        "The stubs at the end are yours to fill in.*")
SENTENCE = "**Your sentence.** What do the results above show? With one number, and what would speak against it.\n\n…"
GUESS = "**My guess**, written before the next cell is run:\n\n…"
ANSWERS = "**My answers.**\n\n1. …"


def derive(notebook: NotebookNode) -> NotebookNode:
    """The student's version of a notebook that is stored stripped; the given one stays as it is."""
    cells, kept, needed = notebook.cells, [], set()
    for cell, following in reversed(list(zip(cells, [*cells[1:], None], strict=True))):
        new = _student(cell, following, needed)
        if new and kept and new[-1].source == kept[0].source == SENTENCE:
            new = new[:-1]  # one sentence for two claims in a row
        for one in new:
            needed |= names(one.source) if one.cell_type == "code" else set()
        kept = [*new, *kept]
    kept[0] = new_markdown_cell(kept[0].source.replace("\n", f"\n\n{HEAD}\n", 1), id=kept[0].id)
    copy = nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata, nbformat_minor=notebook.nbformat_minor)
    nbformat.validate(copy)
    return copy


def _student(cell: NotebookNode, following: NotebookNode | None, needed: set[str]) -> list[NotebookNode]:
    """What becomes of a cell. needed: names that later cells read."""
    if cell.cell_type == "code":
        return _without_outcome(cell, needed) if CLAIM.search(cell.id) else [cell]
    then_text = following is None or following.cell_type == "markdown"
    if READING.search(cell.id):
        return []
    if "**Guess before you look.**" in cell.source:
        return [cell] if _is_guess(following) else [cell, new_markdown_cell(GUESS, id=f"{cell.id}-mine")]
    if EXERCISE.search(cell.source) and then_text:
        return [cell, new_code_cell("pass  # your code", id=f"{cell.id}-work")]
    if cell.source.startswith("## Questions"):
        return [cell, new_markdown_cell(ANSWERS, id=f"{cell.id}-mine")]
    return [cell]


def _is_guess(cell: NotebookNode | None) -> bool:
    return cell is not None and cell.cell_type == "code" and "guess(" in cell.source


def _without_outcome(cell: NotebookNode, needed: set[str]) -> list[NotebookNode]:
    """A sentence to write in place of a claim, after the lines that bind what later cells read."""
    lines, wanted = [], set(needed)
    for statement in reversed(ast.parse(cell.source).body):
        if isinstance(statement, BINDINGS) and bound(statement) & wanted:
            lines.insert(0, ast.get_source_segment(cell.source, statement))
            wanted |= names(lines[0])
    code = [new_code_cell("\n".join(lines), id=cell.id, metadata=cell.metadata)] if lines else []
    return [*code, new_markdown_cell(SENTENCE, id=f"{cell.id}-mine")]


def names(source: str) -> set[str]:
    """Names that code reads."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
            and not isinstance(node.ctx, ast.Store)} | \
           {node.target.id for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)}


def bound(statement: ast.stmt) -> set[str]:
    """Names that a statement gives a value."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def write(path: Path, folder: Path, overwrite: bool = False) -> Path:
    """Write the student's version of a notebook into a folder. FileExistsError: one that differs is there already."""
    made = folder / path.name
    text = nbformat.writes(derive(nbformat.read(path, as_version=4))) + "\n"
    if made.exists() and not overwrite and made.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{made} is there and differs, perhaps by somebody's work: --overwrite, or another --out")
    if made.resolve() == path.resolve():
        raise FileExistsError(f"{made} is the notebook itself: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    made.write_text(text, encoding="utf-8")
    return made
