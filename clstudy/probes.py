"""Read-only measurements of a training loop: gradients of every term, the push on every class, drift.

A probe is a context manager with one verb, `look`, called after the loss is computed and before `backward()`. It
works in `train` (by name), and in a loop of your own, on a `Clip` or on any open_clip model:

    with Gradients(model) as probe:
        ...
        probe.look({"task": loss})
    probe.table()

A probe changes nothing: parameters, their `.grad`, random numbers and modes are after a look as they were before.

What SIT's paper (arXiv 2405.15155) plots is not known: the released code calls a routine that it does not hold, with
the features, labels and candidate classes of each step. So the analysis is of features, per class. What is measured
here follows from the loss (`Classes`); norms and angles of parameter gradients (`Gradients`) and `Drift` go beyond.
"""
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .config import choose
from .data import Benchmark

Names = Sequence[Hashable] | Tensor | np.ndarray
IMAGES_PER_CLASS = 10  # test images of each class whose features `Drift` follows in `train`


def where(parameter: str) -> tuple[str, str]:
    """Tower ("image", "text" or "temperature") and block ("0", "1", …, or "outside") of a parameter, by its name."""
    if "logit_" in parameter:
        return "temperature", "outside"
    block = re.search(r"(?:resblocks|blocks|layers?)\.(\d+)\.", parameter)
    return "image" if re.match(r"(model\.)?visual\.", parameter) else "text", block[1] if block else "outside"


class Gradients:
    """Per step, term, tower and block: how large is the gradient, and where does it point?

    model: its parameters that require a gradient are watched. every: looks between two measurements.
    Columns: step, stage, images_seen, term ("total" is their sum), tower, block ("all" is the tower), and
        norm      ‖g‖ of the gradient of the term
        previous  cos(g, g of the measurement before), per tower: below 0 the steps undo each other
        cos TERM  cos(g, g of that term), per tower: below 0 the terms pull apart
        update    ‖Δθ‖ since the measurement before, what the optimiser made of it; `update previous` its cosine
    A term costs one backward pass more; nothing is kept but the gradient and the weights of the look before."""

    def __init__(self, model: nn.Module, every: int = 1):
        self.model, self.every = model, every
        self.rows, self.looks, self.before, self.weights, self.moved = [], 0, {}, {}, {}

    def __enter__(self) -> "Gradients":
        return self

    def __exit__(self, *_) -> None:
        self.before, self.weights, self.moved = {}, {}, {}

    def look(self, terms: dict[str, Tensor], stage: int = 1, images_seen: int = 0) -> None:
        """terms: named scalars with their graph."""
        self.looks += bool(terms)
        if not terms or (self.looks - 1) % self.every:
            return
        watched = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        found = {}
        for term, value in terms.items():
            if value.requires_grad and watched:
                grads = torch.autograd.grad(value, [p for _, p in watched], retain_graph=True, allow_unused=True)
                grads = [torch.zeros_like(p) if g is None else g for g, (_, p) in zip(grads, watched, strict=True)]
                found[term] = grouped([name for name, _ in watched], grads)
        if len(found) > 1:
            found["total"] = {key: sum(groups[key] for groups in found.values()) for key in next(iter(found.values()))}
        weights = grouped([name for name, _ in watched], [p.detach().clone() for _, p in watched])
        head = {"step": self.looks - 1, "stage": stage, "images_seen": images_seen}
        for term, groups in found.items():
            for (tower, block), g in groups.items():
                row = {**head, "term": term, "tower": tower, "block": block, "norm": g.norm()}
                if block == "all":
                    row["previous"] = cosine(g, self.before.get((term, tower)))
                    row |= {f"cos {other}": cosine(g, found[other][tower, block]) for other in found if other != term}
                    self.before[term, tower] = g
                if term in ("total", *(found if len(found) == 1 else ())):
                    row |= self._update(tower, block, weights[tower, block])
                self.rows.append(row)

    def _update(self, tower: str, block: str, now: Tensor) -> dict[str, Tensor]:
        """How the weights moved since the measurement before; nothing where other parameters were trained then."""
        old = self.weights.get((tower, block))
        self.weights[tower, block] = now
        if old is None or old.shape != now.shape:
            return {}
        step = now - old
        found = {"update": step.norm()}
        if block == "all":
            found["update previous"] = cosine(step, self.moved.get(tower))
            self.moved[tower] = step
        return found

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)


def grouped(names: list[str], tensors: list[Tensor]) -> dict[tuple[str, str], Tensor]:
    """One flat fp32 vector per (tower, block), and per (tower, "all")."""
    parts = {}
    for name, tensor in zip(names, tensors, strict=True):
        tower, block = where(name)
        for key in ((tower, block), (tower, "all")):
            parts.setdefault(key, []).append(tensor.detach().float().flatten())
    return {key: torch.cat(pieces) for key, pieces in parts.items()}


def cosine(a: Tensor, b: Tensor | None) -> Tensor | float:
    """NaN where there is no direction to compare with."""
    if b is None or a.shape != b.shape:
        return float("nan")
    return torch.where((norms := a.norm() * b.norm()) > 0, a @ b / norms, torch.full_like(norms, torch.nan))


def pulls(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"], image_gradient: Tensor | None,
          text_gradient: Tensor | None) -> tuple[Float[Tensor, "batch texts"], float]:
    """C_ik = ∂L/∂(f_i·t_k), from the gradients on the features: below zero image and text attract each other.

        ∂L/∂t_k = Σ_i C_ik f_i      ∂L/∂f_i = Σ_k C_ik t_k

    For the matching loss C_ik = (s/B)(p_ik − 1[y_i = k]). Here it is solved for, so it holds for any loss that sees
    features through their similarities alone: least squares over both equations, F Fᵀ C + C T Tᵀ = F G_tᵀ + G_f Tᵀ.
    Also returns how much of the gradients is left unexplained (relative norm): near 0, or the loss is of another kind.
    Where images and texts are both more than dimensions, gradients do not determine C, and the smallest is returned.
    A gradient that is None (frozen features) is left out. NaN where a number is not finite. float64, on the host."""
    f, t = image.detach().cpu().double(), text.detach().cpu().double()
    given = [(None if g is None else g.detach().cpu().double()) for g in (image_gradient, text_gradient)]
    if not all(x.isfinite().all() for x in (f, t, *given) if x is not None):  # the run stops by itself
        return torch.full((len(f), len(t)), torch.nan, dtype=f.dtype), float("nan")
    right, rows, columns = torch.zeros(len(f), len(t), dtype=f.dtype), torch.zeros(len(f)), torch.zeros(len(t))
    u, v = torch.eye(len(f), dtype=f.dtype), torch.eye(len(t), dtype=f.dtype)
    if given[0] is not None:
        columns, v = torch.linalg.eigh(t @ t.T)
        right += given[0] @ t.T
    if given[1] is not None:
        rows, u = torch.linalg.eigh(f @ f.T)
        right += f @ given[1].T
    weight = rows[:, None] + columns[None, :]
    weight = torch.where(weight > 1e-9 * weight.max(), weight, torch.inf)  # directions that no feature has
    found = u @ (u.T @ right @ v / weight) @ v.T
    left = [g - made for g, made in zip(given, (found @ t, found.T @ f), strict=True) if g is not None]
    size = torch.cat([g.flatten() for g in given if g is not None]).norm()
    return found, float(torch.cat([g.flatten() for g in left]).norm() / size) if size > 0 else 0.0


@dataclass
class Seen:
    """Features of one encoding as the loss saw them, and what they belong to."""

    image: Tensor
    text: Tensor
    labels: Sequence[Hashable]
    classes: Sequence[Hashable]

    def check(self) -> None:
        if (len(self.image), len(self.text)) != (len(self.labels), len(self.classes)):
            raise ValueError(f"labels={len(self.labels)}, classes={len(self.classes)}: there are {len(self.image)} "
                             f"images and {len(self.text)} texts")
        for name, feature in (("image", self.image), ("text", self.text)):
            if ((feature.detach().float().norm(dim=-1) - 1).abs() > 1e-2).any():
                raise ValueError(f"{name} features are not unit-norm: call encode_{name} with normalize=True, or give "
                                 "image= and text= as the loss sees them")
        if not (self.image.requires_grad or self.text.requires_grad):
            raise ValueError("image, text: neither has a gradient; give those that the loss was made of")


class Classes:
    """Per step, term and class: the push on the class's text and on its images, attraction apart from repulsion.

    model: a `Clip`, whose `encode(batch)` is watched; an open_clip model, whose `encode_image` and `encode_text` are
        (called once each before a look, with normalize=True); or None: `look` is given the features then.
    image_means, text_starts: per class, the unit mean image feature and the text feature before training (frozen).
    Columns: step, stage, images_seen, term, class, present (in the batch, or seen but absent), and with C of `pulls`
        gradient, attraction, repulsion   ‖Σ_i C_ik f_i‖, over all i, over C_ik < 0, over C_ik > 0
        push, push attraction, push repulsion   −(I − t tᵀ)(the same sums) · m_k with m_k of image_means: what a small
            step along the gradient adds to the similarity of the text with the class's own images
        image gradient, image attraction, image repulsion present, image repulsion absent   ‖Σ_k C_ik t_k‖, mean over
            the class's images: all texts, C < 0, C > 0 of classes in the batch, C > 0 of classes that are not
        image push   −(I − f fᵀ)(Σ_k C_ik t_k) · (text_starts of the class), mean over the class's images
        meeting      cos(descent of the text, mean descent of its images): below 0 they go opposite ways, as where one
            attracts the other; above 0 they go together
        unexplained  of `pulls`: near 0, or the columns above do not describe this term
    """

    def __init__(self, model: nn.Module | None = None, image_means: dict[Hashable, Tensor] | None = None,
                 text_starts: dict[Hashable, Tensor] | None = None, every: int = 1):
        self.model, self.every = model, every
        self.image_means, self.text_starts = image_means or {}, text_starts or {}
        self.rows, self.looks, self.waiting, self.stack = [], 0, [], ExitStack()

    def __enter__(self) -> "Classes":
        if hasattr(self.model, "class_text"):  # a Clip, with batches
            self.stack.enter_context(intercepted(self.model, "encode", self._batch))
        elif self.model is not None:
            for name in ("encode_image", "encode_text"):
                self.stack.enter_context(intercepted(self.model, name, self._feature(name)))
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()
        self.waiting = []

    def _batch(self, encoded, batch):
        if not torch.is_grad_enabled():
            return encoded  # in no loss
        (image, passed_image), (text, passed_text) = reachable(encoded.image), reachable(encoded.text)
        self.waiting.append(Seen(image, text, batch.labels, batch.classes))
        return replace(encoded, image=passed_image, text=passed_text)

    def _feature(self, name: str) -> Callable:
        def keep(feature: Tensor, *_, **__) -> Tensor:
            if feature.is_inference():
                return feature  # in no loss
            seen, feature = reachable(feature) if torch.is_grad_enabled() else (feature, feature)
            self.waiting.append((name, seen))
            return feature
        return keep

    def look(self, terms: dict[str, Tensor], stage: int = 1, images_seen: int = 0, *,
             labels: Names = (), classes: Names = (), image: Tensor | None = None, text: Tensor | None = None) -> None:
        """terms: named scalars with their graph. For an open_clip model, or none: labels, the class of each image, and
        classes, the class of each text; for none also image and text, unit-norm features that the loss was made of.
        ValueError: features that do not fit."""
        waiting, self.waiting = self.waiting, []
        self.looks += bool(terms)
        if not terms or (self.looks - 1) % self.every:
            return
        labels, classes = listed(labels), listed(classes)
        if image is not None and text is not None:
            seen = [Seen(image, text, labels, classes)]
        elif image is None and text is None and hasattr(self.model, "class_text"):
            seen = waiting
        else:
            seen = [self._pair(waiting, labels, classes)]
        if not seen:
            raise ValueError("encode(batch) must come before each look, with gradients; or give image= and text=")
        for each in seen:
            each.check()
        head = {"step": self.looks - 1, "stage": stage, "images_seen": images_seen}
        for term, value in terms.items():
            if value.requires_grad:
                self.rows += [{**head, "term": term, **row} for row in self._rows(value, seen)]

    def _pair(self, waiting: list, labels, classes) -> Seen:
        found = [[x for name, x in waiting if name == wanted] for wanted in ("encode_image", "encode_text")]
        found = [[x for x in features if x.requires_grad] or features for features in found]  # no evaluation between
        if [len(features) for features in found] != [1, 1]:
            raise ValueError("one encode_image and one encode_text must come before each look, not "
                             f"{[name for name, _ in waiting]}; or give image= and text=")
        return Seen(found[0][0], found[1][0], labels, classes)

    def _rows(self, value: Tensor, seen: list[Seen]) -> Iterator[dict]:
        reached = []
        for each in seen:
            features = [x for x in (each.image, each.text) if x.requires_grad]
            grads = iter(torch.autograd.grad(value, features, retain_graph=True, allow_unused=True))
            grads = [next(grads) if x.requires_grad else None for x in (each.image, each.text)]
            if any(g is not None for g in grads):  # otherwise it was encoded for another term, or for no loss
                reached.append((each, grads))
        here = {label for each, _ in reached for label in each.labels}
        sums, images = {}, {}
        for each, grads in reached:
            c, rest = pulls(each.image, each.text, *grads)
            f, t = each.image.detach().cpu().double(), each.text.detach().cpu().double()
            signs = {"": c, " attraction": c.clamp(max=0), " repulsion": c.clamp(min=0)}
            for k, name in enumerate(each.classes):
                mine = sums.setdefault(name, {"text": t[k], "unexplained": rest})
                mine["unexplained"] = max(mine["unexplained"], rest)
                for sign, part in signs.items():
                    mine[sign] = mine.get(sign, 0) + part[:, k] @ f
            inside = torch.tensor([name in here for name in each.classes])
            away = signs[" repulsion"]
            parts = {"gradient": c, "attraction": signs[" attraction"], "repulsion present": away * inside,
                     "repulsion absent": away * ~inside}
            for i, label in enumerate(each.labels):
                images.setdefault(label, []).append({"image": f[i], **{n: part[i] @ t for n, part in parts.items()}})
        for name, mine in sums.items():
            yield {"class": name, "present": name in here, **self._text(name, mine),
                   **self._image(name, images.get(name, []), mine), "unexplained": mine["unexplained"]}

    def _text(self, name: Hashable, mine: dict) -> dict[str, float]:
        words = {"": "gradient", " attraction": "attraction", " repulsion": "repulsion"}
        row = {word: float(mine[sign].norm()) for sign, word in words.items()}
        if name in self.image_means:
            mean = self.image_means[name].cpu().double()
            row |= {f"push{sign}": -float(tangent(mine[sign], mine["text"]) @ mean) for sign in words}
        return row

    def _image(self, name: Hashable, images: list[dict], mine: dict) -> dict[str, float]:
        if not images:
            return {}
        row = {f"image {part}": float(np.mean([float(one[part].norm()) for one in images]))
               for part in ("gradient", "attraction", "repulsion present", "repulsion absent")}
        falls = [-tangent(one["gradient"], one["image"]) for one in images]
        if name in self.text_starts:
            row["image push"] = float(torch.stack(falls).mean(0) @ self.text_starts[name].cpu().double())
        row["meeting"] = float(cosine(-tangent(mine[""], mine["text"]), torch.stack(falls).mean(0)))
        return row

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)


def tangent(g: Tensor, at: Tensor) -> Tensor:
    """The part of a gradient that turns a unit vector; what is along it only changes a length that is divided out."""
    return g - (g @ at) * at


def reachable(feature: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf with these values, and the same values with a way to it: a loss made of them has its gradient on the leaf.

    So it has where the tower is frozen, and who keeps the leaf keeps no graph."""
    leaf = feature.detach().requires_grad_()
    return leaf, feature + (leaf - leaf.detach()) if feature.requires_grad else leaf


def listed(names: Names) -> list[Hashable]:
    """Plain values, which are equal where they look equal."""
    return names.tolist() if isinstance(names, Tensor | np.ndarray) else list(names)


@contextmanager
def intercepted(owner: object, name: str, see: Callable) -> Iterator[None]:
    """While open, what `owner.name(…)` returns goes through `see(result, *arguments, **options)`.

    The class is changed and not the object, for a copy of the object (a teacher) must not be seen."""
    kind, own = type(owner), name in vars(type(owner))
    plain = getattr(kind, name)

    def seen(self, *args, **kwargs):
        result = plain(self, *args, **kwargs)
        return see(result, *args, **kwargs) if self is owner else result

    setattr(kind, name, seen)
    try:
        yield
    finally:
        setattr(kind, name, plain) if own else delattr(kind, name)


class Drift:
    """How far features have moved since the start, and whether texts still stand with their images.

    model: a `Clip` or an open_clip model. images: as its `encode_image` takes them; labels: the class of each. tokens:
        one row per class, as its `encode_text` takes them; classes: the class of each row. every: looks between two
        measurements. The first is made on entering, the last on leaving.
    Columns: step, stage, images_seen, class, and
        text   1 − cos(t_k now, t_k at the start)           image   the same of images, mean over the class's
        match  cos(t_k now, mean image feature of class k now)    frozen match  the same with the start's mean
        gap    ‖mean of f − mean of t‖ over the classes (modality gap, Liang et al. 2022, arXiv 2203.02053)"""

    def __init__(self, model: nn.Module, images: Tensor, labels: Names, tokens: Tensor, classes: Names,
                 every: int = 10):
        self.model, self.images, self.labels, self.tokens = model, images, listed(labels), tokens
        self.classes, self.every = listed(classes), every
        if len(images) != len(labels) or len(tokens) != len(classes):
            raise ValueError(f"labels={len(labels)}, classes={len(classes)}: there are {len(images)} images and "
                             f"{len(tokens)} rows of tokens")
        without = [name for name in self.classes if name not in self.labels]
        if without:
            raise ValueError(f"classes: {without[0]!r} has no image in labels")
        rows = [[i for i, label in enumerate(self.labels) if label == name] for name in self.classes]
        self.members = [torch.tensor(found, device=images.device) for found in rows]
        self.rows, self.looks, self.measured, self.last = [], 0, -1, {"step": 0, "stage": 0, "images_seen": 0}

    def __enter__(self) -> "Drift":
        self.start = self._features()
        self._measure()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.last["step"] = self.looks
            self._measure()
        self.start = None

    def look(self, terms: dict[str, Tensor], stage: int = 1, images_seen: int = 0) -> None:
        """terms: a step's, before it is made; empty: measure in any case, as at the end of a stage."""
        self.last = {"step": self.looks, "stage": stage, "images_seen": images_seen}
        if not terms or self.looks % self.every == 0:
            self._measure()
        self.looks += bool(terms)

    @torch.inference_mode()
    def _features(self) -> tuple[Tensor, Tensor]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            image = torch.cat([self.model.encode_image(chunk).float() for chunk in self.images.split(256)])
            text = torch.cat([self.model.encode_text(chunk).float() for chunk in self.tokens.split(256)])
        finally:
            for module, training in modes:
                module.training = training
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    @torch.inference_mode()
    def _measure(self) -> None:
        if self.measured == self.looks:
            return  # nothing was trained since
        self.measured = self.looks
        (image, text), (image0, text0) = self._features(), self.start
        moved = 1 - (image * image0).sum(-1)
        means, means0 = (torch.stack([x[rows].mean(0) for rows in self.members]) for x in (image, image0))
        columns = {"text": 1 - (text * text0).sum(-1), "image": torch.stack([moved[r].mean() for r in self.members]),
                   "match": F.cosine_similarity(text, means), "frozen match": F.cosine_similarity(text, means0)}
        gap = float((F.normalize(means, dim=-1).mean(0) - text.mean(0)).norm())
        columns = {name: values.cpu().tolist() for name, values in columns.items()}
        self.rows += [{**self.last, "class": name, **{c: values[k] for c, values in columns.items()}, "gap": gap}
                      for k, name in enumerate(self.classes)]

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)


def to_table(rows: list[dict]) -> pd.DataFrame:
    """Rows with numbers that may still be on the device, as a table."""
    keys = [(i, key) for i, row in enumerate(rows) for key, value in row.items() if isinstance(value, Tensor)]
    if keys:
        values = torch.stack([rows[i][key].detach().float() for i, key in keys]).cpu().tolist()
        for (i, key), value in zip(keys, values, strict=True):
            rows[i][key] = value
    return pd.DataFrame(rows)


# ---- by name, in `train`


def _gradients(clip, benchmark: Benchmark, prompts: Tensor) -> Gradients:
    """Gradient norms and angles per term, tower and block."""
    return Gradients(clip)


def _classes(clip, benchmark: Benchmark, prompts: Tensor) -> Classes:
    """The push on the texts and images of every class; references are the test images and prompts before training."""
    with Drift(clip, *_followed(benchmark, prompts)) as drift:
        image, text = drift.start
        means = [F.normalize(image[rows].mean(0), dim=-1) for rows in drift.members]
        text_starts = dict(zip(drift.classes, text, strict=True))
    return Classes(clip, dict(zip(drift.classes, means, strict=True)), text_starts)


def _drift(clip, benchmark: Benchmark, prompts: Tensor) -> Drift:
    """Drift of texts and of test images, class by class."""
    return Drift(clip, *_followed(benchmark, prompts))


def _followed(benchmark: Benchmark, prompts: Tensor) -> tuple[Tensor, list[int], Tensor, list[int]]:
    """Some test images of every class that has any, and the prompts of these classes."""
    labels = benchmark.test.labels
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:IMAGES_PER_CLASS] for k in np.unique(labels)]))
    classes = sorted(set(labels[rows].tolist()))
    images = benchmark.test.images[torch.from_numpy(rows).to(benchmark.test.images.device)]
    return images, labels[rows].tolist(), prompts[torch.tensor(classes).to(prompts.device)], classes


PROBES = {"gradients": _gradients, "classes": _classes, "drift": _drift}


class Watching:
    """The probes of a run, looked through together."""

    def __init__(self, probes: dict):
        self.probes = probes

    def look(self, terms: dict[str, Tensor], stage: int, images_seen: int) -> None:
        for probe in self.probes.values():
            probe.look(terms, stage, images_seen)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {name: probe.table() for name, probe in self.probes.items()}


@contextmanager
def open_probes(names: Sequence[str], clip, benchmark: Benchmark, prompts: Tensor) -> Iterator[Watching]:
    """Probes by name, for the length of a run. Classes are written by their names in the tables."""
    with ExitStack() as stack:
        chosen = {name: PROBES[choose("probes", name, PROBES)] for name in names}
        watching = Watching({name: stack.enter_context(make(clip, benchmark, prompts))
                             for name, make in chosen.items()})
        yield watching
    for probe in watching.probes.values():
        for row in probe.rows:
            if "class" in row:
                row["class"] = benchmark.train.class_names[row["class"]]
