"""The eight verbs. The loop in `train.py` calls these by name, and nothing else; only `loss` must be written."""
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.models.clip import Clip


class Method(Protocol):
    """What a method may do. Defaults do nothing; a method is a dataclass whose fields are its hyperparameters."""

    def before_stage(self, clip: Clip, stage: Stage) -> None:
        """Before the first step of a stage: teachers, averages."""

    def trainable(self, clip: Clip) -> list[nn.Parameter]:
        """The parameters that the optimiser gets: what the tuner freed."""
        return [parameter for parameter in clip.parameters() if parameter.requires_grad]

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        """Before each step, and before augmentation: the batch to train on, joined with images of a memory."""
        return batch

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted terms; their sum is the objective."""
        ...

    def edit_gradients(self, clip: Clip) -> None:
        """Between backward and step: projections."""

    def after_step(self, clip: Clip, batch: Batch) -> None:
        """After the last step on a batch (as it came from the stream): reservoirs, weight averages."""

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        """After the last step of a stage; `batches` is one more pass over it, without augmentation."""

    def deploy(self, clip: Clip) -> Clip:
        """The model to evaluate: the model itself."""
        return clip
