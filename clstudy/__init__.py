"""clstudy: a laboratory for continual learning of CLIP.

Importing it costs nothing: the names below, and torch with them, are imported at their first use
(PEP 562). Import a module by its own name: `from clstudy import plots`,
`from clstudy.notebooks.exercises import check`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# No name is that of its module (train.train): importing the module would replace it.
_HOME = {
    "RunConfig": "clstudy.training.config",
    "load_clip": "clstudy.models.loading",
    "load_or_train": "clstudy.runs.store",
    "load_runs": "clstudy.runs.run",
    "Runs": "clstudy.runs.run",
    "grid": "clstudy.runs.grid",
    "scores": "clstudy.analysis.scores",
    "compare": "clstudy.analysis.comparisons",
    "train_all": "clstudy.runs.workers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'clstudy' has no attribute {name!r}; it has {', '.join(_HOME)}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
