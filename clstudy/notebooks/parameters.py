"""The parameters of a notebook: a tagged cell declares them, a profile or the reader sets them.

A parameter is one line of the cell tagged `parameters`: `name: type = value  # meaning`. Papermill
ignores an unknown name and a value of the wrong type. Here both are errors (ValueError), before a
kernel starts."""
import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from clstudy.notebooks.cells import read, source, tagged
from clstudy.training.config import check_choice, registry, with_path
from clstudy.utils.options import make
from clstudy.utils.paths import NOTEBOOKS
from clstudy.utils.validation import choose
from clstudy.utils.values import is_none, literal, parts, values

TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict,
         "Literal": Literal}


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
            known = f"{', '.join(TYPES)}, None"
            raise ValueError(f"{self.name}: type {self.type} is not made of {known}") from None

    @property
    def value(self) -> Any:
        """The default value."""
        return ast.literal_eval(self.default)

    def convert(self, given: Any) -> Any:
        """Return `given` as a value of this parameter's type; utils/values.py reads a text."""
        adapter = TypeAdapter(self.python_type)
        for reading in _readings(self.name, given):
            with suppress(ValidationError):
                return adapter.validate_python(reading, strict=True)
        if get_origin(self.python_type) is Literal:
            choose(self.name, str(given), [str(choice) for choice in get_args(self.python_type)])
        raise ValueError(f"{self.name}={given!r} is not of type {self.type}")


def _readings(name: str, given: Any) -> Iterator[Any]:
    """Yield what `given` may mean, `none` before the text itself: `str | None` can be None."""
    if not isinstance(given, str):
        yield given
        return
    if is_none(given):
        yield None
    word = literal(given)
    if isinstance(word, bool):
        yield word
    yield given
    yield word
    pieces = [part for part in parts(given) if part]
    try:
        yield [None if is_none(one) else one for part in pieces for one in values(part)]
    except ValueError as error:  # a range that goes down, or is too long
        raise ValueError(f"{name}: {error}") from None
    words = ((part, literal(part)) for part in pieces)
    yield [word if isinstance(word, str) else part for part, word in words]  # texts only


def parameters(notebook: Path) -> list[Parameter]:
    """Read the parameters of `notebook`, in the order of its cell tagged `parameters`."""
    code = next(map(source, tagged(read(notebook).get("cells", []), "parameters")), "")
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{notebook}: the parameters cell is not plain Python: {error}") from None
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {token.start[0]: token.string.lstrip("#").strip()
                for token in tokens if token.type == tokenize.COMMENT}
    try:
        return [_parameter(line, code, comments) for line in statements
                if not isinstance(line, ast.Import | ast.ImportFrom)]
    except ValueError as error:
        raise ValueError(f"{Path(notebook).name}: parameters cell: {error}") from None


def _parameter(line: ast.stmt, code: str, comments: Mapping[int, str]) -> Parameter:
    """Read one statement; its default must be a plain value of its own type."""
    match line:
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            type_, default = (ast.get_source_segment(code, part)
                              for part in (line.annotation, line.value))
        case _:
            text = ast.get_source_segment(code, line)
            raise ValueError(f"{text!r}: write `name: type = value  # meaning`")
    parameter = Parameter(name, type_, default, comments.get(line.end_lineno, ""))
    try:
        parameter.convert(parameter.value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"the default of {name} must be a plain value: {error}") from None
    return parameter


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each value to its parameter's type. ValueError: a name or a value is wrong."""
    known, checked = {p.name: p for p in parameters(notebook)}, {}
    for name, value in given.items():
        try:
            checked[name] = known[choose("parameter", name, known)].convert(value)
            check_choice(name, checked[name])
        except ValueError as error:
            raise ValueError(f"{Path(notebook).stem}: {error}\n{table(known.values())}") from None
    return checked


def profiles(notebook: Path) -> dict[str, dict[str, Any]]:
    """Read the profiles of `notebook`: its metadata {"clstudy": {"profiles": {name: {…}}}}."""
    return read(notebook).get("metadata", {}).get("clstudy", {}).get("profiles", {})


def profile_parameters(notebook: Path, name: str) -> dict[str, Any]:
    """Return the parameters of the profile `name`, checked."""
    known = profiles(notebook)
    if not known:
        form = '{"clstudy": {"profiles": {…}}}'
        raise ValueError(f"{Path(notebook).stem} has no profiles: its metadata has no {form}")
    return check_parameters(notebook, known[choose(f"{Path(notebook).stem}: profile", name, known)])


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
        chosen = {p.name: p.value for p in parameters(path)} | given
        name, options = with_path(str(chosen.get("benchmark", "emoji")),
                                  chosen.get("benchmark_args", {}))
        # These come with the repository, and the import of a benchmark takes seconds.
        if name not in ("emoji", "emoji_concepts", "emoji_kinds"):
            make("benchmark", name, registry("benchmark"), options).require()


def table(rows: Iterable[Parameter]) -> str:
    """Write parameters as aligned text, for help and for errors."""
    cells = [(p.name, p.type, f"= {p.default}", p.help) for p in rows]
    if not cells:
        return "  (no parameters)"
    name, type_, default, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(f"  {row[0]:{name}}  {row[1]:{type_}}  {row[2]:{default}}  {row[3]}".rstrip()
                     for row in cells)


def find_notebooks(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Find notebooks by path, number or a part of the file name; without names all of `folder`."""
    known = sorted(folder.glob("*.ipynb"))
    found = [_find(str(name), known) for name in names] if names else known
    return list(dict.fromkeys(found))


def _find(name: str, known: Sequence[Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem, paths = Path(name).name.removesuffix(".ipynb"), {path.stem: path for path in known}
    matches = ([one for one in paths if stem in (one, one.split("_")[0])]
               or [one for one in paths if stem and stem in one])
    if len(matches) > 1:
        raise ValueError(f"notebook={name!r} means several: {', '.join(matches)}")
    return paths[matches[0] if matches else choose("notebook", stem, paths)]
