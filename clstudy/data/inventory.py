"""Which published data sets are on this machine, and how to get the others: `clstudy data`."""
from clstudy.data import image_store
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.benchmarks.datasets import SETS, missing
from clstudy.utils import paths


def report() -> str:
    """Return a line for each published set, and the size of the decoded images."""
    lines = [f"looked for in {paths.downloads()} (CLSTUDY_DATA names another folder)", ""]
    for name, one in SETS.items():
        use = "benchmark" if name in BENCHMARKS else one.use
        lines.append(f"{name:20} {use:12} {_state(name)}")
    decoded = paths.image_store()
    size = image_store.size(decoded) / 1e9 if decoded.is_dir() else 0
    return "\n".join([*lines, "", f"decoded images: {size:.2f} GB in {decoded} (CLSTUDY_CACHE "
                                  "names another folder; may be deleted at any time)"])


def _state(name: str) -> str:
    one, lacks = SETS[name], missing(name)
    place, get = paths.downloads() / one.folder, f"`clstudy data get {name}`"
    if not lacks:
        return f"found    {image_store.size(place) / 1e9:6.2f} GB  {place}"
    if place.exists():
        cure = f"move it away, then {get}" if one.archives else one.by_hand
        return f"PARTLY             {place} lacks {', '.join(lacks)}: {cure}"
    size = f"{one.megabytes / 1000:.2f} GB"
    return f"missing            {f'{get} fetches {size}' if one.archives else one.by_hand}"
