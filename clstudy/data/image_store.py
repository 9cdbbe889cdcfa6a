"""Pictures decoded once: a memory-mapped uint8 array for each split of a set, so that the second
run starts at once.

    data/cache/decoded/<name>-<source>/images.npy  labels.npy  about.json

`source` is a hash of the files behind it, so the array of files that have changed is never read;
and the folder comes into being by a rename, so it is whole or not there. All of it may be deleted
at any time. CLSTUDY_CACHE names another place. Sets that are larger than memory go to many files
instead: `shards.py`."""
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
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
    """A data set is there, but cannot be read as it should be; the message names the file."""


@dataclass(frozen=True)
class Pictures:
    """Pictures as they lie on disk: `read(i)` gives one with its class, `where(i)` names its file
    for errors."""

    count: int
    read: Callable[[int], tuple[Image.Image, int]]
    where: Callable[[int], str]
    cure: str = ""  # what to do about one that cannot be read


def fingerprint(place: Path, *more) -> str:
    """Hash of the names, sizes and times of change of all files below a folder, hidden ones aside,
    and of `more`.

    Contents are not read: that would take minutes for a large set, at each start."""
    return digest([sorted(_files(os.fspath(place), "")), *more])


def size(place: Path) -> int:
    """Bytes of all files below a folder, hidden ones aside."""
    return sum(size for _, size, _ in _files(os.fspath(place), ""))


def digest(thing) -> str:
    """Sixteen hexadecimal digits of a plain value."""
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
    """Images (memory-mapped) and labels of a split. `pictures` is called only where they are not
    decoded yet.

    DamagedError: a picture cannot be read. OSError: the disk is too full."""
    place = paths.image_store() / f"{name}-{source}"
    found = _read(place, width)
    if found is None:
        _write(place, width, pictures())
        found = _read(place, width)
    return found


def _read(place: Path, width: int):
    """What stands there, or None where nothing does, or where it is torn."""
    try:
        # copy-on-write: torch wants memory that it may write to, and the file stays as it is
        images, labels = np.load(place / "images.npy", mmap_mode="c"), np.load(place / "labels.npy")
    except Exception:  # not there, or whatever a damaged file brings about
        return None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3, width, width):
        return None
    return torch.from_numpy(images), labels


def _write(place: Path, width: int, pictures: Pictures) -> None:
    check_room(place.name, pictures.count * 3 * width ** 2)
    clear_dead(place.parent)
    draft = place.with_name(f"{place.name}.draft-{platform.node()}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        with counted(place.name, pictures.count) as shown:
            np.save(draft / "labels.npy",
                    decode(draft / "images.npy", width, pictures, range(pictures.count), shown))
        about = {
            "name": place.name, "images": pictures.count, "width": width,
            "pillow": Image.__version__
        }
        (draft / "about.json").write_text(json.dumps(about))
        if _read(place, width) is None:
            shutil.rmtree(place, ignore_errors=True)  # a torn one
        try:
            draft.rename(place)
        except OSError:  # another process was first
            if _read(place, width) is None:
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def decode(path: Path, width: int, pictures: Pictures, chosen: range, shown) -> np.ndarray:
    """Write the pictures `chosen` to `path`; their labels. As many threads as torch uses: Pillow
    decodes beside Python.

    shown: a bar. DamagedError: one cannot be read."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (len(chosen), 3, width, width))
    labels = np.zeros(len(chosen), np.int64)

    def block(start: int) -> int:
        for row in range(start, min(start + BLOCK, len(chosen))):
            try:
                picture, labels[row] = pictures.read(chosen[row])
                images[row] = fit(picture, width)
            except Exception as error:
                why, where = f"{type(error).__name__}: {error}", pictures.where(chosen[row])
                raise DamagedError(
                    f"{where} cannot be read ({why}). {pictures.cure}".strip()) from error
        return min(BLOCK, len(chosen) - start)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in pool.map(block, range(0, len(chosen), BLOCK)):
            shown.update(done)
    images.flush()
    return labels


def counted(name: str, count: int, done: int = 0):
    """A bar for the decoding of `count` pictures of a split."""
    return bar(total=count, initial=done, unit="img", desc=f"decoding {name.rpartition('-')[0]}",
               leave=False)


def check_room(name: str, needed: int) -> None:
    """OSError: the disk has not so many bytes left."""
    paths.image_store().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(paths.image_store()).free
    if needed > free:
        raise OSError(
            f"{name} needs {needed / 1e9:.1f} GB in {paths.image_store()}, where {free / 1e9:.1f} GB are free;"
            " CLSTUDY_CACHE names another place")


def fit(picture: Image.Image, width: int) -> UInt8[np.ndarray, "3 width width"]:
    """The shorter side resized to `width` (bicubic), then the middle square: what CLIP's own
    preprocessing does."""
    picture = _rgb(picture)
    short, long = min(picture.size), max(picture.size)
    if short != width:
        sides = [width if side == short else int(width * long / short) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    left, top = (round((side - width) / 2) for side in picture.size)
    return np.asarray(picture.crop((left, top, left + width, top + width))).transpose(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    """Without transparency: on white."""
    if picture.mode[0] in "IF":
        raise ValueError(
            f"mode {picture.mode}: store it with 8 bits a channel")  # Pillow would clip it to white
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
