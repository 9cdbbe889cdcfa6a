"""Image and text features of a model, each encoded once."""
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from clstudy.data.image_shards import Shards
from clstudy.models.clip import Clip

CHUNK = 256  # images at a time
Scores = Callable[[Clip, Tensor, Tensor, Sequence[int] | None], Tensor]


def product(clip: Clip, image: Float[Tensor, "images dim"], text: Float[Tensor, "texts dim"],
            classes: Sequence[int] | None) -> Float[Tensor, "images texts"]:
    """Return the similarities to rank, where no method says otherwise (`Method.scores`)."""
    return image @ text.T


class Cache:
    """Features of one state of the weights: each set of images and of texts is encoded once.

    Call `forget` for a tower that has moved. An image that stands in several sets (in the test set,
    and with its caption in retrieval) is encoded with the first of them."""

    def __init__(self):
        self.image: dict[int, Tensor] = {}
        self.text: dict[tuple, Tensor] = {}
        self.places: dict[bytes, tuple[int, int]] = {}  # of an image by content: set and row

    def copy(self) -> "Cache":
        """Return another cache with the same features."""
        other = Cache()
        other.image, other.text, other.places = dict(self.image), dict(self.text), dict(self.places)
        return other

    def forget(self, image: bool = True, text: bool = True) -> None:
        if image:
            self.image.clear()
            self.places.clear()
        if text:
            self.text.clear()

    def add(self, clip: Clip, images: Tensor) -> None:
        """Take in the features of a set of images; what other sets hold is not encoded again."""
        keys = [hashlib.blake2b(image.data, digest_size=16).digest()
                for image in images.contiguous().numpy()]
        new = [row for row, key in enumerate(keys) if key not in self.places]
        if len(new) == len(keys):
            found = _encoded(clip, images)
        else:
            known = [row for row, key in enumerate(keys) if key in self.places]
            places = [self.places[keys[row]] for row in known]
            there = torch.stack([self.image[of_set][row] for of_set, row in places])
            found = there.new_empty(len(keys), there.shape[1])
            found[torch.tensor(known, device=found.device)] = there
            if new:
                found[torch.tensor(new, device=found.device)] = _encoded(clip, images[new])
        self.image[id(images)] = found
        self.places |= {keys[row]: (id(images), row) for row in new}


@torch.inference_mode()
def features(clip: Clip, images: Tensor | Shards,
             cache: Cache | None = None) -> Float[Tensor, "images dim"]:
    """Return unit-norm image features. A cache knows a set of images by the identity of its
    tensor."""
    if cache is None:
        return _encoded(clip, images)
    if id(images) not in cache.image:
        if isinstance(images, Tensor) and images.device.type == "cpu":  # where encoding is slow
            cache.add(clip, images)
        else:
            cache.image[id(images)] = _encoded(clip, images)
    return cache.image[id(images)]


def _encoded(clip: Clip, images: Tensor | Shards) -> Float[Tensor, "images dim"]:
    return torch.cat([clip.encode_image(chunk.to(clip.device)) for chunk in images.split(CHUNK)])


@torch.inference_mode()
def text_features(clip: Clip, texts: Sequence[str],
                  cache: Cache | None = None) -> Float[Tensor, "texts dim"]:
    """Return unit-norm text features."""
    known, key = {} if cache is None else cache.text, tuple(texts)
    if key not in known:
        tokens = clip.cut(_tokens(clip.tokenizer, key)).to(clip.device)
        known[key] = torch.cat([clip.encode_text(chunk) for chunk in tokens.split(CHUNK)])
    return known[key]


@lru_cache(maxsize=64)
def _tokens(tokenizer, texts: tuple[str, ...]) -> Tensor:
    """Return the token rows of texts, which an evaluation asks for again and again."""
    return tokenizer(list(texts))


def class_features(clip: Clip, names: Sequence[str], template: str, cache: Cache | None = None
                   ) -> Float[Tensor, "classes dim"]:
    """Return unit-norm text features of one prompt per class."""
    return text_features(clip, clip.class_prompts(names, template), cache)
