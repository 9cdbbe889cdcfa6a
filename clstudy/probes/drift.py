"""How far features have moved, and whether texts still stand with their images."""
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clstudy.probes.common import Names, listed, to_table


class Drift:
    """A probe of drift: how far the features of some images and class texts have moved.

    model: a `Clip` or an open_clip model. images: as its `encode_image` takes them; labels: the
    class of each. tokens: one row per class, as its `encode_text` takes them; classes: the class of
    each row. every: looks between two measurements. The first is made on entering, the last on
    leaving. Columns: step, stage, images_seen, class, and

        text          1 − cos(t_k now, t_k at the start)
        image         the same of images, mean over those of the class
        match         cos(t_k now, mean image feature of class k now)
        frozen match  cos(t_k now, mean image feature of class k at the start)
        gap           ‖mean of f − mean of t‖ over the classes (modality gap, Liang et al. 2022,
                      arXiv 2203.02053)"""

    def __init__(self, model: nn.Module, images: Tensor, labels: Names, tokens: Tensor,
                 classes: Names, every: int = 10):
        self.model, self.images, self.labels, self.tokens = model, images, listed(labels), tokens
        self.classes, self.every = listed(classes), every
        if len(images) != len(labels) or len(tokens) != len(classes):
            raise ValueError(f"labels={len(labels)}, classes={len(classes)}: there are "
                             f"{len(images)} images and {len(tokens)} rows of tokens")
        without = [name for name in self.classes if name not in self.labels]
        if without:
            raise ValueError(f"classes: {without[0]!r} has no image in labels")
        rows = [[i for i, label in enumerate(self.labels) if label == name]
                for name in self.classes]
        self.members = [torch.tensor(found, device=images.device) for found in rows]
        self.rows, self.looks, self.measured = [], 0, -1
        self.last = {"step": 0, "stage": 0, "images_seen": 0}

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
        """Measure at every `every`-th look. terms: of the step to come; {}: measure in any case."""
        self.last = {"step": self.looks, "stage": stage, "images_seen": images_seen}
        if not terms or self.looks % self.every == 0:
            self._measure()
        self.looks += bool(terms)

    @torch.inference_mode()
    def _features(self) -> tuple[Tensor, Tensor]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            images = [self.model.encode_image(chunk) for chunk in self.images.split(256)]
            texts = [self.model.encode_text(chunk) for chunk in self.tokens.split(256)]
        finally:
            for module, training in modes:
                module.training = training
        image, text = (F.normalize(torch.cat(parts).float(), dim=-1) for parts in (images, texts))
        return image, text

    @torch.inference_mode()
    def _measure(self) -> None:
        if self.measured == self.looks:
            return  # nothing was trained since
        self.measured = self.looks
        (image, text), (image0, text0) = self._features(), self.start
        moved = 1 - (image * image0).sum(-1)
        means, means0 = (torch.stack([x[rows].mean(0) for rows in self.members])
                         for x in (image, image0))
        columns = {"text": 1 - (text * text0).sum(-1),
                   "image": torch.stack([moved[rows].mean() for rows in self.members]),
                   "match": F.cosine_similarity(text, means),
                   "frozen match": F.cosine_similarity(text, means0)}
        gap = float((F.normalize(means, dim=-1).mean(0) - text.mean(0)).norm())
        measured = torch.stack(list(columns.values()), dim=1).cpu().tolist()
        for name, values in zip(self.classes, measured, strict=True):
            numbers = dict(zip(columns, values, strict=True))
            self.rows.append({**self.last, "class": name, **numbers, "gap": gap})

    def table(self) -> pd.DataFrame:
        return to_table(self.rows)
