"""Load a CLIP by name: the embedded one, an open_clip architecture with a tag, or a folder."""
import difflib
import json
import zipfile
from functools import lru_cache
from pathlib import Path

import open_clip
import torch

from clstudy.models.clip import Clip
from clstudy.utils.paths import EMBEDDED


def load_clip(name: str = "icon-clip", pretrained: str | None = None,
              device: str | torch.device = "cpu") -> Clip:
    """Load a CLIP by name: the embedded one, any open_clip architecture with a tag, or a folder.

    name: "icon-clip"; an architecture that `open_clip.list_models()` knows; or a folder in the form
        that open_clip reads (`open_clip_config.json` with `open_clip_model.safetensors`).
    pretrained: a tag of `open_clip.list_pretrained()`, a checkpoint file, "random" for untrained
        weights, or None for the weights that come with the name.
    ValueError: unknown names and tags (near ones are listed); a tag whose activation (QuickGELU)
        does not fit the architecture, which a checkpoint file does not tell; a TorchScript
        archive."""
    folder = EMBEDDED.get(name) or (Path(name) if Path(name).is_dir() else None)
    if folder:
        return _from_folder(folder, pretrained, name).to(device)
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, [*EMBEDDED, *known], 6, 0.4)
        raise ValueError(f"model={name!r} is unknown. Near: {', '.join(near) or '-'}. Choices: "
                         "icon-clip, a folder, or one of open_clip.list_models() "
                         f"({len(known)} names)")
    if pretrained is None:
        tags = ", ".join(_tags(name))
        raise ValueError(f"model={name!r} needs pretrained=: {tags}, a file, or 'random'")
    if pretrained == "random":
        model = open_clip.create_model(name, pretrained_text=False)
    else:
        _check_weights(name, pretrained)
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    return Clip(model, open_clip.get_tokenizer(name), name).to(device)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> open_clip.SimpleTokenizer:
    """Return CLIP's tokenizer; reading its vocabulary takes longer than loading a model."""
    return open_clip.SimpleTokenizer(context_length=context_length)


def _tags(name: str) -> list[str]:
    return sorted(open_clip.list_pretrained_tags_by_model(name)) or ["(no tags known)"]


def _check_weights(name: str, pretrained: str) -> None:
    """Refuse a file or tag that is not there, or does not fit the architecture."""
    if Path(pretrained).exists():
        files = zipfile.ZipFile(pretrained).namelist() if zipfile.is_zipfile(pretrained) else []
        if any("/code/" in file for file in files):
            raise ValueError(f"pretrained={pretrained!r} is a TorchScript archive (OpenAI's first "
                             "form): use the tag pretrained='openai', or save its state_dict as "
                             "safetensors first")
        return  # a state_dict does not tell its activation
    if pretrained not in _tags(name):
        near = difflib.get_close_matches(pretrained, _tags(name), 3, 0.3)
        raise ValueError(f"pretrained={pretrained!r} is neither a file nor a tag of {name}. Near: "
                         f"{', '.join(near) or '-'}. Tags: {', '.join(_tags(name))}")
    wants = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    has = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if wants != has:
        right = f"{name}-quickgelu" if wants else name.removesuffix("-quickgelu")
        theirs, ours = ("with" if flag else "without" for flag in (wants, has))
        raise ValueError(f"pretrained={pretrained!r} was trained {theirs} QuickGELU, but "
                         f"model={name!r} is {ours} it: use model={right!r}")


def _from_folder(folder: Path, pretrained: str | None, name: str) -> Clip:
    file = folder / "open_clip_config.json"
    weights = folder / "open_clip_model.safetensors"
    if not file.exists():
        raise ValueError(f"model={name!r}: {file} is missing; such a folder holds "
                         "open_clip_config.json and open_clip_model.safetensors")
    if pretrained not in (None, "random") and not Path(pretrained).exists():
        raise ValueError(f"pretrained={pretrained!r}: for a model folder it is None, 'random' or a "
                         "file")
    if pretrained is None and not weights.exists():
        raise ValueError(f"model={name!r}: {weights} is missing; rebuild it with `clstudy pretrain`"
                         ", or use pretrained='random'")
    config = json.loads(file.read_text())
    cfg, pre = config["model_cfg"], config.get("preprocess_cfg", {})
    model = _built(cfg)
    model.visual.image_mean, model.visual.image_std = pre.get("mean"), pre.get("std")
    if pretrained != "random":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(pretrained or weights), strict=True)
    text = cfg["text_cfg"]
    other = "hf_tokenizer_name" in text or "tokenizer_kwargs" in text
    tokenizer = (open_clip.get_tokenizer(f"local-dir:{folder}") if other
                 else _tokenizer(text.get("context_length", 77)))
    return Clip(model.float(), tokenizer, name)


def _built(cfg: dict) -> torch.nn.Module:
    """Return the model of a configuration, in the class that open_clip's `create_model` takes."""
    cfg = {**cfg, "text_cfg": {**cfg["text_cfg"], "hf_model_pretrained": False}}
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if not custom:
        return open_clip.model.CLIP(**cfg)
    kind = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.model.CustomTextCLIP
    return kind(**cfg)
