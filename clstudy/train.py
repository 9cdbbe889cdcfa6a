"""The loop. `train(config)` runs one point of the grid and returns its tables; read it from top to bottom.

A method is called by eight verbs, all of them below. Nothing on the device is waited for in a step: losses are
gathered and looked at every `LOOK` steps (on the CPU, where nothing waits, at every step).
"""
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import distributed
from .augment import AUGMENTATIONS
from .benchmarks import BENCHMARKS
from .clip import TEXTS, Clip, load_clip
from .config import RunConfig
from .data import Batch, Benchmark
from .evaluate import Cache, evaluate
from .host import keep_freed_memory
from .methods import METHODS
from .probes import open_probes
from .progress import bar
from .resume import Position, Saver
from .streams import STREAMS, Stage
from .tuners import TUNERS, neutral

LOOK = 20  # steps between two looks at the losses


class NotFinite(RuntimeError):
    """A loss term or a weight became NaN or infinite; the message names stage, step, term and images, and so does
    `where`."""

    def __init__(self, message: str, where: dict[str, Any] | None = None):
        super().__init__(message)
        self.where = where or {}

    def __reduce__(self):  # between processes
        return NotFinite, (str(self), self.where)


def prepare(config: RunConfig) -> tuple[Clip, Benchmark, list[Stage]]:
    """Model, benchmark and stages of a run, on its device, tuner in place."""
    device = pick_device(config.device)
    benchmark = _benchmark(config, device)
    if device.type == "cpu":
        keep_freed_memory(len(benchmark.train.class_names) <= TEXTS)
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
    if config.compile:
        clip.model.visual.compile()
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
    return distributed.own(torch.device(name))


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


def own_bar(config: RunConfig, stages: Sequence[Stage]):
    """Progress over all images of a run."""
    return bar(total=total(config, stages), unit="img", desc=f"{config.method} {config.tuner}", leave=False)


def total(config: RunConfig, stages: Sequence[Stage]) -> int:
    """Images of a run, each as often as it is seen."""
    return config.epochs * sum(len(stage.index) for stage in stages)


def towers_of(clip: Clip, trained: list) -> dict[str, bool]:
    """True for each tower that has one of these parameters."""
    return {tower: True for tower in ("image", "text") if any(p is q for _, p in clip.tower(tower) for q in trained)}


def unchanging(benchmark: Benchmark, stages: Sequence[Stage], prompts: Tensor) -> dict[str, Any]:
    """What a method may refer to and every process has: a saved state holds no copy of it."""
    return {"benchmark": benchmark, "reference": benchmark.reference, "images": benchmark.train.images,
            "prompts": prompts, **{f"stage {stage.number}": stage for stage in stages}}


def arriving(at: Position, stage: Stage, benchmark: Benchmark, prompts: Tensor, config: RunConfig,
             shuffle: np.random.Generator, optimizer: torch.optim.Optimizer | None) -> Iterator[Batch]:
    """The batches of a stage that are still to come, epoch by epoch. Who takes one counts it in `at.batch`."""
    while at.epoch < config.epochs:
        if at.batch == 0:
            decay(optimizer, config, at.epoch)
            at.order = stage.index if at.epoch == 0 else shuffle.permutation(stage.index)
        yield from batches(stage, benchmark, at.seen, prompts, config.batch_size,
                           at.order[at.batch * config.batch_size:])
        at.epoch, at.batch = at.epoch + 1, 0


def augmented(batch: Batch, augmentation: Callable, generator: torch.Generator) -> Batch:
    return replace(batch, image=augmentation(batch.image, generator))


def decay(optimizer: torch.optim.Optimizer | None, config: RunConfig, epoch: int) -> None:
    """Divide the learning rate by ten where `epoch` epochs are a milestone."""
    for group in optimizer.param_groups if optimizer and epoch in config.milestones else ():
        group["lr"] /= 10


def train(config: RunConfig, progress: Callable | None = None, keep: Callable[[Clip], None] | None = None,
          probes: Sequence[str] = (), notes: dict | None = None, saver: Saver | None = None
          ) -> tuple[list[dict], list[dict]]:
    """Run the stream once. Returns rows of evaluations and of steps (see VOCABULARY.md for the columns).

    progress: has `update(images)`, `close()`, maybe `begin(position, probes, total)`. keep: called with the final
    model. probes: names of `probes.PROBES`. notes: takes "cost", and a table per probe. saver: saves the state now and
    then, and takes it up. NotFinite: a loss or a weight is. KeyboardInterrupt: Ctrl-C, once the saver has saved."""
    clip, benchmark, stages = prepare(config)
    method = METHODS[config.method](**config.method_args)
    augmentation, generator = AUGMENTATIONS[config.augmentation], torch.Generator().manual_seed(config.seed)
    shuffle = np.random.default_rng(config.seed)
    prompts = clip.class_text(list(benchmark.train.class_names), benchmark.train.template).to(clip.device)
    at, cost, waiting, cache, saver = Position(), Cost(clip.device), [], _start(config), saver or Saver()
    shown, at_once = progress or own_bar(config, stages), clip.device.type == "cpu"  # nobody waits for a look there

    def look(stage: int, complete: bool) -> None:
        cache.forget(**at.moving)
        model, tasks = method.deploy(clip), [stage.classes for stage in stages]
        sides = complete and (stage % config.side_every == 0 or stage == len(stages))
        with distributed.sharing():
            rows = evaluate(model, benchmark, tasks, at.seen, complete, sides, cache if model is clip else None)
        at.evals.extend({"stage": stage, "images_seen": at.images, "stage_end": complete, **row} for row in rows)

    with open_probes(probes, clip, benchmark, prompts) as watching, saver.open(  # takes up what was saved, in place
            clip, unchanging(benchmark, stages, prompts), at=at, method=method, cost=cost, probes=watching,
            augmentation=generator, shuffle=shuffle):
        getattr(progress, "begin", lambda *_: None)(at, watching, total(config, stages))
        shown.update(distributed.agreed("at the start", at.images))
        if not at.evals:
            look(0, complete=True)
        cache = cache.copy()
        for stage in stages[at.stage:]:
            if not at.inside:
                method.before_stage(clip, stage)
            trained = method.trainable(clip)
            optimizer = saver.resumed(make_optimizer(config, trained))  # a fresh one per stage, as SIT's code does
            at.moving |= towers_of(clip, trained)
            for batch in arriving(at, stage, benchmark, prompts, config, shuffle, optimizer):
                cost.start()
                clip.train()
                for _ in range(config.steps_per_batch if optimizer else 0):
                    joined = augmented(method.rehearse(clip, batch), augmentation, generator)
                    terms = distributed.shared(method.loss, not probes)(clip, joined)
                    optimizer.zero_grad(set_to_none=True)
                    watching.look(terms, stage.number, at.images)
                    distributed.backward(sum(terms.values()), trained)
                    method.edit_gradients(clip)
                    if config.clip_norm:
                        torch.nn.utils.clip_grad_norm_(method.trainable(clip), config.clip_norm)
                    optimizer.step()
                    waiting.append(Step(stage.number, at.images, joined.index, terms))
                    gather(waiting, at.steps, least=1 if at_once else LOOK)
                method.after_step(clip, batch)
                before, at.images, at.batch = at.images, at.images + len(batch.labels), at.batch + 1
                cost.stop(len(batch.labels), trained)
                shown.update(len(batch.labels))
                if config.eval_every and before // config.eval_every < at.images // config.eval_every:
                    look(stage.number, complete=False)
                if distributed.due(saver):  # every so many seconds
                    gather(waiting, at.steps)
                    saver.save()
            gather(waiting, at.steps)
            watching.look({}, stage.number, at.images)
            check_weights(trained, stage.number)
            method.after_stage(clip, batches(stage, benchmark, at.seen, prompts, config.batch_size, stage.index))
            look(stage.number, complete=True)
            at.stage, at.epoch = at.stage + 1, 0
            distributed.save(saver)
    shown.close()
    (notes if notes is not None else {}).update(cost=cost.table(method), **watching.tables(), **own_table(method))
    if keep:
        keep(method.deploy(clip))
    return at.evals, at.steps


def own_table(method) -> dict[str, pd.DataFrame]:
    """What a method has to tell beside its terms, as "method": the rows of its `table()`, if it has one."""
    rows = method.table() if hasattr(method, "table") else []
    return {"method": pd.DataFrame(rows)} if rows else {}


class Cost:
    """What training took, evaluation aside: images per second, tuned parameters, and on a GPU the largest memory.

    The GPU is not waited for at each batch, only at the end of training and before evaluations, which wait anyway."""

    def __init__(self, device: torch.device):
        self.device, self.images, self.seconds, self.parameters, self.started = device, 0, 0.0, 0, 0.0
        self.before = 0  # the largest memory before the run was taken up here

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, images: int, trained: list) -> None:
        self.seconds += time.perf_counter() - self.started
        self.images += images
        self.parameters = max(self.parameters, sum(p.numel() for p in trained))

    def table(self, method) -> dict:
        """images_per_second of the stream; parameters; peak_memory in bytes, None on the CPU; memory_bytes, of the
        images that the method holds at the end, 0 without a memory."""
        return {"images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
                "parameters": self.parameters, "peak_memory": self.peak(),
                "memory_bytes": method.memory.bytes if hasattr(method, "memory") else 0}

    def peak(self) -> int | None:
        """The largest memory so far, in bytes."""
        if self.device.type != "cuda":
            return None
        return max(self.before, torch.cuda.max_memory_allocated(self.device))

    def state(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "parameters": self.parameters,
                "before": self.peak() or 0}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def check_weights(parameters: list, stage: int) -> None:
    """Stop where a weight is not finite: a gradient can be NaN where the loss is not, and the last step has no loss
    after it."""
    if parameters and not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise NotFinite(f"weights are not finite after stage {stage}: lower lr, or set clip_norm",
                        {"stage": stage})
    distributed.agreed(f"after stage {stage}", parameters)


class Step:
    """The losses of a step, on the device until `gather` looks at them."""

    def __init__(self, stage: int, images: int, index: tuple[int, ...], terms: dict[str, Tensor]):
        self.stage, self.images, self.index = stage, images, index
        self.terms = {name: term.detach() for name, term in terms.items()}


def gather(waiting: list[Step], steps: list[dict], least: int = 1) -> None:
    """Losses from the device to rows (stage, images_seen, step, term, value), all at once, where at least so many wait;
    stop where one is not finite."""
    if len(waiting) < least:
        return
    names = [(one, name) for one in waiting for name in one.terms]
    values = torch.stack([term for one in waiting for term in one.terms.values()]).float().cpu()
    first = steps[-1]["step"] + 1 if steps else 0
    numbers = [first + i for i, one in enumerate(waiting) for _ in one.terms]
    waiting.clear()
    for (one, name), value, number in zip(names, values.tolist(), numbers, strict=True):
        if not np.isfinite(value):
            raise NotFinite(f"term {name!r} is {value} at stage {one.stage}, step {number}, after {one.images} images, "
                            f"on the images {list(one.index)}: lower lr, or set clip_norm",
                            {"stage": one.stage, "step": number, "term": name, "images": list(one.index)})
        steps.append({"stage": one.stage, "images_seen": one.images, "step": number, "term": name, "value": value})
