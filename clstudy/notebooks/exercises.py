"""`check` compares a student's function with the package's, which is the solution, on random input.

    check(mine, like=match)   # "match: right, in 5 trials of random input.", or what differs

A parameter of `like` gets its input by its name (GENERATORS) or else by its jaxtyping annotation.
Axes of the same name have the same size. Give `like` as a functools.partial to fix its options.
"""
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.streams import Stage
from clstudy.data.types import Batch

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # fp32 sums in another order differ by less
LONGEST = 12  # numbers of an input that a message prints in full


class Verdict(int):
    """A truth value that JupyterLab does not print below the sentence that told it."""

    def _ipython_display_(self) -> None:
        pass


class Axes(dict):
    """Sizes of named axes, each drawn when it is first needed; two names may get the same size."""

    def __init__(self, rng: np.random.Generator):
        super().__init__()
        self.rng = rng
        self.names: list[str] = []  # the axes of the parameter that is drawn now

    def __missing__(self, name: str) -> int:
        self[name] = int(name) if name.isdigit() else int(self.rng.integers(3, 7))
        return self[name]

    def shape(self, *default: str) -> tuple[int, ...]:
        """Return the shape of the parameter; `default` are its axes if its annotation has none."""
        return tuple(self[name] for name in self.names or default)


# --- inputs: a generator gets the axes, with their random numbers ---------------------------


def normal(axes: Axes, *default: str) -> Tensor:
    """Draw normal numbers."""
    return torch.from_numpy(axes.rng.normal(size=axes.shape(*default))).float()


def features(axes: Axes) -> Tensor:
    """Draw rows of norm 1."""
    return F.normalize(normal(axes, "batch", "dim"), dim=-1)


def integers(end: int | str) -> Callable[[Axes], Tensor]:
    """Make a generator of integers below a number or below the size of an axis."""
    return lambda axes: torch.from_numpy(axes.rng.integers(
        axes[end] if isinstance(end, str) else end, size=axes.shape("batch")))


def weights(axes: Axes) -> Tensor:
    """Draw positive numbers of mean 1."""
    values = normal(axes, "batch").exp()
    return values / values.mean()


def accuracies(axes: Axes) -> list[float]:
    """Draw an accuracy for each stage."""
    return axes.rng.random(axes["stages"]).round(2).tolist()


def class_accuracy(axes: Axes) -> np.ndarray:
    """Draw accuracies (stages, classes); a class is NaN until it is seen."""
    values = axes.rng.random((axes["stages"], axes["classes"])).round(2)
    home = axes.rng.integers(axes["stages"], size=axes["classes"])
    return np.where(np.arange(axes["stages"])[:, None] < home, np.nan, values)


def positives(axes: Axes) -> Tensor:
    """Mark the pairs of a batch that share a caption by 1, the diagonal included."""
    caption = axes.rng.integers(axes["batch"] - 1, size=axes["batch"])
    return torch.from_numpy(caption[:, None] == caption[None, :]).float()


def offered(axes: Axes) -> Tensor:
    """Draw the candidates of each image, at least one."""
    mask = axes.rng.random(axes.shape("images", "classes")) < 0.6
    mask[..., 0] |= ~mask.any(-1)
    return torch.from_numpy(mask)


@cache
def embedded_clip():
    """Load the model that comes with the repository, once."""
    from clstudy.models.loading import load_clip

    return load_clip().eval()


def batch(axes: Axes) -> Batch:
    """Draw noise pictures of three of four seen classes; the stage is home to the last two."""
    seen, images = tuple(axes.rng.permutation(6)[:4].tolist()), axes["batch"]
    labels = tuple(axes.rng.choice(seen[1:], images).tolist())
    words = ["bird", "ship", "clock", "tool", "flower", "drink"]
    prompts = embedded_clip().class_text(words, "a drawing of a {}.")
    pictures = torch.from_numpy(axes.rng.random((images, 3, 64, 64))).float()
    stage = Stage(2, seen[2:], np.arange(images))
    return Batch(pictures, labels, tuple(range(images)), seen, prompts, stage)


def stages(axes: Axes) -> list[Stage]:
    """Split images and classes over three stages."""
    images = np.array_split(axes.rng.permutation(axes["images"]), 3)
    classes = np.array_split(axes.rng.permutation(axes["classes"]), 3)
    return [Stage(number, tuple(home.tolist()), index)
            for number, (home, index) in enumerate(zip(classes, images, strict=True), 1)]


def model_weights(axes: Axes) -> dict[str, Tensor]:
    """Draw a model of two parameters."""
    shapes = {"weight": (3, 2), "bias": (3,)}
    return {name: torch.from_numpy(axes.rng.normal(size=shape)) for name, shape in shapes.items()}


GENERATORS: dict[str, Callable[[Axes], Any]] = {
    **dict.fromkeys(("image", "text"), features),
    **dict.fromkeys(("curve", "values", "a", "b"), accuracies),
    "scale": lambda axes: torch.tensor(float(axes.rng.uniform(2, 20))),
    "target": integers("texts"),
    "labels": integers("classes"),
    "weight": weights,
    "same": positives,
    "offered": offered,
    "temperature": lambda axes: float(axes.rng.uniform(0.5, 4)),
    "R": lambda axes: axes.rng.random((axes["tasks"] + 1, axes["tasks"])).round(2),
    "class_accuracy": class_accuracy,
    "stages": stages,
    "clip": lambda axes: embedded_clip(),
    "batch": batch,
    "owner": lambda axes: axes.rng.permutation(np.arange(axes["texts"]) % axes["images"]),
    "generator": lambda axes: torch.Generator().manual_seed(int(axes.rng.integers(10**6))),
}
EXCEPTIONS = {  # a name that means something else in one function
    ("lowest_fifth", "group_accuracy"): lambda axes: axes.rng.random(12).round(2).tolist(),
    ("a_time", "images_seen"): lambda axes: (40 * np.arange(1, axes["stages"] + 1)).tolist(),
    ("average_domain", "domain_accuracy"): accuracies,
    ("worst_domain", "domain_accuracy"): accuracies,
    ("between", "start"): model_weights,
    ("between", "end"): model_weights,
    ("between", "share"): lambda axes: float(axes.rng.uniform(-0.5, 1.5)),
    ("away_from_home", "labels"): lambda axes: axes.rng.integers(
        axes["classes"], size=axes["images"]),
}
TYPES = {  # of other parameters: how their data type begins
    "bool": lambda axes: normal(axes) > 0,
    "uint": lambda axes: integers(256)(axes).to(torch.uint8),
    "int": integers(3),
    "": normal,
}


def make(like: Callable, seed: int | Sequence[int], options: set[str]) -> dict[str, Any]:
    """Draw input for the parameters of `like` that have no default, and for those in `options`.

    TypeError: neither GENERATORS nor its annotation explains a parameter."""
    axes, given, function = Axes(np.random.default_rng(seed)), {}, name_of(like)
    for name, parameter in inspect.signature(like).parameters.items():
        if parameter.default is not parameter.empty and name not in options:
            continue
        array = array_type(parameter.annotation)
        axes.names = [axis.lstrip("#*?") for axis in array.dim_str.split()] if array else []
        generator = EXCEPTIONS.get((function, name)) or GENERATORS.get(name)
        if generator is None and array:
            kind = array.dtypes[0] if array.dtypes else "float"
            generator = next(TYPES[start] for start in TYPES if kind.startswith(start))
        if generator is None:
            raise TypeError(
                f"check has no random input for parameter {name!r} of {function}: annotate it with "
                "jaxtyping, or add it to GENERATORS in clstudy/notebooks/exercises.py")
        value = generator(axes)
        as_numpy = array and array.array_type is np.ndarray and torch.is_tensor(value)
        given[name] = value.numpy() if as_numpy else value
    return given


def name_of(like: Callable) -> str:
    """Return the name of a function, also of one in a functools.partial."""
    return getattr(getattr(like, "func", like), "__name__", "it")


def array_type(annotation: Any) -> type | None:
    """Find the jaxtyping part of an annotation, e.g. of `Float[Tensor, "batch"] | None`."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, jaxtyping.AbstractArray):
            return part
    return None


# --- comparing ------------------------------------------------------------------------------


def difference(got: Any, expected: Any, where: str = "") -> str | None:
    """Say in plain words what differs first; None if nothing does."""
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            names = ", ".join(map(repr, expected))
            return f"yours gives a {type(got).__name__}, the package a dict with {names}"
        if set(got) != set(expected):
            names, right = sorted(map(str, got)), sorted(map(str, expected))
            return f"yours has the names {names}, the package's has {right}"
        parts = [(f"{name}: ", got[name], expected[name]) for name in expected]
    elif isinstance(expected, tuple) and array_of(expected) is None:  # results of several shapes
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"yours should give {len(expected)} results, as `return a, b` does"
        parts = [(f"result {i + 1}: ", got[i], expected[i]) for i in range(len(expected))]
    else:
        told = array_difference(got, array_of(expected))
        return told and where + told
    return next(filter(None, (difference(mine, right, name) for name, mine, right in parts)), None)


def array_difference(got: Any, right: np.ndarray) -> str | None:
    """Say what differs first between a value and an array of numbers; None if nothing does."""
    if got is None or got is ...:
        return "yours gives nothing: is a `return` missing?"
    ours = array_of(got)
    if ours is None:
        wanted = f"numbers of shape {right.shape}" if right.shape else "a number"
        return f"yours gives a {type(got).__name__}, the package {wanted}"
    if ours.shape != right.shape:
        wanted = f"the package's has {right.shape}" if right.shape else "it should be one number"
        return f"yours has shape {ours.shape}, {wanted}"
    wrong = ~np.isclose(ours, right, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = f" at {list(first)}" if first else ""
    count = f" ({wrong.sum()} of {wrong.size} values differ)" if first else ""
    return f"yours is {ours[first]:.5g}{place}, the package's is {right[first]:.5g}{count}"


def array_of(value: Any) -> np.ndarray | None:
    """Turn numbers into an array of floats; None where there are none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().float()
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None


def hint(pairs: list[tuple[Any, Any]]) -> str:
    """Name the constant factor that explains all trials, if there is one: a divisor, a sign."""
    arrays = [(array_of(got), array_of(right)) for got, right in pairs]
    if any(got is None or right is None or got.shape != right.shape for got, right in arrays):
        return ""
    got, right = (np.concatenate([pair[side].ravel() for pair in arrays]) for side in (0, 1))
    usable = np.isfinite(got) & np.isfinite(right) & (abs(right) > ABSOLUTE)
    factors = got[usable] / right[usable]
    if len(factors) < 2 or abs(factors[0]) < 1e-6:
        return ""
    if not np.allclose(factors, factors[0], rtol=1e-3):
        return ""
    if np.isclose(factors[0], -1, rtol=1e-3):
        return " The sign is the other way round."
    return f" Yours is always {factors[0]:.4g} times the package's."


def described(inputs: Mapping[str, Any]) -> str:
    """Write the input in one line: small arrays in full, of the others the shape."""
    parts = []
    for name, value in inputs.items():
        values = None if isinstance(value, Batch) else array_of(value)
        if isinstance(value, Batch):
            words = f"of labels {list(value.labels)} among classes {list(value.classes)}"
        elif values is None:
            words = f"({type(value).__name__})"
        elif values.size > LONGEST:
            words = f"of shape {values.shape}"
        else:
            words = f"= {np.round(values, 3).tolist()}"
        parts.append(f"{name} {words}")
    return ", ".join(parts)


# --- the check ------------------------------------------------------------------------------


def check(mine: Callable, like: Callable, trials: int = 5) -> Verdict:
    """Check whether `mine` does what `like` does, and print that it does or what differs first.

    An error in `mine` is told in that line and not raised.

    >>> from clstudy.evaluation.metrics import last
    >>> _ = check(lambda R: R[-1].mean(), like=last)
    last: right, in 5 trials of random input.
    """
    right, told = agreement(mine, like, trials)
    print(f"{name_of(like)}: {told}")
    return Verdict(right)


def agreement(mine: Callable, like: Callable, trials: int) -> tuple[bool, str]:
    """Return whether two functions agree in all trials, and the sentence about it."""
    pairs, failure = [], None
    for trial in range(trials):
        options = shared_options(mine, like) if trial % 2 else set()
        # Each function gets a copy of its own: neither can spoil the other's.
        inputs, copy, another = (make(like, [0, trial], options) for _ in range(3))
        required = [value for name, value in copy.items() if name not in options]
        expected = like(**another)
        try:  # by position: a student may name the parameters otherwise
            got = mine(*required, **{name: copy[name] for name in options})
        except NotImplementedError:
            return False, "not written yet."
        except Exception as error:
            where = f"{error}{line_of(error, mine)}".replace("\n", " ")
            raised = f"yours raised {type(error).__name__}: {where}"
            return False, f"{raised}. The input: {described(inputs)}."
        pairs.append((got, expected))
        found = difference(got, expected)
        if found and failure is None:
            failure = f"For {described(inputs)}: {found}{'' if found.endswith('?') else '.'}"
    if failure:
        return False, f"not yet. {failure}{hint(pairs)}"
    return True, f"right, in {trials} trials of random input."


def shared_options(mine: Callable, like: Callable) -> set[str]:
    """Name the parameters with a default that both functions have and that GENERATORS knows."""
    own = inspect.signature(mine).parameters
    return {name for name, parameter in inspect.signature(like).parameters.items()
            if parameter.default is not parameter.empty and name in own and name in GENERATORS}


def line_of(error: BaseException, mine: Callable) -> str:
    """Say in which line of the student's function an error happened."""
    code = getattr(mine, "__code__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return f" (line {lines[-1] - code.co_firstlineno + 1} of your function)" if lines else ""
