"""Experience replay: a few images of a memory join every step. Rolnick et al. 2019, arXiv
1811.11682; in the form of Chaudhry et al. 2019, ER with a tiny memory, arXiv 1902.10486, algorithm
1.

    L = −(1/(B+M)) Σ_{i ∈ batch ∪ draw} log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_{m ∈ K} exp(s f_i·t_m)
        └─────────────────── task ───────────────────┘

    symbol   field    meaning                                                                    unit
    s        –        inverse temperature, frozen                                                –
    K        –        candidates: classes seen so far                                            classes
    M        replay   images drawn from the memory, anew at each step                            images
    –        size     of the memory                                                              images
    –        policy   which images stay: "reservoir", "balanced", "quota"                        –
    –        draw     "uniform": images have the same chance; "balanced": classes have, as far   –
                      as they have images

Estimator: one mean over stream and memory together, so a replayed image weighs as much as a new
one. With the uniform draw the memory's part is the mean over its images; with the balanced one it
is, in expectation, the mean over its classes of their means, as long as a class has M / C images or
more; the stream's part is as the stream comes. The paper offers several ways to write the memory
and finds the reservoir best unless it is tiny; that is the default. Departures: the memory takes a
batch after its last step (several steps may be made on a batch), so that an image is not replayed
beside itself.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from clstudy.data.replay_buffer import Draw, Policy, ReplayBuffer
from clstudy.data.types import Batch
from clstudy.losses.functional import match_batch
from clstudy.methods.base import Method
from clstudy.models.clip import Clip


@dataclass
class ER(Method):
    """Images of a memory join every step."""

    title = "ER"
    source = "Chaudhry et al. 2019, arXiv 1902.10486"
    family = "memory"
    dash = (4, 1.5)
    published = {
        "experience replay with class names, baseline of the SIT paper and of GCL and GDRO": {}}
    checked = "reservoir and loss against naive code"

    size: Annotated[int, Ge(0)] = 500  # of the memory, in images; 0: none
    replay: Annotated[int, Ge(0)] = 32  # images of the memory that join each step
    policy: Policy = "reservoir"  # which images stay
    draw: Draw = "uniform"  # "balanced": each class of the memory equally often
    memory: ReplayBuffer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, self.policy, drawing=self.draw)

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {"task": match_batch(clip, batch)}

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(batch, self.replay)

    def after_step(self, clip: Clip, batch: Batch) -> None:
        self.memory.add(batch)

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        self.memory.refill(batches, clip)

    @property
    def place_on_map(self) -> dict[str, Any]:
        return self.options() | {"candidates": "seen"}
