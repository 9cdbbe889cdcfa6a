"""The methods as one axis: what importing them costs, what each declares, what a new one takes; and
the two verbs that reach beyond the step."""
from dataclasses import dataclass, field
from importlib import import_module
from typing import ClassVar

import pandas as pd
import pytest
import torch
from small_runs import register, train
from typer.testing import CliRunner

from clstudy import cli, plots
from clstudy.analysis import catalogue
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.evaluation.accuracy import evaluate
from clstudy.methods import METHODS
from clstudy.methods.base import Beside, Method
from clstudy.methods.finetune import Finetune
from clstudy.plots import style
from clstudy.training.setup import prepare
from clstudy.utils import paths


@pytest.mark.parametrize("name", METHODS)
def test_a_method_declares_what_figures_and_tables_read(name):
    kind = METHODS[name]
    assert kind.title and kind.source and kind.checked and kind.family in style.FAMILIES
    assert kind.__doc__.strip().endswith(".") and len(kind.__doc__.splitlines()) == 1
    assert bool(kind.published) or name == "compose" or isinstance(kind.place_on_map, Beside)
    assert kind().memory_bytes == 0 and kind().table() == []


NEW = '''"""A method of a reader."""
from dataclasses import dataclass

from clstudy.losses.functional import match_batch
from clstudy.methods import METHODS
from clstudy.methods.base import Method


@dataclass
class Mine(Method):
    """A loss twice as steep. Nobody else has it."""

    title = "twice"
    source = "A. Reader 2026"
    family = "symmetric"
    dash = (1, 1)

    steepness: float = 2.0  # how many times

    def loss(self, clip, batch):
        return {"task": self.steepness * match_batch(clip, batch)}


METHODS["mine"] = Mine
'''


def test_a_new_method_is_one_file_and_one_line(tmp_path, monkeypatch, tiny):
    """It is listed, runs, has a line in figures and a row in the table of the README."""
    (tmp_path / "readers_method.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "mine", None)  # so that it goes again
    import_module("readers_method")
    listed = CliRunner().invoke(cli.app, ["list", "methods"]).stdout
    assert "mine" in listed and "steepness" in listed
    _, steps = train(tiny.replace(method="mine"))
    _, others = train(tiny.replace(method="finetune"))
    assert steps[0]["value"] == pytest.approx(2 * others[0]["value"])
    rows = [("one", name, 1.0, 2.0, 0.0) for name in ("sit", "mine")]
    figure = plots.series(
        pd.DataFrame(rows, columns=["panel", "method", "x", "mean", "half_width"]), "x", "y")
    assert [text.get_text()
            for text in figure.legends[0].get_texts()] == ["symmetric (SIT)", "twice"]
    assert "| `mine` | A loss twice as steep | A. Reader 2026 |  |" in catalogue.markdown("methods")


@pytest.mark.parametrize("axis", catalogue.TABLES)
def test_the_tables_of_the_readme_are_those_of_the_classes(axis, monkeypatch):
    """`clstudy list --markdown README.md` writes them."""
    for name in set(BENCHMARKS) & {"toy"}:
        monkeypatch.delitem(BENCHMARKS, name)
    readme = (paths.REPOSITORY / "README.md").read_text()
    assert catalogue.filled(readme, axis) == readme and f"<!-- {axis} -->" in readme


# ---- the stage's batches, and scores


@dataclass
class Looking(Method):
    """Takes a look at every stage before it comes, and learns nothing."""

    stages: list = field(default_factory=list, init=False)

    def before_stage(self, clip, stage, batches):
        found = list(batches)
        self.stages.append([i for batch in found for i in batch.index])
        assert self.stages[-1] == stage.index.tolist()
        assert all(batch.stage is stage and not batch.replayed for batch in found)

    def loss(self, clip, batch):
        return Finetune().loss(clip, batch)


def test_a_look_at_the_batches_of_a_stage_changes_no_number(monkeypatch, tiny):
    """Neither do classes count as seen from then on, nor is a random number drawn."""
    method = Looking()
    register(monkeypatch, "looking", method)
    assert train(tiny.replace(method="looking", eval_every=16)) == train(
        tiny.replace(method="finetune", eval_every=16))
    assert len(method.stages) == 2


@dataclass
class Contrary(Finetune):
    """Ranks the other way round, and remembers what it was asked."""

    asked: ClassVar[list] = []

    def scores(self, clip, image, text, classes):
        self.asked.append((len(image), len(text), classes if classes is None else tuple(classes)))
        return -super().scores(clip, image, text, classes)


def test_evaluation_ranks_by_the_scores_of_the_method(monkeypatch, tiny):
    clip, benchmark, stages = prepare(tiny)
    tasks = [stage.classes for stage in stages]
    Contrary.asked.clear()
    found = evaluate(clip, benchmark, tasks, range(6), scores=Contrary().scores).rows
    plain = evaluate(clip, benchmark, tasks, range(6)).rows
    assert plain == evaluate(clip, benchmark, tasks, range(6), scores=Finetune().scores).rows
    assert [row["value"] for row in found] != [row["value"] for row in plain]
    test, held_out = len(benchmark.test), [len(one) for one in benchmark.held_out.values()]
    assert Contrary.asked[0] == (test, 6, tuple(range(6)))
    assert [one[0] for one in Contrary.asked[1:1 + len(held_out)]] == held_out
    assert all(classes is None
               for _, _, classes in Contrary.asked[1:]) and len(Contrary.asked) > 1 + len(held_out)
    monkeypatch.setitem(METHODS, "contrary", Contrary)
    evals, _ = train(tiny.replace(method="contrary"))
    before = evaluate(clip, benchmark, tasks, [], scores=Contrary().scores).rows
    assert [row["value"] for row in evals if row["stage"] == 0] == [row["value"] for row in before]


def test_the_default_score_is_the_product_to_the_bit(clip):
    image, text = torch.randn(5, 4), torch.randn(3, 4)
    assert torch.equal(Finetune().scores(clip, image, text, None), image @ text.T)
