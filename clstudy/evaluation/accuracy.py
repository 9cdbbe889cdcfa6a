"""Accuracy of a model on a benchmark: on each task, on all classes, on untouched sets, and
retrieval.

Class texts are encoded once for an evaluation, images once; own / seen / all differ only in which
columns compete."""
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
    """Whether the most similar of the classes offered is the right one. A class that is not offered
    is never hit."""
    best = similarity.masked_fill(~offered, -torch.inf).argmax(1)
    return (best == labels) & offered.expand_as(similarity).gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def evaluate(clip: Clip, benchmark: BenchmarkData, tasks: Sequence[tuple[int, ...]],
             seen: Sequence[int], complete: bool = True, sides: bool = True,
             cache: Cache | None = None, scores: Scores = product) -> Evaluation:
    """The rows of `evals` that `rows.py` lists, and which images were right.

    tasks: classes of each task; seen: classes that have arrived. Without `complete` there is one
    row, the accuracy on the seen classes; with `sides` also held-out sets and retrieval are
    measured. scores: the method's verb."""
    cache = cache or Cache()
    clip.eval()
    test, count = benchmark.test, len(benchmark.test.class_names)
    image = features(clip, test.images, cache)
    text = class_features(clip, test.class_names, test.template, cache)
    similarity = scores(clip, image, text, range(count))
    labels = torch.from_numpy(test.labels).to(similarity.device)
    home = np.full(count, -1)
    for number, classes in enumerate(tasks):
        home[list(classes)] = number
    own = torch.from_numpy(home[:, None] == home[None, :]).to(similarity.device)[labels]
    arrived = np.zeros(count, bool)
    arrived[list(seen)] = True
    streamed = torch.from_numpy(home >= 0).to(similarity.device)[None]
    offered = {
        "own": own, "seen": torch.from_numpy(arrived).to(similarity.device)[None], "all": streamed
    }
    right = {name: hits(similarity, labels, mask).cpu().numpy() for name, mask in offered.items()}
    rows = row("all", "seen classes", "seen", right["seen"][arrived[test.labels]])
    correct = {("test", name): each for name, each in right.items()}
    if complete:
        rows += _complete(right, test, tasks, home, arrived)
    for name, held_out in benchmark.held_out.items() if sides else ():
        correct[name, "own"] = zero_shot(clip, held_out, cache, scores)
        rows += row("held-out set", name, "own", correct[name, "own"])
    for name, pairs in benchmark.retrieval.items() if sides else ():
        rows += retrieval(clip, pairs, name, cache=cache, scores=scores)
    return Evaluation(rows, correct)


def _complete(right: dict[str, np.ndarray], test: Labelled, tasks: Sequence[tuple[int, ...]],
              home: np.ndarray, arrived: np.ndarray) -> list[dict]:
    """Rows of every task and class. home: task of each class or −1; arrived: whether a class has
    been seen."""
    rows = row("all", "all classes", "all", right["all"][home[test.labels] >= 0])
    for number in range(len(tasks)):
        for name in right if arrived.any() else ("own", "all"):
            here = home[test.labels] == number
            rows += row("task", str(number + 1), name, right[name][here])
            rows += _balanced(str(number + 1), name, right[name][here], test.labels[here])
    for label, name in enumerate(test.class_names):
        if home[label] >= 0:
            here = test.labels == label
            rows += row("class", name, "all", right["all"][here])
            rows += row("class", name, "seen", right["seen"][here]) if arrived[label] else []
    for number, name in enumerate(test.domain_names):
        here = (test.domains == number) & (home[test.labels] >= 0)
        rows += row("domain", name, "all", right["all"][here])
        rows += row("domain", name, "seen", right["seen"][here & arrived[test.labels]])
    return rows


def _balanced(task: str, candidates: str, right: np.ndarray, labels: np.ndarray) -> list[dict]:
    """The mean over classes of their accuracies."""
    each = np.array([right[labels == label].mean() for label in np.unique(labels)])
    return row("task", task, candidates, each, "class-balanced accuracy")


@torch.no_grad()
def zero_shot(clip: Clip, held_out: Labelled, cache: Cache | None = None, scores: Scores = product
              ) -> np.ndarray:
    """For each image of a held-out set, whether its class wins among the set's own classes."""
    image = features(clip, held_out.images, cache)
    text = class_features(clip, held_out.class_names, held_out.template, cache)
    return scores(clip, image, text, None).argmax(1).cpu().numpy() == held_out.labels
