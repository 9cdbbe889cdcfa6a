"""Studies: which notebooks belong to a part of the study, and with which parameters."""
from pathlib import Path
from typing import Any

from clstudy.notebooks import parameters
from clstudy.utils.validation import choose


def of_part(part: str, profile: str) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
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
