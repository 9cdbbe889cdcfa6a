"""What may be removed from the folder of runs: everything that no figure needs and nobody makes.

A figure keeps the ids of its runs in figures/NAME.json; these runs stay, and so do all runs of a
sweep that is running."""
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clstudy.runs.lock import Busy, RunLock
from clstudy.runs.run import finished_folders
from clstudy.runs.status import alive, states
from clstudy.utils import paths
from clstudy.utils.validation import choose

KINDS = {
    "drafts": "runs that were stopped, with their saved states",
    "runs": "finished runs that no figure needs",
    "tables": "tables made from runs that no longer exist",
    "notebooks": "notebooks that were stopped",
    "sweeps": "states of sweeps whose runs no longer exist",
    "weights": "tuned weights of finished runs, only if named"
}
USUAL = tuple(kind for kind in KINDS if kind != "weights")
YOUNG = 3600  # seconds; a younger notebook may be running


@dataclass(frozen=True)
class Item:
    """A file or folder that may be removed."""

    kind: str
    path: Path
    size: int  # bytes


def needed(figures: Path) -> set[str]:
    """Return the ids of the runs behind figures. ValueError: a file of a figure is damaged."""
    found = set()
    for path in figures.rglob("*.json"):
        try:
            found |= set(json.loads(path.read_text())["runs"])
        except (KeyError, TypeError):  # another kind of file
            continue
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read, so nothing is removed: {error}") from None
    return found


def unneeded(runs: Path | None = None, figures: Path | None = None,
             kinds: Sequence[str] = USUAL) -> list[Item]:
    """Return what may be removed, in the order of `kinds`. figures: those that keep their runs."""
    runs, figures = runs or paths.RUNS, figures or paths.FIGURES
    for kind in kinds:
        choose("kind", kind, KINDS)
    kept = {id for state in states(runs) if alive(state) for id in state["tasks"]}
    kept |= needed(figures) | needed(runs / "figures")  # where small studies draw
    items = list(_unneeded(runs, kept))
    removed = {item.path for item in items if item.kind == "runs" and "runs" in kinds}
    items = [item for item in items if item.path.parent not in removed]  # weights count once
    return [item for kind in kinds for item in items if item.kind == kind]


def _unneeded(runs: Path, kept: set[str]) -> Iterator[Item]:
    for folder in sorted(runs.glob("*.draft*")):
        if folder.is_dir() and _is_free(folder):
            yield _item("drafts", folder)
    finished = finished_folders(runs)
    for folder in finished:
        if folder.name not in kept:
            yield _item("runs", folder)
        for path in folder.glob("*.safetensors"):
            yield _item("weights", path)
    ids = {folder.name for folder in finished}
    for path in sorted(runs.glob("*.parquet")):
        if not ids & _made_from(path):
            yield _item("tables", path)
    for path in sorted((runs / "notebooks").rglob("*.running-*.ipynb")):
        if time.time() - path.stat().st_mtime > YOUNG:
            yield _item("notebooks", path)
    for state in states(runs):
        made = [folder / id for folder in (runs, runs / "notebooks") for id in state["tasks"]]
        if not alive(state) and not any(path.exists() for path in made):
            yield _item("sweeps", runs / "sweeps" / state["name"])


def _made_from(table: Path) -> set[str]:
    """Return the ids of the runs in a table, in its column run_id or its index; none if damaged."""
    try:
        found = pd.read_parquet(table)
    except Exception:  # damaged in any way
        return set()
    return set(map(str, found.get("run_id", found.index)))


def _is_free(draft: Path) -> bool:
    """Return whether nobody makes this run."""
    try:
        with RunLock(draft, wait=False):
            return True
    except (Busy, OSError):
        return False


def _item(kind: str, path: Path) -> Item:
    files = path.rglob("*") if path.is_dir() else [path]
    return Item(kind, path, sum(file.lstat().st_size for file in files if file.is_file()))


def remove(items: Sequence[Item]) -> int:
    """Remove items, except drafts that somebody has taken up since; return the bytes freed."""
    freed = 0
    for item in items:
        if item.kind == "drafts":
            try:
                with RunLock(item.path, wait=False):
                    shutil.rmtree(item.path, ignore_errors=True)
            except Busy:
                continue
        elif item.path.is_dir():  # renamed first, so that nobody reads half a run
            aside = item.path.with_name(f"{item.path.name}.draft-removed")
            item.path.rename(aside)
            shutil.rmtree(aside)
        else:
            item.path.unlink(missing_ok=True)
        freed += item.size
    return freed


def table(items: Sequence[Item]) -> str:
    """Return a text: each kind with its number and size, and each item."""
    if not items:
        return "nothing to do"
    lines = []
    for kind, about in KINDS.items():
        mine = [item for item in items if item.kind == kind]
        if mine:
            lines.append(f"{kind}: {len(mine)}, {megabytes(_total(mine))} ({about})")
            lines += [f"  {megabytes(item.size):>10}  {item.path.name}" for item in mine]
    return "\n".join([*lines, f"in all {megabytes(_total(items))}"])


def _total(items: Sequence[Item]) -> int:
    return sum(item.size for item in items)


def megabytes(size: int) -> str:
    """Return a number of bytes as 1.2 MB or 3.4 kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
