"""Decoded pictures: a memory-mapped uint8 array for each split of a set, so that the second run
starts at once.

    data/cache/decoded/<name>-<source>/images.npy  labels.npy  about.json

`source` is a hash of the files behind the array, so an array of files that have changed is never
read. A folder appears by a rename, so it is whole or not there. All of it may be deleted at any
time. CLSTUDY_CACHE names another place. Sets larger than memory go to many files instead:
`image_shards.py`."""
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from clstudy.utils import paths
from clstudy.utils.files import clear_dead
from clstudy.utils.progress import bar

VERSION = 1  # raised whenever `fit` comes to make other pixels
BLOCK = 64  # pictures that a thread takes at a time


class DamagedError(OSError):
    """A data set is there, but cannot be read; the message names the file."""

    @classmethod
    def unreadable(cls, what: str | Path, error: Exception, cure: str = "") -> "DamagedError":
        """Say what cannot be read, why, and what to do about it."""
        why = f"{type(error).__name__}: {error}"
        return cls(f"{what} cannot be read ({why}). {cure}".strip())


@dataclass(frozen=True)
class Pictures:
    """Pictures on disk: `read(i)` returns one with its class, `where(i)` names its file."""

    count: int
    read: Callable[[int], tuple[Image.Image, int]]
    where: Callable[[int], str]
    cure: str = ""  # what to do about a picture that cannot be read


def from_files(files: Sequence[Path], labels: Sequence[int] | np.ndarray, cure: str = "",
               change: Callable[[Image.Image], Image.Image] = lambda picture: picture) -> Pictures:
    """Return the pictures of a list of files, each with its class and after `change`."""

    def read(i: int) -> tuple[Image.Image, int]:
        with Image.open(files[i]) as picture:
            picture.load()
            return change(picture), int(labels[i])

    return Pictures(len(files), read, lambda i: str(files[i]), cure)


def fingerprint(place: Path, *more) -> str:
    """Hash `more` and the names, sizes and times of change of all files in a folder, except hidden
    ones. Contents are not read: that would take minutes for a large set, at each start."""
    return digest([sorted(_files(os.fspath(place), "")), *more])


def size(place: Path) -> int:
    """Return the bytes of all files in a folder, except hidden ones."""
    return sum(size for _, size, _ in _files(os.fspath(place), ""))


def digest(thing) -> str:
    """Hash a plain value to sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(thing).encode()).hexdigest()[:16]


def _files(place: str, above: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{above}{entry.name}/")
            else:
                stat = entry.stat()
                yield above + entry.name, stat.st_size, stat.st_mtime_ns


def decoded(name: str, source: str, width: int, pictures: Callable[[], Pictures]
            ) -> tuple[UInt8[Tensor, "images 3 width width"], Int[np.ndarray, " images"]]:
    """Return images (memory-mapped) and labels of a split; `pictures` is called only to decode them
    the first time.

    DamagedError: a picture cannot be read. OSError: the disk is too full."""
    place = paths.image_store() / f"{name}-{source}"
    if _read(place, width) is None:
        _write(place, width, pictures())
    return _read(place, width)


def _read(place: Path, width: int):
    """Return images and labels, or None where they are missing or damaged."""
    try:
        # copy-on-write: torch wants memory that it may write to, and the file stays as it is
        images, labels = np.load(place / "images.npy", mmap_mode="c"), np.load(place / "labels.npy")
    except Exception:  # whatever a damaged file raises
        return None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3, width, width):
        return None
    return torch.from_numpy(images), labels


def _write(place: Path, width: int, pictures: Pictures) -> None:
    check_room(place.name, pictures.count * 3 * width ** 2)
    clear_dead(place.parent)
    draft = draft_beside(place)
    try:
        with decoding_bar(place.name, pictures.count) as progress:
            labels = decode(draft / "images.npy", width, pictures, range(pictures.count), progress)
        np.save(draft / "labels.npy", labels)
        about = {"name": place.name, "images": pictures.count, "width": width,
                 "pillow": Image.__version__}
        (draft / "about.json").write_text(json.dumps(about))
        if _read(place, width) is None:
            shutil.rmtree(place, ignore_errors=True)  # a damaged one
        try:
            draft.rename(place)
        except OSError:  # another process was first
            if _read(place, width) is None:
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_beside(place: Path) -> Path:
    """Make an empty folder beside a path that names this process, for `clear_dead`."""
    draft = place.with_name(f"{place.name}.draft-{platform.node()}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def decode(path: Path, width: int, pictures: Pictures, chosen: range, progress) -> np.ndarray:
    """Decode the pictures `chosen` into the array file `path`, and return their labels.

    It takes as many threads as torch uses, since Pillow decodes outside Python's lock. progress: a
    bar. DamagedError: a picture cannot be read."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (len(chosen), 3, width, width))
    labels = np.zeros(len(chosen), np.int64)

    def block(start: int) -> int:
        rows = range(start, min(start + BLOCK, len(chosen)))
        for row in rows:
            try:
                picture, labels[row] = pictures.read(chosen[row])
                images[row] = fit(picture, width)
            except Exception as error:
                where = pictures.where(chosen[row])
                raise DamagedError.unreadable(where, error, pictures.cure) from error
        return len(rows)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in pool.map(block, range(0, len(chosen), BLOCK)):
            progress.update(done)
    images.flush()
    return labels


def decoding_bar(name: str, count: int, done: int = 0):
    """Return a progress bar for the decoding of `count` pictures of a split."""
    return bar(total=count, initial=done, unit="img", desc=f"decoding {name.rpartition('-')[0]}",
               leave=False)


def check_room(name: str, needed: int) -> None:
    """Raise an OSError if the disk has less than `needed` bytes left."""
    place = paths.image_store()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(f"{name} needs {needed / 1e9:.1f} GB in {place}, where {free / 1e9:.1f} GB "
                      "are free; CLSTUDY_CACHE names another place")


def fit(picture: Image.Image, width: int) -> UInt8[np.ndarray, "3 width width"]:
    """Resize the shorter side to `width` (bicubic) and cut out the middle square, as CLIP does."""
    picture = _rgb(picture)
    short, long = min(picture.size), max(picture.size)
    if short != width:
        sides = [width if side == short else int(width * long / short) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    left, top = (round((side - width) / 2) for side in picture.size)
    return np.asarray(picture.crop((left, top, left + width, top + width))).transpose(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    """Lay a transparent picture on white."""
    if picture.mode[0] in "IF":  # Pillow would clip it to white
        raise ValueError(f"mode {picture.mode}: store it with 8 bits a channel")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
