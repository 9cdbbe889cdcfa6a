"""Notebooks in a sweep, which executes each with every combination of parameters."""
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clstudy.notebooks import html
from clstudy.notebooks.execute import run_notebook
from clstudy.notebooks.parameters import check_data, choose_parameters
from clstudy.runs.grid import Task, labels, points
from clstudy.utils.files import fingerprint


@dataclass(frozen=True)
class NotebookTask(Task):
    """A notebook and its parameters; its id is its name and a hash of all that it runs with."""

    notebook: Path | None = None
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)

    def make(self, work) -> None:
        """Execute the notebook and write the index anew. RuntimeError: a cell failed."""
        done = run_notebook(self.notebook, self.parameters, self.folder(work), timeout=work.timeout,
                            progress=False)
        html.index(work.runs / "notebooks")
        if not done.ok:
            raise RuntimeError(f"{done.error} (see {done.path})")

    def made(self, work) -> bool:
        """Tell whether the executed notebook exists."""
        return (self.folder(work) / self.notebook.name).exists()

    def folder(self, work) -> Path:
        """Return the folder of the executed notebook: each set of parameters has its own."""
        return work.runs / "notebooks" / self.id


def tasks(notebooks: Sequence[Path], grids: Sequence[Mapping[str, Any]],
          profile: str | None) -> list[NotebookTask]:
    """Combine notebooks with all points of the grids. ValueError: a notebook lacks a parameter."""
    found = {}
    for path, point in itertools.product(notebooks, itertools.chain(*map(points, grids))):
        values = choose_parameters(path, point, profile)
        check_data([(path, values)])
        key = json.dumps([fingerprint(path), values], sort_keys=True)  # a changed notebook is new
        found[f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"] = (path, values)
    named = labels([{"": path.stem, **values} for path, values in found.values()], always=[""])
    return [NotebookTask(id, label, None, path, values)
            for (id, (path, values)), label in zip(found.items(), named, strict=True)]
