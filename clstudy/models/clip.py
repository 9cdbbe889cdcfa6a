"""CLIP as this project uses it: two towers and a temperature.

Three changes are made to open_clip's model when it is loaded, none of which changes its outputs.
Its fused attention becomes `Attention`, whose projections are plain linear layers that tuners and
probes can reach. Text is cut to the longest prompt at hand: under a causal mask, what comes after
the end token cannot matter (difference 4e-6, 8 to 10 times faster on class prompts). Where a
feature is read at one token, the last block computes only that one. open_clip takes seconds to
import, so only functions that need it import it.
"""
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clstudy.utils import distributed

TEXTS, PART = 512, 64  # for a gradient, the CPU encodes more texts than TEXTS in such parts
BESIDE = ("model.logit_", "model.text_decoder.")  # parameters that belong to no tower


def openclip_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state under the names of open_clip. (timm's towers have their own `attn.qkv`.)"""
    return {re.sub(r"(resblocks\.\d+\.attn\.)qkv\.", r"\1in_proj_", name): value
            for name, value in state.items()}


@dataclass
class Encoded:
    """What a loss gets of a batch: unit-norm features and the inverse temperature s = 1/τ."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "texts dim"]
    scale: Float[Tensor, ""]


class Clip(nn.Module):
    """An open_clip model with the functions that this project needs.

    precision: "fp32", or "bf16" for autocast inside the towers; features, similarities and losses
    are fp32 either way. towers: parameters whose name starts with `model.visual.` belong to the
    image tower, all others to the text tower, but for those that no feature depends on: temperature
    and bias (`model.logit_…`) and the decoder of CoCa. class_names: of the stream, for a tuner that
    learns something for each. context, template: what a tuner puts before the words of a text, in
    tokens, and in place of the prompt of classes (`tuners/coop.py`)."""

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
        import open_clip

        from clstudy.models.open_clip_blocks import split_attention

        super().__init__()
        self.precision = "fp32"
        self.model, self.tokenizer, self.name = split_attention(model), tokenizer, name
        self.class_names: tuple[str, ...] = ()
        self.context, self.template = 0, ""
        size = model.visual.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        text = self.owner("text")
        # only then may text be cut: a causal mask, and the feature read at the end token
        self.causal = (isinstance(text, open_clip.model.CLIP | open_clip.model.TextTransformer)
                       and text.attn_mask is not None and getattr(text, "cls_emb", None) is None
                       and getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
                       == "argmax")
        mean = getattr(model.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(model.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def __deepcopy__(self, memo: dict) -> "Clip":
        """Copy all but the tokenizer, which never changes; its vocabulary takes 0.1 s to copy."""
        new = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.tokenizer)] = self.tokenizer
        new.__dict__.update(deepcopy(self.__dict__, memo))
        return new

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def tower(self, tower: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield named parameters of the "image" tower, the "text" tower, or "both".

        What no feature depends on belongs to none."""
        for name, parameter in self.named_parameters():
            own = "image" if name.startswith("model.visual.") else "text"
            if tower in (own, "both") and not name.startswith(BESIDE):
                yield name, parameter

    def owner(self, tower: str) -> nn.Module:
        """Return the module that holds the layers of the "image" tower or of the "text" tower.

        open_clip's `CLIP` holds those of its text tower itself; other models have a `text`."""
        return self.model.visual if tower == "image" else getattr(self.model, "text", self.model)

    def train(self, mode: bool = True) -> "Clip":
        """Set the mode. A tower of which nothing is trained stays in evaluation mode.

        So its batch norms keep their statistics, and its features stay what they were."""
        super().train(mode)
        for tower, modules in {"image": self._image_modules, "text": self._text_modules}.items():
            if mode and not any(p.requires_grad for _, p in self.tower(tower)):
                for module in modules():
                    module.training = False
        return self

    def scale(self) -> Float[Tensor, ""]:
        """Return s, at most 100 as in CLIP. At the bound (released weights) a gradient passes."""
        scale = self.model.logit_scale.exp()
        return torch.where(scale > 100, scale - scale.detach() + 100, scale)

    def pixels(self, images: UInt8[Tensor, "batch 3 _ _"] | Float[Tensor, "batch 3 _ _"]) -> Tensor:
        """Turn uint8 or float in [0, 1] into normalised float at the model's resolution."""
        pixels, size = images, (self.image_size, self.image_size)
        if images.dtype == torch.uint8:
            pixels = images.float() / 255
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std

    def encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        """Turn images (uint8, or float in [0, 1]) into unit-norm features."""
        return distributed.encode(self._encode_image, images, self._image_modules)

    def _encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        with self._autocast():
            features = self.model.encode_image(self.pixels(images))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        """Turn token rows into unit-norm features; they may be cut where the tower is causal.

        For a gradient on the CPU, many texts are encoded in parts, whose activations are computed
        again in the backward pass: for a thousand class prompts they would take more memory than
        all else."""
        return distributed.encode(self._encode_texts, tokens, self._text_modules)

    def _encode_texts(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        if tokens.device.type == "cpu" and len(tokens) > TEXTS and torch.is_grad_enabled():
            return torch.cat([checkpoint(self._encode_text, part, use_reentrant=False)
                              for part in tokens.split(PART)])
        return self._encode_text(tokens)

    def _encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        with self._autocast():
            features = self._text_tower(tokens) if self.causal else self.model.encode_text(tokens)
        return F.normalize(features.float(), dim=-1)

    def _image_modules(self) -> Iterator[nn.Module]:
        return self.model.visual.modules()

    def _text_modules(self) -> Iterator[nn.Module]:
        return (module for name, module in self.model.named_modules()
                if name and not name.startswith("visual"))

    def _text_tower(self, tokens: Tensor) -> Tensor:
        """Do what open_clip's `encode_text` does, for tokens that were cut."""
        from clstudy.models.open_clip_blocks import through

        text = self.owner("text")
        x = text.token_embedding(tokens)
        length = x.shape[1]
        # the end token has the highest number; it stands behind a context, or last if all is full
        end = (tokens.argmax(dim=-1) + self.context).clamp(max=length - 1)
        x = x + text.positional_embedding[:length]
        x = through(text.transformer, x, text.attn_mask[:length, :length], end)
        x, projection = text.ln_final(x)[:, 0], text.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection

    def encode(self, batch) -> Encoded:
        """Encode a batch. Methods encode their batches only here, so that a probe can watch."""
        return Encoded(self.encode_image(batch.image), self.encode_text(batch.text), self.scale())

    def tokenize(self, texts: list[str]) -> Int[Tensor, "texts tokens"]:
        """Turn texts into token rows, cut to the longest of them where that is exact."""
        return self.cut(self.tokenizer(texts))

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns after the last end token of any row. tokens: still on the host."""
        return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1] if self.causal else tokens

    def random_text(self, count: int, length: int, generator: torch.Generator | None = None,
                    words: Sequence[int] | None = None) -> Int[Tensor, "count tokens"]:
        """Draw `count` texts of `length` tokens, between a start and an end token; on the host.

        Tokens are uniform over the tokenizer's vocabulary without its special ones (the replayed
        vocabulary of VR-LwF, arXiv 2207.09248). words: the token ids to draw from instead.
        ValueError: the text does not fit, or the tokenizer is not CLIP's."""
        import open_clip

        tokenizer = self.tokenizer
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise ValueError(f"model={self.name!r}: random texts need CLIP's own tokenizer")
        if not 1 <= length <= tokenizer.context_length - 2:
            raise ValueError(f"length={length!r}: must be from 1 to {tokenizer.context_length - 2} "
                             "tokens")
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id  # the two highest ids
        among = torch.arange(start) if words is None else torch.tensor(list(words))
        drawn = among[torch.randint(len(among), (count, length), generator=generator)]
        text = torch.cat([torch.full((count, 1), start), drawn, torch.full((count, 1), end)], dim=1)
        return text if self.causal else F.pad(text, (0, tokenizer.context_length - text.shape[1]))

    def words(self) -> list[int]:
        """Return ids of tokens that end a word and have four letters or more: some 28,000, most of
        them English words."""
        return _words(self.tokenizer)

    def class_text(self, names: list[str], template: str) -> Int[Tensor, "texts tokens"]:
        """Return tokens of one prompt per class name; `{}` in the template stands for the name."""
        return self.tokenize(self.class_prompts(names, template))

    def class_prompts(self, names: Sequence[str], template: str) -> list[str]:
        """Return one prompt per class name, by the tuner's own template if it has one."""
        return [(self.template or template).format(name) for name in names]


@lru_cache(maxsize=2)
def _words(tokenizer) -> list[int]:
    pieces = getattr(tokenizer, "decoder", {})
    return [i for i, piece in pieces.items() if re.fullmatch(r"[a-z]{4,}</w>", piece)]
