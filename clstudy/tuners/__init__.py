"""Tuners by name: which parameters of a model move, and in which tower.

A tuner is a function `(clip, tower, **options) -> None` that freezes the model and then frees, or adds, what is to
be tuned. tower is "image", "text" or "both". The temperature (logit_scale) stays frozen, as in SIT's code."""
from ..clip import Clip
from .lora import lora


def none(clip: Clip, tower: str) -> None:
    """Nothing moves."""
    clip.requires_grad_(False)


def full(clip: Clip, tower: str) -> None:
    """Every parameter of the tower."""
    clip.requires_grad_(False)
    for _, parameter in clip.tower(tower):
        parameter.requires_grad_(True)


TUNERS = {"none": none, "full": full, "lora": lora}
TOWERS = ("image", "text", "both")
