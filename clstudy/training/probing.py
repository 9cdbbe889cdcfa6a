"""The probes of a run, by name, and what of them a saved state holds."""
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import BenchmarkData
from clstudy.probes.class_gradients import Classes
from clstudy.probes.common import settled
from clstudy.probes.drift import Drift
from clstudy.probes.parameter_gradients import Gradients
from clstudy.utils.validation import choose

MEMORY = ("looks", "before", "weights", "moved", "measured", "last"
          )  # of a probe, from one look to the next


IMAGES_PER_CLASS = 10  # test images of each class whose features `Drift` follows in `train`


def _gradients(clip, benchmark: BenchmarkData, prompts: Tensor) -> Gradients:
    """Gradient norms and angles per term, tower and block."""
    return Gradients(clip)


def _classes(clip, benchmark: BenchmarkData, prompts: Tensor) -> Classes:
    """The push on the texts and images of every class; references are the test images and prompts
    before training."""
    with Drift(clip, *_followed(benchmark, prompts)) as drift:
        image, text = drift.start
        means = [F.normalize(image[rows].mean(0), dim=-1) for rows in drift.members]
        text_starts = dict(zip(drift.classes, text, strict=True))
    return Classes(clip, dict(zip(drift.classes, means, strict=True)), text_starts)


def _drift(clip, benchmark: BenchmarkData, prompts: Tensor) -> Drift:
    """Drift of texts and of test images, class by class."""
    return Drift(clip, *_followed(benchmark, prompts))


def _followed(benchmark: BenchmarkData,
              prompts: Tensor) -> tuple[Tensor, list[int], Tensor, list[int]]:
    """Some test images of every class that has any, and the prompts of these classes."""
    labels = benchmark.test.labels
    rows = np.sort(
        np.concatenate([np.flatnonzero(labels == k)[:IMAGES_PER_CLASS] for k in np.unique(labels)]))
    classes = sorted(set(labels[rows].tolist()))
    images = benchmark.test.images[torch.from_numpy(rows).to(benchmark.test.images.device)]
    return images, labels[rows].tolist(), prompts[torch.tensor(classes).to(prompts.device)], classes


PROBES = {"gradients": _gradients, "classes": _classes, "drift": _drift}


class Watching:
    """The probes of a run, looked through together."""

    def __init__(self, probes: dict):
        self.probes = probes

    def look(self, terms: dict[str, Tensor], stage: int, images_seen: int) -> None:
        for probe in self.probes.values():
            probe.look(terms, stage, images_seen)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {name: probe.table() for name, probe in self.probes.items()}

    def state(self) -> dict[str, dict]:
        """What the probes have seen; what they compare with is measured anew, before training."""
        return {name: {"rows": settled(probe.rows)} | {key: getattr(probe, key) for key in MEMORY
                                                             if hasattr(probe, key)}
                for name, probe in self.probes.items()}

    def restore(self, state: dict[str, dict]) -> None:
        """See again what `state()` tells."""
        for name, seen in state.items():
            vars(self.probes[name]).update(seen)


@contextmanager
def open_probes(names: Sequence[str], clip, benchmark: BenchmarkData,
                prompts: Tensor) -> Iterator[Watching]:
    """Probes by name, for the length of a run. Classes are written by their names in the tables."""
    with ExitStack() as stack:
        chosen = {name: PROBES[choose("probes", name, PROBES)] for name in names}
        watching = Watching({name: stack.enter_context(make(clip, benchmark, prompts))
                             for name, make in chosen.items()})
        yield watching
    for probe in watching.probes.values():
        for row in probe.rows:
            if "class" in row:
                row["class"] = benchmark.train.class_names[row["class"]]
