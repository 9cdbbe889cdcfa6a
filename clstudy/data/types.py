"""What benchmarks and batches hold. Images are uint8 on the device; labels stay on the host."""
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
LARGEST = 8 * 2**30  # bytes of images that are moved to a device; more stay on the host
Images = UInt8[Tensor, "images 3 height width"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with one class each, and the names and prompt that classify them."""

    images: Images | Shards  # shards: in many files, where they may not fit in memory
    labels: np.ndarray  # int64 (images,), positions in class_names
    class_names: tuple[str, ...]
    template: str  # `{}` stands for the class name
    domains: np.ndarray | None = None  # int64 (images,), positions in domain_names
    domain_names: tuple[str, ...] = ()  # icon families, styles, places, …
    # int64 (images,): what an image shows. Images of one thing (a concept in several styles, one
    # object from several sides) are no independent tests. None: each image shows its own
    concepts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def prompts(self) -> tuple[str, ...]:
        """Return the prompt of each image's class."""
        texts = [self.template.format(name) for name in self.class_names]
        return tuple(texts[label] for label in self.labels.tolist())

    def to(self, device) -> "Labelled":
        """Move the images to the device; more than `LARGEST` bytes stay, and go batch by batch."""
        if self.images.nbytes > LARGEST:
            return self
        return replace(self, images=self.images.to(device))


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images with captions, for retrieval: caption j belongs to image `owner[j]`."""

    images: Images
    captions: tuple[str, ...]
    owner: np.ndarray  # int64 (captions,)
    folds: int = 1  # retrieval is done in so many equal parts of the images, and averaged
    concepts: np.ndarray | None = None  # int64 (images,), as in Labelled

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class BenchmarkData:
    """Training and test images of the same classes, and sets that the stream does not touch."""

    name: str
    train: Labelled
    test: Labelled
    captions: tuple[str, ...]  # one per training image
    groups: dict[str, tuple[int, ...]]  # groups of classes: the tasks of a stream with "groups"
    held_out: dict[str, Labelled] = field(default_factory=dict)  # zero-shot, each with its classes
    retrieval: dict[str, Captioned] = field(default_factory=dict)
    reference: Callable[[], Captioned] | None = None  # pairs like those of pretraining

    def to(self, device) -> "BenchmarkData":
        """Move training and test images to the device. Held-out sets, seldom used, stay."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, candidate texts, and which text each image matches.

    A batch comes with every class seen so far as candidates; a method narrows them with `present()`
    or `phase()`."""

    image: Tensor  # (batch, 3, height, width): float in [0, 1], augmented
    labels: tuple[int, ...]  # class of each image, on the host
    index: tuple[int, ...]  # stable id of each image in the benchmark
    classes: tuple[int, ...]  # candidate classes, in order of their first appearance in the stream
    prompts: Int[Tensor, "classes tokens"]  # of all classes of the benchmark
    stage: Stage
    replayed: int = 0  # how many images, at the end, come from a replay buffer
    reference: Callable[[], Captioned] | None = None  # the benchmark's; stays on the host

    @property
    def text(self) -> Int[Tensor, "texts tokens"]:
        """Return the tokens of the candidates' prompts, in the order of `classes`."""
        return self.prompts[torch.tensor(self.classes, device=self.prompts.device)]

    @property
    def target(self) -> Int[Tensor, " batch"]:
        """Return for each image the row of `text` that it matches."""
        return self._rows_of(self.labels)

    def rows(self, other: "Batch") -> Int[Tensor, " texts"]:
        """Return the rows in `text` of the candidates of `other`, a narrowing of this batch."""
        return self._rows_of(other.classes)

    def _rows_of(self, labels: tuple[int, ...]) -> Int[Tensor, " rows"]:
        row = {label: i for i, label in enumerate(self.classes)}
        return torch.tensor([row[label] for label in labels], device=self.prompts.device)

    def join(self, image: Tensor, labels: tuple[int, ...], index: tuple[int, ...]) -> "Batch":
        """Return the batch with replayed images at its end; the batch itself if there are none."""
        if not labels:  # an empty draw has no height and width, and cannot be concatenated
            return self
        return replace(self, image=torch.cat([self.image, image]), labels=self.labels + labels,
                       index=self.index + index, replayed=self.replayed + len(labels))

    def among(self, classes: tuple[int, ...]) -> "Batch":
        """Return the same images with other candidates."""
        return replace(self, classes=tuple(classes))

    def narrow(self, candidates: str) -> "Batch":
        """Return the same images among "seen" (all classes so far), "phase" or "batch" (`present`).

        ValueError: another word."""
        choose("candidates", candidates, CANDIDATES)
        if candidates == "batch":
            return self.present()
        return self.phase() if candidates == "phase" else self

    def present(self) -> "Batch":
        """Let only the classes that occur in this batch compete (SIT's symmetric candidates)."""
        here = set(self.labels)
        return self.among(tuple(label for label in self.classes if label in here))

    def phase(self) -> "Batch":
        """Let only the classes of this stage, and others that occur in the batch, compete."""
        here = set(self.labels) | set(self.stage.classes)
        return self.among(tuple(label for label in self.classes if label in here))
