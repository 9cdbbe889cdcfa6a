"""The probes of a run, by name, and the part of them that a saved state holds."""
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import BenchmarkData
from clstudy.methods.base import Method
from clstudy.probes.class_gradients import Classes
from clstudy.probes.common import settled
from clstudy.probes.drift import Drift
from clstudy.probes.parameter_gradients import Gradients
from clstudy.utils.validation import choose

IMAGES_PER_CLASS = 10  # test images of each class whose features `Drift` follows in `train`
MEMORY = ("looks", "before", "weights", "moved", "measured", "last")  # what probes carry on


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


PROBES = {"gradients": _gradients, "classes": _classes, "drift": _drift}


class Watching:
    """The probes of a run, called together."""

    def __init__(self, probes: dict):
        self.probes = probes

    def look(self, terms: dict[str, Tensor], stage: int, images_seen: int) -> None:
        for probe in self.probes.values():
            probe.look(terms, stage, images_seen)

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
