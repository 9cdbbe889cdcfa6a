"""Sets larger than memory: decoded once to many files of bounded size; a batch reads its own rows.

    data/cache/decoded/<name>-<source>/00000.npy  00001.npy  …

Each file appears by a rename, so it is whole or not there, and a decoding that was killed continues
where it stopped. Files of a wrong length or shape are found at the start and decoded again; flipped
bits are not found, since that would take reading everything. Nothing stays open or in memory
between two batches."""
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clstudy.data.image_store import Pictures, check_room, decode, decoding_bar, draft_beside
from clstudy.utils import paths
from clstudy.utils.files import clear_dead

SHARD = 2**28  # bytes of a file, at most; 1,783 images at 224 pixels


class Shards:
    """Images in several files, used like a tensor: indexed along its first axis, split, moved."""

    device, dtype = torch.device("cpu"), torch.uint8

    def __init__(self, files: Sequence[Path], counts: Sequence[int], width: int):
        self.files, self.counts, self.width = tuple(files), tuple(counts), width
        self.ends = np.cumsum(self.counts, dtype=np.int64)  # behind the last image of each file
        self.shape = (sum(self.counts), 3, width, width)
        self.nbytes = len(self) * 3 * width ** 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | np.ndarray | slice | int
                    ) -> UInt8[Tensor, "*images 3 width width"]:
        """Read the images of some positions; only their files are opened."""
        rows = np.arange(len(self))[index if isinstance(index, slice | int) else np.asarray(index)]
        flat = rows.reshape(-1)
        images = torch.empty((len(flat), *self.shape[1:]), dtype=torch.uint8)
        which = np.searchsorted(self.ends, flat, side="right")
        for number in np.unique(which).tolist():
            here = which == number
            start = self.ends[number] - self.counts[number]
            images.numpy()[here] = np.load(self.files[number], mmap_mode="r")[flat[here] - start]
        return images.reshape(*rows.shape, *self.shape[1:])

    def split(self, size: int) -> Iterator[UInt8[Tensor, "images 3 width width"]]:
        """Yield all images, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start:start + size]

    def to(self, device: str | torch.device) -> "Tensor | Shards":
        """Move all images to another device; on the host they stay in their files."""
        return self if torch.device(device).type == "cpu" else self[:].to(device)

    @classmethod
    def join(cls, parts: Sequence["Shards"]) -> "Shards":
        """Concatenate the parts."""
        return cls([file for part in parts for file in part.files],
                   [count for part in parts for count in part.counts], parts[0].width)


def sharded(name: str, source: str, width: int, count: int,
            pictures: Callable[[], Pictures]) -> Shards:
    """Return the images of a split in order; `pictures` is called only to decode missing files.

    source: a hash of the files behind them. DamagedError: a picture cannot be read. OSError: the
    disk is too full."""
    place, each = paths.image_store() / f"{name}-{source}", max(1, SHARD // (3 * width ** 2))
    starts = range(0, count, each)
    found = Shards([place / f"{number:05}.npy" for number in range(len(starts))],
                   [min(each, count - start) for start in starts], width)
    absent = [number for number in range(len(starts)) if not _whole(found, number)]
    if absent:
        _fill(found, place, absent, pictures())
    return found


def _whole(shards: Shards, number: int) -> bool:
    try:
        images = np.load(shards.files[number], mmap_mode="r")
    except Exception:  # missing, or whatever a damaged file raises
        return False
    return images.dtype == np.uint8 and images.shape == (shards.counts[number], *shards.shape[1:])


def _fill(shards: Shards, place: Path, absent: list[int], pictures: Pictures) -> None:
    """Decode the absent files. Processes that do so at once share them out: each takes files
    without a draft first, and the others last, since their process may be dead."""
    missing = sum(shards.counts[number] for number in absent)
    check_room(place.name, missing * 3 * shards.width ** 2)
    place.mkdir(exist_ok=True)
    clear_dead(place)
    with decoding_bar(place.name, len(shards), len(shards) - missing) as progress:
        while absent:
            taken = {draft.name.partition(".")[0] for draft in place.glob("*.draft-*")}
            number = next((number for number in absent if f"{number:05}" not in taken), absent[0])
            absent.remove(number)
            if _whole(shards, number):  # decoded by another process meanwhile
                progress.update(shards.counts[number])
                continue
            end, draft = shards.ends[number], draft_beside(place / f"{number:05}")
            chosen = range(end - shards.counts[number], end)
            try:
                decode(draft / "images.npy", shards.width, pictures, chosen, progress)
                os.replace(draft / "images.npy", shards.files[number])
            finally:
                shutil.rmtree(draft, ignore_errors=True)
