"""What all tuners are, and what they share."""
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from clstudy.models.clip import Clip
from clstudy.utils.options import Options

TOWERS = ("image", "text", "both")


@dataclass
class Tuner(Options):
    """Which parameters of a model move."""

    towers: ClassVar[tuple[str, ...]] = TOWERS  # which it can tune
    reason: ClassVar[str] = ""  # why not the others
    neutral: ClassVar[bool] = False  # untrained, it leaves every output equal to the bit

    def check_tower(self, tower: str) -> None:
        """Refuse an impossible tower, or an option that does not go with it."""
        if tower not in self.towers:
            raise ValueError(f"tower={tower!r} does not go with the tuner {self.title}: "
                             f"{self.reason}. Choices: {', '.join(self.towers)}")

    def apply(self, clip: Clip, tower: str) -> None:
        """Freeze the model, then free, or add, what is to be tuned in the tower.

        ValueError: this tuner, with its options, cannot tune the model."""
        raise NotImplementedError

    def transformer_owners(self, clip: Clip, tower: str) -> list[nn.Module]:
        """Return the modules whose `transformer` is the tower's, the image tower's first.

        ValueError: the tower is of another kind."""
        places = {"image": clip.model.visual, "text": getattr(clip.model, "text", clip.model)}
        chosen = {name: owner for name, owner in places.items() if tower in (name, "both")}
        for name, owner in chosen.items():
            if not hasattr(getattr(owner, "transformer", None), "resblocks"):
                raise ValueError(f"the tuner {self.title} needs open_clip's transformer in the "
                                 f"{name} tower; that of model={clip.name!r} is a "
                                 f"{type(owner).__name__}")
        return list(chosen.values())
