"""Notebooks as programs: read their parameters, run them headlessly, keep what they showed.

The only importer of papermill. Papermill is silent about a parameter that it does not know and about a value
of the wrong type; here both are errors, before a kernel starts. A parameter is one line of the cell tagged
`parameters`: `name: type = value  # meaning`.
"""

import ast
import difflib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
import tokenize
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from . import pages
from .config import check_choice
from .progress import report

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"

KERNEL_ENV = {
    "CLSTUDY_HEADLESS": "1",  # progress bars as text, no widgets waiting for a click
    "PLOTLY_RENDERER": "plotly_mimetype",  # the figure as data; `pages` adds the library, once
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a user's `agg` would hide every figure
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger writes a warning into the first cell
}
TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "Literal": Literal}
WORDS = {"none": None, "true": True, "false": False}


class ParameterError(ValueError):
    """A parameter or a profile that a notebook does not have, or a value that does not fit."""


class NotebookNameError(ValueError):
    """A name that is no notebook's, or several notebooks'."""


# --- parameters ---------------------------------------------------------------------------------------------


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
    from .config import check_arguments, choose, with_path

    for path, given in tasks:
        values = {p.name: p.value for p in parameters(path)} | given
        name, options = with_path(str(values.get("benchmark", "emoji")), values.get("benchmark_args", {}))
        if name not in ("emoji", "emoji_concepts"):  # these come with the repository; the import takes seconds
            from .benchmarks import BENCHMARKS, check

            check_arguments("benchmark_args", BENCHMARKS[choose("benchmark", name, BENCHMARKS)], options)
            check(name, options)


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


# --- finding ------------------------------------------------------------------------------------------------


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


# --- running ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Executed:
    """How the run of one notebook ended."""

    path: Path  # NAME.ipynb, or NAME.failed.ipynb with everything up to the failure
    html: Path  # the same as a page that needs no network
    seconds: float
    ok: bool
    error: str | None  # "cell 4 of 12: ValueError: …"


def run_notebook(
    notebook: Path,
    parameters: Mapping[str, Any],
    out_dir: Path,
    *,
    timeout: float | None = None,
    cell_timeout: float | None = None,
    progress: bool = True,
) -> Executed:
    """Run `notebook` in a kernel of this interpreter, in the repository's folder; write NAME.ipynb and .html.

    `timeout` is for the whole notebook, `cell_timeout` for each of its cells, in seconds. A failure in a cell is
    reported, not raised; an earlier finished NAME.ipynb stays beside NAME.failed.ipynb, and the next success removes
    the latter.
    """
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    values = check_parameters(notebook, parameters)
    out_dir.mkdir(parents=True, exist_ok=True)
    # A name of its own: two workers may run the same notebook, e.g. a retry beside a dying run.
    draft = out_dir / f"{notebook.stem}.running-{uuid.uuid4().hex[:8]}.ipynb"
    shutil.copyfile(notebook, draft)
    failed = out_dir / f"{notebook.stem}.failed.ipynb"
    started = time.monotonic()
    try:
        error = _execute(notebook, values, draft, (timeout, cell_timeout), progress)
    except BaseException:  # Ctrl-C: keep what was reached
        draft.replace(failed)
        raise
    path = out_dir / notebook.name if error is None else failed
    draft.replace(path)
    page = pages.write(path)
    if error is None:
        failed.unlink(missing_ok=True)
        failed.with_suffix(".html").unlink(missing_ok=True)
    return Executed(path, page, time.monotonic() - started, error is None, error)


class _Watch:
    """Counts the cells, and says which one starts: one plain line each, readable in a log file."""

    def __init__(self, notebook: Path, injected: bool, show: bool) -> None:
        code = [c["source"] for c in _document(notebook)["cells"] if c["cell_type"] == "code"]
        self.name, self.show, self.cell = notebook.stem, show, 0
        self.total = injected + sum(bool("".join(source).strip()) for source in code)

    def __call__(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type != "code" or not cell.source.strip():
            return
        self.cell += 1
        report((self.cell - 1) / max(self.total, 1))
        if self.show:
            lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
            head = (lines or [""])[0][:70]
            print(f"[{self.name}] cell {self.cell}/{self.total}  {head}", file=sys.stderr, flush=True)

    def where(self) -> str:
        return f"cell {self.cell} of {self.total}" if self.cell else "before the first cell"


def _execute(
    notebook: Path, values: dict[str, Any], draft: Path, limits: tuple[float | None, float | None], progress: bool
) -> str | None:
    """Run by papermill into `draft`; None, or what went wrong and where."""
    import papermill  # 2 s, so only when a notebook runs
    from nbclient.exceptions import CellTimeoutError
    from traitlets.config import Config

    watch = _Watch(notebook, bool(values), progress)
    timeout, cell_timeout = limits
    end = time.monotonic() + (math.inf if timeout is None else timeout)

    def limit(cell: Any) -> float | None:
        """nbclient's limit is per cell: each gets what is left of the notebook's. 0 would be no limit."""
        least = min(end - time.monotonic(), math.inf if cell_timeout is None else cell_timeout)
        return None if least == math.inf else max(least, 0.01)

    # A short folder of its own: a socket's path may have 107 characters, and Jupyter's own folder is long.
    with tempfile.TemporaryDirectory(prefix="clstudy-") as sockets:
        kernel = {"connection_file": f"{sockets}/k.json", "transport": "ipc" if os.name == "posix" else "tcp"}
        try:
            papermill.execute_notebook(
                notebook,
                draft,
                values,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                kernel_manager_class=_own_kernel(),
                config=Config({"OwnKernel": kernel}),
                timeout_func=limit,
                on_cell_start=watch,
            )
        except papermill.PapermillExecutionError as error:
            return f"{watch.where()}: {error.ename}: {error.evalue}"
        except CellTimeoutError:
            if time.monotonic() >= end:
                return f"{watch.where()}: stopped, the notebook took longer than timeout = {timeout:g} s"
            return f"{watch.where()}: stopped, the cell took longer than cell_timeout = {cell_timeout:g} s"
        except Exception as error:
            return f"{watch.where()}: {type(error).__name__}: {error}"
    return None


def _own_kernel() -> type:
    """A kernel manager that starts this very interpreter, whatever `python3` kernelspec the user has."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

        def start_kernel(self, **kw: Any) -> Any:
            # Not by os.chdir or os.environ: those would hit every other thread of this process.
            return super().start_kernel(**kw, cwd=str(REPOSITORY), env=_kernel_env())

    return OwnKernel


def _kernel_env() -> dict[str, str]:
    """What a kernel starts with. Beside other notebooks it has a share of the cores, in threads and in workers."""
    mine = {name: value for name, value in os.environ.items() if name != "CLSTUDY_QUIET"}  # of a worker, not of this
    share = os.environ.get("CLSTUDY_CORES")
    return {**mine, **KERNEL_ENV, **({"OMP_NUM_THREADS": share} if share else {})}
