"""Files that are written whole or not at all, and fingerprints of files."""
import hashlib
import json
import os
import platform
import shutil
import uuid
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, which is computed again only after the file changed."""
    stat = path.stat()
    return _fingerprint(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def clear_dead(folder: Path) -> None:
    """Remove the drafts `NAME.draft-HOST-PID` of processes of this machine that have ended.

    The drafts of runs have no process in their name and stay: runs resume from them."""
    for draft in folder.glob(f"*.draft-{platform.node()}-*"):
        try:
            os.kill(int(draft.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(draft, ignore_errors=True)
        except (PermissionError, ValueError):  # another user's process, or no draft of ours
            continue


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> Path:
    """Write a text file (UTF-8), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        return draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
