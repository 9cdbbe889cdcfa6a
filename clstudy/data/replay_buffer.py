"""Rehearsal: which images of the stream are kept, within a budget counted in images.

Images are held as uint8 on the device of the batches. Labels, ids and every random choice (torch's
global generator) live on the host, so a memory holds the same images on every device. An image has
one chance: in a second pass over a stage nothing changes.
"""
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
    """At most `size` images of the stream; 0 is no memory, and draws no random number.

    policy: which image makes room once the memory is full. "reservoir": every image of the stream
    so far is kept with the same probability, size / images so far (algorithm R, Vitter 1985).
    "balanced": the same number of images for each class seen, as far as they have arrived. A random
    image of a class that holds most makes room; a class that once held most exchanges its own
    images only, so that within every class all images are kept with the same probability (Chrysakis
    and Moens 2020, class-balancing reservoir sampling). "quota": filled at the end of a stage
    (`refill`), with exactly size // classes seen so far images of each class, or all it has; where
    there are more classes than images, one of each of the first (iCaRL, Rebuffi et al. 2017, arXiv
    1611.07725). selection, for "quota": "random", every image of a class so far with the same
    probability; or "herding", those whose mean feature comes nearest to that of the class, one
    after the other (iCaRL).

    drawing: what `draw` gives. "uniform": every image held has the same chance. "balanced": every
    class held has, as far as it has images, so that a draw holds each class equally often in
    expectation. ValueError: size, policy, selection, drawing ("draw", as methods call it)."""

    def __init__(self, size: int, policy: str = "reservoir", selection: str = "random",
                 drawing: str = "uniform"):
        if size < 0:
            raise ValueError(f"size={size!r}: must be at least 0 images (0: no memory)")
        self.size, self.policy = size, choose("policy", policy, get_args(Policy))
        self.selection = choose("selection", selection, get_args(Selection))
        self.drawing = choose("draw", drawing, get_args(Draw))
        self.keys: list[float] = []  # for "quota": one per image kept; the smallest stay
        self.image: Tensor | None = None  # uint8 (kept, 3, height, width)
        self.labels: list[int] = []  # one per image kept
        self.index: list[int] = []  # and its stable id
        self.extra: dict[str, Tensor] = {}  # and what a method keeps beside it, one row each
        self.arrived: dict[int, int] = {}  # id → class of every image of the stream so far
        self.count: Counter[int] = Counter()  # class → how many of them
        self.settled: set[int] = set()  # classes that once held most

    def __len__(self) -> int:
        return len(self.index)

    def add(self, batch: Batch, importance: dict[int, float] | None = None,
            **extra: Tensor) -> None:
        """Offer the stream's part of a batch; images that come from a memory are passed over.

        importance, for "balanced": a value for the id of each image kept or new; then the new image
        always enters, and the least important one of the largest class makes room. extra: tensors
        with a row per image of the stream's part; every call must bring the same ones."""
        if self.policy == "quota":
            return
        stream, kept = len(batch.index) - batch.replayed, len(self)
        source = list(range(
            kept))  # where the image of each slot is: first the memory's rows, then the batch's
        for row, (label, image) in enumerate(
                zip(batch.labels[:stream], batch.index[:stream], strict=True)):
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
        self.extra = {
            name: (torch.cat([old[name], values]) if kept else values)[rows]
            for name, values in new.items()
        }
        self.image = self.extra.pop("image")

    def refill(self, batches: Iterable[Batch], clip: nn.Module | None = None) -> None:
        """For "quota", after a stage: keep what the quota leaves of the images kept and of those of
        the stage.

        clip: for "herding", whose features are in evaluation mode; the stage's images are then held
        until its end."""
        if self.policy != "quota" or not self.size:
            return
        rows = zip(self.labels, self.keys, self.index, self.image if self.index else (),
                   strict=True)
        held: dict[int, list] = {label: [] for label in dict.fromkeys(self.arrived.values())}
        for label, *row in rows:
            held[label].append(row)
        for batch in batches:
            pixels = (batch.image * 255).round().to(torch.uint8)
            for label, i, image in zip(batch.labels, batch.index, pixels, strict=True):
                if i not in self.arrived:
                    self.arrived[i] = label
                    held.setdefault(label, []).append([float(torch.rand(())), i, image])
            if self.selection == "random":
                self._cut(held)
        if self.selection == "herding":
            for members in held.values():
                members[:] = [[float(place), *members[j][1:]]
                              for place, j in enumerate(herded(members, clip))]
        self._cut(held)
        self.labels = [label for label, members in held.items() for _ in members]
        self.keys, self.index = ([row[part] for members in held.values() for row in members]
                                 for part in (0, 1))
        images = [row[2] for members in held.values() for row in members]
        self.image = torch.stack(images) if images else None

    def _cut(self, held: dict[int, list]) -> None:
        """To each class its quota of smallest keys."""
        quota = self.size // max(len(held), 1)
        for place, members in enumerate(held.values()):
            members.sort(key=lambda row: row[:2])
            del members[quota or place < self.size:]

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        kept = [tensor for tensor in (self.image, *self.extra.values()) if tensor is not None]
        return sum(tensor.nbytes for tensor in kept)

    def draw(
        self, count: int
    ) -> tuple[Float[Tensor, "drawn 3 height width"], tuple[int, ...], tuple[int, ...]]:
        """`count` different images in [0, 1], or all there are if they are fewer; their labels and
        their ids."""
        if not min(count, len(self)):
            return torch.empty(0, 3, 0, 0), (), ()
        slots = torch.randperm(len(self))
        slots = (in_turns(slots, torch.tensor(self.labels))
                 if self.drawing == "balanced" else slots)[:count]
        image = self.image[slots.to(self.image.device)].float() / 255
        chosen = slots.tolist()
        return image, tuple(self.labels[i] for i in chosen), tuple(self.index[i] for i in chosen)

    def join(self, batch: Batch, count: int) -> Batch:
        """The batch with `count` images of the memory at its end; the batch itself while there are
        none."""
        image, labels, index = self.draw(count)
        return batch.join(image, labels, index) if labels else batch

    def look_up(self, name: str, index: tuple[int, ...]) -> Tensor:
        """Rows of the extra tensor `name` for images that are kept, by their ids."""
        slot = {image: i for i, image in enumerate(self.index)}
        return self.extra[name][torch.tensor([slot[image] for image in index],
                                             device=self.extra[name].device)]

    def state(self) -> dict[str, Tensor | list[int] | dict[str, Tensor]]:
        """All that the memory is, as plain tensors and lists. They are not changed when the memory
        goes on."""
        return {
            "image": torch.empty(0, 3, 0, 0, dtype=torch.uint8)
            if self.image is None else self.image, "labels": list(self.labels), "index": list(
                self.index), "keys": list(self.keys), "extra": dict(self.extra), "arrived": list(
                    self.arrived), "arrived_labels": list(self.arrived.values()), "settled": sorted(
                        self.settled)
        }

    def restore(self, state: dict) -> None:
        """Become the memory that `state()` described; size and policy must be the same."""
        self.labels, self.index, self.extra = list(state["labels"]), list(state["index"]), dict(
            state["extra"])
        self.keys = list(state["keys"])
        self.image = state["image"] if self.index else None
        self.arrived = dict(zip(state["arrived"], state["arrived_labels"], strict=True))
        self.count, self.settled = Counter(state["arrived_labels"]), set(state["settled"])

    def _slot(self, label: int, importance: dict[int, float] | None) -> int | None:
        """Where a new image of class `label` goes: behind the last one, in place of another, or
        nowhere."""
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


def in_turns(slots: Int[Tensor, " kept"], labels: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
    """The slots in an order in which classes take turns: one of each, in a random order, then a
    second of each, …

    The first n of them hold every class n / C times in expectation, as long as it has so many."""
    _, label, count = labels[slots].unique(return_inverse=True, return_counts=True)
    place = torch.empty_like(slots)  # of each among those of its class
    place[label.argsort(stable=True)] = torch.arange(
        len(slots)) - (count.cumsum(0) - count).repeat_interleave(count)
    return slots[(place * len(count) + torch.randperm(len(count))[label]).argsort()]


@torch.no_grad()
def herded(members: list, clip: nn.Module) -> list[int]:
    """The order in which herding takes images: each time the one that brings the mean of those
    taken nearest to the mean of all (iCaRL, arXiv 1611.07725, algorithm 4), on unit-norm
    features."""
    training = clip.training
    images = torch.stack([row[2] for row in members]).to(clip.device)
    features = torch.cat([clip.eval().encode_image(part) for part in images.split(256)])
    clip.train(training)
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left, order = torch.ones(len(features), dtype=torch.bool, device=features.device), []
    for taken in range(1, len(features) + 1):
        distance = (mean - (total + features) / taken).norm(dim=1).masked_fill(~left, torch.inf)
        best = int(distance.argmin())
        order.append(best)
        left[best], total = False, total + features[best]
    return order


def below(count: int) -> int:
    """A random whole number from 0 to count − 1."""
    return int(torch.randint(count, ()))
