"""LoRA in every attention block (Hu et al. 2021, arXiv 2106.09685), in SIT's form (arXiv 2405.15155, released
code), through peft.

    W x  →  W x + (alpha / rank) · B A x

One pair for the fused q, k, v projection (A is shared by the three) and one for the attention's output
projection; MLPs untouched, no dropout. With rank 4 on ViT-B/16: 221,184 (image) + 147,456 (text) = 368,640 parameters.
Departure: B starts at zero everywhere, so an untrained LoRA changes nothing; the released code draws both factors of
the q, k, v pair at random (Xavier), which perturbs the model before any training.
"""
from ..clip import Clip

_BLOCKS = {"image": r"visual\.transformer", "text": r"transformer", "both": r"(visual\.)?transformer"}


def lora(clip: Clip, tower: str, rank: int = 4, alpha: float = 1.0) -> None:
    """Low-rank updates of the attention projections.

    rank: of each update; alpha: the update is scaled by alpha / rank. ValueError: rank."""
    if rank < 1:
        raise ValueError(f"tuner_args rank={rank!r}: must be at least 1")
    from peft import LoraConfig, inject_adapter_in_model  # costs seconds to import

    pattern = rf"{_BLOCKS[tower]}\.resblocks\.\d+\.attn\.(qkv|out_proj)"
    clip.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern), clip.model)
