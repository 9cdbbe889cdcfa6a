"""CLIB trains on its memory alone, and keeps the images that lower the loss most. Koh et al. 2022,
i-Blurry, arXiv 2110.10031.

    L = −(1/M) Σ_{i ∈ draw} log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └──────────── task ────────────┘
    H_i ← ρ H_i + (1 − ρ) (ℓ − ℓ')   for each image i drawn between two looks at the memory's loss:
                                     first ℓ, then ℓ'

    symbol  field   unit     meaning
    s       –       –        inverse temperature, frozen
    K       –       classes  candidates: classes seen so far
    M       replay  images   images of a step, drawn from the memory
    H_i     –       –        importance: expected decrease of the memory's loss by a step on i
    ρ       decay   –        of the moving average
    –       every   steps    steps between two looks
    –       look    images   images of the memory that stand for it in a look
    –       size    images   of the memory

Estimator: a batch enters the memory before the first step on it. Once the memory is full, an image
of the class that holds most, the new one counted, makes room: the one with the smallest H. A new
image starts with the mean H of its class. Departures: the released code
(github.com/naver-ai/i-Blurry) looks at the whole memory after every step; here `look` random images
are compared with themselves `every` steps later: cheaper and noisier. There H_i is not shrunk, only
added to, by (1 − ρ) (ℓ − ℓ' + mean H of the draw / M): a sum that grows with the number of draws;
here it is a moving average. No adaptive learning rate, since a method does not step the optimiser.
No CutMix.
"""
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.types import Batch
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class CLIB(Method):
    """Trains on its memory alone, which keeps the images that lower the loss most."""

    title = "CLIB"
    source = "Koh et al. 2022, i-Blurry, arXiv 2110.10031"
    family = "memory"
    dash = (1, 1)
    place_on_map = Beside(
        "er", "trains on its memory alone, and what stays there is chosen by the loss")
    checked = "without its learning-rate schedule"

    size: Annotated[int, Ge(1)] = 500  # of the memory, in images
    replay: Annotated[int, Ge(1)] | None = None  # images of a step; None: as many as in a batch
    every: Annotated[int, Ge(1)] = 3  # steps between two looks at the memory's loss
    look: Annotated[int, Ge(1)] = 64  # images of the memory in a look
    decay: Annotated[float, Ge(0), Lt(1)] = 0.9  # of the moving average of an image's importance
    memory: ReplayBuffer = state()
    importance: dict[int, float] = state(default_factory=dict)  # H, by id
    steps: int = state(default=0)
    looked: tuple[Batch, Tensor] | None = state(default=None)  # at what, and ℓ
    drawn: set[int] = state(default_factory=set)  # ids of images since the last look
    found: list[tuple[set, Tensor]] = state(default_factory=list)  # ids drawn, ℓ − ℓ'

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, "balanced")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch)}

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        now = self.steps % self.every == 0
        self.steps += 1
        if now and self.looked:
            self.found.append((self.drawn, self.looked[1] - loss_of(clip, self.looked[0])))
        self.take(batch)
        if now:
            at = only(batch, *self.memory.draw(self.look))
            self.looked, self.drawn = (at, loss_of(clip, at)), set()
        joined = only(batch, *self.memory.draw(self.replay or len(batch.index)))
        self.drawn.update(joined.index)
        return joined

    def take(self, batch: Batch) -> None:
        """Put the images of a batch that are new into the memory.

        What was found is read from the device only then, all at once."""
        new = [(i, label) for i, label in zip(batch.index, batch.labels, strict=True)
               if i not in self.memory.arrived]
        if not new:
            return
        H, memory = self.importance, self.memory
        found, self.found = self.found, []
        decreases = torch.stack([each for _, each in found]).tolist() if found else []
        for (drawn, _), value in zip(found, decreases, strict=True):
            H.update({i: self.decay * H[i] + (1 - self.decay) * value for i in drawn if i in H})
        for i, label in new:
            of_class = [H[j] for j, other in zip(memory.index, memory.labels, strict=True)
                        if other == label]
            known = of_class or [H[j] for j in memory.index] or [0.0]
            H[i] = sum(known) / len(known)
        memory.add(batch, importance=H)
        self.importance = {i: H[i] for i in memory.index}


def only(batch: Batch, image: Tensor, labels: tuple[int, ...], index: tuple[int, ...]) -> Batch:
    """Return the batch with these images of the memory instead of its own."""
    return replace(batch, image=image, labels=labels, index=index, replayed=len(labels))


@torch.no_grad()
def loss_of(clip: Clip, batch: Batch) -> Tensor:
    """Return the task loss without dropout and without a gradient."""
    training = clip.training
    loss = match_batch(clip.eval(), batch)
    clip.train(training)
    return loss
