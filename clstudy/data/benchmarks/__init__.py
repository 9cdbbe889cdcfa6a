"""Benchmarks by name. A benchmark is a function `(**options) -> Benchmark`; add yours to the dict."""
import inspect
from pathlib import Path
from typing import Any

from clstudy.data import image_store
from clstudy.data.benchmarks import coco, datasets, domainnet, emoji, folder, imagenet, mtil, sit_benchmarks

BENCHMARKS = {"emoji": emoji.emoji, "emoji_concepts": emoji.emoji_concepts,
              "emoji_styles": emoji.emoji_styles, "cifar10": sit_benchmarks.cifar10,
              "cifar100": sit_benchmarks.cifar100, "tiny_imagenet": sit_benchmarks.tiny_imagenet,
              "imagenet_r": sit_benchmarks.imagenet_r, "coco_crops": coco.coco_crops,
              "eurosat": coco.eurosat, "mtil": mtil.mtil, "folder": folder.folder,
              "imagenet": imagenet.imagenet, "domainnet": domainnet.domainnet}
CHECKS = {"coco_crops": coco.check_crops, "eurosat": coco.check_eurosat, "mtil": mtil.check, "folder": folder.check,
          "imagenet": imagenet.check, "domainnet": domainnet.check}


def check(name: str, options: dict[str, Any]) -> None:
    """Raise what the benchmark would raise for missing data or impossible options; nothing is decoded."""
    if name in CHECKS:
        CHECKS[name](**options)
    elif name in datasets.SETS:
        sit_benchmarks.check(name, **options)


def evidence(name: str, options: dict[str, Any]) -> list[str]:
    """What else than the options the benchmark's images and prompts depend on, for run_id.

    A folder: names, sizes and times of change of all its files. A published set: its class names and orders, and those
    of its side sets; its images are fixed by its publication, so that a run is known where the set is not."""
    if name == "folder":
        place = Path(options["path"])
        images = [image_store.fingerprint(place)] if place.is_dir() else []
        return images + _names(options.get("side", ()))
    own = {"coco_crops": ("coco",), "mtil": options.get("sets") or sorted(mtil.TEMPLATES)}.get(name, (name,))
    return _names((*own, *options.get("side", _default(name, "side")))) if set(own) <= set(datasets.SETS) else []


def _default(name: str, option: str):
    """What a benchmark takes for an option that is not given; () if it has no such option."""
    known = inspect.signature(BENCHMARKS[name]).parameters
    return known[option].default if option in known else ()


def _names(of) -> list[str]:
    about = [
        datasets.about_classes(name)
        for name in of
        if name in datasets.SETS and (datasets.NAMES / f"{name}.json").is_file()
    ]
    return [image_store.digest({key: value for key, value in one.items() if key != "source"}) for one in about]
