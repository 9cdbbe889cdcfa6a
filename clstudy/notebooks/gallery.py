"""figures/README.md: every figure and table with its question, notebook, command and runs.

The same files in `figures/` and `notebooks/` give the same page."""
import html
import json
import os
from pathlib import Path

from clstudy.notebooks import cells
from clstudy.notebooks.parameters import find_notebooks
from clstudy.utils.files import write_text
from clstudy.utils.paths import NOTEBOOKS

HEAD = (
    "# Figures and tables\n\n"
    "Written by `clstudy gallery`, and at the end of `clstudy study`: do not edit. Each figure is "
    "drawn by one notebook; its\nnumber is the notebook's. PNG to read, PDF to print (vector, "
    "TrueType fonts embedded), JSON with the caption and the\n`run_id` of every run behind it; "
    "tables as Markdown, CSV and LaTeX (booktabs). Settings and numbers of seeds are those\n"
    "of the profile that was run last.\n")


def names(folder: Path) -> list[str]:
    """List the figures and tables of a folder, in order."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in (".png", ".md")}
                  - {"README"})


def page(folder: Path, notebooks: Path = NOTEBOOKS) -> str:
    """Write the page as Markdown."""
    left, parts = names(folder), [HEAD]
    if (folder / "runs.parquet").exists():
        parts.append("All runs behind them, in one file: [runs.parquet](runs.parquet). `make "
                     "figures` draws every figure again from it.\n")
    if (folder / "lab" / "README.md").exists():
        parts.append("Pictures of the widgets in a browser: [lab](lab/README.md).\n")
    for path in find_notebooks(folder=notebooks):
        found = cells.read(path)["cells"]
        drawing = [*cells.tagged(found, "figure"), *cells.tagged(found, "table")]
        code = "\n".join(map(cells.source, drawing))
        mine = [name for name in left if f'"{name}"' in code]
        left = [name for name in left if name not in mine]
        if mine:
            place = os.path.relpath(path, folder).replace(os.sep, "/")
            link = f"[`{path.stem}`]({place}) · `clstudy run {path.stem}`"
            parts.append(f"## {cells.title(found)}\n\n{cells.question(found)}\n\n{link}\n")
            parts += [_entry(folder, name) for name in mine]
    if left:
        parts += ["## No notebook draws these\n", *(_entry(folder, name) for name in left)]
    return "\n".join(parts)


def _entry(folder: Path, name: str) -> str:
    """Write the entry of a figure, of a table, or of both under one name."""
    files = {kind: folder / f"{name}.{kind}" for kind in ("png", "pdf", "json", "md", "csv", "tex")}
    files = {kind: path for kind, path in files.items() if path.exists()}
    about = json.loads(files["json"].read_text(encoding="utf-8")) if "json" in files else {}
    parts, caption = [f"### {name}"], about.get("caption", "")
    if "png" in files:
        alt = html.escape(caption or name)
        parts += [f'<img src="{name}.png" alt="{alt}" width="720">', caption, _runs(about)]
    if "md" in files:
        parts.append("Table: " + files["md"].read_text(encoding="utf-8").partition("\n")[0])
    parts.append(" · ".join(f"[{kind.upper()}]({path.name})" for kind, path in files.items()))
    return "\n\n".join(filter(None, parts)) + "\n"


def _runs(about: dict) -> str:
    """Say how many runs of what: "6 runs: emoji; disjoint; lora; finetune, sit; seeds 0, 1, 2."."""
    count, settings = len(about.get("runs", [])), about.get("settings", {})
    axes = ("benchmark", "stream", "tuner", "method")
    parts = [", ".join(map(str, settings[axis])) for axis in axes if settings.get(axis)]
    if parts:
        seeds = settings["seed"]
        parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    told = f"{count} run{'s' * (count > 1)}{': ' * bool(parts)}{'; '.join(parts)}."
    return told if count else ""


def write(folder: Path, notebooks: Path = NOTEBOOKS) -> Path:
    """Write the page into the folder."""
    return write_text(folder / "README.md", page(folder, notebooks))
