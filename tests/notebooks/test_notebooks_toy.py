"""Every cell of the notebooks of experiments, run in this process on the toy world: what is wrong
in a cell, in a table or in a figure is found in seconds. That papermill runs a notebook is tested
in test_notebooks.py."""
import ast
import html
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import benchmark_of
from matplotlib import pyplot

from clstudy.analysis import interpolation
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.notebooks import parameters as parameters_module
from clstudy.runs import workers
from clstudy.runs.run import Runs
from clstudy.runs.store import load_or_train
from clstudy.utils import paths
from clstudy.utils.paths import NOTEBOOKS
from tests.notebooks.test_notebooks import cells, names

FEW = {"benchmark": "toy", "benchmark_args": {}, "seeds": [0, 1], "precision": "fp32"}
STREAM = FEW | {"tasks": 2, "lr": 0.01, "more": {"eval_every": 20, "held_out_every": 5}}
ONE = FEW | {"epochs": 1, "batch_size": 32, "lr": 0.01}
TOY = {  # parameters that make it small; the model is the toy's
    "01_forgetting": FEW | {"tasks": [["first"], ["second"]], "lr": 0.01},
    "02_the_loop": {"benchmark": "toy", "benchmark_args": {}, "tasks": 2, "lr": 0.01},
    "03_candidates": FEW | {
        "tasks": 2, "rates": {"lora": [0.01, 0.02]}, "crossed": [2, 2], "few": 1,
        "more": {"eval_every": 20}, "beside": [
            {"tuner": "none", "method": "frozen"},
            {"tuner": "none", "method": "class_means", "method_args": {"text": 0.0}},
            {"tuner": "lora", "method": "finetune", "stream": "joint"}],
        "variants": {"two": {"double_softmax": True}}},
    "04_gradients": STREAM | {"look_at": 2},
    "05_which_encoder": FEW | {"tasks": 2, "rates": [0.01, 0.02], "more": {"eval_every": 20}},
    "06_streams": FEW | {"tasks": 2, "rates": [0.01, 0.02], "more": {"eval_every": 20}},
    "07_vocabulary": ONE | {
        "choosing": {}, "lr": 0.01, "more": {},
        "lines": {"finetune": {"method": "finetune", "lr": [0.001, 0.01], "eval_every": 30,
                               "held_out_every": "evaluation"},
                  "text": {"method": "finetune", "tower": "text"},
                  "vr_lwf": {"method": "vr_lwf", "weight": [1, 2]},
                  "zscl": {"method": "zscl", "average_every": 2, "weight": [1]},
                  "class_means": {"method": "class_means", "tuner": "none", "text": [0, 0.5]}},
        "in_sessions": ["finetune", "vr_lwf"],
        "sessions": {"tasks": 2, "held_out_every": 2, "candidates": "phase"}},
    "08_weights": ONE | {"shares": [0.3, 0.6], "more": {"eval_every": 20}},
    "09_small_memory": FEW | {"tasks": 2, "lrs": [0.01, 0.02], "more": {}, "classes": 6,
                              "chooses": "concepts", "few": 1,
                              "more_sizes": {"clip_loss": [0, 2], "gcl": [2]},
                              "beside": [{"method": "er", "policy": "quota"}],
                              "without": [{"method": "finetune", "tower": "text"},
                                          {"method": "finetune", "stream": "joint"}]},
    "10_domains": FEW | {"benchmark": "hands", "shown": "hands", "shown_args": {}, "size": 6,
                         "things": ["red brick", "blue door"], "lrs": [0.01, 0.02], "more": {},
                         "chooses": "concepts", "few": 1,
                         "beside": [{"method": "finetune", "stream": "joint"}]},
    "11_the_map": FEW | {"tasks": 2, "lr": 0.01, "more": {}, "size": 12},
}


@pytest.fixture
def world(toy, toy_model, monkeypatch, tmp_path):
    """The toy benchmark with the held-out sets that notebooks ask for, twice; all runs are made in
    this process."""
    def benchmark():
        small = toy().load()
        sides = {name: small.held_out["shades"] for name in ("concepts", "other classes", "validation",
                                                          "validation, other classes")}
        return replace(small, held_out=sides)

    for name in ("toy", "other"):
        monkeypatch.setitem(BENCHMARKS, name, benchmark_of(benchmark))

    def hands():
        """The same, each image drawn by one of three."""
        small = benchmark()
        drawn = {
            part: replace(getattr(small,
                                  part), domains=np.arange(len(getattr(small, part))) // 2 % 3,
                          domain_names=("pen", "brush", "chalk")) for part in ("train", "test")
        }
        return replace(small, **drawn)

    monkeypatch.setitem(BENCHMARKS, "hands", benchmark_of(hands))

    def train_all(configs, workers=None, runs=None, keep_model=False, probes=()):
        return Runs(
            load_or_train(config, tmp_path / "runs", keep_model, probes=probes)
            for config in configs)

    monkeypatch.setattr(workers, "train_all", train_all)
    monkeypatch.setattr("clstudy.train_all", train_all)
    monkeypatch.setattr(interpolation, "local", lambda function, items, workers:
                        ((item, function(item)) for item in items))
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setenv("CLSTUDY_QUIET", "1")
    return {"model": str(toy_model)}


def shown(value) -> str:
    """What a notebook would show of the value of a cell's last line."""
    made = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return made or html.escape(repr(value))


def run(stem: str, parameters: dict) -> list[str]:
    """Run all code cells of a notebook in one namespace; what they show."""
    path, seen = NOTEBOOKS / f"{stem}.ipynb", []
    values = parameters_module.check_parameters(path, parameters)
    space = {"display": lambda value: seen.append(shown(value))}
    for cell in cells(path):
        *body, last = ast.parse(cell.source).body
        exec(
            compile(ast.Module([*body, *([] if isinstance(last, ast.Expr) else [last])], []),
                    cell.id, "exec"), space)
        if isinstance(last, ast.Expr):
            seen.append(shown(eval(compile(ast.Expression(last.value), cell.id, "eval"), space)))
        if "parameters" in cell.metadata.get("tags", []):
            space |= values
    return seen


@pytest.mark.parametrize("stem", TOY)
def test_every_cell_runs_on_the_toy_world(stem, world, tmp_path, capsys):
    claimed = names(NOTEBOOKS / f"{stem}.ipynb", "figure", "table")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", "Mean of empty slice")  # a blurred stage of so few images can bring no class
        seen = run(stem, TOY[stem] | world)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} <= claimed
    assert {path.stem for path in (tmp_path / "figures").glob("*.*")} == claimed
    assert len(seen) >= 3 and "one seed" not in capsys.readouterr().out
    assert not pyplot.get_fignums(), "figures stay open"
