"""Fetching a published set: `clstudy data get NAME`. Nothing else writes into the folder of the
data.

A download that was cut off continues where it stopped; its md5 is compared with the published one;
the unpacked set is moved into place in one step, so it is whole or not there."""
import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from clstudy.data.benchmarks.datasets import SETS, Archive, missing
from clstudy.utils.paths import downloads
from clstudy.utils.progress import bar

CHUNK = 1 << 20  # bytes
# Python before 3.11.4 has no filters; "data" writes nothing outside of the folder, and no devices
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def get(name: str) -> Path:
    """Fetch a set unless it is there, and return its folder. OSError: what went wrong, and what to
    do."""
    one, target = SETS[name], downloads() / SETS[name].folder
    lacks = missing(name)
    if not lacks:
        return target
    if not one.archives:
        raise FileNotFoundError(f"{name} cannot be fetched: {one.by_hand}; "
                                f"it is looked for in {downloads()}")
    if target.exists():
        raise FileExistsError(f"{target} is not whole ({', '.join(lacks)} is missing): "
                              "move it away, then call again")
    staging = downloads() / f".getting-{name}"  # holds the archives until the set is in its place
    staging.mkdir(parents=True, exist_ok=True)
    files = [fetch(archive, staging) for archive in one.archives]
    unpacked = staging / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    for archive, file in zip(one.archives, files, strict=True):
        unpack(archive, file, unpacked / archive.into)
    lacks = missing(name, unpacked)
    if lacks:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(f"{names} in {staging} does not hold {', '.join(lacks)}")
    os.replace(unpacked / one.folder, target)
    shutil.rmtree(staging)
    return target


def fetch(archive: Archive, place: Path) -> Path:
    """Download a file into a folder, continue an earlier download, and check it.

    ConnectionError: out of reach, or cut off. OSError: another md5 than the published one, or a
    damaged zip."""
    file = place / archive.url.rpartition("/")[2]
    part = file.with_name(file.name + ".part")
    if file.exists():
        return file
    try:
        _download(archive.url, part)
    except OSError as error:  # urllib's errors are among them
        cure = f"Call again to continue, or put the file there by hand: {file}"
        raise ConnectionError(f"{archive.url}: {error}. {cure}") from error
    fault = _fault(part, archive.md5)
    if fault:
        part.unlink()
        raise OSError(f"{archive.url} {fault}; it was removed: call again")
    return part.replace(file)


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    onward = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "clstudy", **onward})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch
            return
        raise
    with response:
        have = have if response.status == 206 else 0  # a server without ranges begins anew
        left = response.headers.get("Content-Length")
        total = have + int(left) if left else None
        progress = bar(total=total, initial=have, unit="B", unit_scale=True,
                       desc=url.rpartition("/")[2])
        with open(part, "ab" if have else "wb") as out, progress:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"cut off after {part.stat().st_size:,} of {total:,} bytes")


def _fault(file: Path, md5: str) -> str:
    """Say what is wrong with a file: its md5, or the checksums inside a zip without md5; or ""."""
    if md5:
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "md5").hexdigest()
        return "" if found == md5 else f"has md5 {found}, not the published {md5}"
    try:
        with zipfile.ZipFile(file) as opened:
            whole = opened.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):  # what a damaged zip raises
        whole = False
    return "" if whole else "is not a whole zip"


def unpack(archive: Archive, file: Path, place: Path) -> None:
    """Unpack a zip or tar and the archive named in it; decompress a .gz; copy any other file."""
    place.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            opened.extractall(place)
    elif tarfile.is_tarfile(file):
        with tarfile.open(file) as opened:
            opened.extractall(place, **SAFELY)
    elif file.suffix == ".gz":
        with gzip.open(file) as opened, open(place / file.stem, "wb") as out:
            shutil.copyfileobj(opened, out)
    else:
        shutil.copy(file, place)
    if archive.inner:
        unpack(Archive("", ""), place / archive.inner, place)
        shutil.rmtree(place / Path(archive.inner).parts[0])
