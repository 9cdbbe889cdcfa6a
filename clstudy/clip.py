"""CLIP, as this project sees it: two towers and a temperature. The only module that imports open_clip.

Three exact changes are made to open_clip's model when it is loaded. Its fused attention becomes `Attention`, whose
projections are plain linear layers that tuners and probes can reach. Text is cut to the longest prompt at hand,
since behind a causal mask what comes after the end token cannot matter (difference 4e-6, 8 to 10 times faster on
class prompts). And where a feature is read at one token, the last block computes that one alone.
"""
import difflib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import distributed

TEXTS, PART = 512, 64  # more texts than these, the CPU encodes in such parts where a gradient is wanted
EMBEDDED = {"icon-clip": Path(__file__).parent.parent / "data" / "icon-clip"}


class Attention(nn.Module):
    """Multi-head attention with `qkv` and `out_proj` as linear layers; same outputs as the module it is made from.

    On the CPU attention is written out as two matrix products: at CLIP's lengths that was 1.4 times faster in
    bf16 (training, 33 tokens) than the fused kernel, whose backward pass is slow there."""

    def __init__(self, source: nn.MultiheadAttention):
        super().__init__()
        self.heads, dim = source.num_heads, source.embed_dim
        self.qkv, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.load_state_dict({"qkv.weight": source.in_proj_weight.data, "qkv.bias": source.in_proj_bias.data,
                              "out_proj.weight": source.out_proj.weight.data,
                              "out_proj.bias": source.out_proj.bias.data})

    def forward(self, query, key=None, value=None, need_weights=False, attn_mask=None, at=None, **_):
        """at: the one token of each row (the same, or a tensor of them) whose output is wanted; None for all."""
        batch, tokens, dim = query.shape
        q, k, v = self.qkv(query).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:  # one mask per text and head (CoCa)
            attn_mask = attn_mask.view(batch, self.heads, tokens, tokens)
        if at is not None:
            q = one_token(q.transpose(1, 2), at).transpose(1, 2)
            attn_mask = None if attn_mask is None else attn_mask[at].view(-1, 1, 1, tokens)
        if query.device.type == "cpu":
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
            out = (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(out.transpose(1, 2).reshape(batch, -1, dim)), None


def one_token(x: Float[Tensor, "batch tokens ..."], at: int | Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 ..."]:
    """The token at `at` of each row, or the same of all rows."""
    return x[:, at:at + 1] if isinstance(at, int) else x[torch.arange(len(x), device=x.device), at][:, None]


def read_at(block: nn.Module, x: Float[Tensor, "batch tokens dim"], at: int | Int[Tensor, " batch"],
            attn_mask: Tensor | None = None) -> Float[Tensor, "batch 1 dim"]:
    """An open_clip block's output at one token. All tokens are attended to; the MLP, two thirds of the work, and the
    output projection see one."""
    attended = block.attn(block.ln_1(x), attn_mask=attn_mask, at=at)[0]
    x = one_token(x, at) + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


class LastBlock(open_clip.transformer.ResidualAttentionBlock):
    """The last block of an image tower whose feature is read at the first token: gives that token alone."""

    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):
        return read_at(self, q_x, 0, attn_mask)


def split_attention(model: nn.Module) -> nn.Module:
    """Convert the self-attention of every block of an open_clip model, in place.

    What attends to something else (heads that pool, the cross-attention of CoCa's decoder) stays as it is. The last
    block of an image tower becomes a `LastBlock` where only its first token is read."""
    for block in list(model.modules()):
        if isinstance(block, open_clip.transformer.ResidualAttentionBlock) and not hasattr(block, "ln_1_kv"):
            if isinstance(block.attn, nn.MultiheadAttention):
                block.attn = Attention(block.attn)
    visual = model.visual
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        last = visual.transformer.resblocks[-1]
        alone = visual.pool_type == "tok" and visual.attn_pool is None and not visual.output_tokens
        if alone and type(last) is open_clip.transformer.ResidualAttentionBlock and isinstance(last.attn, Attention):
            last.__class__ = LastBlock
    return model


def _through(transformer: nn.Module, x: Tensor, mask: Tensor, end: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 _"]:
    """A text transformer's output at the end tokens."""
    last = transformer.resblocks[-1]
    plain = type(transformer) is open_clip.transformer.Transformer and isinstance(last.attn, Attention)
    if not plain or type(last) is not open_clip.transformer.ResidualAttentionBlock or transformer.grad_checkpointing:
        return one_token(transformer(x, attn_mask=mask), end)
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return read_at(last, x, end, mask)


def openclip_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: parameter names as open_clip writes them. (timm's towers have an `attn.qkv` of their own.)"""
    return {re.sub(r"(resblocks\.\d+\.attn\.)qkv\.", r"\1in_proj_", name): value for name, value in state.items()}


@dataclass
class Encoded:
    """What the loss sees of a batch: unit-norm features and the inverse temperature s = 1/τ."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "texts dim"]
    scale: Float[Tensor, ""]


class Clip(nn.Module):
    """An open_clip model with the few verbs that this project needs.

    precision: "fp32", or "bf16" for autocast inside the towers; features, similarities and losses are fp32 either way.
    towers: parameters whose name starts with `model.visual.` belong to the image tower, all others but
    `model.logit_scale` to the text tower."""

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
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
        """Named parameters of the "image" tower, of the "text" tower, or of "both"; never the temperature."""
        for name, parameter in self.named_parameters():
            if not name.startswith("model.logit_"):
                if tower == "both" or (tower == "image") == name.startswith("model.visual."):
                    yield name, parameter

    def scale(self) -> Float[Tensor, ""]:
        """s, at most 100, as in CLIP. At the bound, where released weights stand, a gradient still passes."""
        scale = self.model.logit_scale.exp()
        return torch.where(scale > 100, scale - scale.detach() + 100, scale)

    def pixels(self, images: UInt8[Tensor, "batch 3 _ _"] | Float[Tensor, "batch 3 _ _"]) -> Tensor:
        """uint8 or float in [0, 1] → normalised float at the model's resolution."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        if pixels.shape[-1] != self.image_size or pixels.shape[-2] != self.image_size:
            pixels = F.interpolate(pixels, size=(self.image_size,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std

    def encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        """Images (uint8, or float in [0, 1]) → unit-norm features."""
        return distributed.encode(self._encode_image, images, self.model.visual.modules)

    def _encode_image(self, images: Tensor) -> Float[Tensor, "batch dim"]:
        with self._autocast():
            features = self.model.encode_image(self.pixels(images))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        """Token rows, of any length up to the context where the tower is causal → unit-norm features.

        For a gradient on the CPU, many texts are encoded in parts whose activations are not kept but computed again in
        the backward pass: those of a thousand class prompts would take more memory than all else."""
        return distributed.encode(self._encode_texts, tokens, self._text_modules)

    def _encode_texts(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        if tokens.device.type == "cpu" and len(tokens) > TEXTS and torch.is_grad_enabled():
            parts = tokens.split(PART)
            return torch.cat([checkpoint(self._encode_text, part, use_reentrant=False) for part in parts])
        return self._encode_text(tokens)

    def _encode_text(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts dim"]:
        with self._autocast():
            features = self._text_tower(tokens) if self.causal else self.model.encode_text(tokens)
        return F.normalize(features.float(), dim=-1)

    def _text_modules(self) -> Iterator[nn.Module]:
        return (module for name, module in self.model.named_modules() if not name.startswith("visual"))

    def _text_tower(self, tokens: Tensor) -> Tensor:
        """open_clip's `encode_text`, for tokens that were cut."""
        model, length, end = self.model, tokens.shape[1], tokens.argmax(dim=-1)  # the end token has the highest number
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(_through(model.transformer, x, model.attn_mask[:length, :length], end))[:, 0]
        projection = model.text_projection
        return projection(x) if isinstance(projection, nn.Linear) else x if projection is None else x @ projection

    def encode(self, batch) -> Encoded:
        """The doorway: every batch that a method scores passes here, and a probe can watch."""
        return Encoded(self.encode_image(batch.image), self.encode_text(batch.text), self.scale())

    def tokenize(self, texts: list[str]) -> Int[Tensor, "texts tokens"]:
        """Texts → token rows, cut to the longest of them where that is exact."""
        return self.cut(self.tokenizer(texts))

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns after the last end token of any row. Tokens must still be on the host."""
        if not self.causal:
            return tokens
        return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]

    def random_text(self, count: int, length: int, generator: torch.Generator | None = None,
                    words: Sequence[int] | None = None) -> Int[Tensor, "count tokens"]:
        """`count` texts of `length` tokens drawn uniformly from the tokenizer's vocabulary, without its special ones
        (the replayed vocabulary of VR-LwF, arXiv 2207.09248), between a start and an end token; on the host.

        words: the token ids to draw from instead. ValueError: the text does not fit; another
        tokenizer than CLIP's."""
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise ValueError(f"model={self.name!r}: random texts need CLIP's own tokenizer")
        if not 1 <= length <= tokenizer.context_length - 2:
            raise ValueError(f"length={length!r}: must be from 1 to {tokenizer.context_length - 2} tokens")
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id  # the two highest ids
        among = torch.arange(start) if words is None else torch.tensor(list(words))
        drawn = among[torch.randint(len(among), (count, length), generator=generator)]
        text = torch.cat([torch.full((count, 1), start), drawn, torch.full((count, 1), end)], dim=1)
        return text if self.causal else F.pad(text, (0, tokenizer.context_length - text.shape[1]))

    def words(self) -> list[int]:
        """Ids of the tokens that end a word and have four letters or more: some 28,000, most of them English words."""
        return _words(self.tokenizer)

    def class_text(self, names: list[str], template: str) -> Int[Tensor, "texts tokens"]:
        """Tokens of one prompt per class name; `{}` in the template stands for the name."""
        return self.tokenize([template.format(name) for name in names])


def load_clip(name: str = "icon-clip", pretrained: str | None = None, device: str | torch.device = "cpu") -> Clip:
    """A CLIP by name: the embedded one, any open_clip architecture with a tag, or a folder.

    name: "icon-clip"; an architecture that `open_clip.list_models()` knows; or a folder in the form that open_clip
        reads (`open_clip_config.json` with `open_clip_model.safetensors`).
    pretrained: a tag of `open_clip.list_pretrained()`, a checkpoint file, "random" for untrained weights, or None for
        the weights that come with the name.
    ValueError: unknown names and tags (near ones are listed); a tag whose activation (QuickGELU) does not
        fit the architecture, which a checkpoint file does not tell; a TorchScript archive."""
    folder = EMBEDDED.get(name) or (Path(name) if Path(name).is_dir() else None)
    if folder:
        return _from_folder(folder, pretrained, name).to(device)
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, [*EMBEDDED, *known], 6, 0.4)
        raise ValueError(f"model={name!r} is unknown. Near: {', '.join(near) or '-'}. Choices: icon-clip, a folder, or "
                         f"one of open_clip.list_models() ({len(known)} names)")
    if pretrained is None:
        raise ValueError(f"model={name!r} needs pretrained=: {', '.join(_tags(name))}, a file, or 'random'")
    if pretrained == "random":
        model = open_clip.create_model(name)
    else:
        _check_weights(name, pretrained)
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    return Clip(model, open_clip.get_tokenizer(name), name).to(device)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> open_clip.SimpleTokenizer:
    """CLIP's own, of which every model can have the same: reading its vocabulary takes longer than loading a model."""
    return open_clip.SimpleTokenizer(context_length=context_length)


@lru_cache(maxsize=2)
def _words(tokenizer) -> list[int]:
    return [i for i, piece in getattr(tokenizer, "decoder", {}).items() if re.fullmatch(r"[a-z]{4,}</w>", piece)]


def _tags(name: str) -> list[str]:
    return sorted(open_clip.list_pretrained_tags_by_model(name)) or ["(no tags known)"]


def _check_weights(name: str, pretrained: str) -> None:
    if Path(pretrained).exists():
        if zipfile.is_zipfile(pretrained) and any("/code/" in file for file in zipfile.ZipFile(pretrained).namelist()):
            raise ValueError(f"pretrained={pretrained!r} is a TorchScript archive (OpenAI's first form): use the tag "
                             "pretrained='openai', or save its state_dict as safetensors first")
        return  # a state_dict does not tell its activation
    if pretrained not in _tags(name):
        near = difflib.get_close_matches(pretrained, _tags(name), 3, 0.3)
        raise ValueError(f"pretrained={pretrained!r} is neither a file nor a tag of {name}. Near: "
                         f"{', '.join(near) or '-'}. Tags: {', '.join(_tags(name))}")
    wants = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    has = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if wants != has:
        right = f"{name}-quickgelu" if wants else name.removesuffix("-quickgelu")
        raise ValueError(f"pretrained={pretrained!r} was trained with{'' if wants else 'out'} QuickGELU, but "
                         f"model={name!r} is {'with' if has else 'without'} it: use model={right!r}")


def _from_folder(folder: Path, pretrained: str | None, name: str) -> Clip:
    config = folder / "open_clip_config.json"
    weights = folder / "open_clip_model.safetensors"
    if not config.exists():
        raise ValueError(f"model={name!r}: {config} is missing; such a folder holds open_clip_config.json and "
                         "open_clip_model.safetensors")
    if pretrained not in (None, "random") and not Path(pretrained).exists():
        raise ValueError(f"pretrained={pretrained!r}: for a model folder it is None, 'random' or a file")
    if pretrained is None and not weights.exists():
        raise ValueError(f"model={name!r}: {weights} is missing; rebuild it with `clstudy pretrain`, or use "
                         "pretrained='random'")
    cfg = json.loads(config.read_text())["model_cfg"]
    model = open_clip.model.CLIP(**cfg)
    pre = json.loads(config.read_text()).get("preprocess_cfg", {})
    model.visual.image_mean, model.visual.image_std = pre.get("mean"), pre.get("std")
    if pretrained != "random":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(pretrained or weights), strict=True)
    return Clip(model.float(), _tokenizer(cfg["text_cfg"].get("context_length", 77)), name)
