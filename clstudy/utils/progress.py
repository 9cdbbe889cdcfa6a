"""Progress with time left: a bar in a notebook or a terminal, plain lines where nobody watches, a
file for a sweep."""
import io
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from tqdm.auto import tqdm as automatic
from tqdm.std import tqdm as plain

from clstudy.utils.files import write_json

_FILE: ContextVar[Path | None] = ContextVar("file", default=None)  # where this run reports to


def bar(**options):
    """A tqdm bar. CLSTUDY_HEADLESS=1: a text line every 20 seconds; CLSTUDY_QUIET=1 (worker
    processes): none."""
    if _FILE.get() and options.get("unit") == "img":
        return _Reported(**{**options, "file": io.StringIO(), "mininterval": 1, "disable": False})
    if os.environ.get("CLSTUDY_QUIET"):
        return plain(**{**options, "disable": True})
    if os.environ.get("CLSTUDY_HEADLESS"):
        return plain(
            **{"mininterval": 20, "ascii": True, "file": sys.stdout, "ncols": 100, **options})
    return automatic(**{"mininterval": 0.5, **options})


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Until the end of the block the run of this process tells `path` how far it is; then the file
    goes."""
    before = _FILE.set(path)
    report()
    try:
        yield
    finally:
        _FILE.reset(before)
        path.unlink(missing_ok=True)


def report(share: float | None = None, left: float | None = None) -> None:
    """Say how far this process is: the share done, and the seconds left. Nothing where nobody
    asked."""
    if path := _FILE.get():
        about = {"host": platform.node(), "pid": os.getpid(), "share": share, "left": left}
        with suppress(OSError):  # a full disk: the run goes on, nobody sees how far it is
            write_json(path, about)


class _Reported(plain):
    """A bar that is a file. The first images that it sees at once were made before, by a run that
    is taken up."""

    first: tuple[float, float] | None = None

    def display(self, *_, **__) -> None:
        self.first = self.first or ((self.n, time.monotonic()) if self.n else None)
        made, taken = (self.n - self.first[0],
                       time.monotonic() - self.first[1]) if self.first else (0, 0)
        left = (self.total - self.n) * taken / made if self.total and made else None
        report(self.n / self.total if self.total else None, left)


def clock(seconds: float | None) -> str:
    """1:05 h, 2:10 min or 7 s."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"
