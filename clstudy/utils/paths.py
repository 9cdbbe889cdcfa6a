"""Every folder of the project, and the variables that move them: CLSTUDY_RUNS, CLSTUDY_FIGURES,
CLSTUDY_DATA, CLSTUDY_CACHE.

Modules read them here when they need them (`paths.RUNS`), so that one assignment moves a folder for
all."""
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "clstudy"
DATA = REPOSITORY / "data"
NOTEBOOKS = REPOSITORY / "notebooks"
FIGURES = Path(os.environ.get("CLSTUDY_FIGURES") or REPOSITORY / "figures")
RUNS = Path(os.environ.get("CLSTUDY_RUNS") or REPOSITORY / "runs")
EMBEDDED = {"icon-clip": DATA / "icon-clip"}  # models that come with the repository


def downloads() -> Path:
    """Where the published data sets are looked for, laid out as torchvision lays them out."""
    return Path(os.environ.get("CLSTUDY_DATA") or DATA / "cache" / "downloads").expanduser()


def image_store() -> Path:
    """Where decoded images are stored. All of it may be deleted at any time."""
    return Path(os.environ.get("CLSTUDY_CACHE") or DATA / "cache" / "decoded").expanduser()
