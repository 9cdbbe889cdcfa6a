"""Texts to distil on when nothing is kept. A vocabulary is a function
`(clip, batch, count, length, draws)` that returns token rows; `draws` is the generator of its
random choices. Source of the idea: VR-LwF, arXiv 2207.09248."""
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from clstudy.data.types import Batch
from clstudy.models.clip import Clip
from clstudy.utils.validation import choose

Tokens = Int[Tensor, "texts tokens"]


def random(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """`count` texts of `length` tokens, uniform over the tokenizer's vocabulary (VR-LwF's code: 100
    of 8)."""
    return clip.random_text(count, length, draws)


def words(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """The same from tokens that end a word: most are English words."""
    return clip.random_text(count, length, draws, clip.words())


def classes(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """The prompts of all classes seen so far: LwF."""
    return batch.text


def captions(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """`count` different captions of the benchmark's reference pairs, whole."""
    return _chosen(clip, batch.reference().captions, count, draws)


def texts(path: str, clip: Clip, count: int, draws: torch.Generator) -> Tokens:
    """`count` different lines of a file."""
    return _chosen(clip, lines(path), count, draws)


@lru_cache(maxsize=4)
def lines(path: str) -> tuple[str, ...]:
    """The texts of a file, one per line. ValueError: it is not there, or empty."""
    try:
        found = Path(path).expanduser()
        said = tuple(filter(None, map(str.strip,
                                      found.read_text().splitlines()))) if found.is_file() else ()
    except (OSError, ValueError, RuntimeError) as error:  # no text, or may not be read, or ~somebody
        raise ValueError(f"vocabulary='file:{path}': {error}") from None
    if not said:
        raise ValueError(
            f"vocabulary='file:{path}': {'is empty' if found.is_file() else 'there is no such file'}"
        )
    return said


def _chosen(clip: Clip, said: tuple[str, ...], count: int, draws: torch.Generator) -> Tokens:
    return clip.tokenize(
        [said[i] for i in torch.randperm(len(said), generator=draws)[:count].tolist()])


VOCABULARIES = {"random": random, "words": words, "classes": classes, "captions": captions}


def check(name: str) -> None:
    """ValueError: neither a vocabulary nor `file:PATH` of a file with texts."""
    if name.startswith("file:"):
        lines(name.removeprefix("file:"))
    else:
        choose("vocabulary", name, [*VOCABULARIES, "file:PATH"])


def draw(name: str, clip: Clip, batch: Batch, count: int, length: int,
         draws: torch.Generator) -> Tokens:
    """Texts of the vocabulary of this name, on the model's device."""
    if name.startswith("file:"):
        return texts(name.removeprefix("file:"), clip, count, draws).to(clip.device)
    return VOCABULARIES[name](clip, batch, count, length, draws).to(clip.device)
