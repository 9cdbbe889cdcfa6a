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


def prepare(config: RunConfig) -> tuple[Clip, BenchmarkData, list[Stage]]:
    """Model, benchmark and stages of a run, on its device, tuner in place."""
    device = pick_device(config.device)
    benchmark = _benchmark(config, device)
    if device.type == "cpu":
        keep_freed_memory(len(benchmark.train.class_names) <= TEXTS)
    if benchmark.reference is None and config.make("method").needs_reference:
        raise ValueError(
            f"method={config.method!r} needs reference pairs; benchmark={config.benchmark!r} has none"
        )
    stream = config.make("stream")
    if config.stream_args.get("tasks") == "groups":
        stream = replace(stream, tasks=list(benchmark.groups.values()))
    if stream.needs_domains and benchmark.train.domains is None:
        raise ValueError(
            f"stream={config.stream!r} needs images with domains; benchmark={config.benchmark!r} has none"
        )
    seed = config.seed if config.stream_seed is None else config.stream_seed
    stages = stream.stages(benchmark.train.labels, seed, benchmark.train.domains)
    torch.manual_seed(config.seed)
    clip = load_clip(config.model, config.pretrained)
    clip.precision = config.precision
    config.make("tuner").apply(clip, config.tower)
    clip = clip.to(
        device,
        memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    if config.compile:
        clip.model.visual.compile()
    return clip, benchmark, stages


_LATEST: dict[tuple, BenchmarkData] = {
}  # the benchmark of the run before, for the next run of this process


_START: dict[tuple, Cache] = {}  # and its features under models that nothing has touched yet


def _benchmark(config: RunConfig, device: torch.device) -> BenchmarkData:
    key = (registry("benchmark")[config.benchmark], repr(
        config.benchmark_args), str(device), *config.fingerprints())
    if key not in _LATEST:
        _LATEST.clear()
        _START.clear()
        _LATEST[key] = config.make("benchmark").load().to(device)
    return _LATEST[key]


def _start(config: RunConfig) -> Cache:
    """What is known of the benchmark under the model as loaded: nothing where an untrained tuner
    changes it already."""
    if config.pretrained == "random" or not config.make("tuner").neutral:
        return Cache()
    key = (config.model, config.pretrained, config.precision, config.compile, config.channels_last)
    return _START.setdefault(key, Cache())


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available(
        ) else "cpu"
    return distributed.own(torch.device(name))


def make_optimizer(config: RunConfig, parameters: list) -> torch.optim.Optimizer | None:
    if not parameters:
        return None
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam,
            "sgd": torch.optim.SGD}[config.optimizer]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def towers_of(clip: Clip, trained: list) -> dict[str, bool]:
    """True for each tower that has one of these parameters."""
    return {
        tower: True for tower in ("image", "text")
        if any(p is q for _, p in clip.tower(tower) for q in trained)
    }


def unchanging(benchmark: BenchmarkData, stages: Sequence[Stage],
               prompts: Tensor) -> dict[str, Any]:
    """What a method may refer to and every process has: a saved state holds no copy of it."""
    return {
        "benchmark": benchmark, "reference": benchmark.reference, "images": benchmark.train.images,
        "prompts": prompts, **{f"stage {stage.number}": stage for stage in stages}
    }
