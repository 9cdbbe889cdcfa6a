"""Fetching a published set: `clstudy data get NAME`. Nothing else writes into the folder of the
data.

An archive that was cut off is gone on with; its md5 is compared with the published one; what is
unpacked is moved into place in one step, so a set is there whole or not at all."""
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


def get(name: str) -> Path:
    """Fetch a set, if it is not there; the folder that holds it. OSError: what went wrong, and what
    to do."""
    one, target = SETS[name], downloads() / SETS[name].folder
    if not missing(name):
        return target
    if not one.archives:
        raise FileNotFoundError(
            f"{name} is not fetched: {one.by_hand}; it is looked for in {downloads()}")
    if target.exists():
        raise FileExistsError(
            f"{target} is not whole ({', '.join(missing(name))} is missing): move it away, then call "
            "again")
    staging = downloads(
    ) / f".getting-{name}"  # archives stay in it until the set stands in its place
    staging.mkdir(parents=True, exist_ok=True)
    fetched = [(archive, fetch(archive, staging)) for archive in one.archives]
    unpacked = staging / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    for archive, file in fetched:
        unpack(archive, file, unpacked / archive.into)
    if missing(name, unpacked):
        raise FileNotFoundError(
            f"{', '.join(file.name for _, file in fetched)} in {staging} does not hold "
            f"{', '.join(missing(name, unpacked))}")
    os.replace(unpacked / one.folder, target)
    shutil.rmtree(staging)
    return target


def fetch(archive: Archive, place: Path) -> Path:
    """Download a file into a folder, going on where an earlier call was cut off; it stands there
    when its md5 is right.

    ConnectionError: out of reach, or cut off. OSError: another md5 than the published one, or a
    torn zip."""
    file = place / archive.url.rpartition("/")[2]
    part = file.with_name(file.name + ".part")
    if file.exists():
        return file
    try:
        _download(archive.url, part)
    except OSError as error:  # urllib's errors are among them
        cure = f"Call again to go on, or put the file there by hand: {file}"
        raise ConnectionError(f"{archive.url}: {error}. {cure}") from error
    found = _md5(part) if archive.md5 else ""
    if found != archive.md5 or not (archive.md5 or _whole_zip(part)):
        part.unlink()
        fault = f"has md5 {found}, not the published {archive.md5}" if archive.md5 else "is not a whole zip"
        raise OSError(f"{archive.url} {fault}; it was removed: call again")
    os.replace(part, file)
    return file


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
        have = have if response.status == 206 else 0  # a server that knows no ranges begins anew
        left = response.headers.get("Content-Length")
        total = have + int(left) if left else None
        with open(part, "ab" if have else "wb") as out, bar(total=total, initial=have, unit="B",
                                                            unit_scale=True,
                                                            desc=url.rpartition("/")[2]) as shown:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                shown.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"cut off after {part.stat().st_size:,} of {total:,} bytes")


def _md5(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _whole_zip(file: Path) -> bool:
    """Whether a zip agrees with the checksums in it."""
    try:
        with zipfile.ZipFile(file) as opened:
            return opened.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):  # all that a torn one makes zipfile raise
        return False


def unpack(archive: Archive, file: Path, place: Path) -> None:
    """Unpack an archive, and the one in it if that is asked for; a file that is none is copied, and
    one that is only compressed (.gz) is decompressed."""
    place.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            opened.extractall(place)
    elif tarfile.is_tarfile(file):
        with tarfile.open(file) as opened:  # "data": nothing outside of the folder, no devices
            opened.extractall(place,
                              **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    elif file.suffix == ".gz":
        with gzip.open(file) as opened, open(place / file.stem, "wb") as out:
            shutil.copyfileobj(opened, out)
    else:
        shutil.copy(file, place)
    if archive.inner:
        unpack(Archive("", ""), place / archive.inner, place)
        shutil.rmtree(place / Path(archive.inner).parts[0])
