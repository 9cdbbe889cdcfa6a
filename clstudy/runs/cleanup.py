"""What may be removed from the folder of runs: all that no figure needs and nobody is making.

A figure keeps the ids of the runs behind it in figures/NAME.json; these runs stay, and so does
every run of a sweep that somebody drives. Nothing is removed unless it is asked for."""
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clstudy.runs.lock import Busy, RunLock
from clstudy.runs.status import alive, states
from clstudy.utils import paths
from clstudy.utils.validation import choose

KINDS = {
    "drafts": "runs that were stopped, with their saved states",
    "runs": "finished runs that no figure needs",
    "tables": "tables without the runs that they were made from",
    "notebooks": "notebooks that were stopped",
    "sweeps": "states of sweeps none of whose runs is there",
    "weights": "tuned weights of finished runs, only if named"
}
USUAL = tuple(kind for kind in KINDS if kind != "weights")
YOUNG = 3600  # seconds; what has no owner that could be asked, and is younger, may be in the making


@dataclass(frozen=True)
class Item:
    """Something that may go, and why."""

    kind: str
    path: Path
    size: int  # bytes


def needed(figures: Path) -> set[str]:
    """Ids of the runs behind figures. ValueError: a damaged file, for then nobody knows what it
    needs."""
    found = set()
    for path in figures.rglob("*.json"):
        try:
            found |= set(json.loads(path.read_text())["runs"])
        except (KeyError, TypeError):  # some other file
            continue
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read, so nothing is removed: {error}") from None
    return found


def unneeded(runs: Path | None = None, figures: Path | None = None,
             kinds: Sequence[str] = USUAL) -> list[Item]:
    """What may go, in the order of `kinds`. figures: the folder whose figures keep their runs."""
    runs = runs or paths.RUNS
    if figures is None:
        figures = paths.FIGURES
    for kind in kinds:
        choose("kind", kind, KINDS)
    kept = needed(figures) | {id for state in states(runs) if alive(state) for id in state["tasks"]}
    finished = [
        path.parent for path in sorted(runs.glob("*/result.json")) if "." not in path.parent.name
    ]
    items = list(_all(runs, finished, kept))
    going = {item.path for item in items if item.kind == "runs"} if "runs" in kinds else set()
    return [item for kind in kinds for item in items  # what goes with its run is not counted twice
            if item.kind == kind and not (kind != "runs" and item.path.parent in going)]


def _all(runs: Path, finished: list[Path], kept: set[str]) -> Iterator[Item]:
    for folder in sorted(runs.glob("*.draft*")):
        if folder.is_dir() and _dead(folder):
            yield _item("drafts", folder)
    for folder in finished:
        if folder.name not in kept:
            yield _item("runs", folder)
        for path in folder.glob("*.safetensors"):
            yield _item("weights", path)
    there = {folder.name for folder in finished}
    for path in sorted(runs.glob("*.parquet")):  # gathered from several runs, by id
        if not there & set(_made_from(path)):
            yield _item("tables", path)
    for path in sorted((runs / "notebooks").rglob("*.running-*.ipynb")):
        if time.time() - path.stat().st_mtime > YOUNG:
            yield _item("notebooks", path)
    for state in states(runs):
        if not alive(state) and not any((runs / id).exists() or (runs / "notebooks" / id).exists()
                                        for id in state["tasks"]):
            yield _item("sweeps", runs / "sweeps" / state["name"])


def _made_from(table: Path) -> list[str]:
    """The ids in a gathered table, in a column or as its index; one that cannot be read was made
    from nothing."""
    import pandas as pd

    try:
        found = pd.read_parquet(table)
        return [str(id) for id in found.get("run_id", found.index.to_series()).unique()]
    except Exception:  # damaged in any way
        return []


def _dead(draft: Path) -> bool:
    """Whether nobody makes this run."""
    try:
        with RunLock(draft, wait=False):
            return True
    except (Busy, OSError):
        return False


def _item(kind: str, path: Path) -> Item:
    inside = path.rglob("*") if path.is_dir() else [path]
    return Item(kind, path, sum(one.lstat().st_size for one in inside if one.is_file()))


def remove(items: Sequence[Item]) -> int:
    """Remove what was found; bytes that were freed. A run is renamed first, so that no half of one
    is ever read."""
    freed = 0
    for item in items:
        if item.kind == "drafts":
            if not _remove_draft(item.path):
                continue
        elif item.path.is_dir():
            aside = item.path.with_name(f"{item.path.name}.draft-removed")
            item.path.rename(aside)
            shutil.rmtree(aside)
        else:
            item.path.unlink(missing_ok=True)
        freed += item.size
    return freed


def _remove_draft(draft: Path) -> bool:
    """Under its lock, so that nobody goes on from what is being removed."""
    try:
        with RunLock(draft, wait=False):
            shutil.rmtree(draft, ignore_errors=True)
        return True
    except Busy:
        return False


def table(items: Sequence[Item]) -> str:
    """Kinds with their number and size, and each thing."""
    lines = []
    for kind, about in KINDS.items():
        mine = [item for item in items if item.kind == kind]
        if mine:
            lines.append(
                f"{kind}: {len(mine)}, {megabytes(sum(item.size for item in mine))} ({about})")
            lines += [f"  {megabytes(item.size):>10}  {item.path.name}" for item in mine]
    return "\n".join([*lines, f"in all {megabytes(sum(item.size for item in items))}"]
                     if lines else ["nothing to do"])


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
