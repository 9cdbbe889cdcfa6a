"""What a benchmark is, and what a batch is. Images are held as uint8 on the device; labels live on
the host."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from clstudy.data.image_shards import Shards
from clstudy.data.streams import Stage
from clstudy.utils.validation import choose

Candidates = Literal["seen", "phase", "batch"]  # which texts compete with an image: `Batch.narrow`
CANDIDATES = get_args(Candidates)
LARGEST = 8 * 2**30  # bytes of a set that are moved to a device


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with one class each, and the names and prompt that classify them."""

    images: UInt8[
        Tensor, "images 3 height width"] | Shards  # in many files, where they may not fit in memory
    labels: np.ndarray  # int64 (images,), positions in class_names
    class_names: tuple[str, ...]
    template: str  # `{}` stands for the class name
    domains: np.ndarray | None = None  # int64 (images,), positions in domain_names: who drew it, where it was taken
    domain_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Labelled":
        """Images on the device; more than `LARGEST` bytes of them stay where they are, and go batch
        by batch."""
        return self if self.images.nbytes > LARGEST else replace(self,
                                                                 images=self.images.to(device))


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images with one or more captions each, for retrieval: caption j belongs to image
    `owner[j]`."""

    images: UInt8[Tensor, "images 3 height width"]
    captions: tuple[str, ...]
    owner: np.ndarray  # int64 (captions,)
    folds: int = 1  # retrieval is done within each of so many equal parts of the images, and averaged

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> "Captioned":
        return replace(self, images=self.images.to(device))


@dataclass(frozen=True, eq=False)
class BenchmarkData:
    """Training and test images of the same classes, and sets that the stream does not touch."""

    name: str
    train: Labelled
    test: Labelled
    captions: tuple[str, ...]  # one per training image
    groups: dict[str, tuple[
        int, ...]]  # named groups of classes, which a disjoint stream can take as its tasks
    held_out: dict[str, Labelled] = field(
        default_factory=dict)  # zero-shot sets, each with its own candidates
    retrieval: dict[str, Captioned] = field(default_factory=dict)
    reference: Callable[
        [],
        Captioned] | None = None  # pairs like those of pretraining, for methods that ask for them

    def to(self, device) -> "BenchmarkData":
        """Training and test images on the device, unless they are too many. Held-out sets, which
        are seldom looked at, stay where they are."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, candidate texts, and which text each image matches.

    A batch comes with every class seen so far as candidates; a method narrows them: `present()`,
    `phase()`."""

    image: Tensor  # (batch, 3, height, width): float in [0, 1], augmented
    labels: tuple[int, ...]  # class of each image, on the host
    index: tuple[int, ...]  # stable id of each image in the benchmark
    classes: tuple[int, ...]  # candidate classes, in order of their first appearance in the stream
    prompts: Int[Tensor, "classes tokens"]  # of all classes of the benchmark
    stage: Stage
    replayed: int = 0  # how many images, at the end, come from a memory
    reference: Callable[[], Captioned] | None = None  # the benchmark's; stays on the host

    @property
    def text(self) -> Int[Tensor, "texts tokens"]:
        """Tokens of the candidates' prompts, in the order of `classes`."""
        return self.prompts[torch.tensor(self.classes, device=self.prompts.device)]

    @property
    def target(self) -> Int[Tensor, " batch"]:
        """For each image, the row of `text` that it matches."""
        row = {label: i for i, label in enumerate(self.classes)}
        return torch.tensor([row[label] for label in self.labels], device=self.prompts.device)

    def join(self, image: Tensor, labels: tuple[int, ...], index: tuple[int, ...]) -> "Batch":
        """The same batch with images of a memory at its end; the batch itself where there are none.

        (A draw of no image has no height and width, and would not join.)"""
        if not labels:
            return self
        return replace(self, image=torch.cat([self.image, image]), labels=self.labels + labels,
                       index=self.index + index, replayed=self.replayed + len(labels))

    def among(self, classes: tuple[int, ...]) -> "Batch":
        """The same images with other candidates."""
        return replace(self, classes=tuple(classes))

    def narrow(self, candidates: str) -> "Batch":
        """The same images among "seen" (all classes seen so far), "phase" or "batch" (`present`).

        ValueError: another word."""
        choose("candidates", candidates, CANDIDATES)
        return self.present() if candidates == "batch" else self.phase(
        ) if candidates == "phase" else self

    def rows(self, other: "Batch") -> Int[Tensor, " texts"]:
        """Where the candidates of `other`, a narrowing of this batch, stand in `text`."""
        row = {label: i for i, label in enumerate(self.classes)}
        return torch.tensor([row[label] for label in other.classes], device=self.prompts.device)

    def present(self) -> "Batch":
        """Only the classes that occur in this batch compete (SIT's symmetric candidates)."""
        here = set(self.labels)
        return self.among(tuple(label for label in self.classes if label in here))

    def phase(self) -> "Batch":
        """Only the classes at home in this stage, and whatever else is in the batch, compete."""
        here = set(self.labels) | set(self.stage.classes)
        return self.among(tuple(label for label in self.classes if label in here))
