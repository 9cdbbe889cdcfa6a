"""The rules of the house that matter: who imports what, that every name is documented, notebooks
without outputs."""
import ast
import inspect
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from clstudy.data.augment import AUGMENTATIONS
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.streams import STREAMS
from clstudy.methods import METHODS
from clstudy.models.tuners import TUNERS

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "clstudy").rglob("*.py"))
README = ROOT / "README.md"
NAMES = {
    "benchmarks": dict(BENCHMARKS), "streams": dict(STREAMS), "tuners": dict(TUNERS),
    "methods": dict(METHODS)
}
NAMED = [(axis, name) for axis, choices in NAMES.items() for name in choices]

ROOMS = (
    "utils",
    "data",
    "models",
    "probes",
    "losses",
    "evaluation",
    "methods",
    "training",
    "runs",
    "analysis",
    "plots",
    "notebooks",
    "widgets",
    "cli",
)  # an import points to its own room, or to one that stands before it
ALLOWED = {
    # what may import it → why
    "open_clip": {"models/": "the one room that knows it"},
    "matplotlib": {"plots/": "paper figures", "widgets/": "their static twins"},
    "seaborn": {"plots/": "paper figures", "widgets/": "their static twins"},
    "plotly": {
        "plots/": "interactive figures", "widgets/": "the same",
        "notebooks/html.py": "puts the library into a page"
    },
    "ipywidgets": {"widgets/": "controls"},
    "papermill": {"notebooks/execute.py": "executes notebooks"},
    "peft": {
        "models/tuners/lora.py": "LoRA layers",
        "models/tuners/lora_layer.py": "fewer passes over memory"
    },
    "distributed": {"runs/dask_workers.py": "workers elsewhere"},
    "dask_jobqueue": {"runs/dask_workers.py": "workers by Slurm"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of all imports, also of those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


def allowed(name: str, package: str) -> bool:
    """A module, or a folder with all in it."""
    return any(
        name == one or one.endswith("/") and name.startswith(one) for one in ALLOWED[package])


def where(path: Path) -> str:
    return path.relative_to(ROOT / "clstudy").as_posix()


def ours(path: Path) -> set[str]:
    """Modules of clstudy that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or
                                                 (node.module or "").split(".")[0] == "clstudy"):
            assert not node.level, f"{where(path)}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "clstudy"}
    return found


def test_imports_point_down_and_never_in_a_circle():
    known = {
        ".".join(
            ("clstudy",
             *path.relative_to(ROOT / "clstudy").with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
    }
    graph = {}
    for path in MODULES:
        room = where(path).split("/")[0].removesuffix(".py")
        module = f"clstudy.{where(path).removesuffix('.py').replace('/', '.')}".removesuffix(
            ".__init__")
        targets = {name if name in known else name.rpartition(".")[0]
                   for name in ours(path)} - {module}
        graph[module] = targets
        for target in targets if room != "__init__" else ():
            assert target != "clstudy", f"{where(path)} imports the roof"
            assert ROOMS.index(
                target.split(".")[1]) <= ROOMS.index(room), f"{where(path)} looks up to {target}"
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_tests_stand_in_the_folders_of_the_package():
    folders = {
        path.name for path in (ROOT / "tests").iterdir()
        if path.is_dir() and list(path.glob("test_*.py"))
    }
    assert folders <= {*ROOMS, "scripts"}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_where_it_belongs_and_nowhere_else(package):
    importing = {
        where(path) for path in MODULES if any(
            name.split(".")[0] == package for name in imports(path))
    }
    assert [name for name in importing if not allowed(name, package)] == []


def test_pages_take_of_plotly_only_what_writes_pages():
    names = imports(ROOT / "clstudy" / "notebooks" / "html.py")
    assert {name for name in names if name.startswith("plotly")} <= {"plotly.io"}


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_a_module_says_what_it_is_and_keeps_its_lines_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    long = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 120]
    assert not long
    assert "__future__" not in {name.split(".")[0]
                                for name in imports(path)}  # annotations are read at run time


def test_the_loop_fits_on_its_screens():
    from clstudy.training import loop

    source = inspect.getsource(loop.train)
    assert len(source.splitlines()) <= 80  # of at most 100 characters


@pytest.mark.parametrize(("axis", "name"), NAMED)
def test_every_name_has_a_docstring_with_its_source(axis, name):
    thing = NAMES[axis][name]
    said = sys.modules[thing.__module__].__doc__ if axis == "methods" else thing.__doc__
    assert said and len(said.strip().splitlines()[0]) > 5
    if axis == "methods":
        assert re.search(r"arXiv \d{4}\.\d{4,5}|\b(19|20)\d\d\b", said), "which paper?"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_no_other_methods_child_and_calls_only_its_verbs(name):
    kind = METHODS[name]
    assert not [base for base in kind.__mro__[1:] if base in METHODS.values()]
    source = inspect.getsource(sys.modules[kind.__module__])
    assert not re.search(r"\.backward\(|\.step\(|print\(|RunConfig", source)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_has_a_docstring(name):
    assert AUGMENTATIONS[name].__doc__


@pytest.mark.parametrize(("axis", "name"), NAMED)
def test_every_name_stands_in_a_table_of_the_readme(axis, name):
    tables = [line for line in README.read_text().splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in line for line in tables)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        assert not cell.get("outputs") and cell.get("execution_count") is None, f"cell {number}"


def test_every_public_function_of_the_losses_has_its_formula_and_source():
    from clstudy.losses import functional

    for name, function in inspect.getmembers(functional, inspect.isfunction):
        if function.__module__ == functional.__name__:
            assert "arXiv" in function.__doc__, name


def test_no_path_of_a_machine_is_in_the_package():
    for path in [*MODULES, *(ROOT / "tests").glob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]:
        if path != Path(__file__):
            assert not re.search(r"[\"'](/home/|/root/|/Users/|/tmp/)", path.read_text()), path


def test_shapes_and_types_are_checked_over_the_whole_suite():
    """The hook of conftest is on, in folders too: otherwise all annotations would be unread."""
    import torch
    from jaxtyping import TypeCheckError

    from clstudy.data.benchmarks.emoji import on_white
    from clstudy.losses.functional import match

    image, text, target = torch.rand(3, 4), torch.rand(2, 5), torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeCheckError):
        match(image, text, torch.tensor(1.0), target)
    with pytest.raises(TypeCheckError):
        on_white([1])


# ---- what importing costs

LIGHT = (  # a module, in this order in one process → what it must not have brought
    ("", "numpy pydantic"),
    (".training.config .data.streams .evaluation.metrics .runs.store .analysis.tables "
     ".utils.progress .utils.options .notebooks.execute",
     "torch open_clip peft matplotlib papermill nbformat"),
    (".data.benchmarks", "torchvision open_clip"), (".methods", "torchvision transformers peft"),
    (".analysis.gradients .runs.run .plots", "open_clip torchvision peft"))


def test_modules_import_nothing_that_is_heavier_than_they_need():
    program = f"""if True:
        import sys
        from importlib import import_module
        for names, heavy in {LIGHT}:
            for name in names.split() or [""]:
                import_module("clstudy" + name)
                print(name, *{{*heavy.split()}} & {{*sys.modules}})"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line.split()) > 1] == [] and len(lines) == 14
