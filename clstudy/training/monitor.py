"""What a run watches while it trains: losses and weights that must stay finite, and its cost."""
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clstudy.utils import distributed


class NotFinite(RuntimeError):
    """A loss or a weight is NaN or infinite. The message names stage, step, term and images."""


class Cost:
    """What training took, without evaluation: images per second, tuned parameters, GPU memory.

    A batch does not wait for the GPU; the end of training and evaluations wait anyway."""

    def __init__(self, device: torch.device):
        self.device, self.images, self.seconds, self.started = device, 0, 0.0, 0.0
        self.parameters = 0
        self.before = 0  # the largest memory before the run was resumed here

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, images: int, trained: list) -> None:
        self.seconds += time.perf_counter() - self.started
        self.images += images
        self.parameters = max(self.parameters, sum(p.numel() for p in trained))

    def table(self, method) -> dict:
        """Return images_per_second of the stream, parameters, peak_memory and memory_bytes.

        peak_memory: in bytes, None on the CPU. memory_bytes: of the images that the method keeps at
        the end, 0 without a memory."""
        return {"images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
                "parameters": self.parameters, "peak_memory": self.peak(),
                "memory_bytes": method.memory_bytes}

    def peak(self) -> int | None:
        """Return the largest memory so far, in bytes."""
        if self.device.type != "cuda":
            return None
        return max(self.before, torch.cuda.max_memory_allocated(self.device))

    def state(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "parameters": self.parameters,
                "before": self.peak() or 0}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def check_weights(parameters: list, stage: int) -> None:
    """Stop where a weight is not finite. The last step of a stage has no loss that would tell."""
    if parameters and not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise NotFinite(f"weights are not finite after stage {stage}: lower lr, or set clip_norm")
    distributed.agreed(f"after stage {stage}", parameters)


class Step:
    """The losses of a step, on the device until `gather` reads them."""

    def __init__(self, stage: int, images: int, index: tuple[int, ...], terms: dict[str, Tensor]):
        self.stage, self.images, self.index = stage, images, index
        self.terms = {name: term.detach() for name, term in terms.items()}


def gather(waiting: list[Step], steps: list[dict], least: int = 1) -> None:
    """Move the losses that wait to `steps`, all at once, if there are at least so many.

    steps: rows of stage, images_seen, step, term, value. NotFinite: a loss is not finite."""
    if len(waiting) < least:
        return
    values = torch.stack([term for one in waiting for term in one.terms.values()])
    values = iter(values.float().cpu().tolist())
    first = steps[-1]["step"] + 1 if steps else 0
    for number, one in enumerate(waiting, first):
        for name in one.terms:
            value = next(values)
            if not np.isfinite(value):
                raise NotFinite(
                    f"term {name!r} is {value} at stage {one.stage}, step {number}, after "
                    f"{one.images} images, on the images {list(one.index)}: lower lr, or set "
                    "clip_norm")
            steps.append({"stage": one.stage, "images_seen": one.images, "step": number,
                          "term": name, "value": value})
    waiting.clear()
