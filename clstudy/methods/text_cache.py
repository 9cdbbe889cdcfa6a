"""Tip-Adapter: a cache of image features with their classes speaks beside the texts. Zhang et al.
2021, arXiv 2111.03930; with `learn` its fine-tuned form, Tip-Adapter-F.

    v_k = s f·t_k + α Σ_{j: y_j = k} exp(−β (1 − f·κ_j))
    no objective; prediction = argmax_k v_k                      learn=False
    L   = −(1/B) Σ_i log softmax_k(v_ik)_{y_i}                   learn=True
          └────────────── task ──────────────┘

    symbol  field       unit     meaning
    f, t    –           –        unit-norm features of the image, and of the text of each class
    s       –           –        CLIP's own factor 1/τ
    κ, y    –           –        keys, which are unit-norm image features, and their classes
    α       alpha       –        weight of the cache; 0: frozen CLIP
    β       beta        –        sharpness; the larger, the more the nearest key alone counts
    –       per_class   keys     most that a class has; None: one for each image
    –       candidates  classes  with `learn`: whose v compete, "seen", "phase" or "batch"

Estimator: exact. An image is encoded once, without augmentation, when its batch arrives. Where a
class has more images than keys, its keys are a uniform draw of its images so far (a reservoir for
each class). With `learn` the keys are parameters, the only ones; they are not made unit-norm again,
as released, and later stages move them too. A stage's keys then enter before its first step, as
there, so that an evaluation inside the stage already knows its images.

The sum counts keys: with a small β a class with many keys wins over one with few wherever it is, so
that `per_class` matters where classes are unequal, or β must be large (10 rather than 1).

Limits: α = 0 is frozen CLIP. As β → ∞ the cache alone ranks by the nearest key, and the texts do
not matter where α exp(−β (1 − f·κ)) is large beside s. A class without keys has v_k = s f·t_k, which
no key adds to. Among all classes it would lose to any that has keys, and more so the more they
have; so it competes by its texts, standardised for each image (`frozen_features.py`).

Departures: the standardisation is ours, as is the use on a stream. Released code averages a key over
ten augmentations and searches α and β on validation images, from (1.17, 1) on ImageNet with 16 keys
a class: the defaults here, where a grid over both does the same. Its fine-tuning decays the learning
rate along a cosine; it takes the best epoch by the test set. Prompts are one for each class, not a
mean over templates.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.methods.base import Beside, state
from clstudy.methods.frozen_features import FrozenFeatures
from clstudy.models.clip import Clip

PART = 1024  # images whose distances to all keys are in memory at once


@dataclass
class TextCache(FrozenFeatures):
    """Adds to the texts a cache of image features, whose similarity to the image counts."""

    title = "text + cache"
    source = "Zhang et al. 2021, Tip-Adapter, arXiv 2111.03930"
    dash = (5, 1.5, 1, 1.5, 1, 1.5)
    owns_parameters = True
    place_on_map = Beside(None, "adds a cache of features to the texts")
    checked = "logits by hand, three limits; the use on a stream is ours"

    alpha: Annotated[float, Ge(0)] = 1.17  # weight of the cache; 0: frozen CLIP
    beta: Annotated[float, Ge(0)] = 1.0  # sharpness; large: the nearest key alone counts
    per_class: Annotated[int, Ge(1)] | None = 16  # keys of a class; None: one for each image
    learn: bool = False  # train the keys: Tip-Adapter-F
    candidates: Candidates = "seen"  # with learn: which classes compete in training
    keys: Tensor | None = state(default=None)  # (keys, dim)
    labels: list[int] = state(default_factory=list)  # class of each key
    arrived: dict[int, int] = state(default_factory=dict)  # class → its images so far

    @property
    def trains(self) -> bool:
        return self.learn

    @property
    def texts_alone(self) -> bool:
        return self.alpha == 0

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        for batch in batches if self.learn else ():
            self.after_step(clip, batch)

    def trainable(self, clip: Clip) -> list[nn.Parameter]:
        return [self.keys] if isinstance(self.keys, nn.Parameter) else []

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        if not self.learn:
            return {}
        batch = batch.narrow(self.candidates)
        encoded = clip.eval().encode(batch)  # CLIP itself does not train
        rows = torch.tensor(batch.classes, device=encoded.image.device)
        logits = self.logits(encoded.scale, encoded.image, encoded.text, rows)
        return {"task": F.cross_entropy(logits, batch.target)}

    def add(self, image: Float[Tensor, "new dim"], member: Float[Tensor, "new classes"],
            batch: Batch) -> None:
        old = image[:0] if self.keys is None else self.keys.detach()
        source = self.take(batch.labels)
        self.keys = torch.cat([old, image])[torch.tensor(source, device=image.device)]
        if self.learn:
            self.keys = nn.Parameter(self.keys)

    def take(self, labels: Iterable[int]) -> list[int]:
        """Return where each key is from now on: among the old ones, then the new images."""
        count = len(self.labels)
        source, slots = list(range(count)), {}
        for slot, label in enumerate(self.labels):
            slots.setdefault(label, []).append(slot)
        for row, label in enumerate(labels, count):
            own = slots.setdefault(label, [])
            self.arrived[label] = self.arrived.get(label, 0) + 1
            if self.per_class is None or len(own) < self.per_class:
                own.append(len(source))
                source.append(row)
                self.labels.append(label)
            elif (drawn := int(torch.randint(self.arrived[label], ()))) < self.per_class:
                source[own[drawn]] = row
        return source

    def values(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], rows: Int[Tensor, " texts"]
               ) -> Float[Tensor, "images texts"]:
        return torch.cat([self.logits(clip.scale(), part, text, rows)
                          for part in image.split(PART)])

    def logits(self, scale: Tensor, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], rows: Int[Tensor, " texts"]
               ) -> Float[Tensor, "images texts"]:
        labels = torch.tensor(self.labels, device=image.device)
        own = (labels[:, None] == rows).to(image.dtype)  # (keys, texts)
        near = (-self.beta * (1 - image @ self.keys.T)).exp()
        return scale * image @ text.T + self.alpha * near @ own
