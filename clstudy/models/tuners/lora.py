"""LoRA in every attention block (Hu et al. 2021, arXiv 2106.09685), in SIT's form (arXiv 2405.15155, released
code), through peft.

    W x  →  W x + (alpha / rank) · B A x

One pair for the fused q, k, v projection (A is shared by the three) and one for the attention's output
projection; MLPs untouched, no dropout. With rank 4 on ViT-B/16: 221,184 (image) + 147,456 (text) = 368,640 parameters.
Departure: by default B starts at zero everywhere, so an untrained LoRA changes nothing. The released code draws both
factors of the q, k, v pair at random, which perturbs the model before any training: init="official".
"""
from typing import Any

from torch import nn

from clstudy.models.clip import Clip
from clstudy.utils.validation import at_least, choose

_BLOCKS = {"image": r"visual\.transformer", "text": r"transformer", "both": r"(visual\.)?transformer"}


def lora(clip: Clip, tower: str, rank: int = 4, alpha: float = 1.0, init: str = "zero") -> None:
    """Low-rank updates of the attention projections.

    rank: of each update; alpha: the update is scaled by alpha / rank. init: "zero", or "official", where both factors
    of the q, k, v pair are Xavier-uniform as in SIT's released code. ValueError: rank, alpha, init."""
    check_lora(tower, rank, alpha, init)
    from peft import LoraConfig, inject_adapter_in_model  # costs seconds to import

    from clstudy.models.tuners.lora_layer import Lean

    pattern = rf"{_BLOCKS[tower]}\.resblocks\.\d+\.attn\.(qkv|out_proj)"
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern)
    settings._register_custom_module({nn.Linear: Lean})
    clip.requires_grad_(False)
    inject_adapter_in_model(settings, clip.model)
    for name, factor in clip.named_parameters():
        if init == "official" and ".qkv.lora_" in name:
            nn.init.xavier_uniform_(factor)


def check_lora(tower: str, rank: Any, alpha: Any, init: Any) -> None:
    at_least("tuner_args rank", rank, 1)
    if not (isinstance(alpha, int | float) and alpha > 0):
        raise ValueError(f"tuner_args alpha={alpha!r}: must be above 0, otherwise nothing is trained")
    choose("tuner_args init", init, ("zero", "official"))
