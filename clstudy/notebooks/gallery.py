"""figures/README.md: every figure and table with its question, notebook, command and runs.

The same files in `figures/` and `notebooks/` give the same page."""
import html
import json
from pathlib import Path

from clstudy.notebooks import cells
from clstudy.notebooks.parameters import find_notebooks
from clstudy.utils.files import write_text
from clstudy.utils.paths import NOTEBOOKS

HEAD = """# Figures and tables

Written by `clstudy gallery`, and at the end of `clstudy study`: do not edit. Each figure is drawn by one notebook; its
number is the notebook's. PNG to read, PDF to print (vector, TrueType fonts embedded), JSON with the caption and the
`run_id` of every run behind it; tables as Markdown, CSV and LaTeX (booktabs). Settings and numbers of seeds are those
of the profile that was run last.
"""


def names(folder: Path) -> list[str]:
    """List the figures and tables of a folder, in order."""
    return sorted({path.stem for kind in ("png", "md")
                   for path in folder.glob(f"*.{kind}")} - {"README"})


def page(folder: Path, notebooks: Path = NOTEBOOKS) -> str:
    """Write the page as Markdown."""
    found, parts = names(folder), [HEAD]
    if (folder / "lab" / "README.md").exists():
        parts.append("Pictures of the widgets in a browser: [lab](lab/README.md).\n")
    for path in [*find_notebooks(folder=notebooks), None]:
        title, question, drawn = _about(path) if path else ("No notebook draws these", "", "")
        mine = [name for name in found if f'"{name}"' in drawn] if path else found
        found = [name for name in found if name not in mine]
        if mine:
            parts.append(f"## {title}\n" + (f"\n{question}\n\n{_command(path)}\n" if path else ""))
            parts += [_entry(folder, name) for name in mine]
    return "\n".join(parts)


def _about(notebook: Path) -> tuple[str, str, str]:
    """Return title and question of a notebook, and the code that draws its figures and tables."""
    found = cells.read(notebook)["cells"]
    drawing = [*cells.tagged(found, "figure"), *cells.tagged(found, "table")]
    return cells.title(found), cells.question(found), "\n".join(map(cells.source, drawing))


def _command(notebook: Path) -> str:
    return f"[`{notebook.stem}`](../notebooks/{notebook.name}) · `clstudy run {notebook.stem}`"


def _entry(folder: Path, name: str) -> str:
    """Write the entry of a figure, of a table, or of both under one name."""
    path, lines = folder / f"{name}.json", [f"### {name}", ""]
    about = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (folder / f"{name}.png").exists():
        caption = about.get("caption", "")
        lines += [f'<img src="{name}.png" alt="{html.escape(caption or name)}" width="720">', ""]
        lines += [caption, ""] if caption else []
        lines += [_runs(about), ""] if about.get("runs") else []
    if (folder / f"{name}.md").exists():
        lines += [
            "Table: " + (folder / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0], ""
        ]
    kinds = [
        kind for kind in ("png", "pdf", "json", "md", "csv", "tex")
        if (folder / f"{name}.{kind}").exists()
    ]
    return "\n".join([*lines, " · ".join(f"[{kind.upper()}]({name}.{kind})" for kind in kinds), ""])


def _runs(about: dict) -> str:
    """Say how many runs of what: "6 runs: emoji; disjoint; lora; finetune, sit; seeds 0, 1, 2"."""
    count, settings = len(about["runs"]), about.get("settings", {})
    parts = [
        ", ".join(map(str, settings[name])) for name in ("benchmark", "stream", "tuner", "method")
        if settings.get(name)
    ]
    parts += [f"seed{'s' * (len(settings['seed']) > 1)} {', '.join(map(str, settings['seed']))}"
              ] if parts else []
    return f"{count} run{'s' * (count > 1)}" + (": " + "; ".join(parts) if parts else "") + "."


def write(folder: Path, notebooks: Path = NOTEBOOKS) -> Path:
    """Write the page into the folder."""
    return write_text(folder / "README.md", page(folder, notebooks))
