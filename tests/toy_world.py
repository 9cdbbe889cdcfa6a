"""The toy world of conftest.py for processes of their own: importing this puts the benchmark `toy`
under its name.

A program that imports it at its top has it in its worker processes too, for these import the
program again. Types are not checked here: what counts is what happens when processes die."""
import json
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook = lambda *_: None
import conftest  # noqa: E402

from clstudy.data.benchmarks import BENCHMARKS  # noqa: E402

BENCHMARKS["toy"] = conftest.Toy
SETTINGS = {
    "benchmark": "toy", "stream": "disjoint", "stream_args": {"tasks": 2}, "tuner": "lora",
    "method": "sit", "lr": 1e-2, "batch_size": 8, "steps_per_batch": 1, "device": "cpu"
}


def toy_model(folder: Path) -> Path:
    """The toy model with random weights, in the form that open_clip reads."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "size": [64, 64],
        "interpolation": "bicubic", "resize_mode": "squash"
    }
    about = {"model_cfg": conftest.TOY_MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    save_file(
        open_clip.model.CLIP(**conftest.TOY_MODEL).state_dict(),
        folder / "open_clip_model.safetensors")
    return folder
