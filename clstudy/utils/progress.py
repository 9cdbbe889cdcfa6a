"""Progress with time left: a bar in a notebook or terminal, lines in a log, a file in a sweep."""
import io
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm as automatic
from tqdm.std import tqdm as plain

from clstudy.utils import paths
from clstudy.utils.files import write_json

_FILE: ContextVar[Path | None] = ContextVar("file", default=None)  # where this run reports to


class Progress:
    """What the training loop tells while it goes on. This base class ignores it."""

    def begin(self, position: Any, probes: Any, total: int) -> None:
        """Start. position and probes: what the loop fills with rows; total: images of the run."""

    def update(self, images: int) -> None:
        """Take note of a batch of so many images; at the start, of the images before resuming."""

    def close(self) -> None:
        """End, after the last evaluation."""


class ImageBar(Progress):
    """A bar over all images of a run."""

    def __init__(self, title: str):
        self.title = title

    def begin(self, position: Any, probes: Any, total: int) -> None:
        self.bar = bar(total=total, unit="img", desc=self.title, leave=False)

    def update(self, images: int) -> None:
        self.bar.update(images)

    def close(self) -> None:
        self.bar.close()


def bar(**options):
    """Return a tqdm bar with these options; a line every 20 seconds if headless, none if quiet."""
    if _FILE.get() and options.get("unit") == "img":
        return _Reported(**{**options, "file": io.StringIO(), "mininterval": 1, "disable": False})
    if paths.quiet():
        return plain(**{**options, "disable": True})
    if paths.headless():
        lines = {"mininterval": 20, "ascii": True, "file": sys.stdout, "ncols": 100}
        return plain(**{**lines, **options})
    return automatic(**{"mininterval": 0.5, **options})


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Keep the progress of this process's run in the file `path` until the block ends."""
    before = _FILE.set(path)
    report()
    try:
        yield
    finally:
        _FILE.reset(before)
        path.unlink(missing_ok=True)


def report(share: float | None = None, left: float | None = None) -> None:
    """Write the share done and the seconds left into the file of `reporting`, if there is one."""
    if path := _FILE.get():
        about = {"host": platform.node(), "pid": os.getpid(), "share": share, "left": left}
        with suppress(OSError):  # a full disk: the run goes on, nobody sees how far it is
            write_json(path, about)


class _Reported(plain):
    """A bar that writes to the file of `reporting`.

    Time left counts from the first update: a resumed run gets its earlier images there."""

    first: tuple[float, float] | None = None

    def display(self, *_, **__) -> None:
        now = self.n, time.monotonic()
        self.first = self.first or (now if self.n else None)
        images, seconds = (b - a for a, b in zip(self.first or now, now, strict=True))
        left = (self.total - self.n) * seconds / images if self.total and images else None
        report(self.n / self.total if self.total else None, left)


def clock(seconds: float | None) -> str:
    """Return a duration as 1:05 h, 2:10 min or 7 s; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{rest_minutes:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
