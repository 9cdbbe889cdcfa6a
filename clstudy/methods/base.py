"""What a method is: the verbs that the loop and the evaluation call by name, and what figures,
tables and the command read of it. A method must write `loss`; every other verb has a default.

Two verbs reach beyond the training step:

`before_stage(clip, stage, batches)` comes before the first step of a stage. `batches` is one pass
over the images of the stage, without augmentation; only what a method iterates over is loaded. A
method makes its teacher here, and its weight averages; it can compute class means.

`scores(clip, image, text, classes)` turns features into numbers to rank, one for each image and
text. Evaluation calls nothing else, for accuracies, held-out sets and retrieval. The default is the
product of the features. A method that predicts otherwise (prototypes, a cache, a router) overrides
it."""
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.models.clip import Clip
from clstudy.utils.options import Options

state = partial(field, init=False, repr=False)  # a field that is no option, but changes in a run


class Beside(NamedTuple):
    """Why a method is no point of the map of `compose`."""

    task_of: str | None  # the method that has the same task term
    reason: str


class Method(Options):
    """The verbs of a method and the facts about it, all with defaults.

    A method is a dataclass whose fields are its options; its docstring says in one line what it
    does."""

    family: ClassVar[str] = "other"  # has a colour in figures: `plots/style.py`
    dash: ClassVar[tuple[float, ...] | str] = ""  # of its line; "": solid
    # False: no step is made, and tuner "none" will do; may be a property
    trains: ClassVar[bool] = True
    owns_parameters: ClassVar[bool] = False  # it trains its own alone, and tuner "none" will do
    needs_tuner: ClassVar[str] = ""  # the only tuner it goes with; "": any
    needs_reference: ClassVar[bool] = False  # it asks for reference pairs; may be a property
    reconstructed: ClassVar[bool] = False  # the paper's own objective is not public
    checked: ClassVar[str] = ""  # how it was compared with its paper
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by whom → with which options
    place_on_map: ClassVar[Mapping[str, Any] | Beside] = Beside(None, "has no place on the map yet")
    memory: ClassVar[ReplayBuffer | None] = None  # a field of methods that keep images

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        """Prepare for a stage. batches: one pass over it, without augmentation."""

    def trainable(self, clip: Clip) -> list[nn.Parameter]:
        """Return the parameters that the optimiser gets: those that the tuner freed."""
        return [parameter for parameter in clip.parameters()
                if parameter.requires_grad and self.trains]

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        """Return the batch to train on, before each step and before augmentation."""
        return batch

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        """Return named, weighted terms; their sum is the objective."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def edit_gradients(self, clip: Clip) -> None:
        """Change the gradients between backward and step."""

    def after_step(self, clip: Clip, batch: Batch) -> None:
        """Take note of a batch, as it came from the stream, after the last step on it."""

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        """Finish a stage. batches: one more pass over it, without augmentation."""

    def deploy(self, clip: Clip) -> Clip:
        """Return the model to evaluate."""
        return clip

    def scores(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], classes: Sequence[int] | None
               ) -> Float[Tensor, "images texts"]:
        """Return how well each image and each text go together; the largest ranks first.

        clip: the model that was deployed. image, text: its unit-norm features. classes: the class
        of each text; None where texts are not classes of the stream (held-out sets, captions)."""
        return image @ text.T

    def table(self) -> list[dict]:
        """Return rows of what the method has to tell beside its terms."""
        return []

    @property
    def memory_bytes(self) -> int:
        """Bytes of the images that the method keeps; 0 without a memory."""
        return 0 if self.memory is None else self.memory.bytes

    def options(self, **renamed: str) -> dict[str, Any]:
        """Return the values of its options, some under another name: `options(size="texts")`."""
        own = [one.name for one in fields(self) if one.init]
        return {renamed.get(name, name): getattr(self, name) for name in own}


@dataclass
class Rehearsal(Method):
    """A method with a memory, of which some images join every step. Only `loss` is missing.

    A subclass changes how the memory works by a class attribute or an option of the same name."""

    size: Annotated[int, Ge(0)] = 500  # of the memory, in images; 0: none
    replay: Annotated[int, Ge(0)] = 32  # images of the memory that join each step
    policy: ClassVar[str] = "reservoir"  # which images stay
    selection: ClassVar[str] = "random"  # of "quota": which images of a class stay
    draw: ClassVar[str] = "uniform"  # how images are drawn
    memory: ReplayBuffer = state()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = ReplayBuffer(self.size, self.policy, self.selection, self.draw)

    def rehearse(self, clip: Clip, batch: Batch) -> Batch:
        return self.memory.join(batch, self.replay)

    def after_step(self, clip: Clip, batch: Batch) -> None:
        self.memory.add(batch)  # "quota" waits for the end of the stage

    def after_stage(self, clip: Clip, batches: Iterable[Batch]) -> None:
        self.memory.refill(batches, clip)  # "quota" alone


def frozen_copy(clip: Clip) -> Clip:
    """Return a copy of the model in evaluation mode, without gradients: a teacher."""
    return deepcopy(clip).eval().requires_grad_(False)
