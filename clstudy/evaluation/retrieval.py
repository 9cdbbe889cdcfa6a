"""Retrieval in both directions: recall@k."""
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from clstudy.data.types import Captioned
from clstudy.evaluation.features import Cache, Scores, features, product, text_features
from clstudy.evaluation.rows import row
from clstudy.models.clip import Clip


@torch.no_grad()
def retrieval(clip: Clip, pairs: Captioned, name: str = "retrieval", ks: Sequence[int] = (1, 5, 10),
              cache: Cache | None = None, scores: Scores = product) -> list[dict]:
    """Recall@k in both directions, cosine ranking; several captions per image count as found with
    the best of them.

    With `pairs.folds` the images are cut into so many parts, in their order; only the captions of a
    part compete, and the value is the mean over all images (captions) of all parts."""
    image, text = features(clip, pairs.images, cache), text_features(clip, pairs.captions, cache)
    found = []
    for part in np.array_split(np.arange(len(pairs)), pairs.folds):
        mine = np.flatnonzero(np.isin(pairs.owner, part))
        similarity = scores(clip, image[part[0]:part[-1] + 1],
                            text[torch.from_numpy(mine).to(text.device)], None)
        found.append(ranks(similarity.cpu().numpy(), pairs.owner[mine] - part[0]))
    image_rank, text_rank = (np.concatenate(ranked) for ranked in zip(*found, strict=True))
    rows = []
    for k in ks:
        rows += row("retrieval", name, "all", image_rank < k, f"image-to-text recall@{k}")
        rows += row("retrieval", name, "all", text_rank < k, f"text-to-image recall@{k}")
    return rows


def ranks(similarity: Float[np.ndarray, "images texts"], owner: Int[np.ndarray, " texts"]
          ) -> tuple[np.ndarray, np.ndarray]:
    """For each image the rank of its best caption, and for each caption the rank of its image; 0 is
    first.

    A tie counts against: everything foreign that is as similar ranks before."""
    mine = owner[None, :] == np.arange(len(similarity))[:, None]
    best = np.where(mine, similarity, -np.inf).max(1, keepdims=True)
    image_rank = ((similarity >= best) & ~mine).sum(1)
    own = similarity[owner, np.arange(len(owner))]
    return image_rank, ((similarity >= own[None, :]) & ~mine).sum(0)
