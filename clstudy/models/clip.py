"""CLIP, as this project sees it: two towers and a temperature.

Three exact changes are made to open_clip's model when it is loaded. Its fused attention becomes
`Attention`, whose projections are plain linear layers that tuners and probes can reach. Text is cut
to the longest prompt at hand, since behind a causal mask what comes after the end token cannot
matter (difference 4e-6, 8 to 10 times faster on class prompts). And where a feature is read at one
token, the last block computes that one alone. open_clip costs seconds to import, so only a function
that needs it imports it.
"""
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clstudy.utils import distributed

TEXTS, PART = 512, 64  # more texts than these, the CPU encodes in such parts where a gradient is wanted


def openclip_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: parameter names as open_clip writes them. (timm's towers have an `attn.qkv` of
    their own.)"""
    return {
        re.sub(r"(resblocks\.\d+\.attn\.)qkv\.", r"\1in_proj_", name): value
        for name, value in state.items()
    }


@dataclass
class Encoded:
    """What the loss sees of a batch: unit-norm features and the inverse temperature s = 1/τ."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "texts dim"]
    scale: Float[Tensor, ""]


class Clip(nn.Module):
    """An open_clip model with the few verbs that this project needs.

    precision: "fp32", or "bf16" for autocast inside the towers; features, similarities and losses
    are fp32 either way. towers: parameters whose name starts with `model.visual.` belong to the
    image tower, all others but `model.logit_scale` to the text tower."""

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
        import open_clip

        from clstudy.models.open_clip_blocks import split_attention

        super().__init__()
        self.precision = "fp32"
        self.model, self.tokenizer, self.name = split_attention(model), tokenizer, name
        size = model.visual.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        # only then may text be cut: a causal mask, and the feature read at the end token
        self.causal = (isinstance(model, open_clip.model.CLIP) and model.attn_mask is not None
                       and model.text_pool_type == "argmax")
        mean = getattr(model.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(model.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def tower(self, tower: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters of the "image" tower, of the "text" tower, or of "both"; never the
        temperature."""
        for name, parameter in self.named_parameters():
            if not name.startswith("model.logit_"):
                if tower == "both" or (tower == "image") == name.startswith("model.visual."):
                    yield name, parameter

    def scale(self) -> Float[Tensor, ""]:
        """s, at most 100, as in CLIP. At the bound, where released weights stand, a gradient still
        passes."""
        scale = self.model.logit_scale.exp()
        return torch.where(scale > 100, scale - scale.detach() + 100, scale)

    def pixels(self, images: UInt8[Tensor, "batch 3 _ _"] | Float[Tensor, "batch 3 _ _"]) -> Tensor:
        """uint8 or float in [0, 1] → normalised float at the model's resolution."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        if pixels.shape[-1] != self.image_size or pixels.shape[-2] != self.image_size:
            pixels = F.interpolate(pixels, size=(self.image_size, ) * 2, mode="bicubic",
                                   antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std

    def encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        """Images (uint8, or float in [0, 1]) → unit-norm features."""
        return distributed.encode(self._encode_image, images, self.model.visual.modules)

    def _encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        with self._autocast():
            features = self.model.encode_image(self.pixels(images))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        """Token rows, of any length up to the context where the tower is causal → unit-norm
        features.

        For a gradient on the CPU, many texts are encoded in parts whose activations are not kept
        but computed again in the backward pass: those of a thousand class prompts would take more
        memory than all else."""
        return distributed.encode(self._encode_texts, tokens, self._text_modules)

    def _encode_texts(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        if tokens.device.type == "cpu" and len(tokens) > TEXTS and torch.is_grad_enabled():
            parts = tokens.split(PART)
            return torch.cat(
                [checkpoint(self._encode_text, part, use_reentrant=False) for part in parts])
        return self._encode_text(tokens)

    def _encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        with self._autocast():
            features = self._text_tower(tokens) if self.causal else self.model.encode_text(tokens)
        return F.normalize(features.float(), dim=-1)

    def _text_modules(self) -> Iterator[nn.Module]:
        return (module for name, module in self.model.named_modules()
                if not name.startswith("visual"))

    def _text_tower(self, tokens: Tensor) -> Tensor:
        """open_clip's `encode_text`, for tokens that were cut."""
        from clstudy.models.open_clip_blocks import through

        model, length, end = self.model, tokens.shape[1], tokens.argmax(
            dim=-1)  # the end token has the highest number
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(through(model.transformer, x, model.attn_mask[:length, :length], end))[:,
                                                                                                  0]
        projection = model.text_projection
        return projection(x) if isinstance(
            projection, nn.Linear) else x if projection is None else x @ projection

    def encode(self, batch) -> Encoded:
        """The doorway: every batch that a method scores passes here, and a probe can watch."""
        return Encoded(self.encode_image(batch.image), self.encode_text(batch.text), self.scale())

    def tokenize(self, texts: list[str]) -> Int[Tensor, "texts tokens"]:
        """Texts → token rows, cut to the longest of them where that is exact."""
        return self.cut(self.tokenizer(texts))

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns after the last end token of any row. Tokens must still be on the
        host."""
        if not self.causal:
            return tokens
        return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]

    def random_text(self, count: int, length: int, generator: torch.Generator | None = None,
                    words: Sequence[int] | None = None) -> Int[Tensor, "count tokens"]:
        """`count` texts of `length` tokens drawn uniformly from the tokenizer's vocabulary, without
        its special ones (the replayed vocabulary of VR-LwF, arXiv 2207.09248), between a start and
        an end token; on the host.

        words: the token ids to draw from instead. ValueError: the text does not fit; another
        tokenizer than CLIP's."""
        import open_clip

        tokenizer = self.tokenizer
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise ValueError(f"model={self.name!r}: random texts need CLIP's own tokenizer")
        if not 1 <= length <= tokenizer.context_length - 2:
            raise ValueError(
                f"length={length!r}: must be from 1 to {tokenizer.context_length - 2} tokens")
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id  # the two highest ids
        among = torch.arange(start) if words is None else torch.tensor(list(words))
        drawn = among[torch.randint(len(among), (count, length), generator=generator)]
        text = torch.cat([torch.full((count, 1), start), drawn, torch.full((count, 1), end)], dim=1)
        return text if self.causal else F.pad(text, (0, tokenizer.context_length - text.shape[1]))

    def words(self) -> list[int]:
        """Ids of the tokens that end a word and have four letters or more: some 28,000, most of
        them English words."""
        return _words(self.tokenizer)

    def class_text(self, names: list[str], template: str) -> Int[Tensor, "texts tokens"]:
        """Tokens of one prompt per class name; `{}` in the template stands for the name."""
        return self.tokenize([template.format(name) for name in names])


@lru_cache(maxsize=2)
def _words(tokenizer) -> list[int]:
    return [
        i for i, piece in getattr(tokenizer, "decoder", {}).items()
        if re.fullmatch(r"[a-z]{4,}</w>", piece)
    ]
