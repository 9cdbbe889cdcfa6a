"""Studies: the notebooks of a part, their parameters, and the evidence that they leave.

The profile `full` makes the runs behind the committed figures; they are packed into
figures/runs.parquet. Any other profile draws into RUNS/figures, and its primary outcomes are told
beside the stored ones."""
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clstudy.analysis import primary
from clstudy.notebooks import cells, parameters
from clstudy.plots import METHODS
from clstudy.runs import evidence
from clstudy.runs.cleanup import megabytes
from clstudy.runs.run import finished
from clstudy.utils import paths
from clstudy.utils.files import write_text
from clstudy.utils.validation import choose

COMMITTED = "full"  # the profile behind figures/
Task = tuple[Path, dict[str, Any]]


def of_part(part: str, profile: str) -> tuple[list[Task], list[str]]:
    """Return the notebooks of a part ("main", "memory" or "all") with their parameters, and the
    names of those that do not have the profile.

    ValueError: an unknown part, or a profile that no notebook has. OSError: missing data."""
    parts = {path: parameters.part(path) for path in parameters.find_notebooks()}
    choose("part", part, [*dict.fromkeys(parts.values()), "all"])
    found = [path for path, of in parts.items() if part in (of, "all")]
    ours = [path for path in found if profile in parameters.profiles(path)]
    tasks = [(path, parameters.choose_parameters(path, {}, profile)) for path in ours or found]
    parameters.check_data(tasks)
    return tasks, [path.stem for path in found if path not in ours]


def takes_runs(notebook: Path) -> bool:
    """Return whether the figures of a notebook are of finished runs: others compute as they run."""
    code = "\n".join(map(cells.source, cells.read(notebook)["cells"]))
    return bool(re.search(r"\btrain_all\(|\bevidence\.known\(", code))


def divided(tasks: Sequence[Task]) -> tuple[list[Task], list[str]]:
    """Return the notebooks whose figures are of finished runs, and the names of the others."""
    return ([task for task in tasks if takes_runs(task[0])],
            [path.stem for path, _ in tasks if not takes_runs(path)])


@contextmanager
def surroundings(profile: str, stored: bool = False, listed: bool = False) -> Iterator[None]:
    """Within the block, notebooks draw into the folder of their profile.

    stored: they take stored runs and train nothing. listed: the runs that they ask for are
    listed, for `pack`."""
    figures, environment = paths.FIGURES, dict(os.environ)
    if profile != COMMITTED and not os.environ.get("CLSTUDY_FIGURES"):
        paths.FIGURES = paths.RUNS / "figures"
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    os.environ["CLSTUDY_FIGURES"] = str(paths.FIGURES)
    os.environ["CLSTUDY_RUNS"] = str(paths.RUNS)
    if stored:  # two kernels, one core each
        os.environ |= {paths.STORED: str(paths.EVIDENCE), paths.CORES: "1"}
    if listed:
        _asked().unlink(missing_ok=True)
        os.environ[paths.ASKED] = str(_asked())
    try:
        yield
    finally:
        paths.FIGURES = figures
        os.environ.clear()
        os.environ.update(environment)


def _asked() -> Path:
    return paths.RUNS / "asked.txt"


def pack(whole: bool) -> str:
    """Pack the runs that notebooks asked for since `surroundings(listed=True)`; say so.

    whole: all notebooks were executed, and stored runs that none of them asked for are dropped."""
    asked = evidence.asked(_asked()) if _asked().exists() else {}
    path = evidence.pack(finished(paths.RUNS, asked), only=asked if whole else None, tables=asked)
    return f"packed: {len(evidence.load(path))} runs, {megabytes(path.stat().st_size)}, {path}"


def fill_readme(readme: Path = paths.REPOSITORY / "README.md") -> None:
    """Write the README's blocks of primary outcomes anew, where the committed figures are drawn."""
    if paths.FIGURES == paths.EVIDENCE.parent:
        labels = {name: look[0] for name, look in METHODS.items()}
        text = readme.read_text(encoding="utf-8")
        write_text(readme, primary.filled(text, labels=labels))


def beside_stored() -> str:
    """Tell each primary outcome of this study beside the stored one, and whether the runs that are
    in both are equal."""
    if not paths.EVIDENCE.exists():
        return f"There is no stored evidence to compare with ({paths.EVIDENCE})."
    told = primary.report(paths.FIGURES, paths.EVIDENCE.parent)
    return "\n".join(["Beside the stored evidence:", *filter(None, [told, _shared()])])


def _shared() -> str:
    stored = evidence.load()
    both = evidence.shared(finished(paths.RUNS, {run.id for run in stored}), stored)
    if both.empty:
        return "No run is in both."
    equal = int(both.equal.sum())
    said = f"{len(both)} runs are in both: {equal} equal to the byte"
    if equal < len(both):
        others = "" if both["same machine"].all() else " (another machine, or other versions)"
        said += f", the others up to {both.apart.max():.2g} points apart{others}"
    return f"{said}."
