"""Retrieval in both directions: recall@k."""
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from clstudy.data.types import Captioned
from clstudy.evaluation.features import Cache, Scores, features, product, text_features
from clstudy.evaluation.rows import Evaluation, row
from clstudy.models.clip import Clip

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image-to-text", "text-to-image"


@torch.no_grad()
def retrieval(clip: Clip, pairs: Captioned, name: str = "retrieval", ks: Sequence[int] = (1, 5, 10),
              cache: Cache | None = None, scores: Scores = product) -> Evaluation:
    """Return rows of recall@k in both directions, and for which images and captions the first hit
    is right. An image counts by its best caption.

    The images are cut into `pairs.folds` parts, in their order. Only the captions of a part
    compete, and the value is the mean over all images (captions) of all parts."""
    image, text = features(clip, pairs.images, cache), text_features(clip, pairs.captions, cache)
    found = []
    for part in np.array_split(np.arange(len(pairs)), pairs.folds):
        mine = np.flatnonzero(np.isin(pairs.owner, part))
        texts = text[torch.from_numpy(mine).to(text.device)]
        similarity = scores(clip, image[part[0]:part[-1] + 1], texts, None)
        found.append(ranks(similarity.cpu().numpy(), pairs.owner[mine] - part[0]))
    image_rank, text_rank = (np.concatenate(ranked) for ranked in zip(*found, strict=True))
    rows = []
    for k in ks:
        rows += row("retrieval", name, "all", image_rank < k, f"{IMAGE_TO_TEXT} recall@{k}")
        rows += row("retrieval", name, "all", text_rank < k, f"{TEXT_TO_IMAGE} recall@{k}")
    return Evaluation(rows, {(name, IMAGE_TO_TEXT): image_rank < 1,
                             (f"{name}: captions", TEXT_TO_IMAGE): text_rank < 1})


def ranks(similarity: Float[np.ndarray, "images texts"], owner: Int[np.ndarray, " texts"]
          ) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each image's best caption and of each caption's image; 0 is first.

    A tie counts against: what belongs elsewhere and is as similar ranks before."""
    mine = owner[None, :] == np.arange(len(similarity))[:, None]
    best = np.where(mine, similarity, -np.inf).max(1, keepdims=True)
    image_rank = ((similarity >= best) & ~mine).sum(1)
    own = similarity[owner, np.arange(len(owner))]
    return image_rank, ((similarity >= own[None, :]) & ~mine).sum(0)
