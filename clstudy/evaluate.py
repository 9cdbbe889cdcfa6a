"""Accuracy of a model on a benchmark: on each task, on all classes, on untouched sets, and retrieval.

Class texts are encoded once for an evaluation, images once; own / seen / all differ only in which columns compete."""
import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .clip import Clip
from .data import Benchmark, Captioned, Labelled
from .shards import Shards

CHUNK = 256  # images at a time


class Cache:
    """Features of one state of the weights: each image set and each set of texts is encoded once, and a tower that
    does not move once ever. `forget(tower)` when a tower has moved. An image that stands in several sets (in the test
    set, and with its caption in retrieval) is encoded with the first of them."""

    def __init__(self):
        self.image: dict[int, Tensor] = {}
        self.text: dict[tuple, Tensor] = {}
        self.places: dict[bytes, tuple[int, int]] = {}  # of an image, by its content: the set and the row

    def copy(self) -> "Cache":
        """A cache of its own with the same features."""
        other = Cache()
        other.image, other.text, other.places = dict(self.image), dict(self.text), dict(self.places)
        return other

    def forget(self, image: bool = True, text: bool = True) -> None:
        if image:
            self.image.clear()
            self.places.clear()
        if text:
            self.text.clear()

    def add(self, clip: Clip, images: Tensor) -> None:
        """The features of a set of images, of which those that other sets hold are taken from there."""
        keys = [hashlib.blake2b(image.data, digest_size=16).digest() for image in images.contiguous().numpy()]
        new = [row for row, key in enumerate(keys) if key not in self.places]
        if len(new) == len(keys):
            self.image[id(images)] = _encoded(clip, images)
        else:
            there = [self.image[self.places[key][0]][self.places[key][1]] for key in keys if key in self.places]
            found = torch.empty(len(keys), len(there[0]), device=there[0].device)
            known = torch.ones(len(keys), dtype=torch.bool)
            known[new] = False
            found[known.to(found.device)] = torch.stack(there)
            if new:
                found[torch.tensor(new, device=found.device)] = _encoded(clip, images[new])
            self.image[id(images)] = found
        self.places |= {keys[row]: (id(images), row) for row in new}


@torch.inference_mode()
def features(clip: Clip, images: Tensor | Shards, cache: Cache | None = None) -> Float[Tensor, "images dim"]:
    """Unit-norm image features, a chunk at a time. In a cache they stand under the identity of the tensor."""
    if cache is None:
        return _encoded(clip, images)
    if id(images) not in cache.image:
        if isinstance(images, Tensor) and images.device.type == "cpu":  # where encoding is dear, and looking is not
            cache.add(clip, images)
        else:
            cache.image[id(images)] = _encoded(clip, images)
    return cache.image[id(images)]


def _encoded(clip: Clip, images: Tensor | Shards) -> Float[Tensor, "images dim"]:
    return torch.cat([clip.encode_image(chunk.to(clip.device)) for chunk in images.split(CHUNK)])


@torch.inference_mode()
def text_features(clip: Clip, texts: Sequence[str], cache: Cache | None = None) -> Float[Tensor, "texts dim"]:
    """Unit-norm text features, a chunk at a time."""
    known, key = {} if cache is None else cache.text, tuple(texts)
    if key not in known:
        tokens = clip.cut(_tokens(clip.tokenizer, key)).to(clip.device)
        known[key] = torch.cat([clip.encode_text(chunk) for chunk in tokens.split(CHUNK)])
    return known[key]


@lru_cache(maxsize=64)
def _tokens(tokenizer, texts: tuple[str, ...]) -> Tensor:
    """Token rows of texts that are asked for again and again."""
    return tokenizer(list(texts))


def class_features(clip: Clip, names: Sequence[str], template: str, cache: Cache | None = None
                   ) -> Float[Tensor, "classes dim"]:
    """Unit-norm text features of one prompt per class."""
    return text_features(clip, [template.format(name) for name in names], cache)


def hits(similarity: Float[Tensor, "images classes"], labels: Int[Tensor, " images"],
         offered: Bool[Tensor, "#images classes"]) -> Bool[Tensor, " images"]:
    """Whether the most similar of the classes offered is the right one. A class that is not offered is never hit."""
    best = similarity.masked_fill(~offered, -torch.inf).argmax(1)
    return (best == labels) & offered.expand_as(similarity).gather(1, labels[:, None])[:, 0]


def evaluate(clip: Clip, benchmark: Benchmark, tasks: Sequence[tuple[int, ...]], seen: Sequence[int],
             complete: bool = True, sides: bool = True, cache: Cache | None = None) -> list[dict]:
    """Rows of (set, candidates, metric, value, count).

    tasks: classes of each task; seen: classes that have arrived. Sets: "seen classes" (candidates seen); if
    `complete` also "task 1" … (own / seen / all), "all classes" (all), and each class (set "class NAME", seen and
    all); if `sides` also the side sets (own) and retrieval; where test images have domains, also each of these (set
    "domain NAME", seen and all). An empty set gives no row."""
    cache = cache or Cache()
    clip.eval()
    test, count = benchmark.test, len(benchmark.test.class_names)
    similarity = features(clip, test.images, cache) @ class_features(clip, test.class_names, test.template, cache).T
    labels = torch.from_numpy(test.labels).to(similarity.device)
    home = np.full(count, -1)
    for number, classes in enumerate(tasks):
        home[list(classes)] = number
    own = torch.from_numpy(home[:, None] == home[None, :]).to(similarity.device)[labels]
    arrived = np.zeros(count, bool)
    arrived[list(seen)] = True
    streamed = torch.from_numpy(home >= 0).to(similarity.device)[None]
    offered = {"own": own, "seen": torch.from_numpy(arrived).to(similarity.device)[None], "all": streamed}
    right = {name: hits(similarity, labels, mask).cpu().numpy() for name, mask in offered.items()}
    rows = _row("seen classes", "seen", right["seen"][arrived[test.labels]])
    if complete:
        rows += _complete(right, test, tasks, home, arrived)
    for name, side in benchmark.side.items() if sides else ():
        rows += _row(name, "own", zero_shot(clip, side, cache))
    for name, pairs in benchmark.retrieval.items() if sides else ():
        rows += retrieval(clip, pairs, name, cache=cache)
    return rows


def _complete(right: dict[str, np.ndarray], test: Labelled, tasks: Sequence[tuple[int, ...]], home: np.ndarray,
              arrived: np.ndarray) -> list[dict]:
    """Rows of every task and class. home: task of each class or −1; arrived: whether a class has been seen."""
    rows = _row("all classes", "all", right["all"][home[test.labels] >= 0])
    for number in range(len(tasks)):
        for name in right if arrived.any() else ("own", "all"):
            here = home[test.labels] == number
            rows += _row(f"task {number + 1}", name, right[name][here])
            rows += _balanced(f"task {number + 1}", name, right[name][here], test.labels[here])
    for label, name in enumerate(test.class_names):
        if home[label] >= 0:
            here = test.labels == label
            rows += _row(f"class {name}", "all", right["all"][here])
            rows += _row(f"class {name}", "seen", right["seen"][here]) if arrived[label] else []
    for number, name in enumerate(test.domain_names):
        here = (test.domains == number) & (home[test.labels] >= 0)
        rows += _row(f"domain {name}", "all", right["all"][here])
        rows += _row(f"domain {name}", "seen", right["seen"][here & arrived[test.labels]])
    return rows


def _row(name: str, candidates: str, right: np.ndarray, metric: str = "accuracy") -> list[dict]:
    if not len(right):
        return []
    value = float(np.mean(right))
    return [{"set": name, "candidates": candidates, "metric": metric, "value": value, "count": len(right)}]


def _balanced(name: str, candidates: str, right: np.ndarray, labels: np.ndarray) -> list[dict]:
    """The mean over classes of their accuracies."""
    each = np.array([right[labels == label].mean() for label in np.unique(labels)])
    return _row(name, candidates, each, "class-balanced accuracy")


def zero_shot(clip: Clip, side: Labelled, cache: Cache | None = None) -> np.ndarray:
    """For each image of a side set, whether its class wins among the set's own classes."""
    similarity = features(clip, side.images, cache) @ class_features(clip, side.class_names, side.template, cache).T
    return similarity.argmax(1).cpu().numpy() == side.labels


def retrieval(clip: Clip, pairs: Captioned, name: str = "retrieval", ks: Sequence[int] = (1, 5, 10),
              cache: Cache | None = None) -> list[dict]:
    """Recall@k in both directions, cosine ranking; several captions per image count as found with the best of them.

    With `pairs.folds` the images are cut into so many parts, in their order; only the captions of a part compete, and
    the value is the mean over all images (captions) of all parts."""
    image, text = features(clip, pairs.images, cache), text_features(clip, pairs.captions, cache)
    found = []
    for part in np.array_split(np.arange(len(pairs)), pairs.folds):
        mine = np.flatnonzero(np.isin(pairs.owner, part))
        similarity = image[part[0]:part[-1] + 1] @ text[torch.from_numpy(mine).to(text.device)].T
        found.append(ranks(similarity.cpu().numpy(), pairs.owner[mine] - part[0]))
    image_rank, text_rank = (np.concatenate(ranked) for ranked in zip(*found, strict=True))
    rows = []
    for k in ks:
        rows += _row(f"{name}: image to text", "all", image_rank < k, f"recall@{k}")
        rows += _row(f"{name}: text to image", "all", text_rank < k, f"recall@{k}")
    return rows


def ranks(similarity: Float[np.ndarray, "images texts"], owner: Int[np.ndarray, " texts"]
          ) -> tuple[np.ndarray, np.ndarray]:
    """For each image the rank of its best caption, and for each caption the rank of its image; 0 is first.

    A tie counts against: everything foreign that is as similar ranks before."""
    mine = owner[None, :] == np.arange(len(similarity))[:, None]
    best = np.where(mine, similarity, -np.inf).max(1, keepdims=True)
    image_rank = ((similarity >= best) & ~mine).sum(1)
    own = similarity[owner, np.arange(len(owner))]
    return image_rank, ((similarity >= own[None, :]) & ~mine).sum(0)
