"""What a run watches while it trains: losses and weights that must stay finite, and its cost."""
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clstudy.utils import distributed


class NotFinite(RuntimeError):
    """A loss term or a weight became NaN or infinite; the message names stage, step, term and
    images, and so does `where`."""

    def __init__(self, message: str, where: dict[str, Any] | None = None):
        super().__init__(message)
        self.where = where or {}

    def __reduce__(self):  # between processes
        return NotFinite, (str(self), self.where)


def own_table(method) -> dict[str, pd.DataFrame]:
    """What a method has to tell beside its terms, as "method": the rows of its `table()`, if
    any."""
    rows = method.table()
    return {"method": pd.DataFrame(rows)} if rows else {}


class Cost:
    """What training took, evaluation aside: images per second, tuned parameters, and on a GPU the
    largest memory.

    The GPU is not waited for at each batch, only at the end of training and before evaluations,
    which wait anyway."""

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
        """images_per_second of the stream; parameters; peak_memory in bytes, None on the CPU;
        memory_bytes, of the images that the method holds at the end, 0 without a memory."""
        return {"images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
                "parameters": self.parameters, "peak_memory": self.peak(),
                "memory_bytes": method.memory_bytes}

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
    """Stop where a weight is not finite: a gradient can be NaN where the loss is not, and the last
    step has no loss after it."""
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
    """Losses from the device to rows (stage, images_seen, step, term, value), all at once, where at
    least so many wait; stop where one is not finite."""
    if len(waiting) < least:
        return
    names = [(one, name) for one in waiting for name in one.terms]
    values = torch.stack([term for one in waiting for term in one.terms.values()]).float().cpu()
    first = steps[-1]["step"] + 1 if steps else 0
    numbers = [first + i for i, one in enumerate(waiting) for _ in one.terms]
    waiting.clear()
    for (one, name), value, number in zip(names, values.tolist(), numbers, strict=True):
        if not np.isfinite(value):
            raise NotFinite(
                f"term {name!r} is {value} at stage {one.stage}, step {number}, after {one.images} images, "
                f"on the images {list(one.index)}: lower lr, or set clip_norm",
                {"stage": one.stage, "step": number, "term": name, "images": list(one.index)})
        steps.append({
            "stage": one.stage, "images_seen": one.images, "step": number, "term": name,
            "value": value
        })
