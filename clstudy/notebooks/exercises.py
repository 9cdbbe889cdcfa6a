"""`check` compares a student's function with the package's, which is the solution, on random input.

    check(mine, like=match)   # "match: right, in 5 trials of random input.", or what differs

The parameters of `like` say which input they get: GENERATORS knows their names, and the jaxtyping
annotation explains the others. Axes of the same name have the same size. Give `like` as a
functools.partial to fix its options.
"""
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.streams import Stage
from clstudy.data.types import Batch

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # fp32 sums in another order differ by less


class Verdict(int):
    """A truth value that JupyterLab does not print below the sentence that told it."""

    def _ipython_display_(self) -> None:
        pass


class Axes(dict):
    """Sizes of named axes, each drawn when it is first needed; two names may get the same size."""

    def __init__(self, rng: np.random.Generator):
        super().__init__()
        self.rng = rng

    def __missing__(self, name: str) -> int:
        self[name] = int(name) if name.isdigit() else int(self.rng.integers(3, 7))
        return self[name]

    def shape(self, *names: str) -> tuple[int, ...]:
        return tuple(self[name] for name in names)


# --- inputs: a generator gets the axes, with their random numbers, and the parameter's axis names


def normal(axes: Axes, *names: str) -> Tensor:
    """Draw normal numbers."""
    return torch.from_numpy(axes.rng.normal(size=axes.shape(*names))).float()


def features(axes: Axes, *names: str) -> Tensor:
    """Draw rows of norm 1."""
    return F.normalize(normal(axes, *(names or ("batch", "dim"))), dim=-1)


def rows_of(axis: str) -> Callable:
    """Make a generator of valid rows of an axis, one for each entry of the parameter's own axes."""
    return lambda axes, *names: torch.from_numpy(
        axes.rng.integers(axes[axis], size=axes.shape(*(names or ("batch", )))))


def weights(axes: Axes, *names: str) -> Tensor:
    """Draw positive numbers of mean 1."""
    values = normal(axes, *(names or ("batch",))).exp()
    return values / values.mean()


def accuracy_matrix(axes: Axes, *names: str) -> np.ndarray:
    """Draw an accuracy matrix (T + 1, T), row 0 before training, of two tasks or more."""
    return axes.rng.random((axes["tasks"] + 1, axes["tasks"])).round(2)


def accuracies(axes: Axes, *names: str) -> list[float]:
    """Draw an accuracy for each stage."""
    return axes.rng.random(axes["stages"]).round(2).tolist()


def class_accuracy(axes: Axes, *names: str) -> np.ndarray:
    """Draw accuracies (stages, classes); a class is NaN until it is seen."""
    values = axes.rng.random(axes.shape("stages", "classes")).round(2)
    home = axes.rng.integers(axes["stages"], size=axes["classes"])
    return np.where(np.arange(axes["stages"])[:, None] < home, np.nan, values)


def positives(axes: Axes, *names: str) -> Tensor:
    """Mark by 1 which two of the batch have the same caption, the diagonal included."""
    caption = axes.rng.integers(axes["batch"] - 1, size=axes["batch"])
    return torch.from_numpy(caption[:, None] == caption[None, :]).float()


def offered(axes: Axes, *names: str) -> Tensor:
    """Draw the candidates of each image, at least one."""
    mask = axes.rng.random(axes.shape(*(names or ("images", "classes")))) < 0.6
    mask[..., 0] |= ~mask.any(-1)
    return torch.from_numpy(mask)


@lru_cache(maxsize=1)
def embedded_clip():
    """Load the model that comes with the repository, once."""
    from clstudy.models.loading import load_clip

    return load_clip().eval()


def batch(axes: Axes, *names: str) -> Batch:
    """Draw noise pictures of three of four seen classes; the stage is home to the last two."""
    seen, images = tuple(axes.rng.permutation(6)[:4].tolist()), axes["batch"]
    labels = tuple(axes.rng.choice(seen[1:], images).tolist())
    prompts = embedded_clip().class_text(["bird", "ship", "clock", "tool", "flower", "drink"],
                                         "a drawing of a {}.")
    pictures = torch.from_numpy(axes.rng.random((images, 3, 64, 64))).float()
    return Batch(pictures, labels, tuple(range(images)), seen, prompts,
                 Stage(2, seen[2:], np.arange(images)))


def stages(axes: Axes, *names: str) -> list[Stage]:
    """Split images and classes over three stages."""
    order, homes = axes.rng.permutation(axes["images"]), np.array_split(
        axes.rng.permutation(axes["classes"]), 3)
    parts = np.array_split(order, 3)
    return [
        Stage(i + 1, tuple(home.tolist()), part)
        for i, (home, part) in enumerate(zip(homes, parts, strict=True))
    ]


def weights_of(axes: Axes) -> dict[str, torch.Tensor]:
    """Draw a model of two parameters."""
    return {
        "weight": torch.from_numpy(axes.rng.normal(size=(3, 2))), "bias": torch.from_numpy(
            axes.rng.normal(size=3))
    }


GENERATORS: dict[str, Callable] = {
    "image": features,
    "text": features,
    "scale": lambda axes, *names: torch.tensor(float(axes.rng.uniform(2, 20))),
    "target": rows_of("texts"),
    "labels": rows_of("classes"),
    "weight": weights,
    "same": positives,
    "offered": offered,
    "temperature": lambda axes, *names: float(axes.rng.uniform(0.5, 4)),
    "R": accuracy_matrix,
    "curve": accuracies,
    "values": accuracies,
    "a": accuracies,
    "b": accuracies,
    "class_accuracy": class_accuracy,
    "stages": stages,
    "clip": lambda axes, *names: embedded_clip(),
    "batch": batch,
    "owner": lambda axes, *names: axes.rng.permutation(np.arange(axes["texts"]) % axes["images"]),
    "generator": lambda axes, *names: torch.Generator().manual_seed(int(axes.rng.integers(10**6))),
}
EXCEPTIONS = {  # a name that means something else in one function
    ("worst_class", "class_accuracy"): accuracies, ("worst_fifth", "class_accuracy"): accuracies,
    ("worst_domain", "domain_accuracy"): accuracies,
    ("between", "start"): lambda axes, *names: weights_of(axes),
    ("between", "end"): lambda axes, *names: weights_of(axes),
    ("between", "share"): lambda axes, *names: float(axes.rng.uniform(-0.5, 1.5)),
    ("away_from_home", "labels"): lambda axes, *names: axes.rng.integers(
        axes["classes"], size=axes["images"])
}


def make(like: Callable, rng: np.random.Generator, options: set[str]) -> dict[str, Any]:
    """Draw input for the parameters of `like` that have no default, and for those in `options`.

    TypeError: neither GENERATORS nor its annotation explains a parameter."""
    axes, given = Axes(rng), {}
    function = getattr(like, "func", like)
    for name, parameter in inspect.signature(like).parameters.items():
        if parameter.default is not parameter.empty and name not in options:
            continue
        kind = array_type(parameter.annotation)
        names = axis_names(kind) if kind else ()
        generator = EXCEPTIONS.get(
            (function.__name__, name)) or GENERATORS.get(name) or by_annotation(kind)
        if generator is None:
            raise TypeError(
                f"check has no random input for parameter {name!r} of {function.__name__}: "
                "annotate it with jaxtyping, or add it to GENERATORS in clstudy/notebooks/exercises.py"
            )
        value = generator(axes, *names)
        given[name] = value.numpy(
        ) if kind and kind.array_type is np.ndarray and torch.is_tensor(value) else value
    return given


def array_type(annotation: Any) -> type | None:
    """Find the jaxtyping part of an annotation, e.g. of `Float[Tensor, "batch"] | None`."""
    parts = [annotation, *getattr(annotation, "__args__", ())]
    found = [
        part for part in parts
        if isinstance(part, type) and issubclass(part, jaxtyping.AbstractArray)
    ]
    return found[0] if found else None


def axis_names(array: type) -> tuple[str, ...]:
    """List the axes of a jaxtyping annotation."""
    return tuple(name.lstrip("#*?") for name in array.dim_str.split())


def by_annotation(array: type | None) -> Callable | None:
    """Choose the generator for a jaxtyping annotation."""
    if array is None:
        return None
    kind = array.dtypes[0] if array.dtypes else "float"
    if kind.startswith("bool"):
        return lambda axes, *names: normal(axes, *names) > 0
    if kind.startswith("uint"):
        return lambda axes, *names: torch.from_numpy(
            axes.rng.integers(256, size=axes.shape(*names), dtype=np.uint8))
    if kind.startswith("int"):
        return lambda axes, *names: torch.from_numpy(axes.rng.integers(3, size=axes.shape(*names)))
    return normal


# --- comparing ------------------------------------------------------------------------------


def difference(got: Any, expected: Any, where: str = "") -> str | None:
    """Say in plain words what differs first; None if nothing does."""
    if isinstance(expected, Mapping):
        return mapping_difference(got, expected)
    if isinstance(expected,
                  tuple) and array(expected) is None:  # several results, not one of numbers
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"yours should give {len(expected)} results, as `return a, b` does"
        parts = zip(got, expected, strict=True)
        return next(
            filter(None, (difference(*pair, f"result {i + 1}: ") for i, pair in enumerate(parts))),
            None)
    if got is None or got is ...:
        return f"{where}yours gives nothing: is a `return` missing?"
    right, ours = array(expected), array(got)
    if ours is None:
        return f"{where}yours gives a {type(got).__name__}, the package {described(right)}"
    if ours.shape != right.shape:
        wanted = f"the package's has {right.shape}" if right.shape else "it should be one number"
        return f"{where}yours has shape {ours.shape}, {wanted}"
    wrong = ~np.isclose(ours, right, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = f" at {list(first)}" if first else ""
    count = f" ({wrong.sum()} of {wrong.size} values differ)" if first else ""
    return f"{where}yours is {ours[first]:.5g}{place}, the package's is {right[first]:.5g}{count}"


def mapping_difference(got: Any, expected: Mapping) -> str | None:
    """Say what differs first between two dicts; None if nothing does."""
    if not isinstance(got, Mapping):
        return f"yours gives a {type(got).__name__}, the package a dict with {', '.join(map(repr, expected))}"
    if set(got) != set(expected):
        return f"yours has the names {sorted(map(str, got))}, the package's has {sorted(map(str, expected))}"
    return next(
        filter(None, (difference(got[name], expected[name], f"{name}: ") for name in expected)),
        None)


def array(value: Any) -> np.ndarray | None:
    """Turn numbers into an array of floats; None where there are none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().float()
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None


def described(values: np.ndarray) -> str:
    """Name an array for a sentence."""
    return f"numbers of shape {values.shape}" if values.shape else "a number"


def hint(pairs: list[tuple[Any, Any]]) -> str:
    """Name the constant factor that explains all trials, if there is one: a divisor, a sign."""
    arrays = [(array(got), array(right)) for got, right in pairs]
    if any(got is None or right is None or got.shape != right.shape for got, right in arrays):
        return ""
    got, right = (np.concatenate([pair[side].ravel() for pair in arrays]) for side in (0, 1))
    told = np.isfinite(got) & np.isfinite(right) & (abs(right) > ABSOLUTE)
    factors = got[told] / right[told]
    if len(factors) < 2 or not np.allclose(factors, factors[0], rtol=1e-3) or abs(
            factors[0]) < 1e-6:
        return ""
    return " The sign is the other way round." if np.isclose(factors[0], -1, rtol=1e-3) else \
        f" Yours is always {factors[0]:.4g} times the package's."


def shown(inputs: Mapping[str, Any]) -> str:
    """Write the input in one line: small arrays in full, of the others the shape."""
    return ", ".join(f"{name} {short(value)}" for name, value in inputs.items())


def short(value: Any) -> str:
    """Write one input for a sentence."""
    if isinstance(value, Batch):
        return f"of labels {list(value.labels)} among classes {list(value.classes)}"
    values = array(value)
    if values is None:
        return f"({type(value).__name__})"
    if values.size > 12:
        return f"of shape {values.shape}"
    return "= " + str(np.round(values, 3).tolist())


# --- the check ------------------------------------------------------------------------------


def check(mine: Callable, like: Callable, trials: int = 5, seed: int = 0) -> Verdict:
    """Check whether `mine` does what `like` does, and print that it does or what differs first.

    An error in `mine` is told in that line and not raised.

    >>> from clstudy.evaluation.metrics import last
    >>> _ = check(lambda R: R[-1].mean(), like=last)
    last: right, in 5 trials of random input.
    """
    name = getattr(getattr(like, "func", like), "__name__", "it")
    pairs, failure = [], None
    for trial in range(trials):
        options = optional(mine,
                           like) if trial % 2 else set()  # with and without what may be left out
        # Each its own copy: neither can spoil the other's.
        inputs, copy, shown_to_like = (make(like, np.random.default_rng([seed, trial]), options)
                                       for _ in range(3))
        expected = like(**shown_to_like)
        try:
            got = answer(mine, copy, options)
        except NotImplementedError:
            print(f"{name}: not written yet.")
            return Verdict(False)
        except Exception as error:
            where = f"{error}{line_of(error, mine)}".replace("\n", " ")
            print(
                f"{name}: yours raised {type(error).__name__}: {where}. The input: {shown(inputs)}."
            )
            return Verdict(False)
        pairs.append((got, expected))
        found = difference(got, expected)
        failure = failure or (found and
                              f"For {shown(inputs)}: {found}{'' if found.endswith('?') else '.'}")
    verdict = f"not yet. {failure}{hint(pairs)}" if failure else f"right, in {trials} trials of random input."
    print(f"{name}: {verdict}")
    return Verdict(failure is None)


def optional(mine: Callable, like: Callable) -> set[str]:
    """Name the parameters with a default that both functions have and that GENERATORS knows."""
    own = inspect.signature(mine).parameters
    return {name for name, parameter in inspect.signature(like).parameters.items()
            if parameter.default is not parameter.empty and name in own and name in GENERATORS}


def answer(mine: Callable, inputs: Mapping[str, Any], options: set[str]) -> Any:
    """Call `mine`: required values go by position, since a student may name them otherwise."""
    required = [value for name, value in inputs.items() if name not in options]
    return mine(*required, **{name: inputs[name] for name in options})


def line_of(error: BaseException, mine: Callable) -> str:
    """Say in which line of the student's function an error happened."""
    code = getattr(mine, "__code__", None)
    trace, line = error.__traceback__, None
    while trace:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
        trace = trace.tb_next
    return f" (line {line} of your function)" if line else ""
