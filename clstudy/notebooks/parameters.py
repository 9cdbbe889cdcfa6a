"""The parameters of a notebook: a tagged cell declares them, a profile or the reader sets them.

A parameter is one line of the cell tagged `parameters`: `name: type = value  # meaning`. Papermill
says nothing about a parameter that it does not know, nor about a value of the wrong type. Here
both are errors, before a kernel starts."""
import ast
import difflib
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from clstudy.notebooks.cells import NotebookNameError, read, source, tagged
from clstudy.training.config import check_choice, registry, with_path
from clstudy.utils.options import make
from clstudy.utils.paths import NOTEBOOKS
from clstudy.utils.values import is_none, literal, parts, values

TYPES = {
    "int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict,
    "Literal": Literal
}


class ParameterError(ValueError):
    """A parameter or a profile that a notebook does not have, or a value that does not fit."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell."""

    name: str
    type: str  # the annotation as written: int, list[int], Literal["a", "b"], …
    default: str  # the source of the default value
    help: str

    @cached_property
    def python_type(self) -> Any:
        """The annotation as a type."""
        try:
            return eval(self.type, {"__builtins__": {}}, TYPES)
        except Exception:
            known = ", ".join(TYPES)
            raise ParameterError(
                f"{self.name}: type {self.type} is not made of {known}, None") from None

    @property
    def value(self) -> Any:
        """The default value."""
        return ast.literal_eval(self.default)

    def convert(self, given: Any) -> Any:
        """Return `given` as a value of this parameter's type; utils/values.py reads a text."""
        adapter = TypeAdapter(self.python_type)
        try:
            for reading in _readings(given):
                with suppress(ValidationError):
                    return adapter.validate_python(reading, strict=True)
        except ValueError as error:  # a range that is none
            raise ParameterError(f"{self.name}: {error}") from None
        near = _near(given, self._choices())
        raise ParameterError(f"{self.name} = {given!r} is not {self._expected()}{near}")

    def _choices(self) -> list[str]:
        return [str(c) for c in get_args(self.python_type)] if get_origin(
            self.python_type) is Literal else []

    def _expected(self) -> str:
        choices = self._choices()
        return f"one of: {', '.join(choices)}" if choices else f"of type {self.type}"


def parameters(notebook: Path) -> list[Parameter]:
    """Read the parameters of `notebook`, in the order of its cell tagged `parameters`."""
    code = next(map(source, tagged(read(notebook).get("cells", []), "parameters")), "")
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ParameterError(
            f"{notebook}: the parameters cell is not plain Python: {error}") from None
    comments = _comments(code)
    lines = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
    return [_parameter(line, code, comments, Path(notebook)) for line in lines]


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each value to its parameter's type. ParameterError: a name or a value is wrong."""
    known = {p.name: p for p in parameters(notebook)}
    stem = Path(notebook).stem
    checked = {}
    for name, value in given.items():
        if name not in known:
            near = _near(name, list(known))
            raise ParameterError(f"{stem} has no parameter {name!r}{near}\n{table(known.values())}")
        try:
            checked[name] = known[name].convert(value)
            check_choice(name, checked[name])
        except ValueError as error:
            raise ParameterError(f"{stem}: {error}") from None
    return checked


def profiles(notebook: Path) -> dict[str, dict[str, Any]]:
    """Read the profiles of `notebook`: its metadata {"clstudy": {"profiles": {name: {…}}}}."""
    return read(notebook).get("metadata", {}).get("clstudy", {}).get("profiles", {})


def profile_parameters(notebook: Path, name: str) -> dict[str, Any]:
    """Return the parameters of the profile `name`, checked."""
    known = profiles(notebook)
    if name not in known:
        choices = ", ".join(
            sorted(known)) or 'none: its metadata has no {"clstudy": {"profiles": {…}}}'
        near = _near(name, list(known))
        raise ParameterError(
            f"{Path(notebook).stem} has no profile {name!r}{near}; profiles: {choices}")
    return check_parameters(notebook, known[name])


def part(notebook: Path) -> str:
    """Name the study that a notebook belongs to: its metadata clstudy.study, or "main"."""
    return str(read(notebook)["metadata"].get("clstudy", {}).get("study", "main"))


def choose_parameters(notebook: Path, given: Mapping[str, Any],
                      profile: str | None = None) -> dict[str, Any]:
    """Return what `notebook` runs with: the values of the profile, then the given ones."""
    base = profile_parameters(notebook, profile) if profile is not None else {}
    return base | check_parameters(notebook, given)


def check_data(tasks: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Refuse a notebook whose benchmark has no data here, before any notebook is executed."""
    for path, given in tasks:
        values = {p.name: p.value for p in parameters(path)} | given
        name, options = with_path(str(values.get("benchmark", "emoji")),
                                  values.get("benchmark_args", {}))
        if name not in (
                "emoji",
                "emoji_concepts"):  # these come with the repository; the import takes seconds
            make("benchmark", name, registry("benchmark"), options).require()


def table(rows: Iterable[Parameter]) -> str:
    """Write parameters as aligned text, for help and for errors."""
    cells = [(p.name, p.type, f"= {p.default}", p.help) for p in rows]
    if not cells:
        return "  (no parameters)"
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    padded = ([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]] for row in cells)
    return "\n".join("  " + "  ".join(row).rstrip() for row in padded)


def _comments(code: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _parameter(line: ast.stmt, code: str, comments: dict[int, str], notebook: Path) -> Parameter:
    """One statement of the parameters cell; its default must be a plain value of its own type."""
    text = ast.get_source_segment(code, line) or ""
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            and line.value is not None):
        form = "write `name: type = value  # meaning`"
        raise ParameterError(f"{notebook.name}: parameters cell: {text!r}: {form}")
    annotation = ast.get_source_segment(code, line.annotation)
    default = ast.get_source_segment(code, line.value)
    parameter = Parameter(line.target.id, annotation, default, comments.get(line.end_lineno, ""))
    try:
        parameter.convert(parameter.value)
    except ParameterError as error:
        raise ParameterError(f"{notebook.name}: default of {error}") from None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ParameterError(
            f"{notebook.name}: {text!r}: a default must be a plain value") from None
    return parameter


def _readings(given: Any) -> Iterator[Any]:
    """Yield what `given` may mean, `none` before the text itself: `str | None` can be None."""
    if not isinstance(given, str):
        yield given
        return
    if is_none(given):
        yield None
    if isinstance(word := literal(given), bool):
        yield word
    yield given
    yield word
    pieces = [part for part in parts(given) if part]
    yield [None if is_none(one) else one for part in pieces for one in values(part)]
    yield [one if isinstance(one := literal(part), str) else part for part in pieces]  # only texts


def _near(name: Any, choices: Iterable[str]) -> str:
    """Suggest choices spelled like `name`; a dict says what to suggest for each spelling."""
    shown = choices if isinstance(choices, dict) else {one: one for one in choices}
    near = dict.fromkeys(shown[one] for one in difflib.get_close_matches(str(name), shown, n=3))
    return f"; did you mean {' or '.join(near)}?" if near else ""


def find_notebooks(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Find notebooks by path, number or a part of the file name; without names all of `folder`."""
    known = sorted(folder.glob("*.ipynb"))
    found = [_find(str(name), known) for name in names] if names else known
    return list(dict.fromkeys(found))


def _find(name: str, known: list[Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem = Path(name).name.removesuffix(".ipynb")
    exact = [p for p in known if stem in (p.stem, p.stem.split("_")[0])]
    matches = exact or [p for p in known if stem and stem in p.stem]
    if len(matches) == 1:
        return matches[0]
    stems = [p.stem for p in known]
    if matches:
        several = ", ".join(p.stem for p in matches)
        raise NotebookNameError(f"{name!r} names several notebooks: {several}")
    words = {word: s for s in stems
             for word in (s, s.partition("_")[2])}  # 'candidats' is near 'candidates'
    hint = _near(stem, words)
    listed = ", ".join(stems) or "none"
    raise NotebookNameError(f"there is no notebook {name!r}{hint}; notebooks: {listed}")
