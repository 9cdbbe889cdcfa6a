"""Parameters, profiles and names of notebooks; three kernels: one notebook ends, one fails, one is
slow."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

from clstudy.notebooks import execute
from clstudy.notebooks import parameters as parameters_module
from clstudy.utils import paths

PARAMETERS = """\
from typing import Literal
rate: float = 1e-3  # step size
seeds: list[int] = [0]  # one run each
method: Literal["sit", "lwf"] = "sit"  # what is trained
query: str = "a=b  # c"
cap: int | None = None  # images, or all
quiet: bool = False
words: list[str] = []
"""


def write(path: Path, *cells: str, parameters: str | None = PARAMETERS, **metadata: Any) -> Path:
    """A notebook of code cells, after a cell tagged `parameters`."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    if parameters is not None:
        code.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=metadata), path)
    return path


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    profiles = {"quick": {"rate": 0.5, "method": "lwf"}, "broken": {"rate": "fast"}}
    return write(tmp_path / "03_demo.ipynb", "rate", clstudy={"profiles": profiles})


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(execute, "_execute", refuse)


def outputs(path: Path) -> str:
    return json.dumps([c.get("outputs", []) for c in nbformat.read(path, as_version=4).cells])


# --- parameters ---------------------------------------------------------------------------------------------


def test_parameters_are_read_with_type_default_and_meaning(notebook: Path) -> None:
    read = {p.name: (p.type, p.value, p.help) for p in parameters_module.parameters(notebook)}
    assert read == {
        "rate": ("float", 1e-3, "step size"),
        "seeds": ("list[int]", [0], "one run each"),
        "method": ('Literal["sit", "lwf"]', "sit", "what is trained"),
        "query": ("str", "a=b  # c", ""),  # papermill itself loses a default with = in it
        "cap": ("int | None", None, "images, or all"),
        "quiet": ("bool", False, ""),
        "words": ("list[str]", [], ""),
    }


def test_a_notebook_without_parameters_has_none(tmp_path: Path) -> None:
    assert parameters_module.parameters(write(tmp_path / "a.ipynb", "1", parameters=None)) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rate = 0.1", "name: type = value"),
        ("rate: float = 1 / 3", "plain value"),
        ("rate: float = 'x'", "not of type float"),
        ("rate: Path = 'x'", "type Path is not made of int, float"),
        ("%matplotlib inline", "not plain Python"),
    ],
)
def test_a_parameters_cell_of_another_form_is_an_error(tmp_path: Path, line: str,
                                                       complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parameters_module.parameters(write(tmp_path / "a.ipynb", parameters=line))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("rate", "0.1", 0.1),
        ("rate", 1, 1.0),
        ("seeds", "0,1, 2", [0, 1, 2]),
        ("seeds", "7", [7]),
        ("seeds", "[1, 2]", [1, 2]),
        ("seeds", [1, 2], [1, 2]),
        ("method", "lwf", "lwf"),
        ("query", "12", "12"),
        ("query", "none", "none"),
        ("cap", "none", None),
        ("cap", "12", 12),
        ("seeds", "0..3,7", [0, 1, 2, 3, 7]),
        ("words", "it's,\"a,b\",1", ["it's", "a,b", "1"]),
        ("words", "don't,can't", ["don't", "can't"]),
        ("words", "'4..0'", ["4..0"]),
        ("query", "4..0", "4..0"),
        ("quiet", "true", True),
    ],
)
def test_values_are_converted_by_annotation(notebook: Path, name: str, given: Any,
                                            value: Any) -> None:
    converted = parameters_module.check_parameters(notebook, {name: given})
    assert converted == {name: value}
    assert type(converted[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("rate", "fast", "rate='fast' is not of type float"),
        ("seeds", "4..0", "seeds: 4..0: a range goes upwards"),
        ("seeds", "a,b", "seeds='a,b' is not of type list[int]"),
        ("seeds", [0.5], "seeds=[0.5] is not of type list[int]"),
        ("method", "swf", "method='swf' is unknown. Did you mean lwf? Choices: lwf, sit"),
        ("quiet", 1, "quiet=1 is not of type bool"),
        ("cap", True, "cap=True is not of type int | None"),
        ("sedes", [1], "03_demo: parameter='sedes' is unknown. Did you mean seeds?"),
    ],
)
def test_bad_parameters_fail_before_a_kernel_starts(
    notebook: Path, no_kernel: None, name: str, given: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        execute.run_notebook(notebook, {name: given}, notebook.parent / "out")
    assert not (notebook.parent / "out").exists()


def test_an_unknown_parameter_is_answered_with_the_table(notebook: Path) -> None:
    with pytest.raises(ValueError, match=r"rate +float +\S+ 1e-3 +step size"):
        parameters_module.check_parameters(notebook, {"nothing_like_it": 1})


def test_a_profile_overrides_defaults_and_is_overridden(notebook: Path) -> None:
    assert parameters_module.profile_parameters(notebook, "quick") == {"rate": 0.5, "method": "lwf"}
    assert parameters_module.choose_parameters(notebook, {"rate": "2"},
                                               "quick") == {"rate": 2.0, "method": "lwf"}
    assert parameters_module.choose_parameters(notebook, {"rate": "2"}) == {"rate": 2.0}


def test_an_unknown_or_broken_profile_is_an_error(notebook: Path) -> None:
    with pytest.raises(ValueError, match=r"profile='quik' .+ mean quick\? Choices: broken, quick"):
        parameters_module.profile_parameters(notebook, "quik")
    with pytest.raises(ValueError, match="rate='fast'"):
        parameters_module.profile_parameters(notebook, "broken")
    plain = write(notebook.parent / "plain.ipynb", "1")
    with pytest.raises(ValueError, match="plain has no profiles"):
        parameters_module.profile_parameters(plain, "quick")


# --- finding ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the repository has a notebook of such a name
    for stem in ("01_frozen", "02_streams", "03_candidates", "13_candidate_text"):
        write(tmp_path / f"{stem}.ipynb", "1")
    return tmp_path


@pytest.mark.parametrize("name", ["03_candidates", "03", "notebooks/03_candidates.ipynb", "candidates"])
def test_a_notebook_is_found_by(folder: Path, name: str) -> None:
    assert parameters_module.find_notebooks([name], folder) == [folder / "03_candidates.ipynb"]


def test_a_path_is_taken_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    mine = write(tmp_path_factory.mktemp("mine") / "mine.ipynb", "1")
    assert parameters_module.find_notebooks([str(mine), "02"],
                                            folder) == [mine, folder / "02_streams.ipynb"]
    assert len(parameters_module.find_notebooks([], folder)) == 4
    assert len(parameters_module.find_notebooks(["02", "streams"], folder)) == 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("candidats", "Did you mean 03_candidates"),
        ("zzz", "notebook='zzz' is unknown. Choices: 01_frozen, 02_streams, 03_candidates, 13_candidate_text"),
        ("candidate", "notebook='candidate' means several: 03_candidates, 13_candidate_text"),
        ("", "notebook='' is unknown"),
    ],
)
def test_a_name_that_is_no_notebook(folder: Path, name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parameters_module.find_notebooks([name], folder)


# --- running ------------------------------------------------------------------------------------------------


@pytest.fixture
def wrong_kernelspec(tmp_path_factory: pytest.TempPathFactory,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A `python3` kernelspec that belongs to some other interpreter, before all others."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = {
        "argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"
    }
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))


def test_a_notebook_is_run_with_values_and_becomes_a_page(
    tmp_path: Path,
    wrong_kernelspec: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")  # must not hide the figures of the notebook
    plotly = "import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[3, 1], name='marker-%d'))"
    notebook = write(
        tmp_path / "03_demo.ipynb",
        "import os, sys\nprint('values', rate, seeds, os.getcwd(), os.environ['CLSTUDY_HEADLESS'])",
        "print(sys.executable)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        plotly % 1,
        plotly % 2,
        "import ipywidgets\nipywidgets.IntSlider()",
        "import json\nfrom ipykernel.connect import get_connection_info\n"
        "print('transport', json.loads(get_connection_info())['transport'])",
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "03_demo.failed.ipynb").touch()  # of an earlier run
    done = execute.run_notebook(notebook, {"rate": "0.25", "seeds": "4,5"}, out)

    assert (done.ok, done.error) == (True, None)
    assert (done.path, done.html) == (out / notebook.name, out / "03_demo.html")
    assert done.seconds > 0
    assert {p.name for p in out.iterdir()} == {"03_demo.ipynb", "03_demo.html"}
    shown = outputs(done.path)
    assert f"values 0.25 [4, 5] {paths.REPOSITORY} 1" in shown
    assert sys.executable in shown
    assert "transport ipc" in shown  # sockets in a folder of its own, not TCP ports
    assert "cell 3/9  import os, sys" in capsys.readouterr().err

    page = done.html.read_text()
    assert "data:image/png;base64" in page
    assert page.count("Plotly.newPlot(") >= 2
    assert "marker-1" in page and "marker-2" in page
    assert len(re.findall(r"plotly\.js v\d", page)) == 1  # the library itself, once
    assert "IntSlider: an interactive view" in page
    external = re.findall(r'<script[^>]*\ssrc="([^"]*)"', page)
    assert all("mathjax" in address for address in external), external


def test_a_failing_notebook_keeps_what_it_reached(tmp_path: Path) -> None:
    notebook = write(tmp_path / "bad.ipynb", "print('reached')", "1 / 0", "print('never')",
                     parameters=None)
    done = execute.run_notebook(notebook, {}, tmp_path / "out", progress=False)
    assert (done.ok, done.error) == (False, "cell 2 of 3: ZeroDivisionError: division by zero")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"bad.failed.ipynb", "bad.failed.html"}
    assert done.path == tmp_path / "out" / "bad.failed.ipynb"
    assert "reached" in outputs(done.path) and "never" not in outputs(done.path)
    assert "ZeroDivisionError" in done.html.read_text()
    marked = [
        cell for cell in nbformat.read(done.path, as_version=4).cells
        if cell.cell_type == "markdown"
    ]
    assert ["papermill-error-cell-tag" in cell.metadata.tags
            for cell in marked] == [True, True]  # top, and the cell
    assert "papermill-error-cell" in done.html.read_text()


def test_notebooks_share_a_warm_kernel_and_no_names(tmp_path: Path) -> None:
    kernel = "import os, json\nprint('kernel', os.getpid(), 'json' in globals(), 'left' in globals())"
    one = write(tmp_path / "1.ipynb", kernel, "left = 1; import ast as kept_module", parameters=None)
    two = write(tmp_path / "2.ipynb", "print('json' in globals())", kernel, "1 / 0", parameters=None)
    three = write(tmp_path / "3.ipynb", kernel, "# ## Try it\n2 / 0", parameters=None)
    document = nbformat.read(three, as_version=4)  # what comes after the figures is left out
    document.cells[1:1] = [nbformat.v4.new_markdown_cell("## Try it\n\nThis.")]
    nbformat.write(document, three)
    tasks = [(path, {}) for path in (one, two, three)]
    done = dict(execute.run_beside(tasks, tmp_path / "out", kernels=1, timeout=60))
    assert [done[path].ok for path in (one, two, three)] == [True, False, True]
    assert "ZeroDivisionError" in done[two].error
    said = [re.search(r"kernel (\d+) True (\w+)", outputs(done[path].path)).groups()
            for path in (one, two, three)]
    assert [left for _, left in said] == ["False"] * 3 and "False" in outputs(done[two].path)
    pids = [pid for pid, _ in said]
    assert pids[0] == pids[1] != pids[2]  # a kernel in which a notebook failed is replaced
    counts = [cell.execution_count for cell in nbformat.read(done[one].path, as_version=4).cells]
    assert counts == [1, 2]


def test_an_error_beside_the_notebooks_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would overwrite"):
        list(execute.run_beside([(write(tmp_path / "1.ipynb", "1", parameters=None), {})], tmp_path))


def test_the_notebook_itself_is_not_overwritten(notebook: Path, no_kernel: None) -> None:
    with pytest.raises(ValueError, match="would overwrite 03_demo.ipynb"):
        execute.run_notebook(notebook, {}, notebook.parent)


def test_sockets_need_a_short_folder_and_else_are_tcp(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for longest, transport in ((len(str(tmp_path)) - 1, "tcp"), (len(str(tmp_path)), "ipc")):
        monkeypatch.setattr(execute, "SOCKET", longest)
        with execute._kernel_options() as options:
            assert options["config"]["OwnKernel"]["transport"] == transport


def test_the_time_limit_is_for_the_whole_notebook(tmp_path: Path) -> None:
    notebook = write(tmp_path / "slow.ipynb", "import time", "time.sleep(600)", parameters=None)
    done = execute.run_notebook(notebook, {}, tmp_path / "out", timeout=0.1, progress=False)
    assert not done.ok and "took longer than timeout = 0.1 s" in done.error
    assert done.path.name == "slow.failed.ipynb" and done.seconds < 300


def test_a_kernel_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert execute._kernel_env()["OMP_NUM_THREADS"] == "7"
    monkeypatch.setenv("CLSTUDY_CORES", "2")
    monkeypatch.setenv("CLSTUDY_QUIET", "1")
    assert execute._kernel_env(
    )["OMP_NUM_THREADS"] == "2" and "CLSTUDY_QUIET" not in execute._kernel_env()
