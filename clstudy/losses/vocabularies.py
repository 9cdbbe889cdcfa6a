"""Texts to distil on. A vocabulary is a function `(clip, batch, count, length, draws)` that returns
token rows; `draws` generates its random choices. Source of the idea: VR-LwF, arXiv 2207.09248."""
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
    """Draw `count` texts of `length` tokens, uniform over all tokens (VR-LwF's code: 100 of 8)."""
    return clip.random_text(count, length, draws)


def words(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """Draw the same from tokens that end a word, most of which are English words."""
    return clip.random_text(count, length, draws, clip.words())


def classes(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """Return the prompts of all classes seen so far, as LwF has it."""
    return batch.text


def captions(clip: Clip, batch: Batch, count: int, length: int, draws: torch.Generator) -> Tokens:
    """Draw `count` different captions of the benchmark's reference pairs."""
    return _chosen(clip, batch.reference().captions, count, draws)


@lru_cache(maxsize=4)
def lines(path: str) -> tuple[str, ...]:
    """Return the texts of a file, one per line. ValueError: it is not there, or empty."""
    field = f"vocabulary='file:{path}'"
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError("there is no such file")
        said = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, RuntimeError) as error:  # no text, not readable, or ~somebody
        raise ValueError(f"{field}: {error}") from None
    if not said:
        raise ValueError(f"{field}: is empty")
    return tuple(said)


def _chosen(clip: Clip, said: tuple[str, ...], count: int, draws: torch.Generator) -> Tokens:
    rows = torch.randperm(len(said), generator=draws)[:count].tolist()
    return clip.tokenize([said[i] for i in rows])


VOCABULARIES = {"random": random, "words": words, "classes": classes, "captions": captions}


def check(name: str) -> None:
    """Refuse what is neither a vocabulary nor `file:PATH` of a file with texts."""
    if name.startswith("file:"):
        lines(name.removeprefix("file:"))
    else:
        choose("vocabulary", name, [*VOCABULARIES, "file:PATH"])


def draw(name: str, clip: Clip, batch: Batch, count: int, length: int,
         draws: torch.Generator) -> Tokens:
    """Draw texts of the vocabulary of this name, on the model's device."""
    if name.startswith("file:"):
        return _chosen(clip, lines(name.removeprefix("file:")), count, draws).to(clip.device)
    return VOCABULARIES[name](clip, batch, count, length, draws).to(clip.device)
