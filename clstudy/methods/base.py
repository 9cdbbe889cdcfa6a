"""What a method is: the verbs that the loop and the evaluation call by name, and what figures,
tables and the command read of it. Only `loss` must be written; all other verbs have a default.

Two verbs reach beyond the training step:

`before_stage(clip, stage, batches)` comes before the first step of a stage. `batches` offers the
images that are to come: one pass over the stage, in batches and without augmentation. They are read
only as far as a method iterates. Teachers and averages start here, and class means can.

`scores(clip, image, text, classes)` turns features into numbers to rank, one for each image and
text. Evaluation calls it and nothing else: for accuracies, held-out sets and retrieval. The default
is their product. A method that predicts by more (prototypes, a cache, a router) overrides it."""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.models.clip import Clip
from clstudy.utils.options import Options


class Beside(NamedTuple):
    """Why a method is no point of the map of `compose`."""

    task_of: str | None  # the method that has the same task term
    reason: str


class Method(Options):
    """What a method may do, and what the project reads of it.

    A method is a dataclass whose fields are its options; its docstring says in a line what it
    does."""

    family: ClassVar[str] = "other"  # has a colour in figures: `plots/style.py`
    dash: ClassVar[tuple[float, ...] | str] = ""  # of its line; "": solid
    needs_tuner: ClassVar[str] = ""  # the only tuner it goes with; "": any
    needs_reference: ClassVar[bool] = False  # it asks for reference pairs; may be a property
    reconstructed: ClassVar[bool] = False  # the paper's own objective is not public
    checked: ClassVar[str] = ""  # how it was compared with its paper
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by whom → with which options
    place_on_map: ClassVar[Mapping[str, Any] | Beside] = Beside(None, "has no place on the map yet")
    memory: ClassVar[ReplayBuffer | None] = None  # a field of methods that keep images

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        """Before the first step of a stage: teachers, averages. `batches`: the stage once."""

    def trainable(self, clip: Clip) -> list[nn.Parameter]:
        """The parameters that the optimiser gets: what the tuner freed."""
        return [parameter for parameter in clip.parameters() if parameter.requires_grad]

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        """Before each step, and before augmentation: the batch to train on, joined with images of a
        memory."""
        return batch

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted terms; their sum is the objective."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def edit_gradients(self, clip: Clip) -> None:
        """Between backward and step: projections."""

    def after_step(self, clip: Clip, batch: Batch) -> None:
        """After the last step on a batch (as it came from the stream): reservoirs, weight
        averages."""

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        """After the last step of a stage; `batches` is one more pass over it, without
        augmentation."""

    def deploy(self, clip: Clip) -> Clip:
        """The model to evaluate: the model itself."""
        return clip

    def scores(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], classes: Sequence[int] | None
               ) -> Float[Tensor, "images texts"]:
        """How well each image and each text go together; what is larger ranks first.

        clip: the model that was deployed. image, text: its unit-norm features. classes: the class
        of each text; None where the texts are no classes of the stream (held-out sets,
        captions)."""
        return image @ text.T

    def table(self) -> list[dict]:
        """Rows of what the method has to tell beside its terms."""
        return []

    @property
    def memory_bytes(self) -> int:
        """Bytes of the images that the method holds; 0 without a memory."""
        return 0 if self.memory is None else self.memory.bytes

    def options(self, **renamed: str) -> dict[str, Any]:
        """Its options and their values, some under another name: `options(size="texts")`."""
        own = [one.name for one in fields(self) if one.init]
        return {renamed.get(name, name): getattr(self, name) for name in own}
