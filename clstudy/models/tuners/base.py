"""What all tuners are, and what they share."""
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from clstudy.models.attention import Attention
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

    def transformer_owners(self, clip: Clip, tower: str, attention: bool = False
                           ) -> list[nn.Module]:
        """Return the modules whose `transformer` is the tower's, the image tower's first.

        attention: the tuner reaches into the blocks' attention too, which then must be the usual
        one. ValueError: the tower is of another kind."""
        owners = {name: clip.owner(name) for name in ("image", "text")}
        faults = {name: _fault(owner, attention) for name, owner in owners.items()}
        chosen = [name for name in owners if tower in (name, "both")]
        for name in chosen:
            if faults[name]:
                left = [f"tower={other!r}, " for other, fault in faults.items()
                        if not fault and other in self.towers]
                raise ValueError(f"the tuner {self.title} needs open_clip's transformer in the "
                                 f"{name} tower; that of model={clip.name!r} is {faults[name]}. "
                                 f"Choices: {''.join(left)}tuner='full' (above=0)")
        return [owners[name] for name in chosen]


def _fault(owner: nn.Module, attention: bool) -> str:
    """Return what a tower is instead of open_clip's transformer, or ""."""
    inner = getattr(owner, "trunk", getattr(owner, "transformer", owner))
    if hasattr(inner, "resblocks"):
        usual = all(isinstance(block.attn, Attention) for block in inner.resblocks)
        return "" if usual or not attention else "one with attention of its own"
    within = "" if inner is owner else f" ({type(inner).__name__})"
    return f"a {type(owner).__name__}{within}"
