"""Tuners by name: which parameters of a model move, and in which tower.

A tuner is a function `(clip, tower, **options) -> None` that freezes the model and then frees, or adds, what is to
be tuned. tower is "image", "text" or "both". The temperature (logit_scale) stays frozen, as in SIT's code, unless
`full` is asked to train it. What can be said of its options without a model is said by its check,
`(tower, **all options) -> None`, which RunConfig asks too."""
import re
from typing import Any

from ..clip import Clip
from ..config import at_least
from .adapter import adapter, check_adapter, transformer_owners
from .lora import check_lora, lora
from .merge import export as export
from .merge import merge as merge
from .pool import IMAGE_ONLY, check_dual, check_l2p, dualprompt, l2p, mvp
from .prompts import check_prompts, prompts
from .rescale import check_rescale, rescale


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


TUNERS = {"none": none, "full": full, "lora": lora, "adapter": adapter, "prompts": prompts}
TUNERS |= {"rescale": rescale}
TUNERS |= {"l2p": l2p, "dualprompt": dualprompt, "mvp": mvp}
CHECKS = {"lora": check_lora, "adapter": check_adapter, "prompts": check_prompts}  # raise ValueError
CHECKS |= {"full": check_full, "rescale": check_rescale}
CHECKS |= {"l2p": check_l2p, "dualprompt": check_dual, "mvp": check_dual}
TOWERS = ("image", "text", "both")
ONLY = {}  # tuner → the towers it goes with, and why not the others
ONLY |= dict.fromkeys(("l2p", "dualprompt", "mvp"), (("image",), IMAGE_ONLY))


def neutral(tuner: str, options: dict) -> bool:
    """Whether this tuner, before any training, leaves every output of the model equal to the bit."""
    return tuner in ("none", "full", "adapter", "rescale") or (tuner == "lora" and options.get("init") != "official")
