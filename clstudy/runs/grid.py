"""Grids: from words, a file or a dict to the runs of a sweep, all checked before the first starts.

    method=sit,finetune  seed=0..4  method_args.size=100,500            words of the command line
    {"method": ["sit", "finetune"], "seed": "0..4"}                     the same from a notebook

A list is a choice, and every combination of choices is made. A value that is itself a list stands
in brackets: `milestones=[3,5]`, in a dict or file `[[3, 5]]`. `clstudy/utils/values.py` is the
grammar of values. In a TOML file, tables are dotted names, `[sweep]` holds options of the command,
and each `[[grid]]` is a grid that adds to the settings above the first one."""
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
from clstudy.training.config import AXES, RunConfig, registry
from clstudy.utils.options import annotation, option_names
from clstudy.utils.validation import choose
from clstudy.utils.values import is_none, numbers, parts, values

OPTIONS = {"name", "notebooks", "profile", "workers", "probes", "keep_model", "timeout",
           "scheduler", "slurm"}  # of [sweep]
LARGEST = 100_000  # points of a grid; a larger one is a slip
SHOWN = 5  # impossible settings listed in one error


@dataclass(frozen=True)
class Task:
    """One thing to make: a run. (`notebooks/sweep.py` has another, with the same two verbs.)"""

    id: str  # of the run
    label: str  # the settings that differ from those of the other runs of the sweep
    config: RunConfig | None = None

    def make(self, work) -> None:
        """Make the run. work: the `sweep.Work` that says where and how."""
        store.load_or_train(self.config, work.runs, work.keep_model, probes=work.probes,
                            wait=work.wait)

    def made(self, work) -> bool:
        """Return whether the run exists, with the weights and probes that are wanted."""
        return store.is_usable(work.runs / self.id, work.keep_model, work.probes)


# ---- reading


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the grids of a TOML file, and the options of its table [sweep]."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    options, own = content.pop("sweep", {}), content.pop("grid", [{}])
    tables = isinstance(own, list) and all(isinstance(one, dict) for one in own)
    if not isinstance(options, dict) or not tables:
        raise ValueError(f"{path}: write [sweep] for options and [[grid]] for each grid")
    for name in options:
        choose(f"{path}: [sweep]", name, OPTIONS)
    return [{**_flat(content), **_flat(one)} for one in own], options


def words(given: Iterable[str]) -> dict[str, Any]:
    """Return the grid of the words NAME=VALUE, NAME=VALUE,VALUE and NAME=A..B."""
    found = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"{word!r}: write NAME=VALUE, NAME=VALUE,VALUE or NAME=A..B")
        found[name.strip()] = [one for part in parts(value) for one in values(part)]
    return found


def command(given: Sequence[str], options: Mapping[str, Any]
            ) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """Read the words of `clstudy sweep`: return grids, names of notebooks, and options.

    Settings and options of the command line beat those of a TOML file among the words."""
    files = [Path(word) for word in given if word.endswith(".toml")]
    rest = [word for word in given if not word.endswith(".toml")]
    if len(files) > 1:
        raise ValueError("name one TOML file at most; it may hold several [[grid]]")
    grids, found = [{}], {}
    if files:
        grids, found = read(files[0])
        found = {"name": files[0].stem, **found}
    found |= options
    notebooks = found.pop("notebooks", [])
    settings = words(word for word in rest if "=" in word)
    names = [word for word in rest if "=" not in word]
    return [one | settings for one in grids], names or notebooks, found


# ---- combining


def grid(shared: Mapping[str, Any] | Sequence[Mapping[str, Any]] = MappingProxyType({}), /,
         **choices: Any) -> list[RunConfig]:
    """Return every combination of some settings, each once.

        grid(method=["finetune", "sit"], lr=[5e-4, 5e-3], seed=range(8))

    A list or range is a choice; a value that is itself a list stands in another one
    (`milestones=[[3, 5]]`). An option of an axis is written flat (`weight=[1, 8]`: for the
    benchmark, stream, tuner and method that have it, the others are run once) or dotted
    (`**{"method_args.weight": [1, 8]}`). shared: settings of all runs as they are, where a list is
    a value and no choice; or several such dicts, each with all the choices. ValueError: impossible
    settings, an option that no choice has."""
    bases = [shared] if isinstance(shared, Mapping) else shared
    return _configs([_as_choices(base) | choices for base in bases])


def _as_choices(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_choices(value) if isinstance(value, Mapping) else [value]
            for name, value in settings.items()}


def points(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the choices, the last name quickest, with nested dicts for dotted
    names."""
    flat = _flat(grid)
    for name, choices in flat.items():
        if not choices:
            raise ValueError(f"{name}: no value to choose from")
    if math.prod(map(len, flat.values())) > LARGEST:
        raise ValueError(f"a grid has at most {LARGEST:,} points; {', '.join(flat)} give more")
    return [_nested(flat, values) for values in itertools.product(*flat.values())]


def _flat(grid: Mapping[str, Any], before: str = "") -> dict[str, list]:
    """Return the choices of each dotted name."""
    flat = {}
    for name, value in grid.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        elif isinstance(value, range | list | tuple):
            flat[before + name] = list(value)
        else:
            flat[before + name] = isinstance(value, str) and numbers(value) or [value]
    return flat


def _nested(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    nested = {}
    for name, value in zip(names, values, strict=True):
        *outer, last = name.split(".")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{name}: {part} has a value of its own already")
        inside[last] = value
    return nested


# ---- from points to runs


def run_tasks(grids: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Return the runs of some grids, each once.

    ValueError: the impossible settings, up to five of them in words; missing data."""
    return from_configs(_configs(grids))


def from_configs(configs: Sequence[RunConfig]) -> list[Task]:
    """Return runs as tasks, each once. ValueError, FileNotFoundError: missing data."""
    by_id = {config.run_id: config for config in configs}
    benchmarks = {json.dumps([config.benchmark, config.benchmark_args], sort_keys=True): config
                  for config in by_id.values()}
    for config in benchmarks.values():
        config.make("benchmark").require()
    named = labels([config.model_dump(mode="json") for config in by_id.values()])
    return [Task(id, label or id, config)
            for (id, config), label in zip(by_id.items(), named, strict=True)]


def labels(settings: list[dict[str, Any]], always: Sequence[str] = ()) -> list[str]:
    """Return a label for each dict of settings: the names in `always`, and all that differ."""
    written = [{name: json.dumps(value, sort_keys=True) for name, value in one.items()}
               for one in settings]
    names = dict.fromkeys(name for one in written for name in one)
    vary = [name for name in names if len({one.get(name) for one in written}) > 1]
    shown = dict.fromkeys([*always, *vary])
    return [" ".join(f"{name}={one[name]}" if name else one[name] for name in shown if name in one)
            .replace('"', "") for one in written]


def _configs(grids: Sequence[Mapping[str, Any]]) -> list[RunConfig]:
    """Return the configurations of some grids, each once. ValueError: impossible settings."""
    given = [point for choices in grids for point in points(choices)]
    routed, unknown = _routed(given)
    errors, configs = {_unknown(name, given): None for name in unknown}, {}
    for point in routed:
        try:
            config = RunConfig(**_with_none(point))
            configs[config.run_id] = config
        except ValidationError as error:
            errors |= dict.fromkeys(map(_in_words, error.errors()))
    if errors:
        listed = "\n".join(f"  {said}" for said in list(errors)[:SHOWN])
        more = f"\n  and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise ValueError(f"impossible settings in a grid of {len(given)}:\n{listed}{more}")
    return list(configs.values())


def _routed(points: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Move each option that is written flat to the options of the axis that has it.

    A point whose choices do not have the option goes without. Also return the names that no choice
    of any point has. ValueError: several axes of a point have the option."""
    routed, unknown, taken = [], {}, set()
    for point in points:
        settings = {name: value for name, value in point.items() if name in RunConfig.model_fields}
        for name in [name for name in point if name not in settings]:
            unknown[name] = None
            axes = [axis for axis, kind in _chosen(point).items() if name in option_names(kind)]
            if len(axes) > 1:
                dotted = " or ".join(f"{axis}_args.{name}" for axis in axes)
                raise ValueError(f"{name} is an option of {' and of '.join(axes)}: write {dotted}")
            for axis in axes:
                taken.add(name)
                own = settings.get(f"{axis}_args", {})
                if isinstance(own, Mapping):  # RunConfig refuses anything else
                    settings[f"{axis}_args"] = {**own, name: point[name]}
        routed.append(settings)
    return routed, [name for name in unknown if name not in taken]


def _chosen(point: Mapping[str, Any]) -> dict[str, type]:
    """Return the class that a point chooses on each axis, where it names a known one."""
    names = {axis: point.get(axis, RunConfig.model_fields[axis].default) for axis in AXES}
    known = {axis: registry(axis).get(name.partition(":")[0])  # folder:PATH is a benchmark
             for axis, name in names.items() if isinstance(name, str)}
    return {axis: kind for axis, kind in known.items() if kind}


def _unknown(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Return the error for a name that is neither a setting nor an option of any choice."""
    kinds = {kind for point in points for kind in _chosen(point).values()}
    options = {option for kind in kinds for option in option_names(kind)}
    try:
        return choose("setting", name, options.union(RunConfig.model_fields))
    except ValueError as error:
        return str(error)


def _in_words(error: Mapping[str, Any]) -> str:
    """Return an error of pydantic with the name of the setting."""
    name = ".".join(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ")
    return f"{name}: {said}" if name else said


def _with_none(point: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the word `none` by None where a setting may be None, since TOML cannot write it."""
    found = {name: _none(value, RunConfig.model_fields[name].annotation)
             for name, value in point.items()}
    for axis, kind in _chosen(found).items():
        options = found.get(f"{axis}_args")
        if isinstance(options, Mapping):
            found[f"{axis}_args"] = {name: _none(value, annotation(kind, name))
                                     for name, value in options.items()}
    return found


def _none(value: Any, annotation: Any) -> Any:
    return None if is_none(value) and type(None) in get_args(annotation) else value
