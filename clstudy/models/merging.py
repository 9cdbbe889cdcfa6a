"""Turn a tuned model into a plain one: fold LoRA and RKR into the weights, and write the folder
that open_clip reads.

    LoRA     W  ←  W + (alpha / rank) · B A
    rescale  W  ←  σ ⊙ (W + U D),   b  ←  σ ⊙ b
"""
import shutil
from pathlib import Path

import torch

from clstudy.models.clip import Clip, openclip_keys
from clstudy.models.tuners.rescale import Rescaled
from clstudy.utils.paths import EMBEDDED


@torch.no_grad()
def merge(clip: Clip) -> Clip:
    """Fold LoRA, or rectified layers, into the weights, in place; features stay the same.

    A model with the tuner `full` or `none` is returned as it is. ValueError: a tuner that is not
    linear in the weights."""
    ours = {type(module).__module__.rpartition(".") for module in clip.modules()
            if not isinstance(module, Rescaled) and not hasattr(module, "lora_A")}
    other = sorted(name for package, _, name in ours if package == "clstudy.models.tuners")
    if other:
        raise ValueError(f"what tuners/{other[0]}.py adds is not linear in the weights, so it "
                         "cannot be merged into them; keep the run's tuned parameters with "
                         "load_or_train(config, keep_model=True), and read them with "
                         "load_tuned(run)")
    for parent in list(clip.modules()):
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "lora_A"):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
            elif isinstance(layer, Rescaled):
                setattr(parent, name, layer.plain())
    if hasattr(clip.model, "peft_config"):  # otherwise a later LoRA would be taken for a second one
        del clip.model.peft_config
    return clip


def export(clip: Clip, folder: Path, like: str | Path | None = None) -> Path:
    """Write a model, merged, as a folder that `load_clip` and open_clip read; return the folder.

    like: the model whose configuration it has, "icon-clip" or a folder; None: the one that it was
    loaded from. ValueError: that has no configuration."""
    like = clip.name if like is None else like
    config = Path(EMBEDDED.get(like, like)) / "open_clip_config.json"
    if not config.exists():
        raise ValueError(f"like={str(like)!r} has no {config.name}. Choices: "
                         f"{', '.join(EMBEDDED)}, or a model folder")
    from safetensors.torch import save_file

    weights = openclip_keys(merge(clip).model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config, folder / config.name)  # an error if it is the same folder
    save_file({name: value.cpu().contiguous() for name, value in weights.items()},
              folder / "open_clip_model.safetensors")
    return folder
