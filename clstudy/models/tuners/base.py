"""What tuners share."""
from torch import nn

from clstudy.models.clip import Clip


def transformer_owners(clip: Clip, tower: str, tuner: str) -> list[nn.Module]:
    """The modules whose `transformer` is the tower's, the image tower's first; ValueError where it is another kind."""
    places = {"image": clip.model.visual, "text": getattr(clip.model, "text", clip.model)}
    chosen = {name: owner for name, owner in places.items() if tower in (name, "both")}
    for name, owner in chosen.items():
        if not hasattr(getattr(owner, "transformer", None), "resblocks"):
            raise ValueError(f"tuner={tuner!r} needs open_clip's transformer in the {name} tower; that of "
                             f"model={clip.name!r} is a {type(owner).__name__}")
    return list(chosen.values())
