"""Progress with time left: a bar in a notebook or a terminal, plain lines where nobody watches."""
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from tqdm.auto import tqdm as automatic
from tqdm.std import tqdm as plain


def headless() -> bool:
    return bool(os.environ.get("CLSTUDY_HEADLESS"))


def bar(**options):
    """A tqdm bar; where nobody watches, a text line every 20 seconds."""
    if headless():
        return plain(**{"mininterval": 20, "ascii": True, "file": sys.stdout, "leave": True, "ncols": 100, **options})
    return automatic(**{"mininterval": 0.5, **options})


def track(items: Sequence, name: str, key: Callable = lambda item: None) -> Iterator:
    """Yield the items with a bar; those for which `key` finds something are counted as done beforehand."""
    done = sum(key(item) is not None for item in items)
    with bar(total=len(items), desc=f"{name} ({done} of {len(items)} exist)", unit=name.rstrip("s")) as shown:
        for item in items:
            yield item
            shown.update()
