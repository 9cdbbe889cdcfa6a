"""Which tower carries a loss of accuracy: the features of before and of now, exchanged."""
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clstudy.probes.common import to_table

# unit-norm features of the test images, and of the classes → candidates → which images are right
Right = Callable[[Tensor, Tensor], dict[str, np.ndarray]]


class Towers:
    """A probe that classifies with the image tower of one time and the text tower of another.

    It takes features of the test images and class texts as they are evaluated, so that it encodes
    nothing: `compare`, before training and after each stage. `look` does nothing. Columns: stage,
    images_seen, image and text (the time that each tower is of), task, candidates, right and count
    (images of the task), bits (which were right, eight to a byte, the first in the highest bit, in
    the order of the test set). Times are

        start    before training
        learned  at the end of the task's own stage; for later stages only
        now      at the end of this stage

    Let a(i, t) be the accuracy with the image tower of i and the text tower of t, b one of the first
    two times, and n now. What is lost since b has three parts:

        a(b, b) − a(n, n) = a(b, b) − a(n, b)                        by the image tower alone
                          + a(b, b) − a(b, n)                        by the text tower alone
                          + a(n, b) + a(b, n) − a(b, b) − a(n, n)    by the two together

    With "learned" the left side is what the task was forgotten by; with "start" what training cost
    it in all. The third part is below zero where the towers moved together: then each alone loses
    what the other makes good, and neither carries the loss. The parts are of what an exchange does,
    not of what a training with one tower frozen would do."""

    def __init__(self):
        self.rows: list[dict] = []
        self.first: tuple[Tensor, Tensor] | None = None  # all features before training
        self.learned: dict[int, tuple[Tensor, Tensor]] = {}  # task → of its images, and the texts

    def __enter__(self) -> "Towers":
        return self

    def __exit__(self, *_) -> None:
        self.first, self.learned = None, {}

    def look(self, terms: dict[str, Tensor], stage: int = 1, images_seen: int = 0) -> None:
        """Do nothing: training says nothing that evaluations do not."""

    @torch.no_grad()
    def compare(self, image: Tensor, text: Tensor, tasks: np.ndarray, right: Right, stage: int = 1,
                images_seen: int = 0) -> None:
        """Compare with what was before. The first call is of the model before training.

        image: (images, dim), text: (classes, dim), unit-norm. tasks: of each image, below 1 for
        none. right: how features become answers. stage: the one that ended, 1, 2, …"""
        image, text = image.clone(), text.clone()  # not inference tensors, which cannot be saved
        if self.first is None:
            self.first = image, text
            return
        times = {"start": self.first, "now": (image, text)}
        found = {(i, t): right(times[i][0], times[t][1]) for i, t in product(times, times)}
        for task in np.unique(tasks[tasks > 0]).tolist():
            mine, pairs = tasks == task, dict(found)
            rows = torch.from_numpy(np.flatnonzero(mine)).to(image.device)
            if task in self.learned:
                mixed, old = image.clone(), self.learned[task][1]
                mixed[rows] = self.learned[task][0]
                pairs |= {("learned", "learned"): right(mixed, old), ("now", "learned"): right(
                    image, old), ("learned", "now"): right(mixed, text)}
            for (i, t), answers in pairs.items():
                self.rows += [{"stage": stage, "images_seen": images_seen, "image": i, "text": t,
                               "task": task, "candidates": candidates,
                               "right": int(hit[mine].sum()), "count": int(mine.sum()),
                               "bits": np.packbits(hit[mine]).tobytes()}
                              for candidates, hit in answers.items()]
            if task == stage:
                self.learned[task] = image[rows], text

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)
