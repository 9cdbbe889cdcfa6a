"""Gradients of the parameters: norm and direction per term, tower and block."""
import re
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from clstudy.probes.common import cosine, to_table


def where(parameter: str) -> tuple[str, str]:
    """Return tower ("image", "text", "temperature") and block ("0", …, "outside") by a name."""
    if "logit_" in parameter:
        return "temperature", "outside"
    tower = "image" if re.match(r"(model\.)?visual\.", parameter) else "text"
    block = re.search(r"(?:resblocks|blocks|layers?)\.(\d+)\.", parameter)
    return tower, block[1] if block else "outside"


class Gradients:
    """A probe of the size and direction of the gradient, per step, term, tower and block.

    model: its parameters that require a gradient are watched. every: looks between two
    measurements. Columns: step, stage, images_seen, term ("total" is their sum), tower, block
    ("all" is the tower), and

        norm             ‖g‖ of the gradient of the term
        previous         cos(g, g of the last measurement), per tower: below 0 steps undo each other
        cos TERM         cos(g, g of that term), per tower: below 0 the terms pull apart
        update           ‖Δθ‖ since the last measurement: what the optimiser made of the gradient
        update previous  cos(Δθ, Δθ before), per tower

    A term costs one more backward pass. Only gradient and weights of the last look are kept."""

    def __init__(self, model: nn.Module, every: int = 1):
        self.model, self.every = model, every
        self.rows, self.looks, self.before, self.weights, self.moved = [], 0, {}, {}, {}

    def __enter__(self) -> "Gradients":
        return self

    def __exit__(self, *_) -> None:
        self.before, self.weights, self.moved = {}, {}, {}

    def look(self, terms: dict[str, Tensor], stage: int = 1, images_seen: int = 0) -> None:
        """Measure, at every `every`-th look. terms: named scalars with their graph."""
        self.looks += bool(terms)
        if not terms or (self.looks - 1) % self.every:
            return
        watched = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        found = self._gradients(terms, watched) if watched else {}
        weights = grouped(watched, [p.detach().clone() for p in watched.values()])
        head = {"step": self.looks - 1, "stage": stage, "images_seen": images_seen}
        whole = "total" if len(found) > 1 else next(iter(found), None)  # what the optimiser gets
        for term, groups in found.items():
            for (tower, block), g in groups.items():
                row = {**head, "term": term, "tower": tower, "block": block, "norm": g.norm()}
                if block == "all":
                    row["previous"] = cosine(g, self.before.get((term, tower)))
                    row |= {f"cos {other}": cosine(g, found[other][tower, block])
                            for other in found if other != term}
                    self.before[term, tower] = g
                if term == whole:
                    row |= self._update(tower, block, weights[tower, block])
                self.rows.append(row)

    def _gradients(self, terms: dict[str, Tensor], watched: dict[str, nn.Parameter]) -> dict:
        """Return the gradients of each term, and of their sum, by tower and block."""
        found = {}
        for term, value in terms.items():
            if value.requires_grad:
                grads = torch.autograd.grad(value, list(watched.values()), retain_graph=True,
                                            allow_unused=True, materialize_grads=True)
                found[term] = grouped(watched, grads)
        if len(found) > 1:
            keys = next(iter(found.values()))
            found["total"] = {key: sum(groups[key] for groups in found.values()) for key in keys}
        return found

    def _update(self, tower: str, block: str, now: Tensor) -> dict[str, Tensor]:
        """Return how the weights moved since the last measurement, if the same were trained."""
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


def grouped(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[tuple[str, str], Tensor]:
    """Return one flat fp32 vector per (tower, block), and per (tower, "all")."""
    parts = {}
    for name, tensor in zip(names, tensors, strict=True):
        tower, block = where(name)
        for key in ((tower, block), (tower, "all")):
            parts.setdefault(key, []).append(tensor.detach().float().flatten())
    return {key: torch.cat(pieces) for key, pieces in parts.items()}
