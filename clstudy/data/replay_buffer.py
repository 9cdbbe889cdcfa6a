"""The replay buffer: which images of the stream are kept, within a budget counted in images.

Images are held as uint8 on the device of the batches. Labels, ids and every random choice (torch's
global generator) live on the host, so a buffer holds the same images on every device. An image has
one chance: a second pass over a stage changes nothing."""
from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clstudy.data.types import Batch
from clstudy.utils.validation import choose

Policy = Literal["reservoir", "balanced", "quota"]
Selection = Literal["random", "herding"]
Draw = Literal["uniform", "balanced"]


class ReplayBuffer:
    """At most `size` images of the stream; a buffer of size 0 draws no random number.

    policy: which image makes room once the buffer is full. "reservoir": every image of the stream
    so far is kept with the same probability, size / images so far (algorithm R, Vitter 1985).
    "balanced": the same number of images for each class seen, as far as they have arrived. A random
    image of a largest class makes room; a class that once was largest exchanges only its own
    images, so that within every class all images are kept with the same probability (Chrysakis and
    Moens 2020, class-balancing reservoir sampling). "quota": filled at the end of a stage
    (`refill`) with exactly size // classes seen so far images of each class, or all it has; where
    there are more classes than images, one of each of the first (iCaRL, Rebuffi et al. 2017, arXiv
    1611.07725). selection, for "quota": "random", every image of a class so far with the same
    probability; or "herding", those whose mean feature comes nearest to that of the class, one
    after the other (iCaRL).

    drawing: what `draw` returns. "uniform": every image held has the same chance. "balanced": every
    class held has, as far as it has images, so that a draw holds each class equally often in
    expectation. ValueError: size, policy, selection, drawing ("draw", as methods call it)."""

    def __init__(self, size: int, policy: str = "reservoir", selection: str = "random",
                 drawing: str = "uniform"):
        if size < 0:
            raise ValueError(f"size={size!r}: must be at least 0 images (0: no replay buffer)")
        self.size, self.policy = size, choose("policy", policy, get_args(Policy))
        self.selection = choose("selection", selection, get_args(Selection))
        self.drawing = choose("draw", drawing, get_args(Draw))
        self.image: Tensor | None = None  # uint8 (kept, 3, height, width)
        self.labels: list[int] = []  # one per image kept
        self.index: list[int] = []  # and its stable id
        self.keys: list[float] = []  # for "quota": one per image kept; the smallest stay
        self.extra: dict[str, Tensor] = {}  # what a method keeps beside it, one row per image
        self.arrived: dict[int, int] = {}  # id → class of every image of the stream so far
        self.count: Counter[int] = Counter()  # class → how many of them
        self.settled: set[int] = set()  # classes that once held most

    def __len__(self) -> int:
        return len(self.index)

    def add(self, batch: Batch, importance: dict[int, float] | None = None,
            **extra: Tensor) -> None:
        """Offer the stream's part of a batch; replayed images are passed over.

        importance, for "balanced": a value for the id of each image kept or new; then the new image
        always enters, and the least important one of the largest class makes room. extra: tensors
        with a row per image of the stream's part; every call must bring the same ones."""
        if self.policy == "quota" or not self.size:
            return
        count, kept = len(batch.index) - batch.replayed, len(self)
        stream = list(zip(batch.labels, batch.index, strict=True))[:count]
        source = list(range(kept))  # where each slot's image is: in the buffer, then in the batch
        for row, (label, image) in enumerate(stream):
            if image in self.arrived:
                continue
            self.arrived[image] = label
            self.count[label] += 1
            slot = self._slot(label, importance)
            if slot == len(self):
                source.append(kept + row)
                self.labels.append(label)
                self.index.append(image)
            elif slot is not None:
                source[slot], self.labels[slot], self.index[slot] = kept + row, label, image
        if source == list(range(kept)):
            return
        old = {"image": self.image, **self.extra}
        new = {"image": _as_bytes(batch.image[:count]), **extra}
        rows = torch.tensor(source, device=batch.image.device)
        self.extra = {name: (torch.cat([old[name], values]) if kept else values)[rows]
                      for name, values in new.items()}
        self.image = self.extra.pop("image")

    def refill(self, batches: Iterable[Batch], clip: nn.Module | None = None) -> None:
        """Keep, after a stage, what the quota leaves of the images kept and those of the stage.

        clip: for "herding", whose features are in evaluation mode; the stage's images are then held
        until its end."""
        if self.policy != "quota" or not self.size:
            return
        held: dict[int, list] = {label: [] for label in self.arrived.values()}  # key, id, image
        for i, label in enumerate(self.labels):
            held[label].append((self.keys[i], self.index[i], self.image[i]))
        for batch in batches:
            pixels = _as_bytes(batch.image)
            for label, i, image in zip(batch.labels, batch.index, pixels, strict=True):
                if i not in self.arrived:
                    self.arrived[i] = label
                    held.setdefault(label, []).append((float(torch.rand(())), i, image))
            if self.selection == "random":
                self._cut(held)
        if self.selection == "herding":
            for members in filter(None, held.values()):
                order = herded(torch.stack([image for _, _, image in members]), clip)
                members[:] = [(float(place), *members[j][1:]) for place, j in enumerate(order)]
        self._cut(held)
        rows = [(label, *row) for label, members in held.items() for row in members]
        self.labels, self.keys, self.index = ([row[i] for row in rows] for i in range(3))
        self.image = torch.stack([row[3] for row in rows]) if rows else None

    def _cut(self, held: dict[int, list]) -> None:
        """Leave to each class its quota of smallest keys."""
        quota = self.size // max(len(held), 1)
        for place, members in enumerate(held.values()):
            members.sort(key=lambda row: row[:2])
            del members[quota or place < self.size:]

    @property
    def bytes(self) -> int:
        """Return the bytes of all that is kept."""
        kept = [tensor for tensor in (self.image, *self.extra.values()) if tensor is not None]
        return sum(tensor.nbytes for tensor in kept)

    def draw(self, count: int
             ) -> tuple[Float[Tensor, "drawn 3 height width"], tuple[int, ...], tuple[int, ...]]:
        """Return `count` different images in [0, 1], or all if there are fewer, with labels and
        ids."""
        if not min(count, len(self)):
            return torch.empty(0, 3, 0, 0), (), ()
        slots = torch.randperm(len(self))
        if self.drawing == "balanced":
            slots = in_turns(slots, torch.tensor(self.labels))
        slots = slots[:count]
        image, chosen = self.image[slots.to(self.image.device)].float() / 255, slots.tolist()
        return image, tuple(self.labels[i] for i in chosen), tuple(self.index[i] for i in chosen)

    def join(self, batch: Batch, count: int) -> Batch:
        """Return the batch with `count` images of the buffer at its end; the batch itself while the
        buffer is empty."""
        return batch.join(*self.draw(count))

    def look_up(self, name: str, index: tuple[int, ...]) -> Tensor:
        """Return the rows of the extra tensor `name` for images that are kept, by their ids."""
        slot = {image: i for i, image in enumerate(self.index)}
        rows = torch.tensor([slot[image] for image in index], device=self.extra[name].device)
        return self.extra[name][rows]

    def state(self) -> dict[str, Tensor | list[int] | dict[str, Tensor]]:
        """Return all content as tensors and lists; later changes of the buffer leave it alone."""
        image = torch.empty(0, 3, 0, 0, dtype=torch.uint8) if self.image is None else self.image
        return {
            "image": image, "labels": list(self.labels), "index": list(self.index),
            "keys": list(self.keys), "extra": dict(self.extra), "arrived": list(self.arrived),
            "arrived_labels": list(self.arrived.values()), "settled": sorted(self.settled)
        }

    def restore(self, state: dict) -> None:
        """Become the buffer that `state()` described; size and policy must be the same."""
        self.labels, self.index, self.keys = (list(state[name])
                                              for name in ("labels", "index", "keys"))
        self.extra, self.settled = dict(state["extra"]), set(state["settled"])
        self.image = state["image"] if self.index else None
        self.arrived = dict(zip(state["arrived"], state["arrived_labels"], strict=True))
        self.count = Counter(state["arrived_labels"])

    def _slot(self, label: int, importance: dict[int, float] | None) -> int | None:
        """Return the slot of a new image of class `label`: len(self) is a new one, None is none."""
        if len(self) < self.size:
            return len(self)
        if self.policy == "reservoir":
            slot = below(len(self.arrived))
            return slot if slot < self.size else None
        held = Counter(self.labels)
        if importance is not None:
            held[label] += label in held  # the new image counts
            return min(self._largest(held), key=lambda slot: importance[self.index[slot]])
        largest = self._largest(held)
        self.settled.update(self.labels[slot] for slot in largest)
        if label in self.settled:
            slot = below(self.count[label])
            mine = [i for i, other in enumerate(self.labels) if other == label]
            return mine[slot] if slot < len(mine) else None
        return largest[below(len(largest))]

    def _largest(self, held: Counter) -> list[int]:
        """Return the slots of all classes that hold most."""
        most = max(held.values())
        return [slot for slot, label in enumerate(self.labels) if held[label] == most]


def in_turns(slots: Int[Tensor, " kept"], labels: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
    """Order the slots so that classes take turns: one of each, in a random order, then a second of
    each, …

    The first n of them hold every class n / C times in expectation, as long as it has so many."""
    _, label, count = labels[slots].unique(return_inverse=True, return_counts=True)
    first = (count.cumsum(0) - count).repeat_interleave(count)
    place = torch.empty_like(slots)  # of each among those of its class
    place[label.argsort(stable=True)] = torch.arange(len(slots)) - first
    return slots[(place * len(count) + torch.randperm(len(count))[label]).argsort()]


@torch.no_grad()
def herded(images: Tensor, clip: nn.Module) -> list[int]:
    """Return the order in which herding takes images: each time the one that brings the mean of
    those taken nearest to the mean of all (iCaRL, arXiv 1611.07725, algorithm 4), on unit-norm
    features."""
    training = clip.training
    features = torch.cat([clip.eval().encode_image(part)
                          for part in images.to(clip.device).split(256)])
    clip.train(training)
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left, order = torch.ones(len(features), dtype=torch.bool, device=features.device), []
    for taken in range(1, len(features) + 1):
        distance = (mean - (total + features) / taken).norm(dim=1).masked_fill(~left, torch.inf)
        best = int(distance.argmin())
        order.append(best)
        left[best], total = False, total + features[best]
    return order


def _as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def below(count: int) -> int:
    """Draw a whole number from 0 to count - 1."""
    return int(torch.randint(count, ()))
