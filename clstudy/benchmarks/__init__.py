"""Benchmarks by name. A benchmark is a function `(**options) -> Benchmark`; add yours to the dict."""
from pathlib import Path
from typing import Any

from .. import cache
from . import emoji, folder, published, sets

BENCHMARKS = {"emoji": emoji.emoji, "emoji_concepts": emoji.emoji_concepts, "cifar10": published.cifar10,
              "cifar100": published.cifar100, "tiny_imagenet": published.tiny_imagenet,
              "imagenet_r": published.imagenet_r, "folder": folder.folder}


def check(name: str, options: dict[str, Any]) -> None:
    """Raise what the benchmark would raise for missing data or impossible options; nothing is decoded."""
    if name in sets.SETS:
        published.check(name, **options)
    elif name == "folder":
        folder.check(**options)


def evidence(name: str, options: dict[str, Any]) -> list[str]:
    """What else than the options the benchmark's images and prompts depend on, for run_id.

    A folder: names, sizes and times of change of all its files. A published set: its class names and orders, and those
    of its side sets; its images are fixed by its publication, so that a run is known where the set is not."""
    if name == "folder":
        place = Path(options["path"])
        images = [cache.fingerprint(place)] if place.is_dir() else []
        return images + _names(options.get("side", ()))
    return _names((name, *options.get("side", sets.SIDE))) if name in sets.SETS else []


def _names(of) -> list[str]:
    about = [sets.about_classes(name) for name in of if name in sets.SETS]
    return [cache.digest({key: value for key, value in one.items() if key != "source"}) for one in about]
