"""The map: every method of the project as a point of four choices and a memory, or the reason why it is none.

`methods/compose.py` is the objective at any point. What is said to be published is what the three papers of this
project have (SIT, arXiv 2405.15155; VR-LwF, arXiv 2207.09248; GCL and GDRO, arXiv 2605.03866, reconstructed) with
their baselines; for other points nobody has, as far as we know of these."""
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product

import pandas as pd

from clstudy.analysis import tables
from clstudy.analysis.scores import metrics_of
from clstudy.evaluation import metrics
from clstudy.runs.run import Run

CHOICES = {
    "candidates": ("seen", "phase", "batch"),
    "denominator": ("batch", "pairs", "moving"),
    "class_weights": ("uniform", "balanced", "kl", "cvar", "eg"),
    "vocabulary": ("none", "classes", "random", "words", "captions"),
}

# method → what compose needs beside the method's own options, and how it calls those
AS = {
    "finetune": ({}, {}),
    "sit": ({"candidates": "batch"}, {}),
    "er": ({"candidates": "seen"}, {}),
    "lwf": ({"vocabulary": "classes"}, {}),
    "vr_lwf": ({}, {"size": "texts"}),
    "clip_loss": ({"denominator": "pairs", "candidates": "batch", "policy": "quota"}, {}),
    "gcl": ({"denominator": "moving", "policy": "quota"}, {"temperature": "tau"}),
    "gdro": ({"denominator": "moving", "policy": "quota"}, {"temperature": "tau", "robust": "class_weights"}),
    "compose": ({}, {}),
}
OWN = {"double_softmax": False, "form": "official"}  # options that compose has not, and the value at which it agrees

# (method, its options, who published it)
PUBLISHED = [
    ("finetune", {}, "asymmetric tuning, the baseline of the SIT paper"),
    ("finetune", {"candidates": "phase"}, "fine-tuning, the baseline of the VR-LwF paper (code)"),
    ("sit", {}, "SIT"),
    ("er", {}, "experience replay with class names, baseline of the SIT paper and of GCL and GDRO"),
    ("lwf", {}, "LwF among all classes seen"),
    ("lwf", {"candidates": "phase"}, "LwF as in the VR-LwF paper (code)"),
    ("vr_lwf", {}, "VR-LwF with all classes seen in its task"),
    ("vr_lwf", {"candidates": "phase"}, "VR-LwF (code)"),
    ("clip_loss", {}, "CLIP's loss over the mini-batch, with a memory: where the GCL and GDRO paper starts"),
    ("gcl", {}, "GCL, reconstructed"),
    ("gdro", {}, "GDRO, reconstructed, KL-regularised"),
    ("gdro", {"robust": "cvar"}, "GDRO, reconstructed, if it is CVaR"),
    ("gdro", {"robust": "eg"}, "GDRO, reconstructed, if it is an exponentiated gradient"),
]

# method → where its task term lies, and why the method is not a point
BESIDE = {
    "frozen": (None, "learns nothing, so it has no objective"),
    "derpp": ("er", "also keeps what the model said about each image of the memory: old answers, no teacher"),
    "clib": ("er", "trains on its memory alone, and what stays there is chosen by the loss"),
    "geodl": ("finetune", "also holds features along a path of subspaces: no texts"),
    "ewc": ("finetune", "also holds weights by their Fisher information"),
    "imm": ("finetune", "merges weights after a stage"),
    "wise_ft": ("finetune", "is evaluated between CLIP and the tuned weights"),
    "zscl": ("finetune", "distils on images and texts of a reference set, and averages weights"),
    "agem": ("finetune", "projects the gradient, with a memory beside the loss"),
    "l2p": ("finetune", "chooses prompts from a pool by keys, which have a term of their own"),
    "dualprompt": ("finetune", "chooses prompts from a pool by keys, which have a term of their own"),
    "mvp": ("finetune", "chooses prompts by keys, and masks and weighs its logits"),
}

DENOMINATORS = {
    "batch": "ℓ_i = −log softmax_{k ∈ K}(s f_i·t_k) at y_i",
    "pairs": "ℓ_i = ½ [−log softmax_j(s f_i·t_{y_j}) − log softmax_j(s f_j·t_{y_i})] at j of class y_i",
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
TEXTS = {"random": "random tokens", "words": "random words", "captions": "captions of the reference pairs"}


def point(name: str, **options) -> dict | None:
    """The options of `compose` with which it is this method; None: it is no point. ValueError: impossible options."""
    from clstudy.methods import METHODS  # imports torch

    method = METHODS[name](**options)
    if name not in AS or any(getattr(method, field, value) != value for field, value in OWN.items()):
        return None
    if name == "vr_lwf" and method.classes and (method.vocabulary == "classes" or method.temperature != 1):
        return None  # its second distillation is one more, or at another temperature
    fixed, renamed = AS[name]
    own = {field.name: getattr(method, field.name) for field in fields(method) if field.init and field.name not in OWN}
    return _defaults() | {renamed.get(key, key): value for key, value in own.items()} | fixed | _extra(name)


def _extra(name: str) -> dict:
    """Methods without a memory: compose's is empty."""
    return {"size": 0} if name in ("finetune", "lwf", "vr_lwf") else {}


def _defaults() -> dict:
    from clstudy.methods import METHODS

    return {field.name: field.default for field in fields(METHODS["compose"]) if field.init}


def choices(options: Mapping) -> dict[str, str]:
    """The four choices among options of compose."""
    return {name: options[name] for name in CHOICES}


def table() -> pd.DataFrame:
    """Every method that is a point, a row per published form: its four choices, its memory, and who has it."""
    rows = []
    for name, options, said in PUBLISHED:
        found = point(name, **options)
        memory = f"{found['size']}, {found['policy']}" if found["size"] else "none"
        rows.append({"method": name, "options": ", ".join(f"{key}={value}" for key, value in options.items()),
                     **choices(found), "memory": memory, "published": said})
    return pd.DataFrame(rows).set_index("method")


def beside() -> pd.DataFrame:
    """Every method that is no point: at which one its task term lies, and what else it does."""
    rows = [{"method": name, "task term": near or "–", "what else": why} for name, (near, why) in BESIDE.items()]
    return pd.DataFrame(rows).set_index("method")


def published(**chosen: str) -> list[str]:
    """Which published methods lie at these four choices, whatever their memory."""
    return [f"`{name}`: {said}" for name, options, said in PUBLISHED if choices(point(name, **options)) == chosen]


def nearest(**chosen: str) -> list[str]:
    """The published methods that differ in fewest choices, and in which."""
    found = {}
    for name, options, _ in PUBLISHED:
        theirs = choices(point(name, **options))
        label = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
        found[label] = [key for key in CHOICES if theirs[key] != chosen[key]]
    fewest = min(map(len, found.values()))
    return [f"`{label}` (other {' and '.join(keys)})" for label, keys in found.items() if len(keys) == fewest]


def objective(candidates: str, denominator: str, class_weights: str, vocabulary: str) -> str:
    """The objective at a point, in lines, with the names of its terms."""
    lines = ["task = (1/B) Σ_i w_i ℓ_i", DENOMINATORS[denominator], COMPETITORS[candidates], WEIGHTS[class_weights]]
    nat = "α τ" if denominator == "moving" else "α"
    if vocabulary not in ("none", "classes"):
        lines.append(f"vocabulary = {nat} (1/B) Σ_i KL(before ‖ now) over {TEXTS[vocabulary]}, drawn at each step")
    if vocabulary != "none":
        later = "" if vocabulary == "classes" else ", from the second stage on"
        lines.append(f"classes = {nat} (1/B) Σ_i KL(before ‖ now) over the names of the classes seen{later}")
    return "\n".join(lines)


def describe(chosen: Mapping[str, str], runs: Sequence[Run] = (), names: Sequence[str] = ("A_last",)) -> str:
    """What stands at a point: who published it, its objective, how to run it, and what finished runs of it gave."""
    from clstudy.methods import METHODS

    try:
        METHODS["compose"](**chosen)
    except ValueError as error:
        return f"Nothing stands here. {error}"
    who = published(**chosen)
    said = "This is " + "\n     or ".join(who) if who else f"{NOBODY}.\nNearest: {', '.join(nearest(**chosen))}"
    asked = {key: value for key, value in chosen.items() if value != _defaults()[key]}
    return "\n".join([said, "", objective(**chosen), "",
                      f'RunConfig(method="compose", method_args={asked})', "", *results(chosen, runs, names)])


def results(chosen: Mapping[str, str], runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """A line for each setting with finished runs at this point: its metrics, mean and 95 % interval over seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        found = point(run.config.method, **run.config.method_args)
        if found and choices(found) == chosen:
            kept = f"memory of {found['size']}" if found["size"] else "no memory"
            draw = ", balanced draw" if found["draw"] == "balanced" else ""
            groups.setdefault(f"{run.config.method}, {kept}{draw}", []).append(run)
    return [f"{label}: " + ", ".join(f"{name} {_interval(group, name)}" for name in names)
            + f" ({len(group)} seed{'s' * (len(group) > 1)})"
            for label, group in groups.items()] or ["no finished run of it here"]


def _interval(runs: Sequence[Run], name: str) -> str:
    return tables._text(metrics.interval([metrics_of(run)[name] for run in runs]))


def grid(new: Mapping[str, Mapping] = {}) -> pd.DataFrame:
    """Every point of the map that means something: its choices, the published methods there (`compose` can be any), and
    the names of those in `new`, options of compose by name."""
    from clstudy.methods import METHODS

    there: dict[tuple, list[str]] = {}
    for name, options, _ in PUBLISHED:
        there.setdefault(tuple(choices(point(name, **options)).values()), []).append(name)
    ours = {tuple(choices(_defaults() | dict(options)).values()): name for name, options in new.items()}
    rows = []
    for key in product(*CHOICES.values()):
        chosen = dict(zip(CHOICES, key, strict=True))
        try:
            METHODS["compose"](**chosen)
        except ValueError:
            continue
        rows.append(chosen | {"methods": ", ".join(dict.fromkeys(there.get(key, []))), "new": ours.get(key, "")})
    return pd.DataFrame(rows)
