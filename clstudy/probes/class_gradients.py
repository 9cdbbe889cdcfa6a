"""Gradients of the features: how the loss pushes the text and the images of every class."""
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
          image_gradient: Tensor | None, text_gradient: Tensor | None
          ) -> tuple[Float[Tensor, "batch texts"], float]:
    """Return C_ik = ∂L/∂(f_i·t_k), found from the gradients on the features, and what it leaves.

        ∂L/∂t_k = Σ_i C_ik f_i      ∂L/∂f_i = Σ_k C_ik t_k

    Below zero, image and text attract each other. For the matching loss C_ik = (s/B)(p_ik −
    1[y_i = k]). Here C is solved for, so it holds for any loss that sees features only through
    their similarities: least squares over both equations, F Fᵀ C + C T Tᵀ = F G_tᵀ + G_f Tᵀ. The
    second value is the part of the gradients left unexplained (relative norm): near 0, or the loss
    is of another kind. Where both images and texts are more than dimensions, gradients do not
    determine C, and the smallest is returned. A gradient that is None (frozen features) is left
    out. NaN where a number is not finite. float64, on the host."""
    f, t, g_f, g_t = (None if x is None else x.detach().cpu().double()
                      for x in (image, text, image_gradient, text_gradient))
    if not all(x.isfinite().all() for x in (f, t, g_f, g_t) if x is not None):
        return torch.full((len(f), len(t)), torch.nan, dtype=f.dtype), float("nan")
    right = torch.zeros(len(f), len(t), dtype=f.dtype)
    rows, columns = torch.zeros(len(f)), torch.zeros(len(t))
    u, v = torch.eye(len(f), dtype=f.dtype), torch.eye(len(t), dtype=f.dtype)
    if g_f is not None:
        columns, v = torch.linalg.eigh(t @ t.T)
        right += g_f @ t.T
    if g_t is not None:
        rows, u = torch.linalg.eigh(f @ f.T)
        right += f @ g_t.T
    weight = rows[:, None] + columns[None, :]
    weight = torch.where(weight > 1e-9 * weight.max(), weight, torch.inf)  # else no feature's
    found = u @ (u.T @ right @ v / weight) @ v.T
    pairs = [(g, made) for g, made in ((g_f, found @ t), (g_t, found.T @ f)) if g is not None]
    left = torch.cat([(g - made).flatten() for g, made in pairs]).norm()
    size = torch.cat([g.flatten() for g, _ in pairs]).norm()
    return found, float(left / size) if size > 0 else 0.0


@dataclass
class Seen:
    """Features of one encoding as the loss saw them, and what they belong to."""

    image: Tensor
    text: Tensor
    labels: Sequence[Hashable]
    classes: Sequence[Hashable]

    def check(self) -> None:
        if (len(self.image), len(self.text)) != (len(self.labels), len(self.classes)):
            raise ValueError(f"labels={len(self.labels)}, classes={len(self.classes)}: there are "
                             f"{len(self.image)} images and {len(self.text)} texts")
        for name, feature in (("image", self.image), ("text", self.text)):
            if ((feature.detach().float().norm(dim=-1) - 1).abs() > 1e-2).any():
                raise ValueError(f"{name} features are not unit-norm: call encode_{name} with "
                                 "normalize=True, or give image= and text= as the loss sees them")
        if not (self.image.requires_grad or self.text.requires_grad):
            raise ValueError("image, text: neither has a gradient; give those that the loss was "
                             "made of")


class Classes:
    """A probe of the push on the text and the images of each class, per step and term.

    model: a `Clip`, whose `encode(batch)` is watched; an open_clip model, whose `encode_image` and
    `encode_text` are (called once each before a look, with normalize=True); or None: `look` is
    given the features then. image_means, text_starts: per class, the unit mean image feature and
    the text feature before training. Columns: step, stage, images_seen, term, class, present (in
    the batch, or seen but absent), and with C of `pulls`

        gradient, attraction, repulsion
            ‖Σ_i C_ik f_i‖ over all i, over C_ik < 0, over C_ik > 0
        push, push attraction, push repulsion
            −(I − t tᵀ)(the same sums) · m_k with m_k of image_means: what a small step along the
            gradient adds to the similarity of the text with the class's own images
        image gradient, image attraction, image repulsion present, image repulsion absent
            ‖Σ_k C_ik t_k‖, mean over the class's images: over all texts, C < 0, C > 0 of classes in
            the batch, C > 0 of classes that are not
        image push
            −(I − f fᵀ)(Σ_k C_ik t_k) · (text_starts of the class), mean over the class's images
        meeting
            cos(descent of the text, mean descent of its images): below 0 they go opposite ways, as
            where one attracts the other; above 0 they go together
        unexplained
            of `pulls`: near 0, or the columns above do not describe this term"""

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
        image, passed_image = reachable(encoded.image)
        text, passed_text = reachable(encoded.text)
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
             labels: Names = (), classes: Names = (), image: Tensor | None = None,
             text: Tensor | None = None) -> None:
        """Measure, at every `every`-th look. terms: named scalars with their graph.

        For an open_clip model, or none: labels, the class of each image, and classes, the class of
        each text; for none also image and text, unit-norm features that the loss was made of.
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
        images, texts = ([x for name, x in waiting if name == wanted]
                         for wanted in ("encode_image", "encode_text"))
        images = [x for x in images if x.requires_grad] or images  # not of an evaluation between
        texts = [x for x in texts if x.requires_grad] or texts
        if len(images) != 1 or len(texts) != 1:
            raise ValueError("one encode_image and one encode_text must come before each look, not "
                             f"{[name for name, _ in waiting]}; or give image= and text=")
        return Seen(images[0], texts[0], labels, classes)

    def _rows(self, value: Tensor, seen: list[Seen]) -> Iterator[dict]:
        """Yield the columns of each class for one term."""
        reached = []
        for each in seen:
            features = [x for x in (each.image, each.text) if x.requires_grad]
            grads = iter(torch.autograd.grad(value, features, retain_graph=True, allow_unused=True))
            grads = [next(grads) if x.requires_grad else None for x in (each.image, each.text)]
            if any(g is not None for g in grads):  # else it was encoded for another term, or none
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
            parts = {"gradient": c, "attraction": signs[" attraction"],
                     "repulsion present": away * inside, "repulsion absent": away * ~inside}
            for i, label in enumerate(each.labels):
                pulled = {name: part[i] @ t for name, part in parts.items()}
                images.setdefault(label, []).append({"image": f[i], **pulled})
        for name, mine in sums.items():
            yield {"class": name, "present": name in here, **self._text(name, mine),
                   **self._image(name, images.get(name, []), mine),
                   "unexplained": mine["unexplained"]}

    def _text(self, name: Hashable, mine: dict) -> dict[str, float]:
        words = {"": "gradient", " attraction": "attraction", " repulsion": "repulsion"}
        row = {word: float(mine[sign].norm()) for sign, word in words.items()}
        if name in self.image_means:
            mean = self.image_means[name].cpu().double()
            row |= {f"push{sign}": -float(tangent(mine[sign], mine["text"]) @ mean)
                    for sign in words}
        return row

    def _image(self, name: Hashable, images: list[dict], mine: dict) -> dict[str, float]:
        if not images:
            return {}
        row = {f"image {part}": float(np.mean([float(one[part].norm()) for one in images]))
               for part in ("gradient", "attraction", "repulsion present", "repulsion absent")}
        fall = torch.stack([-tangent(one["gradient"], one["image"]) for one in images]).mean(0)
        if name in self.text_starts:
            row["image push"] = float(fall @ self.text_starts[name].cpu().double())
        row["meeting"] = float(cosine(-tangent(mine[""], mine["text"]), fall))
        return row

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)


def tangent(g: Tensor, at: Tensor) -> Tensor:
    """Return the part of a gradient that turns a unit vector; the rest only changes its length."""
    return g - (g @ at) * at


def reachable(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return a leaf with these values, and the same values connected to it.

    A loss made of the second has its gradient on the leaf, also where the tower is frozen. Whoever
    keeps the leaf keeps no graph."""
    leaf = feature.detach().requires_grad_()
    return leaf, feature + (leaf - leaf.detach()) if feature.requires_grad else leaf


@contextmanager
def intercepted(owner: object, name: str, see: Callable) -> Iterator[None]:
    """Pass what `owner.name(…)` returns through `see(result, *arguments, **options)`.

    The class is changed, not the object: a copy of the object (a teacher) would keep the change."""
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
