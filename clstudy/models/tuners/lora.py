"""LoRA in every attention block (Hu et al. 2021, arXiv 2106.09685), in SIT's form (arXiv
2405.15155, released code), through peft.

    W x  →  W x + (alpha / rank) · B A x

One pair for the fused q, k, v projection (A is shared by the three) and one for the attention's
output projection; MLPs untouched, no dropout. With rank 4 on ViT-B/16: 221,184 (image) + 147,456
(text) = 368,640 parameters. Departure: by default B starts at zero everywhere, so an untrained LoRA
changes nothing. The released code draws both factors of the q, k, v pair at random, which perturbs
the model before any training: init="official".
"""
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import nn

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner


@dataclass
class Lora(Tuner):
    """Low-rank updates of the attention projections."""

    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"

    rank: Annotated[int, Ge(1)] = 4  # of each update
    alpha: Annotated[float, Gt(0)] = 1.0  # the update is scaled by alpha / rank
    init: Literal["zero", "official"] = "zero"  # official: draws the q, k, v pair, as SIT's code

    @property
    def neutral(self) -> bool:
        """Whether the untrained tuner changes nothing."""
        return self.init == "zero"

    def apply(self, clip: Clip, tower: str) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # costs seconds to import

        from clstudy.models.tuners.lora_layer import Lean

        owners = self.transformer_owners(clip, tower, attention=True)
        names = {module: name for name, module in clip.model.named_modules()}
        towers = "|".join(names[owner.transformer] for owner in owners)
        pattern = rf"({towers})\.resblocks\.\d+\.attn\.(qkv|out_proj)"
        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0,
                              target_modules=pattern)
        settings._register_custom_module({nn.Linear: Lean})
        clip.requires_grad_(False)
        inject_adapter_in_model(settings, clip.model)
        for name, factor in clip.named_parameters():
            if self.init == "official" and ".qkv.lora_" in name:
                nn.init.xavier_uniform_(factor)
