"""A choice of one's own on each axis: one class and one line in its registry dict, and nothing
else."""
import importlib.util
import sys

import pytest
from typer.testing import CliRunner

from clstudy.cli import app
from clstudy.training.config import registry

OWN = '''"""Nothing but cross-entropy, for the test (2026)."""
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from conftest import Toy
from torch import Tensor

from clstudy.data.streams import Joint, Stage, Stream
from clstudy.data.types import Batch, BenchmarkData
from clstudy.losses.functional import match
from clstudy.methods.base import Method
from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner


@dataclass
class Smudges(Toy):
    """Fewer colours than the toy has."""

    images: Annotated[int, Ge(2)] = 3  # of each colour


@dataclass
class Backwards(Stream):
    """Everything at once, the last image first."""

    title: ClassVar[str] = "Backwards"

    def stages(self, labels, seed: int, domains=None) -> list[Stage]:
        stage, = Joint().stages(labels, seed)
        return [Stage(1, stage.classes, stage.index[::-1].copy())]


@dataclass
class Temperature(Tuner):
    """The temperature alone."""

    title: ClassVar[str] = "Temperature"
    neutral: ClassVar[bool] = True

    def apply(self, clip: Clip, tower: str) -> None:
        clip.requires_grad_(False)
        clip.model.logit_scale.requires_grad_(True)


@dataclass
class Plain(Method):
    """Cross-entropy."""

    title: ClassVar[str] = "Plain"

    weight: Annotated[float, Ge(0)] = 1.0  # of the task

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded = clip.encode(batch)
        return {"task": self.weight * match(encoded.image, encoded.text, encoded.scale, batch.target)}
'''
AXES = {"benchmark": ("smudges", "Smudges"), "stream": ("backwards", "Backwards"),
        "tuner": ("temperature", "Temperature"), "method": ("plain", "Plain")}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module with the four, each under its name."""
    place = tmp_path / "own_axes.py"
    place.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_axes", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_axes", module)
    spec.loader.exec_module(module)
    for axis, (name, kind) in AXES.items():
        monkeypatch.setitem(registry(axis), name, getattr(module, kind))
    return module


@pytest.mark.parametrize(("axis", "said"), [
    ("benchmark", "images=3: a whole number, at least 2; of each colour"),
    ("stream", "Everything at once, the last image first."), ("tuner", "The temperature alone."),
    ("method", "weight=1.0: a number, at least 0; of the task")])
def test_it_is_listed_with_its_options(own, axis, said):
    listed = CliRunner().invoke(app, ["list", f"{axis}s"])
    assert listed.exit_code == 0 and AXES[axis][0] in listed.output and said in listed.output


def test_it_is_run(own, tiny, runs):
    from clstudy import load_or_train
    from clstudy.training.setup import prepare

    config = tiny.replace(stream_args={}, **{axis: name for axis, (name, _) in AXES.items()})
    clip, benchmark, stages = prepare(config)
    assert [name for name, p in clip.named_parameters() if p.requires_grad] == ["model.logit_scale"]
    assert len(benchmark.train) == 3 * 6 and len(stages) == 1
    run = load_or_train(config, runs)
    assert set(run.steps.term) == {"task"} and run.evals.value.notna().all()


def test_its_options_are_checked_by_the_run(own, tiny):
    settings = tiny.model_dump() | {axis: name
                                    for axis, (name, _) in AXES.items()} | {"stream_args": {}}
    for axis, options, said in (("benchmark", {"images": 1},
                                 "benchmark_args: images=1: must be at least 2"), ("stream", {
                                     "tasks": 2
                                 }, "stream_args: 'tasks' is unknown"), ("method", {
                                     "weight": "x"
                                 }, "method_args: weight='x': must be a number, at least 0")):
        with pytest.raises(ValueError, match=said):
            type(tiny)(**settings | {f"{axis}_args": options})
