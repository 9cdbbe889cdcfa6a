"""The parameters of a notebook: read from its cell tagged `parameters`, checked, chosen by profile."""
import ast
import difflib
import io
import json
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from clstudy.training.config import check_choice, registry, with_path
from clstudy.utils.options import make
from clstudy.utils.paths import NOTEBOOKS

TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "Literal": Literal}


WORDS = {"none": None, "true": True, "false": False}


class ParameterError(ValueError):
    """A parameter or a profile that a notebook does not have, or a value that does not fit."""


class NotebookNameError(ValueError):
    """A name that is no notebook's, or several notebooks'."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell."""

    name: str
    type: str  # the annotation as written: int, list[int], Literal["a", "b"], …
    default: str  # the source of the default value
    help: str

    @cached_property
    def python_type(self) -> Any:
        try:
            return eval(self.type, {"__builtins__": {}}, TYPES)
        except Exception:
            known = ", ".join(TYPES)
            raise ParameterError(f"{self.name}: type {self.type} is not made of {known}, None") from None

    @property
    def value(self) -> Any:
        """The default value."""
        return ast.literal_eval(self.default)

    def convert(self, given: Any) -> Any:
        """`given` as a value of this parameter's type; a string is read as a command line means it."""
        adapter = TypeAdapter(self.python_type)
        for reading in _readings(given):
            try:
                return adapter.validate_python(reading, strict=True)
            except ValidationError:
                continue
        near = _near(given, self._choices())
        raise ParameterError(f"{self.name} = {given!r} is not {self._expected()}{near}")

    def _choices(self) -> list[str]:
        return [str(c) for c in get_args(self.python_type)] if get_origin(self.python_type) is Literal else []

    def _expected(self) -> str:
        choices = self._choices()
        return f"one of: {', '.join(choices)}" if choices else f"of type {self.type}"


def parameters(notebook: Path) -> list[Parameter]:
    """The parameters of `notebook`, in the order of its cell tagged `parameters`."""
    source = _parameter_cell(Path(notebook))
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ParameterError(f"{notebook}: the parameters cell is not plain Python: {error}") from None
    comments = _comments(source)
    lines = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
    return [_parameter(line, source, comments, Path(notebook)) for line in lines]


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, each value converted to its parameter's type; an unknown name or an unfit value raises."""
    known = {p.name: p for p in parameters(notebook)}
    stem = Path(notebook).stem
    checked = {}
    for name, value in given.items():
        if name not in known:
            near = _near(name, known)
            raise ParameterError(f"{stem} has no parameter {name!r}{near}\n{table(known.values())}")
        try:
            checked[name] = known[name].convert(value)
            check_choice(name, checked[name])
        except ValueError as error:
            raise ParameterError(f"{stem}: {error}") from None
    return checked


def profiles(notebook: Path) -> dict[str, dict[str, Any]]:
    """The named sets of parameters in the metadata of `notebook`: {"clstudy": {"profiles": {name: {…}}}}."""
    return _document(Path(notebook)).get("metadata", {}).get("clstudy", {}).get("profiles", {})


def profile_parameters(notebook: Path, name: str) -> dict[str, Any]:
    """The parameters of the profile `name`, checked."""
    known = profiles(notebook)
    if name not in known:
        choices = ", ".join(sorted(known)) or 'none: its metadata has no {"clstudy": {"profiles": {…}}}'
        near = _near(name, known)
        raise ParameterError(f"{Path(notebook).stem} has no profile {name!r}{near}; profiles: {choices}")
    return check_parameters(notebook, known[name])


def part(notebook: Path) -> str:
    """The study that a notebook belongs to (its metadata clstudy.study), "main" where it says nothing."""
    return str(_document(notebook)["metadata"].get("clstudy", {}).get("study", "main"))


def choose_parameters(notebook: Path, given: Mapping[str, Any], profile: str | None = None) -> dict[str, Any]:
    """What `notebook` is run with: the profile's values, beaten by the explicitly given ones."""
    base = profile_parameters(notebook, profile) if profile is not None else {}
    return base | check_parameters(notebook, given)


def check_data(tasks: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Raise where a notebook asks for a benchmark whose data are missing, before any is executed."""
    for path, given in tasks:
        values = {p.name: p.value for p in parameters(path)} | given
        name, options = with_path(str(values.get("benchmark", "emoji")), values.get("benchmark_args", {}))
        if name not in ("emoji", "emoji_concepts"):  # these come with the repository; the import takes seconds
            make("benchmark", name, registry("benchmark"), options).require()


def table(rows: Iterable[Parameter]) -> str:
    """Parameters as aligned text, for help and for errors."""
    cells = [(p.name, p.type, f"= {p.default}", p.help) for p in rows]
    if not cells:
        return "  (no parameters)"
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    padded = ([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]] for row in cells)
    return "\n".join("  " + "  ".join(row).rstrip() for row in padded)


def _document(notebook: Path) -> dict[str, Any]:
    # A notebook is JSON; nbformat would cost 1.5 s of imports before a wrong name is reported.
    try:
        found = json.loads(notebook.read_text(encoding="utf-8"))
        _check_form(found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotebookNameError(f"{notebook} is not a notebook: {type(error).__name__}: {error}") from None


def _check_form(document: Any) -> None:
    """An error of some kind where a part that is read here is of another form."""
    for cell in document.get("cells", []):
        "".join(cell["source"])
        if not isinstance(cell["cell_type"], str) or not isinstance(cell.get("metadata", {}).get("tags", []), list):
            raise ValueError("a cell is of another form")
    given = document.get("metadata", {}).get("clstudy", {}).get("profiles", {})
    if not all(isinstance(one, dict) for one in (given, *given.values())):
        raise ValueError("a profile is no object of parameters")


def _parameter_cell(notebook: Path) -> str:
    for cell in _document(notebook).get("cells", []):
        if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", []):
            return "".join(cell["source"])
    return ""


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _parameter(line: ast.stmt, source: str, comments: dict[int, str], notebook: Path) -> Parameter:
    """One statement of the parameters cell; its default must be a plain value of its own type."""
    text = ast.get_source_segment(source, line) or ""
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
        form = "write `name: type = value  # meaning`"
        raise ParameterError(f"{notebook.name}: parameters cell: {text!r}: {form}")
    annotation = ast.get_source_segment(source, line.annotation)
    default = ast.get_source_segment(source, line.value)
    parameter = Parameter(line.target.id, annotation, default, comments.get(line.end_lineno, ""))
    try:
        parameter.convert(parameter.value)
    except ParameterError as error:
        raise ParameterError(f"{notebook.name}: default of {error}") from None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ParameterError(f"{notebook.name}: {text!r}: a default must be a plain value") from None
    return parameter


def _readings(given: Any) -> Iterator[Any]:
    """What `given` may mean. `none` comes before the text itself, so that `str | None` can be None."""
    if not isinstance(given, str):
        yield given
        return
    if given.strip().lower() in WORDS:
        yield WORDS[given.strip().lower()]
    yield given
    yield _literal(given)
    parts = [part.strip() for part in given.split(",") if part.strip()]  # 0,1,2 for a list
    yield [_literal(part) for part in parts]
    yield parts


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return WORDS.get(text.strip().lower(), text)


def _near(name: Any, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(choices), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def find_notebooks(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks meant by `names`: paths, numbers or parts of a file name. No names: all of `folder`."""
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
        raise NotebookNameError(f"{name!r} is several notebooks: {', '.join(p.stem for p in matches)}")
    words = {word: s for s in stems for word in (s, s.partition("_")[2])}  # 'candidats' is near 'candidates'
    near = dict.fromkeys(words[w] for w in difflib.get_close_matches(stem, words, n=3))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NotebookNameError(f"no notebook {name!r}{hint}; notebooks: {', '.join(stems) or 'none'}")
