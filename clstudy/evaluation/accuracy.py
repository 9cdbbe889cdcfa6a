"""Accuracy of a model on a benchmark: on each task, on all classes, on untouched sets, and
retrieval.

Class texts and images are encoded once for an evaluation; own / seen / all differ only in which
texts compete."""
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clstudy.data.types import BenchmarkData, Labelled
from clstudy.evaluation.features import Cache, Scores, class_features, features, product
from clstudy.evaluation.retrieval import retrieval
from clstudy.evaluation.rows import Evaluation, row
from clstudy.models.clip import Clip


def hits(similarity: Float[Tensor, "images classes"], labels: Int[Tensor, " images"],
         offered: Bool[Tensor, "#images classes"]) -> Bool[Tensor, " images"]:
    """Return whether the most similar class offered is the right one, for each image.

    A class that is not offered is never right."""
    best = similarity.masked_fill(~offered, -torch.inf).argmax(1)
    return (best == labels) & offered.expand_as(similarity).gather(1, labels[:, None])[:, 0]


def homes(count: int, tasks: Sequence[tuple[int, ...]]) -> Int[np.ndarray, " classes"]:
    """Return the task of each class, counted from 0; −1 for a class of none."""
    home = np.full(count, -1)
    for number, classes in enumerate(tasks):
        home[list(classes)] = number
    return home


def answers(similarity: Float[Tensor, "images classes"], labels: Int[np.ndarray, " images"],
            home: Int[np.ndarray, " classes"], arrived: Bool[np.ndarray, " classes"]
            ) -> dict[str, Bool[np.ndarray, " images"]]:
    """Return which images are right among the classes of their task ("own"), those seen, and all.

    home: task of each class, or −1. arrived: whether a class has been seen."""
    own = home[:, None] == home[None, :]
    right, own, arriving, streamed = (torch.from_numpy(each).to(similarity.device)
                                      for each in (labels, own, arrived, home >= 0))
    offered = {"own": own[right], "seen": arriving[None], "all": streamed[None]}
    return {name: hits(similarity, right, mask).cpu().numpy() for name, mask in offered.items()}


@torch.no_grad()
def evaluate(clip: Clip, benchmark: BenchmarkData, tasks: Sequence[tuple[int, ...]],
             seen: Sequence[int], complete: bool = True, sides: bool = True,
             cache: Cache | None = None, scores: Scores = product) -> Evaluation:
    """Return the rows of `evals` that `rows.py` lists, and which images were right.

    tasks: classes of each task. seen: classes that have arrived. complete: without it there is one
    row, the accuracy on the seen classes. sides: measure held-out sets and retrieval, too. scores:
    the method's verb."""
    cache = cache or Cache()
    clip.eval()
    test, count = benchmark.test, len(benchmark.test.class_names)
    image = features(clip, test.images, cache)
    text = class_features(clip, test.class_names, test.template, cache)
    home, arrived = homes(count, tasks), np.zeros(count, bool)
    arrived[list(seen)] = True
    right = answers(scores(clip, image, text, range(count)), test.labels, home, arrived)
    rows = row("all", "seen classes", "seen", right["seen"][arrived[test.labels]])
    correct = {("test", name): each for name, each in right.items()}
    if complete:
        rows += _complete(right, test, len(tasks), home, arrived)
    for name, held_out in benchmark.held_out.items() if sides else ():
        correct[name, "own"] = zero_shot(clip, held_out, cache, scores)
        rows += row("held-out set", name, "own", correct[name, "own"])
    for name, pairs in benchmark.retrieval.items() if sides else ():
        found = retrieval(clip, pairs, name, cache=cache, scores=scores)
        rows, correct = rows + found.rows, correct | found.correct
    return Evaluation(rows, correct)


def _complete(right: dict[str, np.ndarray], test: Labelled, tasks: int, home: np.ndarray,
              arrived: np.ndarray) -> list[dict]:
    """Return the rows of every task, class and domain.

    home: task of each class, or −1. arrived: whether a class has been seen."""
    streamed, seen = home[test.labels] >= 0, arrived[test.labels]
    rows = row("all", "all classes", "all", right["all"][streamed])
    for number in range(tasks):
        here = home[test.labels] == number
        labels = test.labels[here]
        for candidates in right if arrived.any() else ("own", "all"):
            hit, task = right[candidates][here], str(number + 1)
            each = np.array([hit[labels == label].mean() for label in np.unique(labels)])
            rows += row("task", task, candidates, hit)
            rows += row("task", task, candidates, each, "class-balanced accuracy")
    for label, name in enumerate(test.class_names):
        here = test.labels == label
        rows += row("class", name, "all", right["all"][here & streamed])
        rows += row("class", name, "seen", right["seen"][here & streamed & seen])
    for number, name in enumerate(test.domain_names):
        here = (test.domains == number) & streamed
        rows += row("domain", name, "all", right["all"][here])
        rows += row("domain", name, "seen", right["seen"][here & seen])
    return rows


@torch.no_grad()
def zero_shot(clip: Clip, held_out: Labelled, cache: Cache | None = None, scores: Scores = product
              ) -> np.ndarray:
    """Return whether each image of a held-out set gets its class, among the classes of the set."""
    image = features(clip, held_out.images, cache)
    text = class_features(clip, held_out.class_names, held_out.template, cache)
    return scores(clip, image, text, None).argmax(1).cpu().numpy() == held_out.labels
