"""The loop. `train(config)` runs one point of the grid and returns its tables; read it from top to bottom.

A method is called by eight verbs, all of them below. Nothing on the device is waited for in a step: losses are
gathered and looked at every `LOOK` steps.
"""
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .augment import AUGMENTATIONS
from .benchmarks import BENCHMARKS
from .clip import Clip, load_clip
from .config import RunConfig
from .data import Batch, Benchmark
from .evaluate import Cache, evaluate
from .host import keep_freed_memory
from .methods import METHODS
from .probes import open_probes
from .progress import bar
from .streams import STREAMS, Stage
from .tuners import TUNERS, neutral

LOOK = 20  # steps between two looks at the losses


class NotFinite(RuntimeError):
    """A loss term or a weight became NaN or infinite; the message names stage, step and term."""


def prepare(config: RunConfig) -> tuple[Clip, Benchmark, list[Stage]]:
    """Model, benchmark and stages of a run, on its device, tuner in place."""
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    benchmark = _benchmark(config, device)
    if benchmark.reference is None and getattr(METHODS[config.method](**config.method_args), "needs_reference", False):
        raise ValueError(f"method={config.method!r} needs reference pairs; benchmark={config.benchmark!r} has none")
    options = dict(config.stream_args)
    if options.get("tasks") == "groups":
        options["tasks"] = list(benchmark.groups.values())
    if config.stream == "domains":
        options["domains"] = benchmark.train.domains
        if benchmark.train.domains is None:
            raise ValueError(f"stream='domains' needs images with domains; benchmark={config.benchmark!r} has none")
    seed = config.seed if config.stream_seed is None else config.stream_seed
    stages = STREAMS[config.stream](benchmark.train.labels, seed, **options)
    torch.manual_seed(config.seed)
    clip = load_clip(config.model, config.pretrained)
    clip.precision = config.precision
    TUNERS[config.tuner](clip, config.tower, **config.tuner_args)
    clip = clip.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    return clip, benchmark, stages


_LATEST: dict[tuple, Benchmark] = {}  # the benchmark of the run before, for the next run of this process
_START: dict[tuple, Cache] = {}  # and its features under models that nothing has touched yet


def _benchmark(config: RunConfig, device: torch.device) -> Benchmark:
    key = (BENCHMARKS[config.benchmark], repr(config.benchmark_args), str(device), *config.files())
    if key not in _LATEST:
        _LATEST.clear()
        _START.clear()
        _LATEST[key] = BENCHMARKS[config.benchmark](**config.benchmark_args).to(device)
    return _LATEST[key]


def _start(config: RunConfig) -> Cache:
    """What is known of the benchmark under the model as loaded: nothing where an untrained tuner changes it already."""
    if config.pretrained == "random" or not neutral(config.tuner, config.tuner_args):
        return Cache()
    key = (config.model, config.pretrained, config.precision, config.compile, config.channels_last)
    return _START.setdefault(key, Cache())


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def batches(stage: Stage, benchmark: Benchmark, seen: list[int], prompts: Tensor, size: int, order: np.ndarray
            ) -> Iterator[Batch]:
    """The stage's images in the order given; classes join `seen` when their first image arrives."""
    for chunk in np.array_split(order, range(size, len(order), size)) if len(order) else []:
        labels = benchmark.train.labels[chunk]
        seen.extend(label for label in dict.fromkeys(labels.tolist()) if label not in seen)
        images = benchmark.train.images
        image = images[torch.from_numpy(chunk).to(images.device)].to(prompts.device).float() / 255
        yield Batch(image, tuple(labels.tolist()), tuple(chunk.tolist()), tuple(seen), prompts, stage,
                    reference=benchmark.reference)


def make_optimizer(config: RunConfig, parameters: list) -> torch.optim.Optimizer | None:
    if not parameters:
        return None
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def decay(optimizer: torch.optim.Optimizer | None, config: RunConfig, epoch: int) -> None:
    """Divide the learning rate by ten where `epoch` epochs are a milestone."""
    for group in optimizer.param_groups if optimizer and epoch in config.milestones else ():
        group["lr"] /= 10


def train(config: RunConfig, progress: Callable | None = None, keep: Callable[[Clip], None] | None = None,
          probes: Sequence[str] = (), notes: dict | None = None) -> tuple[list[dict], list[dict]]:
    """Run the stream once. Returns rows of evaluations and of steps (see VOCABULARY.md for the columns).

    keep: called with the final model. probes: names of `probes.PROBES`, which look at every step and change no number.
    notes: takes what was measured beside: "cost" of training, and a table per probe. NotFinite: a loss term or a
    weight is NaN or infinite."""
    clip, benchmark, stages = prepare(config)
    device = clip.device
    method = METHODS[config.method](**config.method_args)
    augmentation = AUGMENTATIONS[config.augmentation]
    generator = torch.Generator().manual_seed(config.seed)
    shuffle = np.random.default_rng(config.seed)
    prompts = clip.class_text(list(benchmark.train.class_names), benchmark.train.template).to(device)
    tasks = [stage.classes for stage in stages]
    if config.compile:
        clip.model.visual.compile()
    evals, steps, waiting, seen, images, cost = [], [], [], [], 0, Cost(device)

    cache, moving = _start(config), {"image": False, "text": False}  # which towers a stage has trained so far

    def look(stage: int, complete: bool) -> None:
        cache.forget(**moving)
        model = method.deploy(clip)
        sides = complete and (stage % config.side_every == 0 or stage == len(stages))
        rows = evaluate(model, benchmark, tasks, seen, complete, sides, cache if model is clip else None)
        evals.extend({"stage": stage, "images_seen": images, "stage_end": complete, **row} for row in rows)

    total = config.epochs * sum(len(stage.index) for stage in stages)
    shown = progress or bar(total=total, unit="img", desc=f"{config.method} {config.tuner}", leave=False)
    look(0, complete=True)
    cache = cache.copy()
    with open_probes(probes, clip, benchmark, prompts) as watching:
        for stage in stages:
            method.before_stage(clip, stage)
            trained = method.trainable(clip)
            optimizer = make_optimizer(config, trained)  # a fresh one per stage, as SIT's code does
            for tower in moving:
                moving[tower] |= any(p is q for _, p in clip.tower(tower) for q in trained)
            for epoch in range(config.epochs):
                decay(optimizer, config, epoch)
                order = stage.index if epoch == 0 else shuffle.permutation(stage.index)
                for batch in batches(stage, benchmark, seen, prompts, config.batch_size, order):
                    cost.start()
                    clip.train()
                    for _ in range(config.steps_per_batch if optimizer else 0):
                        joined = method.rehearse(clip, batch)
                        terms = method.loss(clip, replace(joined, image=augmentation(joined.image, generator)))
                        optimizer.zero_grad(set_to_none=True)
                        watching.look(terms, stage.number, images)
                        sum(terms.values()).backward()
                        method.edit_gradients(clip)
                        if config.clip_norm:
                            torch.nn.utils.clip_grad_norm_(method.trainable(clip), config.clip_norm)
                        optimizer.step()
                        waiting.append((stage.number, images, {n: term.detach() for n, term in terms.items()}))
                        if len(waiting) >= LOOK:
                            gather(waiting, steps)
                    method.after_step(clip, batch)
                    before, images = images, images + len(batch.labels)
                    cost.stop(len(batch.labels), trained)
                    shown.update(len(batch.labels))
                    if config.eval_every and before // config.eval_every < images // config.eval_every:
                        look(stage.number, complete=False)
            gather(waiting, steps)
            watching.look({}, stage.number, images)
            check_weights(trained, stage.number)
            method.after_stage(clip, batches(stage, benchmark, seen, prompts, config.batch_size, stage.index))
            look(stage.number, complete=True)
    shown.close()
    if notes is not None:
        notes.update(cost=cost.table(), **watching.tables(), **own_table(method))
    if keep:
        keep(method.deploy(clip))
    return evals, steps


def own_table(method) -> dict[str, pd.DataFrame]:
    """What a method has to tell beside its terms, as "method": the rows of its `table()`, if it has one."""
    return {"method": pd.DataFrame(method.table())} if hasattr(method, "table") else {}


class Cost:
    """What training took, evaluation aside: images per second, tuned parameters, and on a GPU the largest memory.

    The GPU is not waited for at each batch, only at the end of training and before evaluations, which wait anyway."""

    def __init__(self, device: torch.device):
        self.device, self.images, self.seconds, self.parameters, self.started = device, 0, 0.0, 0, 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, images: int, trained: list) -> None:
        self.seconds += time.perf_counter() - self.started
        self.images += images
        self.parameters = max(self.parameters, sum(p.numel() for p in trained))

    def table(self) -> dict:
        """images_per_second of the stream; parameters; peak_memory in bytes, None on the CPU."""
        cuda = self.device.type == "cuda"
        return {"images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
                "parameters": self.parameters,
                "peak_memory": torch.cuda.max_memory_allocated(self.device) if cuda else None}


def check_weights(parameters: list, stage: int) -> None:
    """Stop where a weight is not finite: a gradient can be NaN where the loss is not, and the last step has no loss
    after it."""
    if parameters and not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise NotFinite(f"weights are not finite after stage {stage}: lower lr, or set clip_norm")


def gather(waiting: list, steps: list[dict]) -> None:
    """Losses from the device to rows (stage, images_seen, step, term, value), all at once; stop where one is not
    finite."""
    if not waiting:
        return
    names = [(stage, images, name) for stage, images, terms in waiting for name in terms]
    values = torch.stack([term for _, _, terms in waiting for term in terms.values()]).float().cpu()
    first = steps[-1]["step"] + 1 if steps else 0
    step = {}
    numbers = [step.setdefault(i, first + i) for i, (_, _, terms) in enumerate(waiting) for _ in terms]
    waiting.clear()
    for (stage, images, name), value, number in zip(names, values.tolist(), numbers, strict=True):
        if not np.isfinite(value):
            raise NotFinite(f"term {name!r} is {value} at stage {stage}, step {number}, after {images} images: "
                            "lower lr, or set clip_norm")
        steps.append({"stage": stage, "images_seen": images, "step": number, "term": name, "value": value})
