"""Gradients of the parameters: norm and direction per term, tower and block."""
import re

import pandas as pd
import torch
from torch import Tensor, nn

from clstudy.probes.common import cosine, to_table


def where(parameter: str) -> tuple[str, str]:
    """Tower ("image", "text" or "temperature") and block ("0", "1", …, or "outside") of a
    parameter, by its name."""
    if "logit_" in parameter:
        return "temperature", "outside"
    block = re.search(r"(?:resblocks|blocks|layers?)\.(\d+)\.", parameter)
    return "image" if re.match(r"(model\.)?visual\.",
                               parameter) else "text", block[1] if block else "outside"


class Gradients:
    """Per step, term, tower and block: how large is the gradient, and where does it point?

    model: its parameters that require a gradient are watched. every: looks between two measurements.
    Columns: step, stage, images_seen, term ("total" is their sum), tower, block ("all" is the tower), and
        norm      ‖g‖ of the gradient of the term
        previous  cos(g, g of the measurement before), per tower: below 0 the steps undo each other
        cos TERM  cos(g, g of that term), per tower: below 0 the terms pull apart
        update    ‖Δθ‖ since the measurement before, what the optimiser made of it; `update previous` its cosine
    A term costs one backward pass more; nothing is kept but the gradient and the weights of the
    look before."""

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
                grads = torch.autograd.grad(value, [p for _, p in watched], retain_graph=True,
                                            allow_unused=True)
                grads = [
                    torch.zeros_like(p) if g is None else g
                    for g, (_, p) in zip(grads, watched, strict=True)
                ]
                found[term] = grouped([name for name, _ in watched], grads)
        if len(found) > 1:
            found["total"] = {
                key: sum(groups[key] for groups in found.values())
                for key in next(iter(found.values()))
            }
        weights = grouped([name for name, _ in watched], [p.detach().clone() for _, p in watched])
        head = {"step": self.looks - 1, "stage": stage, "images_seen": images_seen}
        for term, groups in found.items():
            for (tower, block), g in groups.items():
                row = {**head, "term": term, "tower": tower, "block": block, "norm": g.norm()}
                if block == "all":
                    row["previous"] = cosine(g, self.before.get((term, tower)))
                    row |= {
                        f"cos {other}": cosine(g, found[other][tower, block]) for other in found
                        if other != term
                    }
                    self.before[term, tower] = g
                if term in ("total", *(found if len(found) == 1 else ())):
                    row |= self._update(tower, block, weights[tower, block])
                self.rows.append(row)

    def _update(self, tower: str, block: str, now: Tensor) -> dict[str, Tensor]:
        """How the weights moved since the measurement before; nothing where other parameters were
        trained then."""
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
