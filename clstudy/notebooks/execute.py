"""Notebooks as programs: a kernel runs one headlessly, and its outputs are kept.

Nothing else imports papermill.
"""
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from clstudy.notebooks import html as pages
from clstudy.notebooks.cells import read, source, until
from clstudy.notebooks.parameters import check_parameters
from clstudy.utils import paths
from clstudy.utils.files import write_json
from clstudy.utils.progress import report

KERNEL_ENV = {
    paths.HEADLESS: "1",  # progress bars as text, no widgets waiting for a click
    "PLOTLY_RENDERER": "plotly_mimetype",  # the figure as data; `pages` adds the library, once
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a user's `agg` hides every figure
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger writes a warning into the first cell
}
CLEAR = """
get_ipython().reset(new_session=True)
import sys
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
del sys"""  # what a warm kernel does between two notebooks
SOCKET = 70  # characters of a folder that is short enough for sockets: their paths may have 107


@dataclass(frozen=True)
class Executed:
    """How the run of one notebook ended."""

    path: Path  # NAME.ipynb, or NAME.failed.ipynb with everything up to the failure
    html: Path  # the same as a page that needs no network
    seconds: float
    ok: bool
    error: str | None  # "cell 4 of 12: ValueError: …"


def run_notebook(notebook: Path, parameters: Mapping[str, Any], out_dir: Path, *,
                 timeout: float | None = None, progress: bool = True,
                 kernel: Any = None, drawing: bool = False) -> Executed:
    """Run `notebook` in a kernel of this interpreter and write NAME.ipynb and NAME.html.

    The kernel works in the repository's folder; it is a new one, or a `warm_kernel`. `timeout`
    limits the whole notebook, in seconds. A failure in a cell is reported, not raised: it leaves
    NAME.failed.ipynb beside a NAME.ipynb that finished earlier, and the next success removes it.
    drawing: leave out what comes after the figures (widgets, exercises: some need weights).
    ValueError: a parameter is wrong, or the executed copy would overwrite the notebook.
    """
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    values = check_parameters(notebook, parameters)
    if out_dir == notebook.parent:
        raise ValueError(f"out={str(out_dir)!r}: the executed copy would overwrite {notebook.name}")
    out_dir.mkdir(parents=True, exist_ok=True)
    # A name of its own: two workers may run the same notebook, e.g. a retry beside a dying run.
    draft = out_dir / f"{notebook.stem}.running-{uuid.uuid4().hex[:8]}.ipynb"
    shutil.copyfile(notebook, draft)
    if drawing:
        document = read(draft)
        document["cells"] = until(document["cells"], "## Try it")
        write_json(draft, document)
    failed = out_dir / f"{notebook.stem}.failed.ipynb"
    started = time.monotonic()
    try:
        error = _execute(draft if drawing else notebook, values, draft, timeout, progress, kernel)
    except BaseException:  # Ctrl-C: keep what was reached
        draft.replace(failed)
        raise
    path = draft.replace(out_dir / notebook.name if error is None else failed)
    page = pages.write(path)
    if error is None:
        failed.unlink(missing_ok=True)
        failed.with_suffix(".html").unlink(missing_ok=True)
    return Executed(path, page, time.monotonic() - started, error is None, error)


class _Watch:
    """Counts the cells and prints one plain line when a cell starts, readable in a log file."""

    def __init__(self, notebook: Path, injected: bool, show: bool) -> None:
        code = [source(cell) for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]
        self.name, self.show, self.cell = notebook.stem, show, 0
        self.total = injected + sum(bool(text.strip()) for text in code)

    def __call__(self, cell: Any, cell_index: int) -> None:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type != "code" or not lines:
            return
        self.cell += 1
        report((self.cell - 1) / max(self.total, 1))
        if self.show:
            head = next((line for line in lines if not line.startswith("#")), "")[:70]
            print(f"[{self.name}] cell {self.cell}/{self.total}  {head}", file=sys.stderr,
                  flush=True)

    def where(self) -> str:
        return f"cell {self.cell} of {self.total}" if self.cell else "before the first cell"


def _execute(notebook: Path, values: dict[str, Any], draft: Path, timeout: float | None,
             progress: bool, kernel: Any = None) -> str | None:
    """Run a notebook by papermill into `draft`; return None, or what went wrong and where."""
    import papermill  # 2 s, so only when a notebook runs
    from nbclient.exceptions import CellTimeoutError

    watch = _Watch(notebook, bool(values), progress)
    end = time.monotonic() + (math.inf if timeout is None else timeout)

    def left(cell: Any) -> float | None:
        """Give a cell the rest of the notebook's time: nbclient's limit is for one cell."""
        return None if timeout is None else max(end - time.monotonic(), 0.01)  # 0: no limit

    try:
        with _kernel_options() if kernel is None else _again(kernel) as options:
            papermill.execute_notebook(notebook, draft, values, progress_bar=False,
                                       timeout_func=left, on_cell_start=watch, **options)
    except papermill.PapermillExecutionError as error:
        return f"{watch.where()}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"{watch.where()}: stopped, the notebook took longer than timeout = {timeout:g} s"
    except Exception as error:
        return f"{watch.where()}: {type(error).__name__}: {error}"
    return None


@contextmanager
def _kernel_options() -> Iterator[dict[str, Any]]:
    """Yield the options of papermill for a kernel of this interpreter with sockets of its own."""
    from traitlets.config import Config

    ipc = os.name == "posix" and len(tempfile.gettempdir()) <= SOCKET
    with tempfile.TemporaryDirectory(prefix="clstudy-") as folder:
        kernel = {"connection_file": f"{folder}/k.json", "transport": "ipc" if ipc else "tcp"}
        yield {
            "kernel_name": "python3",
            "language": "python",
            "kernel_manager_class": _own_kernel(),
            "config": Config({"OwnKernel": kernel}),
        }


@contextmanager
def warm_kernel() -> Iterator[Any]:
    """Yield a kernel that runs notebooks one after the other: each finds what the others imported,
    and none of their names. (A kernel needs five seconds for the imports of a notebook.)"""
    with _kernel_options() as options:
        kernel = options["kernel_manager_class"](config=options["config"])
        kernel.client_class = "jupyter_client.asynchronous.AsyncKernelClient"  # as nbclient wants
        _wait(kernel.start_kernel)
        try:
            yield kernel
        finally:
            _wait(kernel.shutdown_kernel, now=True)


@contextmanager
def _again(kernel: Any) -> Iterator[dict[str, Any]]:
    """Yield the options of papermill for a warm kernel without the names of the last notebook."""
    client = kernel.client()
    client.start_channels()
    try:
        _wait(client.wait_for_ready, timeout=60)
        _wait(client.execute_interactive, CLEAR, silent=True, timeout=60)
    finally:
        client.stop_channels()
    yield {"kernel_name": "python3", "language": "python", "km": kernel}


def _wait(function: Callable, *arguments: Any, **options: Any) -> Any:
    from jupyter_core.utils import ensure_async, run_sync

    async def done() -> Any:
        return await ensure_async(function(*arguments, **options))

    return run_sync(done)()


def run_beside(tasks: Sequence[tuple[Path, Mapping[str, Any]]], out_dir: Path, kernels: int = 2,
               timeout: float | None = None) -> Iterator[tuple[Path, Executed]]:
    """Run notebooks that train nothing as far as their figures go, some at a time in as many warm
    kernels; yield each as it ends. A kernel in which a notebook failed is replaced."""
    waiting, ended = SimpleQueue(), SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        try:
            while True:
                with warm_kernel() as kernel:
                    ok = True
                    while ok:
                        path, given = waiting.get_nowait()
                        done = run_notebook(path, given, out_dir, timeout=timeout, progress=False,
                                            kernel=kernel, drawing=True)
                        ended.put((path, done))
                        ok = done.ok
        except Empty:
            pass
        except BaseException as error:  # raised in the thread that waits
            ended.put(error)

    with ThreadPoolExecutor(kernels) as pool:
        for _ in range(min(kernels, len(tasks))):
            pool.submit(work)
        for _ in tasks:
            found = ended.get()
            if isinstance(found, BaseException):
                raise found
            yield found


def _own_kernel() -> type:
    """Make a kernel manager for this interpreter, whatever `python3` kernelspec there is."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

        def start_kernel(self, **options: Any) -> Any:
            # Not by os.chdir or os.environ: those would hit every other thread of this process.
            return super().start_kernel(**options, cwd=str(paths.REPOSITORY), env=_kernel_env())

    return OwnKernel


def _kernel_env() -> dict[str, str]:
    """Return the environment of a kernel: beside other notebooks it uses its share of the cores."""
    env = {name: value for name, value in os.environ.items() if name != paths.QUIET}
    if share := paths.core_limit():
        env["OMP_NUM_THREADS"] = str(share)
    return env | KERNEL_ENV
