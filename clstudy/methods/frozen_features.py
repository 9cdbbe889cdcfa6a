"""What methods share that leave CLIP as it is, and keep numbers made of its image features instead
of images: class means, caches, regressions.

An image is encoded once, without augmentation, when its batch arrives. What is kept holds for all
images so far, also between two stage ends. A classifier that is made of images alone has nothing to
say of a class not seen. Therefore `scores` standardises both kinds of value for each image, over
the classes seen:

    k seen      z_k = [v_k − mean_j v_j] / sd_j v_j            v: `values` of the method
    not seen    z_k = [f·t_k − mean_j f·t_j] / sd_j f·t_j      j: all classes seen

A ranking of the seen classes alone is that of v. With few classes seen the spread is a rough
estimate; with one it counts as 1, and the texts decide. Held-out sets, retrieval, and everything
before the first image are ranked by f·t."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.methods.base import Beside, Method, state
from clstudy.models.clip import Clip


@dataclass
class FrozenFeatures(Method):
    """A method on the features of a frozen CLIP. Only `add` and `values` are missing."""

    family = "frozen"
    trains = False
    place_on_map = Beside(None, "learns nothing, so it has no objective")
    texts_alone: ClassVar[bool] = False  # all is as with frozen CLIP; may be a property

    counts: Tensor | None = state(default=None)  # (classes,): images of each class so far
    known: set[int] = state(default_factory=set)  # the images that are in

    def add(self, image: Float[Tensor, "new dim"], member: Float[Tensor, "new classes"],
            batch: Batch) -> None:
        """Take in new images. image: their features. member: 1 at the class of each. batch: they
        alone."""
        raise NotImplementedError(f"{type(self).__name__} has no add")

    def values(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], rows: Int[Tensor, " texts"]
               ) -> Float[Tensor, "images texts"]:
        """Return what ranks the classes seen. rows: the class of each text; others do not count."""
        raise NotImplementedError(f"{type(self).__name__} has no values")

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def after_step(self, clip: Clip, batch: Batch) -> None:
        """Take in the images that are new; in a second epoch none is."""
        new = [row for row, image in enumerate(batch.index) if image not in self.known]
        if not new:
            return
        self.known.update(batch.index)
        fresh = replace(batch, image=batch.image[new], labels=tuple(batch.labels[i] for i in new),
                        index=tuple(batch.index[i] for i in new))
        clip.eval()
        image = clip.encode_image(fresh.image)
        labels = torch.tensor(fresh.labels, device=image.device)
        member = F.one_hot(labels, len(batch.prompts)).to(image.dtype)
        if self.counts is None:
            self.counts = torch.zeros_like(member[0])
        self.counts += member.sum(0)
        self.add(image, member, fresh)

    def scores(self, clip: Clip, image: Float[Tensor, "images dim"],
               text: Float[Tensor, "texts dim"], classes: Sequence[int] | None
               ) -> Float[Tensor, "images texts"]:
        similarity = image @ text.T
        if classes is None or self.counts is None or self.texts_alone:
            return similarity
        rows = torch.tensor(list(classes), device=self.counts.device)
        seen = self.counts[rows] > 0
        values = self.values(clip, image, text, rows)
        return torch.where(seen, standardised(values, seen), standardised(similarity, seen))

    @property
    def memory_bytes(self) -> int:
        """Bytes of all numbers that are kept; no image is."""
        return sum(kept.nbytes for kept in vars(self).values() if isinstance(kept, Tensor))


def standardised(values: Float[Tensor, "images texts"], seen: Tensor
                 ) -> Float[Tensor, "images texts"]:
    """Return values less their mean over the classes seen, in units of their spread there."""
    among = values[:, seen]
    spread = among.std(1, correction=0, keepdim=True)
    return (values - among.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1)
