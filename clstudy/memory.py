"""Rehearsal: which images of the stream are kept, within a budget counted in images.

Images are held as uint8 on the device of the batches. Labels, ids and every random choice (torch's global generator)
live on the host, so a memory holds the same images on every device. An image has one chance: in a second pass over a
stage nothing changes.
"""
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from .config import choose
from .data import Batch

POLICIES = ("reservoir", "balanced")


class Memory:
    """At most `size` images of the stream; 0 is no memory, and draws no random number.

    policy: which image makes room once the memory is full.
    "reservoir": every image of the stream so far is kept with the same probability, size / images so far (algorithm R,
    Vitter 1985).
    "balanced": the same number of images for each class seen, as far as they have arrived. A random image of a class
    that holds most makes room; a class that once held most exchanges its own images only, so that within every class
    all images are kept with the same probability (Chrysakis and Moens 2020, class-balancing reservoir sampling).
    ValueError: size, policy."""

    def __init__(self, size: int, policy: str = "reservoir"):
        if size < 0:
            raise ValueError(f"size={size!r}: must be at least 0 images (0: no memory)")
        self.size, self.policy = size, choose("policy", policy, POLICIES)
        self.image: Tensor | None = None  # uint8 (kept, 3, height, width)
        self.labels: list[int] = []  # one per image kept
        self.index: list[int] = []  # and its stable id
        self.extra: dict[str, Tensor] = {}  # and what a method keeps beside it, one row each
        self.arrived: dict[int, int] = {}  # id → class of every image of the stream so far
        self.count: Counter[int] = Counter()  # class → how many of them
        self.settled: set[int] = set()  # classes that once held most

    def __len__(self) -> int:
        return len(self.index)

    def add(self, batch: Batch, importance: dict[int, float] | None = None, **extra: Tensor) -> None:
        """Offer the stream's part of a batch; images that come from a memory are passed over.

        importance, for "balanced": a value for the id of each image kept or new; then the new image always enters,
        and the least important one of the largest class makes room. extra: tensors with a row per image of the
        stream's part; every call must bring the same ones."""
        stream, kept = len(batch.index) - batch.replayed, len(self)
        source = list(range(kept))  # where the image of each slot is: first the memory's rows, then the batch's
        for row, (label, image) in enumerate(zip(batch.labels[:stream], batch.index[:stream], strict=True)):
            if not self.size or image in self.arrived:
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
        new = {"image": (batch.image[:stream] * 255).round().to(torch.uint8), **extra}
        rows = torch.tensor(source, device=batch.image.device)
        self.extra = {name: (torch.cat([old[name], values]) if kept else values)[rows] for name, values in new.items()}
        self.image = self.extra.pop("image")

    def draw(self, count: int) -> tuple[Float[Tensor, "drawn 3 height width"], tuple[int, ...], tuple[int, ...]]:
        """`count` different images in [0, 1], or all there are if they are fewer; their labels and their ids."""
        if not min(count, len(self)):
            return torch.empty(0, 3, 0, 0), (), ()
        slots = torch.randperm(len(self))[:count]
        image = self.image[slots.to(self.image.device)].float() / 255
        chosen = slots.tolist()
        return image, tuple(self.labels[i] for i in chosen), tuple(self.index[i] for i in chosen)

    def join(self, batch: Batch, count: int) -> Batch:
        """The batch with `count` images of the memory at its end; the batch itself while there are none."""
        image, labels, index = self.draw(count)
        return batch.join(image, labels, index) if labels else batch

    def look_up(self, name: str, index: tuple[int, ...]) -> Tensor:
        """Rows of the extra tensor `name` for images that are kept, by their ids."""
        slot = {image: i for i, image in enumerate(self.index)}
        return self.extra[name][torch.tensor([slot[image] for image in index], device=self.extra[name].device)]

    def state(self) -> dict[str, Tensor | list[int] | dict[str, Tensor]]:
        """All that the memory is, as plain tensors and lists. They are not changed when the memory goes on."""
        return {"image": torch.empty(0, 3, 0, 0, dtype=torch.uint8) if self.image is None else self.image,
                "labels": list(self.labels), "index": list(self.index), "extra": dict(self.extra),
                "arrived": list(self.arrived), "arrived_labels": list(self.arrived.values()),
                "settled": sorted(self.settled)}

    def restore(self, state: dict) -> None:
        """Become the memory that `state()` described; size and policy must be the same."""
        self.labels, self.index, self.extra = list(state["labels"]), list(state["index"]), dict(state["extra"])
        self.image = state["image"] if self.index else None
        self.arrived = dict(zip(state["arrived"], state["arrived_labels"], strict=True))
        self.count, self.settled = Counter(state["arrived_labels"]), set(state["settled"])

    def _slot(self, label: int, importance: dict[int, float] | None) -> int | None:
        """Where a new image of class `label` goes: behind the last one, in place of another, or nowhere."""
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
        """Slots of all classes that hold most."""
        most = max(held.values())
        return [slot for slot, label in enumerate(self.labels) if held[label] == most]


def below(count: int) -> int:
    """A random whole number from 0 to count − 1."""
    return int(torch.randint(count, ()))
