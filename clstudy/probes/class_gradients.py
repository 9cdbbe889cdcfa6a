"""Gradients of the features: what the loss does to the text and the images of every class."""
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from clstudy.probes.common import Names, cosine, listed, to_table


def pulls(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
          image_gradient: Tensor | None,
          text_gradient: Tensor | None) -> tuple[Float[Tensor, "batch texts"], float]:
    """C_ik = ∂L/∂(f_i·t_k), from the gradients on the features: below zero image and text attract
    each other.

        ∂L/∂t_k = Σ_i C_ik f_i      ∂L/∂f_i = Σ_k C_ik t_k

    For the matching loss C_ik = (s/B)(p_ik − 1[y_i = k]). Here it is solved for, so it holds for
    any loss that sees features through their similarities alone: least squares over both equations,
    F Fᵀ C + C T Tᵀ = F G_tᵀ + G_f Tᵀ. Also returns how much of the gradients is left unexplained
    (relative norm): near 0, or the loss is of another kind. Where images and texts are both more
    than dimensions, gradients do not determine C, and the smallest is returned. A gradient that is
    None (frozen features) is left out. NaN where a number is not finite. float64, on the host."""
    f, t = image.detach().cpu().double(), text.detach().cpu().double()
    given = [(None if g is None else g.detach().cpu().double())
             for g in (image_gradient, text_gradient)]
    if not all(x.isfinite().all()
               for x in (f, t, *given) if x is not None):  # the run stops by itself
        return torch.full((len(f), len(t)), torch.nan, dtype=f.dtype), float("nan")
    right, rows, columns = torch.zeros(len(f), len(t), dtype=f.dtype), torch.zeros(
        len(f)), torch.zeros(len(t))
    u, v = torch.eye(len(f), dtype=f.dtype), torch.eye(len(t), dtype=f.dtype)
    if given[0] is not None:
        columns, v = torch.linalg.eigh(t @ t.T)
        right += given[0] @ t.T
    if given[1] is not None:
        rows, u = torch.linalg.eigh(f @ f.T)
        right += f @ given[1].T
    weight = rows[:, None] + columns[None, :]
    weight = torch.where(weight > 1e-9 * weight.max(), weight,
                         torch.inf)  # directions that no feature has
    found = u @ (u.T @ right @ v / weight) @ v.T
    left = [
        g - made for g, made in zip(given, (found @ t, found.T @ f), strict=True) if g is not None
    ]
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
            raise ValueError(
                f"labels={len(self.labels)}, classes={len(self.classes)}: there are {len(self.image)} "
                f"images and {len(self.text)} texts")
        for name, feature in (("image", self.image), ("text", self.text)):
            if ((feature.detach().float().norm(dim=-1) - 1).abs() > 1e-2).any():
                raise ValueError(
                    f"{name} features are not unit-norm: call encode_{name} with normalize=True, or give "
                    "image= and text= as the loss sees them")
        if not (self.image.requires_grad or self.text.requires_grad):
            raise ValueError(
                "image, text: neither has a gradient; give those that the loss was made of")


class Classes:
    """Per step, term and class: the push on the class's text and on its images, attraction apart
    from repulsion.

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

    def __init__(self, model: nn.Module | None = None,
                 image_means: dict[Hashable, Tensor] | None = None,
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
        (image, passed_image), (text, passed_text) = reachable(encoded.image), reachable(
            encoded.text)
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

    def look(self, terms: dict[str,
                               Tensor], stage: int = 1, images_seen: int = 0, *, labels: Names = (),
             classes: Names = (), image: Tensor | None = None, text: Tensor | None = None) -> None:
        """terms: named scalars with their graph. For an open_clip model, or none: labels, the class
        of each image, and classes, the class of each text; for none also image and text, unit-norm
        features that the loss was made of. ValueError: features that do not fit."""
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
            raise ValueError(
                "encode(batch) must come before each look, with gradients; or give image= and text="
            )
        for each in seen:
            each.check()
        head = {"step": self.looks - 1, "stage": stage, "images_seen": images_seen}
        for term, value in terms.items():
            if value.requires_grad:
                self.rows += [{**head, "term": term, **row} for row in self._rows(value, seen)]

    def _pair(self, waiting: list, labels, classes) -> Seen:
        found = [[x for name, x in waiting if name == wanted]
                 for wanted in ("encode_image", "encode_text")]
        found = [[x for x in features if x.requires_grad] or features
                 for features in found]  # no evaluation between
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
            if any(g is not None
                   for g in grads):  # otherwise it was encoded for another term, or for no loss
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
            parts = {
                "gradient": c, "attraction": signs[" attraction"],
                "repulsion present": away * inside, "repulsion absent": away * ~inside
            }
            for i, label in enumerate(each.labels):
                images.setdefault(label, []).append(
                    {"image": f[i], **{n: part[i] @ t for n, part in parts.items()}})
        for name, mine in sums.items():
            yield {
                "class": name, "present": name in here, **self._text(name, mine), **self._image(
                    name, images.get(name, []), mine), "unexplained": mine["unexplained"]
            }

    def _text(self, name: Hashable, mine: dict) -> dict[str, float]:
        words = {"": "gradient", " attraction": "attraction", " repulsion": "repulsion"}
        row = {word: float(mine[sign].norm()) for sign, word in words.items()}
        if name in self.image_means:
            mean = self.image_means[name].cpu().double()
            row |= {
                f"push{sign}": -float(tangent(mine[sign], mine["text"]) @ mean) for sign in words
            }
        return row

    def _image(self, name: Hashable, images: list[dict], mine: dict) -> dict[str, float]:
        if not images:
            return {}
        row = {f"image {part}": float(np.mean([float(one[part].norm()) for one in images]))
               for part in ("gradient", "attraction", "repulsion present", "repulsion absent")}
        falls = [-tangent(one["gradient"], one["image"]) for one in images]
        if name in self.text_starts:
            row["image push"] = float(
                torch.stack(falls).mean(0) @ self.text_starts[name].cpu().double())
        row["meeting"] = float(cosine(-tangent(mine[""], mine["text"]), torch.stack(falls).mean(0)))
        return row

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)


def tangent(g: Tensor, at: Tensor) -> Tensor:
    """The part of a gradient that turns a unit vector; what is along it only changes a length that
    is divided out."""
    return g - (g @ at) * at


def reachable(feature: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf with these values, and the same values with a way to it: a loss made of them has its
    gradient on the leaf.

    So it has where the tower is frozen, and who keeps the leaf keeps no graph."""
    leaf = feature.detach().requires_grad_()
    return leaf, feature + (leaf - leaf.detach()) if feature.requires_grad else leaf


@contextmanager
def intercepted(owner: object, name: str, see: Callable) -> Iterator[None]:
    """While open, what `owner.name(…)` returns goes through `see(result, *arguments, **options)`.

    The class is changed and not the object, for a copy of the object (a teacher) must not be
    seen."""
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
