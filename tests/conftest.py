"""What the whole suite stands on: offline, headless, one thread, types checked at run time; and a
toy world.

`toy` is a benchmark of coloured noise and `toy_model` a CLIP of two narrow layers with random
weights, so that a run takes a fraction of a second and no test but those of the embedded files
needs these. `tiny` is a run on both.
"""
import os
import tempfile

# before torch is imported; results are bit-identical only at an equal number of threads
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1",
                  CLSTUDY_HEADLESS="1", MPLBACKEND="Agg")
os.environ["CLSTUDY_RUNS"] = tempfile.mkdtemp(prefix="clstudy-tests-")  # no test writes into runs/

import atexit
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

beartyped = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """beartype, but for the constructor of Options, which checks its fields itself, in words of its
    own."""
    checked = beartyped(function)
    if function.__name__ != "__init__":
        return checked

    @wraps(function)
    def init(self, *args, **options):
        from clstudy.utils.options import Options

        return (function if isinstance(self, Options) else checked)(self, *args, **options)

    return init


# Every annotation of the package is checked at every call of the suite; an int passes for a float
# (PEP 484). The hook must stand before the package's first import, and takes its checker by the
# name of a module. Streams are left out: they take labels of any kind, and what they refuse, they
# refuse in words of their own.
sys.modules["clstudy_checker"] = SimpleNamespace(check=check)
PACKAGE = Path(__file__).parent.parent / "clstudy"
CHECKED = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]
install_import_hook(
    [name for name in CHECKED if name not in ("clstudy", "clstudy.data", "clstudy.data.streams")],
    "clstudy_checker.check")
atexit.register(shutil.rmtree, os.environ["CLSTUDY_RUNS"], ignore_errors=True)

import torch  # noqa: E402

from clstudy.data.benchmarks import BENCHMARKS, Benchmark  # noqa: E402
from clstudy.data.types import BenchmarkData, Captioned, Labelled  # noqa: E402

torch.set_num_threads(1)

COLOURS = {"red brick": (220, 40, 30), "green leaf": (40, 170, 60), "blue door": (40, 70, 200),
           "grey stone": (130, 130, 130), "yellow sun": (240, 220, 40), "black cat": (20, 20, 20)}
TOY_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
}


@dataclass
class Toy(Benchmark):
    """Colours: training images of each class, 4 test images; a held-out set of two classes, and
    captions."""

    images: int = 10  # of each class
    classes: int = 6

    def load(self) -> BenchmarkData:
        rng, names = np.random.default_rng(0), tuple(COLOURS)[:self.classes]
        numbers = np.arange(self.classes)

        def draw(labels: np.ndarray) -> torch.Tensor:
            plain = np.array(list(COLOURS.values()))[labels][:, :, None, None]
            noise = rng.integers(-60, 60, (len(labels), 3, 64, 64))
            return torch.from_numpy((plain + noise).clip(0, 255).astype(np.uint8))

        def labelled(labels: np.ndarray) -> Labelled:
            return Labelled(draw(labels), labels, names, "a picture of a {}.")

        loop, test = (labelled(np.tile(numbers, count)) for count in (self.images, 4))
        shades = Labelled(draw(np.array([3, 5, 5, 3])), np.array([0, 1, 1, 0]), ("light", "dark"),
                          "something {}")
        captions = tuple(
            caption for name in names for caption in (name, f"noise on {name.split()[0]}"))
        pairs = Captioned(draw(numbers), captions, np.repeat(numbers, 2))
        half = self.classes // 2
        groups = {"first": tuple(range(half)), "second": tuple(range(half, self.classes))}
        known = tuple(caption for name in names
                      for caption in (name, name, f"noise on {name}"))  # two images a class
        reference = Captioned(draw(np.repeat(numbers, 2)), known,
                              (2 * numbers[:, None] + [0, 1, 1]).ravel())
        return BenchmarkData("toy", loop, test, tuple(names[label] for label in loop.labels),
                             groups, {"shades": shades}, {"drawings": pairs}, lambda: reference)


def benchmark_of(make: Callable[[], BenchmarkData]) -> type[Benchmark]:
    """A benchmark without options, whose data this function makes."""

    @dataclass
    class Made(Benchmark):
        def load(self) -> BenchmarkData:
            return make()

    return Made


@pytest.fixture
def toy(monkeypatch):
    """The toy benchmark, under its name for the length of a test; its class."""
    monkeypatch.setitem(BENCHMARKS, "toy", Toy)
    return Toy


@pytest.fixture(scope="session")
def toy_cfg() -> dict:
    """The toy model's sizes, as open_clip takes them."""
    return TOY_MODEL


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    """A model folder in the form that open_clip reads, with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("toy-model")
    preprocess = {
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "size": [64, 64],
        "interpolation": "bicubic", "resize_mode": "squash"
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TOY_MODEL, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    save_file(
        open_clip.model.CLIP(**TOY_MODEL).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def clip(toy_model):
    """The toy model, as the package loads it."""
    from clstudy import load_clip

    return load_clip(str(toy_model))


@pytest.fixture
def tiny(toy, toy_model):
    """A run of two stages of four batches each."""
    from clstudy import RunConfig

    return RunConfig(benchmark="toy", stream="disjoint", stream_args={"tasks": 2},
                     model=str(toy_model), tuner="lora", method="sit", lr=1e-2, batch_size=8,
                     steps_per_batch=1)


@pytest.fixture
def runs(tmp_path) -> Path:
    """Where runs are made."""
    return tmp_path / "runs"


@pytest.fixture
def no_training(monkeypatch):
    """Call it, and from then on training is an error."""
    from clstudy.training import loop

    def refuse(*_, **__):
        raise AssertionError("trained again")

    return lambda: monkeypatch.setattr(loop, "train", refuse)


@pytest.fixture
def batch(toy):
    """Eight images of three classes, with all six offered."""
    from clstudy.data.streams import Stage
    from clstudy.data.types import Batch

    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prompts = torch.zeros(6, 9, dtype=torch.long)
    prompts[:, 0] = 49406
    prompts[:, 1:4] = torch.arange(1, 19).view(6, 3)
    prompts[:, 4] = 49407  # the end token, where the feature is read
    stage = Stage(2, (5, 2), np.arange(8))
    return Batch(images, (2, 5, 5, 0, 2, 2, 0, 5), tuple(range(8)), (0, 4, 5, 1, 3, 2), prompts,
                 stage, reference=toy().load().reference)
