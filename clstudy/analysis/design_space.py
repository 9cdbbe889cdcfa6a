"""The map of methods: each is a point of four choices and a memory, or has a reason to be none.

`methods/compose.py` has the objective at any point. "Published" means in the three papers of this
project (SIT, arXiv 2405.15155; VR-LwF, arXiv 2207.09248; GCL and GDRO, arXiv 2605.03866,
reconstructed) with their baselines; no other paper was searched."""
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product

import pandas as pd

from clstudy.analysis import tables
from clstudy.analysis.scores import metrics_of
from clstudy.methods import METHODS
from clstudy.methods.base import Beside
from clstudy.runs.run import Run

CHOICES = {
    "candidates": ("seen", "phase", "batch"),
    "denominator": ("batch", "pairs", "moving"),
    "class_weights": ("uniform", "balanced", "kl", "cvar", "eg"),
    "vocabulary": ("none", "classes", "random", "words", "captions"),
}

DENOMINATORS = {
    "batch": "ℓ_i = −log softmax_{k ∈ K}(s f_i·t_k) at y_i",
    "pairs": "ℓ_i = ½ [−log softmax_j(s f_i·t_{y_j}) − log softmax_j(s f_j·t_{y_i})] "
             "at j of class y_i",
    "moving": "ℓ_i = τ log(ε + u1_i) + τ log(ε + u2_i),   u ← (1 − γ) u + γ mean exp(d_i / τ)",
}
COMPETITORS = {
    "seen": "K = all classes seen so far",
    "phase": "K = the classes of the stage",
    "batch": "K = the classes of the batch",
}
WEIGHTS = {
    "uniform": "w_i = 1",
    "balanced": "w_i = 1 / (C r_c),   c = y_i",
    "kl": "w_i = p_c / r_c,   p = softmax(F / λ),   c = y_i",
    "cvar": "w_i = p_c / r_c,   p = 1 / (α C) for the worst α C classes,   c = y_i",
    "eg": "w_i = p_c / r_c,   p ∝ exp(η Σ_steps F),   c = y_i",
}
NOBODY = "Nobody has published this, as far as we know of the three papers"
TEXTS = {"random": "random tokens", "words": "random words",
         "captions": "captions of the reference pairs"}


def point(name: str, **options) -> dict | None:
    """Return the options with which `compose` is this method; None if it is no point. ValueError:
    impossible options."""
    place = METHODS[name](**options).place_on_map
    return None if isinstance(place, Beside) else _defaults() | place


def published_forms() -> list[tuple[str, Mapping, str]]:
    """Return each method that is a point, with its options and who published it so."""
    return [(name, options, said) for name, kind in METHODS.items()
            for said, options in kind.published.items()]


def _defaults() -> dict:
    return METHODS["compose"]().options()


def choices(options: Mapping) -> dict[str, str]:
    """Return the four choices among options of `compose`."""
    return {name: options[name] for name in CHOICES}


def _written(options: Mapping) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def beside() -> pd.DataFrame:
    """Return a row per method that is no point: where its task term lies, and what else it does."""
    places = {name: kind.place_on_map for name, kind in METHODS.items()}
    rows = [{"method": name, "task term": place.task_of or "–", "what else": place.reason}
            for name, place in places.items() if isinstance(place, Beside)]
    return pd.DataFrame(rows).set_index("method")


def published(**chosen: str) -> list[str]:
    """Return the published methods at these four choices, whatever their memory."""
    return [f"`{name}`: {said}" for name, options, said in published_forms()
            if choices(point(name, **options)) == chosen]


def nearest(**chosen: str) -> list[str]:
    """Return the published methods that differ in the fewest choices, and in which."""
    found = {}
    for name, options, _ in published_forms():
        theirs = choices(point(name, **options))
        label = ", ".join(filter(None, (name, _written(options))))
        found[label] = [key for key in CHOICES if theirs[key] != chosen[key]]
    fewest = min(map(len, found.values()))
    return [f"`{label}` (other {' and '.join(keys)})" for label, keys in found.items()
            if len(keys) == fewest]


def objective(candidates: str, denominator: str, class_weights: str, vocabulary: str) -> str:
    """Return the objective at a point, in lines, with the names of its terms."""
    lines = ["task = (1/B) Σ_i w_i ℓ_i", DENOMINATORS[denominator], COMPETITORS[candidates],
             WEIGHTS[class_weights]]
    distil = f"{'α τ' if denominator == 'moving' else 'α'} (1/B) Σ_i KL(before ‖ now) over"
    if vocabulary in TEXTS:
        lines.append(f"vocabulary = {distil} {TEXTS[vocabulary]}, drawn at each step")
    if vocabulary != "none":
        later = "" if vocabulary == "classes" else ", from the second stage on"
        lines.append(f"classes = {distil} the names of the classes seen{later}")
    return "\n".join(lines)


def describe(chosen: Mapping[str, str], runs: Sequence[Run] = (),
             names: Sequence[str] = ("A_last",)) -> str:
    """Describe a point: who published it, its objective, how to run it, and what finished runs of
    it gave in the metrics `names`."""
    try:
        METHODS["compose"](**chosen)
    except ValueError as error:
        return f"Nothing stands here. {error}"
    if who := published(**chosen):
        said = "This is " + "\n     or ".join(who)
    else:
        said = f"{NOBODY}.\nNearest: {', '.join(nearest(**chosen))}"
    asked = {key: value for key, value in chosen.items() if value != _defaults()[key]}
    config = f'RunConfig(method="compose", method_args={asked})'
    return "\n".join([said, "", objective(**chosen), "", config, "",
                      *results(chosen, runs, names)])


def results(chosen: Mapping[str, str], runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Write a line for each setting with finished runs at this point: its metrics, mean and 95 %
    interval over seeds."""
    groups: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        found = point(run.config.method, **run.config.method_args)
        if found and choices(found) == chosen:
            memory = f"memory of {found['size']}" if found["size"] else "no memory"
            draw = ", balanced draw" if found["draw"] == "balanced" else ""
            label = f"{run.config.method}, {memory}{draw}"
            groups.setdefault(label, []).append(metrics_of(run))
    lines = []
    for label, found in groups.items():
        said = [f"{name} {tables.text([values[name] for values in found])}" for name in names]
        lines.append(f"{label}: {', '.join(said)} ({len(found)} seed{'s' * (len(found) > 1)})")
    return lines or ["no finished run of it here"]


def grid(new: Mapping[str, Mapping] = {}) -> pd.DataFrame:
    """Return every possible point of the map: its choices, the published methods there (`compose`
    can be any), and the names of those in `new`, options of `compose` by name."""
    there: dict[tuple, list[str]] = {}
    for name, options, _ in published_forms():
        there.setdefault(tuple(choices(point(name, **options)).values()), []).append(name)
    ours = {tuple(choices(_defaults() | options).values()): name for name, options in new.items()}
    rows = []
    for key in product(*CHOICES.values()):
        chosen = dict(zip(CHOICES, key, strict=True))
        with suppress(ValueError):  # an impossible point
            METHODS["compose"](**chosen)
            methods = ", ".join(dict.fromkeys(there.get(key, [])))
            rows.append(chosen | {"methods": methods, "new": ours.get(key, "")})
    return pd.DataFrame(rows)


def marks(new: Mapping[str, Mapping] = {}, near: Mapping[str, str] = {}) -> pd.DataFrame:
    """Return what each published method takes, and each new point: columns label, new (whether it
    is), choice, value. A method with several published forms has several values of a choice.

    new: options of `compose` by name. near: the method below which a new point stands; without one
    it comes last."""
    taken: dict[str, list[dict[str, str]]] = {}
    for name, options, _ in published_forms():
        taken.setdefault(name, []).append(choices(point(name, **options)))
    labels = list(taken)
    for label, options in reversed(new.items()):
        labels.insert(labels.index(near[label]) + 1 if near.get(label) in labels else len(labels),
                      label)
        taken[label] = [choices(_defaults() | options)]
    rows = [{"label": METHODS[label].title if label in METHODS else label, "new": label in new,
             "choice": name, "value": value}
            for label in labels for name in CHOICES
            for value in dict.fromkeys(form[name] for form in taken[label])]
    return pd.DataFrame(rows)
