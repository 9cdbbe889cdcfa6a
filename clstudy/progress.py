"""Progress with time left: a bar in a notebook or a terminal, plain lines where nobody watches."""
import os
import sys

from tqdm.auto import tqdm as automatic
from tqdm.std import tqdm as plain


def bar(**options):
    """A tqdm bar. CLSTUDY_HEADLESS=1: a text line every 20 seconds; CLSTUDY_QUIET=1 (worker processes): none."""
    if os.environ.get("CLSTUDY_QUIET"):
        return plain(**{**options, "disable": True})
    if os.environ.get("CLSTUDY_HEADLESS"):
        return plain(**{"mininterval": 20, "ascii": True, "file": sys.stdout, "ncols": 100, **options})
    return automatic(**{"mininterval": 0.5, **options})
