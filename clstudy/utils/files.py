"""Files that are whole or not there, and fingerprints of files."""
import hashlib
import json
import os
import platform
import shutil
import uuid
from functools import lru_cache
from pathlib import Path


def fingerprint(path: Path) -> str:
    """sha256 of a file, remembered while the file is unchanged."""
    stat = path.stat()
    return _fingerprint(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_dead(runs: Path) -> None:
    """Remove drafts `NAME.draft-HOST-PID` of processes of this machine that are no more: those of
    caches, for a run's draft bears no process in its name and is taken up."""
    for draft in runs.glob(f"*.draft-{platform.node()}-*"):
        try:
            os.kill(int(draft.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(draft, ignore_errors=True)
        except (PermissionError, ValueError):  # somebody else's, or not ours
            continue


def write_json(path: Path, content: dict) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> Path:
    """Write a text file (UTF-8), whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        return draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
