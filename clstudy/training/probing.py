"""The probes of a run, by name, and the part of them that a saved state holds."""
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import BenchmarkData
from clstudy.evaluation.accuracy import answers, homes
from clstudy.evaluation.features import Cache, Scores, class_features, features
from clstudy.methods.base import Method
from clstudy.probes.class_gradients import Classes
from clstudy.probes.common import settled
from clstudy.probes.drift import Drift
from clstudy.probes.parameter_gradients import Gradients
from clstudy.probes.towers import Towers
from clstudy.training.checkpoint import Position
from clstudy.utils.validation import choose

IMAGES_PER_CLASS = 10  # test images of each class whose features `Drift` follows in `train`
# what probes carry on
MEMORY = ("looks", "before", "weights", "moved", "measured", "last", "first", "learned")


def _gradients(clip, benchmark: BenchmarkData, prompts: Tensor) -> Gradients:
    """Return a probe of gradient norms and angles per term, tower and block."""
    return Gradients(clip)


def _classes(clip, benchmark: BenchmarkData, prompts: Tensor) -> Classes:
    """Return a probe of the push on the texts and images of every class.

    It compares with test images and prompts before training."""
    with _drift(clip, benchmark, prompts) as drift:
        image, text = drift.start
        means = [F.normalize(image[rows].mean(0), dim=-1) for rows in drift.members]
        text_starts = dict(zip(drift.classes, text, strict=True))
    return Classes(clip, dict(zip(drift.classes, means, strict=True)), text_starts)


def _drift(clip, benchmark: BenchmarkData, prompts: Tensor) -> Drift:
    """Return a probe of the drift of texts, and of some test images of every class."""
    images, labels = benchmark.test.images, benchmark.test.labels
    present = np.unique(labels)
    rows = [np.flatnonzero(labels == label)[:IMAGES_PER_CLASS] for label in present]
    rows = np.sort(np.concatenate(rows))
    chosen = images[torch.from_numpy(rows).to(images.device)]
    tokens = prompts[torch.from_numpy(present).to(prompts.device)]
    return Drift(clip, chosen, labels[rows].tolist(), tokens, present.tolist())


def _towers(clip, benchmark: BenchmarkData, prompts: Tensor) -> Towers:
    """Return a probe that exchanges the towers of before and of now."""
    return Towers()


PROBES = {"gradients": _gradients, "classes": _classes, "drift": _drift, "towers": _towers}


class Watching:
    """The probes of a run, called together."""

    def __init__(self, probes: dict):
        self.probes = probes

    def look(self, terms: dict[str, Tensor], stage: int, images_seen: int) -> None:
        for probe in self.probes.values():
            probe.look(terms, stage, images_seen)

    def evaluated(self, clip, benchmark: BenchmarkData, tasks: Sequence[tuple[int, ...]],
                  cache: Cache, scores: Scores, stage: int, at: Position) -> None:
        """Let probes of evaluations compare, before training and at the end of each stage.

        clip: the model as it was evaluated, with its features in the cache. tasks, scores: as there.
        at: has the classes seen."""
        test, count = benchmark.test, len(benchmark.test.class_names)
        home, arrived = homes(count, tasks), np.zeros(count, bool)
        arrived[list(at.seen)] = True

        def right(image: Tensor, text: Tensor) -> dict[str, np.ndarray]:
            similarity = scores(clip, image, text, range(count))
            found = answers(similarity, test.labels, home, arrived)
            return {candidates: found[candidates] for candidates in ("seen", "all")}

        for probe in self.probes.values():
            if isinstance(probe, Towers):
                image = features(clip, test.images, cache)
                text = class_features(clip, test.class_names, test.template, cache)
                probe.compare(image, text, home[test.labels] + 1, right, stage, at.images)

    def tables(self, method: Method) -> dict[str, pd.DataFrame]:
        """Return the table of each probe by name, and what the method tells as "method"."""
        own = method.table()
        tables = {name: probe.table() for name, probe in self.probes.items()}
        return tables | ({"method": pd.DataFrame(own)} if own else {})

    def state(self) -> dict[str, dict]:
        """Return what the probes have seen; their references are measured again at the start."""
        return {name: {"rows": settled(probe.rows),
                       **{key: getattr(probe, key) for key in MEMORY if hasattr(probe, key)}}
                for name, probe in self.probes.items()}

    def restore(self, state: dict[str, dict]) -> None:
        for name, seen in state.items():
            vars(self.probes[name]).update(seen)


@contextmanager
def open_probes(names: Sequence[str], clip, benchmark: BenchmarkData,
                prompts: Tensor) -> Iterator[Watching]:
    """Open probes by name for the length of a run; in the end, write names of classes into them."""
    with ExitStack() as stack:
        chosen = {name: PROBES[choose("probes", name, PROBES)] for name in names}
        watching = Watching({name: stack.enter_context(make(clip, benchmark, prompts))
                             for name, make in chosen.items()})
        yield watching
    for probe in watching.probes.values():
        for row in probe.rows:
            if "class" in row:
                row["class"] = benchmark.train.class_names[row["class"]]
