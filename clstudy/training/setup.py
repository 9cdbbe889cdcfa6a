"""Model, benchmark, stages and optimiser of a run."""
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import BenchmarkData
from clstudy.evaluation.features import Cache
from clstudy.models.clip import TEXTS, Clip
from clstudy.models.loading import load_clip
from clstudy.training.config import RunConfig, registry
from clstudy.utils import distributed
from clstudy.utils.malloc import keep_freed_memory

_LATEST: dict[tuple, BenchmarkData] = {}  # the last benchmark, for the next run of this process
_START: dict[tuple, Cache] = {}  # and its features under models before any training


def prepare(config: RunConfig) -> tuple[Clip, BenchmarkData, list[Stage]]:
    """Return model, benchmark and stages of a run, on its device, with the tuner applied."""
    device = pick_device(config.device)
    benchmark = _benchmark(config, device)
    if device.type == "cpu":
        keep_freed_memory(len(benchmark.train.class_names) <= TEXTS)
    if benchmark.reference is None and config.make("method").needs_reference:
        raise ValueError(f"method={config.method!r} needs reference pairs; "
                         f"benchmark={config.benchmark!r} has none")
    stream = config.make("stream")
    if config.stream_args.get("tasks") == "groups":
        stream = replace(stream, tasks=list(benchmark.groups.values()))
    if stream.needs_domains and benchmark.train.domains is None:
        raise ValueError(f"stream={config.stream!r} needs images with domains; "
                         f"benchmark={config.benchmark!r} has none")
    seed = config.seed if config.stream_seed is None else config.stream_seed
    stages = stream.stages(benchmark.train.labels, seed, benchmark.train.domains)
    torch.manual_seed(config.seed)
    clip = load_clip(config.model, config.pretrained)
    clip.precision, clip.class_names = config.precision, tuple(benchmark.train.class_names)
    config.make("tuner").apply(clip, config.tower)
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    clip = clip.to(device, memory_format=layout)
    if config.compile:
        clip.model.visual.compile()
    return clip, benchmark, stages


def _benchmark(config: RunConfig, device: torch.device) -> BenchmarkData:
    key = (registry("benchmark")[config.benchmark], repr(config.benchmark_args), str(device),
           *config.fingerprints())
    if key not in _LATEST:
        _LATEST.clear()
        _START.clear()
        _LATEST[key] = config.make("benchmark").load().to(device)
    return _LATEST[key]


def start_cache(config: RunConfig) -> Cache:
    """Return the known features of the benchmark under the model before training.

    It is empty where the untrained tuner changes the model already."""
    if config.pretrained == "random" or not config.make("tuner").neutral:
        return Cache()
    key = (config.model, config.pretrained, config.precision, config.compile, config.channels_last)
    return _START.setdefault(key, Cache())


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is a GPU where there is one."""
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, available in there.items() if available), "cpu")
    return distributed.own(torch.device(name))


def make_optimizer(config: RunConfig, parameters: list) -> torch.optim.Optimizer | None:
    if not parameters:
        return None
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    kind = kinds[config.optimizer]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def towers_of(clip: Clip, trained: list) -> dict[str, bool]:
    """Return True for each tower that has one of these parameters."""
    ids = {id(p) for p in trained}
    return {tower: True for tower in ("image", "text")
            if any(id(p) in ids for _, p in clip.tower(tower))}


def buffers(clip: Clip) -> dict[str, Tensor]:
    """Return copies of the buffers of a model, such as the statistics of batch norm."""
    return {name: buffer.clone() for name, buffer in clip.named_buffers()}


def moved(clip: Clip, start: dict[str, Tensor], moving: dict[str, bool]) -> dict[str, bool]:
    """Note in `moving` each tower with a buffer that is not as at the start; return it.

    Statistics of batch norm move without being trained, wherever a method encodes in training
    mode."""
    for name, buffer in clip.named_buffers():
        if name not in start or not torch.equal(buffer, start[name]):
            moving["image" if name.startswith("model.visual.") else "text"] = True
    return moving


def unchanging(benchmark: BenchmarkData, stages: Sequence[Stage],
               prompts: Tensor) -> dict[str, Any]:
    """Return what a method may refer to and every process has, so that no state needs a copy."""
    return {"benchmark": benchmark, "reference": benchmark.reference, "prompts": prompts,
            "images": benchmark.train.images, **{f"stage {each.number}": each for each in stages}}
