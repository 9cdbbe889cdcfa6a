"""Full tuning of a tower or of its upper blocks, and the tuner that trains nothing."""
import re
from typing import Any

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import transformer_owners
from clstudy.utils.validation import at_least


def none(clip: Clip, tower: str) -> None:
    """Nothing moves."""
    clip.requires_grad_(False)


BEHIND = {"ln_post", "attn_pool", "proj", "ln_final", "text_projection"}  # what a tower has after its blocks


def full(clip: Clip, tower: str, above: int = 0, temperature: bool = False) -> None:
    """Every parameter of the tower; or its upper part, with the temperature or without (VR-LwF, arXiv 2207.09248).

    above: the first block that moves, counted from 0. Above 0, blocks below it stay frozen, and with them embeddings
    and patches; what stands behind the blocks, norm and projection, moves always. temperature: train logit_scale too,
    as VR-LwF's code does. ValueError: the tower has no such block, or is not open_clip's transformer."""
    check_full(tower, above, temperature)
    for owner in transformer_owners(clip, tower, "full") if above else ():
        if above >= len(owner.transformer.resblocks):
            raise ValueError(f"tuner_args above={above!r}: must be from 0 to {len(owner.transformer.resblocks) - 1}, "
                             f"the last block of model={clip.name!r}")
    clip.requires_grad_(False)
    for name, parameter in clip.tower(tower):
        block = re.search(r"\.resblocks\.(\d+)\.", name)
        upper = int(block[1]) >= above if block else not BEHIND.isdisjoint(name.split("."))
        parameter.requires_grad_(above == 0 or upper)
    clip.model.logit_scale.requires_grad_(temperature)


def check_full(tower: str, above: Any, temperature: Any) -> None:
    """What can be refused without the model, which has a number of blocks."""
    at_least("tuner_args above", above, 0)
    if not isinstance(temperature, bool):
        raise ValueError(f"tuner_args temperature={temperature!r}: must be True or False")
