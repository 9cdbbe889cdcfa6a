"""Zero-shot continual learning: similarities of reference images to reference texts stay those of
the pretrained CLIP, and weights are averaged along the way. Zheng et al. 2023, ZSCL, arXiv
2303.06628.

    L = CE(z) + w T² · mean_r KL( softmax_v(z*_r / T) ‖ softmax_v(z_r / T) )
        └task┘  └──────────────────────── images ─────────────────────────┘
              + w T² · mean_v KL( softmax_r(z*_v / T) ‖ softmax_r(z_v / T) ) + λ Σ_j (θ_j − θ°_j)²
                └──────────────────────── texts ──────────────────────────┘    └───── anchor ────┘

    z_rv = s f_r·t*_v,   z*_rv = s f*_r·t*_v;   θ̂ ← (n θ̂ + θ) / (n + 1) every k steps

    symbol   field           meaning                                                                   unit
    r, v     references      images, and texts, drawn anew each step; not of one another               –
    f*, t*   –               features of the teacher: CLIP before any training                         –
    w        weight          of each of the two distillations                                          –
    T        temperature     of both                                                                   –
    λ        anchor          of the distance to the weights θ° at the start of the stage               –
    k        average_every   steps between two models of the average θ̂; 0: no average                  steps
    –        candidates      of the task: "seen": classes seen so far; "phase": those of the stage;    classes
                             "batch"

Estimator: the student's images are compared with the *teacher's* texts (released code,
github.com/Thunderbeee/ZSCL), so the distillation reaches the image tower only; the text tower is
held by the anchor and the average. θ̂ starts at θ° and is what is evaluated and what the next stage
starts from. The weights as they are at that moment count as its last model: in a stage of fewer
than k steps θ̂ is the middle between start and end. The references are not augmented, so each
teacher feature is computed once. λ = 0 is ZSCL without weight consolidation; the code's MTIL runs
have λ = 1. Departures: KL where the code has the cross-entropy, which is larger by the teacher's
entropy and has the same gradient; no label smoothing (0.2 there); as many texts as images in each
step (there all texts in every step). There the first model of the average is that after the first
step, and the weights at the end are not in it unless k divides them.
"""
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses.functional import distillation, match
from clstudy.methods.base import Beside, Method
from clstudy.models.clip import Clip
from clstudy.models.weight_space import Values, between, put, put_beside, tuned


@dataclass
class ZSCL(Method):
    """Similarities of reference images to reference texts stay CLIP's; weights are averaged."""

    title = "ZSCL"
    source = "Zheng et al. 2023, ZSCL, arXiv 2303.06628"
    family = "distillation"
    dash = (4, 1.5)
    place_on_map = Beside(
        "finetune", "distils on images and texts of a reference set, and averages weights")
    checked = "terms and average by hand"

    weight: Annotated[float, Ge(0)] = 1.0  # of each distillation; 0: none, and no references
    temperature: Annotated[float, Gt(0)] = 2.0
    references: Annotated[int, Ge(2)] = 64  # images, and as many texts, in each step
    anchor: Annotated[float, Ge(0)] = 0.0  # weight of the squared distance to the stage's start
    average_every: Annotated[int, Ge(0)] = 100  # steps between two models of the average; 0: none
    candidates: Candidates = "seen"  # which texts compete in the task term
    teacher: Clip | None = field(default=None, init=False, repr=False)
    images: dict[int, Tensor] = field(default_factory=dict, init=False,
                                      repr=False)  # the teacher's, by row
    texts: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)  # for this step
    start: Values = field(default_factory=dict, init=False, repr=False)  # θ°
    mean: Values | None = field(default=None, init=False, repr=False)  # θ̂
    count: int = field(default=0, init=False, repr=False)  # models in it
    steps: int = field(default=0, init=False, repr=False)  # of this stage
    averaged: Clip | None = field(default=None, init=False, repr=False)

    @property
    def needs_reference(self) -> bool:
        return self.weight > 0

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        batch = batch.narrow(self.candidates)
        encoded = clip.encode(batch)
        terms = {"task": match(encoded.image, encoded.text, encoded.scale, batch.target)}
        if self.weight:
            images, text = (clip.encode_image(
                self.drawn["pixels"]), self.drawn["image"]), self.drawn["text"].T
            z, taught = (encoded.scale * image @ text for image in images)
            terms |= {"images": self.weight * distillation(z, taught, self.temperature),
                      "texts": self.weight * distillation(z.T, taught.T, self.temperature)}
        if self.anchor:
            moved = [
                p - self.start[name] for name, p in clip.named_parameters() if name in self.start
            ]
            terms["anchor"] = self.anchor * sum(step.square().sum() for step in moved)
        return terms

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        if self.teacher is None:
            self.teacher = deepcopy(clip).eval().requires_grad_(False)
            self.averaged = deepcopy(clip) if self.average_every else None
        self.start, self.steps = tuned(clip), 0
        self.mean, self.count = (self.start, 1) if self.average_every else (None, 0)

    @torch.no_grad()
    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        """Draw the references of this step, on the host; the batch stays as it is."""
        if not self.weight:
            return batch
        pairs = batch.reference()
        rows, columns = (torch.randperm(len(kind))[:self.references].tolist()
                         for kind in (pairs, pairs.captions))
        self.drawn = {
            "pixels": pairs.images[rows].to(clip.device), "image": known(
                self.images, rows,
                lambda new: self.teacher.encode_image(pairs.images[new].to(clip.device))),
            "text": known(
                self.texts, columns, lambda new: self.teacher.encode_text(
                    clip.tokenize([pairs.captions[i] for i in new]).to(clip.device)))
        }
        return batch

    def edit_gradients(self, clip: Clip) -> None:
        """Called once in each step, before it: the weights have made `steps` steps."""
        if self.mean is not None and self.steps and self.steps % self.average_every == 0:
            self.mean, self.count = self.average(clip), self.count + 1
        self.steps += 1

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        if self.mean is not None:
            put(clip, self.average(clip))
            self.mean = None  # the model is the average now

    def deploy(self, clip: Clip) -> Clip:
        return clip if self.mean is None else put_beside(self.averaged, clip, self.average(clip))

    def average(self, clip: Clip) -> Values:
        """(n θ̂ + θ) / (n + 1)"""
        return between(self.mean, tuned(clip), 1 / (self.count + 1))


def known(store: dict[int, Tensor], rows: list[int], encode: Callable) -> Tensor:
    """Features of these rows; `encode` is asked for those that are new."""
    new = [row for row in rows if row not in store]
    if new:
        store.update(zip(new, encode(new), strict=True))
    return torch.stack([store[row] for row in rows])
