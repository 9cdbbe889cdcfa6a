"""The loop. `train(config)` runs one point of the grid and returns its tables; read it from top to
bottom.

A method is called by its verbs, all of them below. A step does not wait for the device: losses are
gathered and read every `LOOK` steps (every step on the CPU, where nothing waits).
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clstudy.data.augment import AUGMENTATIONS
from clstudy.data.streams import Stage
from clstudy.data.types import Batch, BenchmarkData
from clstudy.evaluation.accuracy import evaluate
from clstudy.evaluation.features import Cache
from clstudy.models.clip import Clip
from clstudy.training.checkpoint import Position, Saver
from clstudy.training.config import RunConfig
from clstudy.training.monitor import Cost, Step, check_weights, gather
from clstudy.training.probing import open_probes
from clstudy.training.setup import (
    buffers,
    make_optimizer,
    moved,
    prepare,
    start_cache,
    towers_of,
    unchanging,
)
from clstudy.training.tests import tests
from clstudy.utils import distributed
from clstudy.utils.progress import ImageBar, Progress

LOOK = 20  # steps between two looks at the losses, on a GPU
STEPS = ("stage", "images_seen", "step", "term", "value")  # columns of `Trained.steps`


def batches(stage: Stage, benchmark: BenchmarkData, seen: list[int], prompts: Tensor, size: int,
            order: np.ndarray) -> Iterator[Batch]:
    """Yield the stage's images in this order; a class joins `seen` when its first image arrives."""
    images = benchmark.train.images
    for chunk in np.array_split(order, range(size, len(order), size)) if len(order) else []:
        labels = benchmark.train.labels[chunk].tolist()
        seen.extend(label for label in dict.fromkeys(labels) if label not in seen)
        image = images[torch.from_numpy(chunk).to(images.device)].to(prompts.device).float() / 255
        yield Batch(image, tuple(labels), tuple(chunk.tolist()), tuple(seen), prompts, stage,
                    reference=benchmark.reference)


def one_pass(stage: Stage, benchmark: BenchmarkData, seen: list[int], prompts: Tensor,
             config: RunConfig) -> Iterator[Batch]:
    """Yield the stage once, without augmentation: what a method may see before and after it."""
    return batches(stage, benchmark, seen, prompts, config.batch_size, stage.index)


def arriving(at: Position, stage: Stage, benchmark: BenchmarkData, prompts: Tensor,
             config: RunConfig, shuffle: np.random.Generator,
             optimizer: torch.optim.Optimizer | None) -> Iterator[Batch]:
    """Yield the batches of a stage that are still to come, epoch by epoch.

    The caller counts them in `at.batch`. At a milestone the learning rate is divided by ten."""
    while at.epoch < config.epochs:
        if at.batch == 0:
            decays = optimizer and at.epoch in config.milestones
            for group in optimizer.param_groups if decays else ():
                group["lr"] /= 10
            at.order = stage.index if at.epoch == 0 else shuffle.permutation(stage.index)
        yield from batches(stage, benchmark, at.seen, prompts, config.batch_size,
                           at.order[at.batch * config.batch_size:])
        at.epoch, at.batch = at.epoch + 1, 0


def augmented(batch: Batch, augmentation: Callable, generator: torch.Generator) -> Batch:
    return replace(batch, image=augmentation(batch.image, generator))


def class_prompts(clip: Clip, benchmark: BenchmarkData) -> Tensor:
    """Return the tokens of one prompt for each class, on the model's device."""
    train = benchmark.train
    return clip.class_text(list(train.class_names), train.template).to(clip.device)


def passed(before: int, now: int, every: int | None) -> bool:
    """Return whether a multiple of `every` images lies between two counts."""
    return every is not None and before // every < now // every


@dataclass
class Trained:
    """What a run gives."""

    evals: pd.DataFrame  # what was measured over the stream (`evaluation/rows.py`)
    steps: pd.DataFrame  # stage, images_seen, step, term, value: each loss term at each step
    # stage, images_seen, stage_end, set, candidates, count, bits: which images were right
    correct: pd.DataFrame
    tests: pd.DataFrame  # what the bits are of (`training/tests.py`)
    probes: dict[str, pd.DataFrame]  # by name; "method": what the method tells of itself
    cost: dict[str, Any]  # images per second, tuned parameters, memory
    model: Clip  # as it is deployed


def train(config: RunConfig, progress: Progress | None = None, probes: Sequence[str] = (),
          saver: Saver | None = None) -> Trained:
    """Run the stream once, and return its tables.

    progress: by default a bar over the images of the run. probes: names of `PROBES`. saver: saves
    states now and then, and resumes from them.
    NotFinite: a loss or a weight. KeyboardInterrupt: Ctrl-C, once a state is saved."""
    clip, benchmark, stages = prepare(config)
    method, augmentation = config.make("method"), AUGMENTATIONS[config.augmentation]
    generator = torch.Generator().manual_seed(config.seed)
    shuffle = np.random.default_rng(config.seed)
    prompts = class_prompts(clip, benchmark)
    at, cost, waiting, cache = Position(), Cost(clip.device), [], start_cache(config)
    total, start = config.epochs * sum(len(stage.index) for stage in stages), buffers(clip)
    shown, saver = progress or ImageBar(f"{config.method} {config.tuner}"), saver or Saver()
    least = 1 if clip.device.type == "cpu" else LOOK  # steps between two looks at the losses

    def look(stage: int, complete: bool) -> None:
        cache.forget(**moved(clip, start, at.moving))
        model, tasks = method.deploy(clip), [stage.classes for stage in stages]
        known = cache if model is clip else Cache()
        sides = config.held_out_at(stage, len(stages), complete)
        with distributed.sharing():
            found = evaluate(model, benchmark, tasks, at.seen, complete, sides, known, method.scores)
            if complete:
                watching.evaluated(model, benchmark, tasks, known, method.scores, stage, at)
        at.evals.extend({"stage": stage, "images_seen": at.images, "stage_end": complete, **row}
                        for row in found.rows)
        at.correct.extend(packed(stage, at.images, complete, found.correct))

    with open_probes(probes, clip, benchmark, prompts) as watching, saver.open(  # resumes in place
            clip, unchanging(benchmark, stages, prompts), at=at, method=method, cost=cost,
            probes=watching, augmentation=generator, shuffle=shuffle):
        shown.begin(at, watching, total)
        shown.update(distributed.agreed("at the start", at.images))
        if not at.evals:
            look(0, complete=True)
        cache = cache.copy()
        for stage in stages[at.stage:]:
            if not at.inside:
                once = one_pass(stage, benchmark, list(at.seen), prompts, config)
                method.before_stage(clip, stage, once)
            trained = method.trainable(clip)
            optimizer = saver.resumed(make_optimizer(config, trained))  # fresh per stage, as SIT's
            at.moving |= towers_of(clip, trained)
            for batch in arriving(at, stage, benchmark, prompts, config, shuffle, optimizer):
                cost.start()
                clip.train(bool(trained))
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
                    gather(waiting, at.steps, least)
                method.after_step(clip, batch)
                before, at.images, at.batch = at.images, at.images + len(batch.labels), at.batch + 1
                cost.stop(len(batch.labels), trained)
                shown.update(len(batch.labels))
                if passed(before, at.images, config.eval_every):
                    look(stage.number, complete=False)
                if distributed.due(saver):  # every so many seconds
                    gather(waiting, at.steps)
                    saver.save()
            gather(waiting, at.steps)
            watching.look({}, stage.number, at.images)
            check_weights(trained, stage.number)
            method.after_stage(clip, one_pass(stage, benchmark, at.seen, prompts, config))
            look(stage.number, complete=True)
            at.stage, at.epoch = at.stage + 1, 0
            distributed.save(saver)
    shown.close()
    evals, steps = pd.DataFrame(at.evals), pd.DataFrame(at.steps, columns=STEPS)
    return Trained(evals, steps, pd.DataFrame(at.correct), tests(benchmark, stages, config),
                   watching.tables(method), cost.table(method), method.deploy(clip))


def packed(stage: int, images: int, complete: bool, correct: dict[tuple[str, str], np.ndarray]
           ) -> list[dict]:
    """Return rows of `Trained.correct`: eight images to a byte, the first in the highest bit.

    Of the test set, between two stage ends only what counts then is kept, the candidates "seen"."""
    at = {"stage": stage, "images_seen": images, "stage_end": complete}
    return [{**at, "set": name, "candidates": candidates, "count": len(right),
             "bits": np.packbits(right).tobytes()}
            for (name, candidates), right in correct.items()
            if complete or name != "test" or candidates == "seen"]
