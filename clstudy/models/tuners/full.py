"""Full tuning of a tower or of its upper blocks, and the tuner that trains nothing."""
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner

# what a tower has after its blocks
BEHIND = {"ln_post", "attn_pool", "proj", "ln_final", "text_projection"}


@dataclass
class NoTuner(Tuner):
    """Trains nothing."""

    title: ClassVar[str] = "None"
    neutral: ClassVar[bool] = True

    def apply(self, clip: Clip, tower: str) -> None:
        clip.requires_grad_(False)


@dataclass
class Full(Tuner):
    """Trains the whole tower; or its upper part, with the temperature or without (VR-LwF, arXiv
    2207.09248).

    Where `above` is not 0, the blocks below it are frozen, and so are embeddings and patches. Norm
    and projection behind the blocks are always trained."""

    title: ClassVar[str] = "Full"
    neutral: ClassVar[bool] = True

    above: Annotated[int, Ge(0)] = 0  # the first block that moves, counted from 0
    temperature: bool = False  # train logit_scale too, as VR-LwF's code does

    def apply(self, clip: Clip, tower: str) -> None:
        for owner in self.transformer_owners(clip, tower) if self.above else ():
            last = len(owner.transformer.resblocks) - 1
            if self.above > last:
                raise ValueError(f"tuner_args: above={self.above!r}: must be from 0 to {last}, the "
                                 f"last block of model={clip.name!r}")
        clip.requires_grad_(False)
        for name, parameter in clip.tower(tower):
            block = re.search(r"\.resblocks\.(\d+)\.", name)
            upper = int(block[1]) >= self.above if block else not BEHIND.isdisjoint(name.split("."))
            parameter.requires_grad_(self.above == 0 or upper)
        clip.model.logit_scale.requires_grad_(self.temperature)
