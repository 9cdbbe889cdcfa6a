"""Every folder of the project, and every environment variable that the package reads.

    CLSTUDY_RUNS        folder of the runs (default: runs/)
    CLSTUDY_FIGURES     folder of the figures (default: figures/)
    CLSTUDY_DATA        folder of the published data sets (default: data/cache/downloads/)
    CLSTUDY_CACHE       folder of decoded images (default: data/cache/decoded/)
    CLSTUDY_HEADLESS    1: nobody watches; progress is lines of text, widgets are static figures
    CLSTUDY_QUIET       1: show no progress, as in worker processes
    CLSTUDY_CORES       number of cores that this process may use (default: all)
    CLSTUDY_STORED      a file of packed runs, or 1 for figures/runs.parquet: runs are taken from it
    CLSTUDY_ASKED       a file that lists the runs that notebooks ask for
    CLSTUDY_SAVE_EVERY  seconds between two saved states of a run (default: 60; 0: at stage ends)

Other modules read a folder when they need it (`paths.RUNS`), so that one assignment moves it for
all."""
import os
from pathlib import Path

HEADLESS, QUIET, CORES = "CLSTUDY_HEADLESS", "CLSTUDY_QUIET", "CLSTUDY_CORES"
STORED, ASKED = "CLSTUDY_STORED", "CLSTUDY_ASKED"

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "clstudy"
DATA = REPOSITORY / "data"
NOTEBOOKS = REPOSITORY / "notebooks"
FIGURES = Path(os.environ.get("CLSTUDY_FIGURES") or REPOSITORY / "figures")
EVIDENCE = REPOSITORY / "figures" / "runs.parquet"  # the runs behind the committed figures
RUNS = Path(os.environ.get("CLSTUDY_RUNS") or REPOSITORY / "runs")
EMBEDDED = {"icon-clip": DATA / "icon-clip"}  # models that come with the repository


def downloads() -> Path:
    """Return the folder of the published data sets, which torchvision's layout divides."""
    return Path(os.environ.get("CLSTUDY_DATA") or DATA / "cache" / "downloads").expanduser()


def image_store() -> Path:
    """Return the folder of decoded images. All of it may be deleted at any time."""
    return Path(os.environ.get("CLSTUDY_CACHE") or DATA / "cache" / "decoded").expanduser()


def headless() -> bool:
    """Return whether nobody is there to watch a bar or move a slider: `clstudy run`, tests."""
    return bool(os.environ.get(HEADLESS))


def quiet() -> bool:
    """Return whether to show no progress at all."""
    return bool(os.environ.get(QUIET))


def core_limit() -> int | None:
    """Return the number of cores that this process may use; None: all of them."""
    given = os.environ.get(CORES, "")
    return int(given) or None if given.isdigit() else None


def stored() -> Path | None:
    """Return the file of packed runs that stands for training; None: runs are made."""
    given = os.environ.get(STORED)
    return None if not given or given == "0" else EVIDENCE if given == "1" else Path(given)


def asked() -> Path | None:
    """Return the file that lists the runs asked for; None: nobody keeps a list."""
    return Path(os.environ[ASKED]) if os.environ.get(ASKED) else None


def save_every() -> str | float:
    """Return the seconds between two saved states, as they were given."""
    return os.environ.get("CLSTUDY_SAVE_EVERY") or 60.0


def variables() -> dict[str, str]:
    """Return the CLSTUDY_* variables of this process, for its workers."""
    return {name: value for name, value in os.environ.items() if name.startswith("CLSTUDY_")}
