"""Grids: from words, a file or a dict to the runs and notebooks of a sweep, all checked before the
first one starts.

    method=sit,finetune  seed=0..4  benchmark=emoji  method_args.size=100,500      words of the command line
    {"method": ["sit", "finetune"], "seed": "0..4", "benchmark": "emoji"}          the same from a notebook

`clstudy/utils/values.py` is the grammar of the values. A list is a choice, and every combination of
choices is made. A value that is itself a list stands in brackets: `milestones=[3,5]`, in a dict or
file `[[3, 5]]`. In a TOML file tables are dotted names, `[sweep]` holds options of the command, and
each `[[grid]]` is a grid of its own on top of what stands before the first."""
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import ValidationError

from clstudy.runs import store
from clstudy.runs.run import find
from clstudy.training.config import AXES, RunConfig, registry
from clstudy.utils.validation import choose
from clstudy.utils.options import annotation
from clstudy.utils.values import is_none, numbers, parts, values

OPTIONS = {
    "name", "notebooks", "profile", "workers", "probes", "keep_model", "timeout", "scheduler",
    "slurm"
}
LARGEST = 100_000  # points of a grid; more are a slip
SHOWN = 5  # impossible settings listed in one error


@dataclass(frozen=True)
class Task:
    """One thing to make: a run. `notebooks/sweep.py` has another, with the same two verbs."""

    id: str  # of the run
    label: str  # what sets it apart from the others of its sweep
    config: RunConfig | None = None

    def make(self, work) -> None:
        """Make the run; `work` is the `sweep.Work` that was asked for it."""
        store.load_or_train(self.config, work.runs, work.keep_model, None, work.probes,
                            wait=work.wait)

    def made(self, work) -> bool:
        """Whether it is there, with all that is wanted of it."""
        return store._usable(find(self.config, work.runs), work.keep_model, work.probes)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The grids of a TOML file, and the options of its table [sweep]."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    options, own = content.pop("sweep", {}), content.pop("grid", [{}])
    if not isinstance(options, dict) or not isinstance(own, list) or not all(
            isinstance(one, dict) for one in own):
        raise ValueError(f"{path}: write [sweep] for options and [[grid]] for each grid")
    for name in options:
        choose(f"{path}: [sweep]", name, OPTIONS)
    return [{**_flat(content), **_flat(grid)} for grid in own], options


def words(given: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE, NAME=VALUE,VALUE and NAME=A..B as a grid."""
    grid = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"{word!r}: write NAME=VALUE, NAME=VALUE,VALUE or NAME=A..B")
        grid[name.strip()] = [one for part in parts(value) for one in values(part)]
    return grid


def points(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the choices, the last name quickest; dotted names are put into their
    dict."""
    flat = _flat(grid)
    for name, choices in flat.items():
        if not choices:
            raise ValueError(f"{name}: no value to choose from")
    if math.prod(map(len, flat.values())) > LARGEST:
        raise ValueError(f"a grid has at most {LARGEST:,} points; {', '.join(flat)} give more")
    return [
        _nested(dict(zip(flat, values, strict=True)))
        for values in itertools.product(*flat.values())
    ]


def grid(shared: Mapping[str, Any] | Sequence[Mapping[str, Any]] = MappingProxyType({}), /,
         **choices: Any) -> list[RunConfig]:
    """Every combination of some settings, each once: `grid(method=["finetune", "sit"], lr=[5e-4,
    5e-3], seed=range(8))`.

    A list or range is a choice; a value that is itself a list stands in another one
    (`milestones=[[3, 5]]`). An option of an axis is written flat (`weight=[1, 8]`: for the
    benchmark, stream, tuner and method that has it, the others are run once) or dotted
    (`**{"method_args.weight": [1, 8]}`). shared: settings of all runs as they are, where a list is
    a value and no choice; or several such dicts, each with all the choices. ValueError: impossible
    settings, an option that nothing has."""
    bases = [shared] if isinstance(shared, Mapping) else shared
    return _configs([_as_choices(base) | choices for base in bases])


def _as_choices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a grid of one point."""
    return {
        name: _as_choices(value) if isinstance(value, Mapping) else [value]
        for name, value in settings.items()
    }


def routed(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points in which an option that was written flat stands in the options of the axis that has
    it; where nothing that a point chose has it, the point goes without. ValueError: several have
    it."""
    taken, made = set(), []
    loose = {name for point in points for name in point if name not in RunConfig.model_fields}
    for point in points:
        settings = {name: value for name, value in point.items() if name not in loose}
        for name in loose & point.keys():
            kinds = {axis: registry(axis).get(settings.get(axis, RunConfig.model_fields[axis].default))
                     for axis in AXES}
            having = [axis for axis, kind in kinds.items() if kind and annotation(kind, name) is not None]
            if len(having) > 1:
                raise ValueError(f"{name} is an option of {' and of '.join(having)}: write "
                                 + " or ".join(f"{axis}_args.{name}" for axis in having))
            for axis in having:
                taken.add(name)
                settings[f"{axis}_args"] = {**settings.get(f"{axis}_args", {}), name: point[name]}
        made.append(settings)
    unknown = loose - taken  # RunConfig refuses these, in its own words
    return [settings | {name: point[name] for name in unknown & point.keys()}
            for settings, point in zip(made, points, strict=True)]


def run_tasks(grids: Sequence[Mapping[str, Any]]) -> list[Task]:
    """The runs of some grids, each once. ValueError: all settings that are impossible, up to five
    in words; data that are missing."""
    return from_configs(_configs(grids))


def _configs(grids: Sequence[Mapping[str, Any]]) -> list[RunConfig]:
    """The configurations of some grids, each once."""
    configs, errors, given = {}, {}, 0
    for point in routed([point for choices in grids for point in points(choices)]):
        given += 1
        try:
            config = RunConfig(**_meant(point))
            configs[config.run_id] = config
        except ValidationError as error:
            for one in error.errors():
                name = ".".join(map(str, one["loc"]))
                said = one["msg"].removeprefix("Value error, ")
                known = f". Choices: {', '.join(RunConfig.model_fields)}" if one[
                    "type"] == "extra_forbidden" else ""
                errors.setdefault(f"{name + ': ' if name else ''}{said}{known}", point)
    if errors:
        listed = "\n".join(f"  {said}" for said in list(errors)[:SHOWN])
        more = f"\n  and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise ValueError(f"impossible settings in a grid of {given}:\n{listed}{more}")
    return list(configs.values())


def _meant(point: Mapping[str, Any]) -> dict[str, Any]:
    """`none` is no value where a setting may have none (TOML has no word of its own for it), and
    else a name."""
    meant = {}
    for name, value in point.items():
        known = RunConfig.model_fields.get(name)
        meant[name] = _or_none(value, known and known.annotation)
    for axis in AXES:
        name = meant.get(axis, RunConfig.model_fields[axis].default)
        kind = registry(axis).get(name) if isinstance(name, str) else None
        options = meant.get(f"{axis}_args")
        if kind and isinstance(options, Mapping):
            meant[f"{axis}_args"] = {option: _or_none(value, annotation(kind, option))
                                     for option, value in options.items()}
    return meant


def _or_none(value: Any, annotation: Any) -> Any:
    return None if is_none(value) and type(None) in get_args(annotation) else value


def from_configs(configs: Sequence[RunConfig]) -> list[Task]:
    """Runs as tasks, each once. ValueError, FileNotFoundError: a benchmark whose data are
    missing."""
    configs = {config.run_id: config for config in configs}
    seen = {
        json.dumps([c.benchmark, c.benchmark_args], sort_keys=True): c for c in configs.values()
    }
    for config in seen.values():
        config.make("benchmark").require()
    named = labels([config.model_dump(mode="json") for config in configs.values()])
    return [
        Task(id, label or id, config)
        for (id, config), label in zip(configs.items(), named, strict=True)
    ]


def labels(settings: list[dict[str, Any]], always: Sequence[str] = ()) -> list[str]:
    """Of each, what is not the same in all."""
    told = [{name: json.dumps(value, sort_keys=True) for name, value in one.items()}
            for one in settings]
    vary = [name for one in told for name in one if len({other.get(name) for other in told}) > 1]
    names = [*always, *(name for name in dict.fromkeys(vary) if name not in always)]
    return [
        " ".join(f"{name}={one[name]}" if name else str(one[name]) for name in names
                 if name in one).replace('"', "") for one in told
    ]


def _flat(grid: Mapping[str, Any], before: str = "") -> dict[str, list]:
    """Dotted names with their choices."""
    flat = {}
    for name, value in grid.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        elif isinstance(value, range | list | tuple):
            flat[before + name] = list(value)
        else:
            flat[before + name] = isinstance(value, str) and numbers(value) or [value]
    return flat


def _nested(point: dict[str, Any]) -> dict[str, Any]:
    nested = {}
    for name, value in point.items():
        *outer, last = name.split(".")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{name}: {part} has a value of its own already")
        inside[last] = value
    return nested
