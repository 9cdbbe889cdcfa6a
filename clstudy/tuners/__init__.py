"""Tuners by name: which parameters of a model move, and in which tower.

A tuner is a function `(clip, tower, **options) -> None` that freezes the model and then frees, or adds, what is to
be tuned. tower is "image", "text" or "both". The temperature (logit_scale) stays frozen, as in SIT's code."""
from ..clip import Clip
from .adapter import adapter
from .lora import lora
from .merge import export as export
from .merge import merge as merge
from .pool import IMAGE_ONLY, dualprompt, l2p, mvp
from .prompts import prompts


def none(clip: Clip, tower: str) -> None:
    """Nothing moves."""
    clip.requires_grad_(False)


def full(clip: Clip, tower: str) -> None:
    """Every parameter of the tower."""
    clip.requires_grad_(False)
    for _, parameter in clip.tower(tower):
        parameter.requires_grad_(True)


TUNERS = {"none": none, "full": full, "lora": lora, "adapter": adapter, "prompts": prompts}
TUNERS |= {"l2p": l2p, "dualprompt": dualprompt, "mvp": mvp}
TOWERS = ("image", "text", "both")
ONLY = {}  # tuner → the towers it goes with, and why not the others
ONLY |= dict.fromkeys(("l2p", "dualprompt", "mvp"), (("image",), IMAGE_ONLY))
