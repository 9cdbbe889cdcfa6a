"""DomainNet (Peng et al. 2019, arXiv 1812.01754): 345 classes, each in six domains, with its
published lists.

    domainnet/<domain>/<class>/<picture>
    domainnet/<domain>_train.txt  <domain>_test.txt      rows `<domain>/<class>/<picture> <label>`

`clstudy data get domainnet` fetches it with the cleaned lists, which leave out what the original
ones hold twice. Both lists have the same form and names. With the stream `domains` and
order="given" the domains come in the order asked for; every other stream takes them all together.
The pictures need not fit in memory: see `shards.py`."""
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from clstudy.data import image_store
from clstudy.data.benchmarks.datasets import about_classes, again, how_to_get
from clstudy.data.benchmarks.imagenet import TEMPLATE, first_of_each, from_files
from clstudy.data.benchmarks.photographs import Count, Photographs, Template
from clstudy.data.image_shards import Shards, sharded
from clstudy.data.image_store import DamagedError
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.paths import downloads
from clstudy.utils.validation import choose

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
ORDERS = {
    "official": DOMAINS,  # that of its site; S-Prompts (Wang et al. 2022, arXiv 2207.12819) learns in it
    "cassle": ("real", "quickdraw", "painting", "sketch", "infograph",
               "clipart"),  # Fini et al. 2022, arXiv 2112.04215
}
TOTALS = {  # images in both lists of a domain, as its site gives them
    "cleaned": dict(zip(DOMAINS, (48_129, 51_605, 72_266, 172_500, 172_947, 69_128), strict=True)),
    "original": dict(zip(DOMAINS, (48_837, 53_201, 75_759, 172_500, 175_327, 70_386), strict=True)),
}
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Listing:
    """Rows of one list: files below domainnet/, with their classes."""

    files: list[str]
    labels: np.ndarray


@dataclass
class DomainNet(Photographs):
    """DomainNet (Peng et al. 2019, arXiv 1812.01754): 409,832 and 176,743 images of 345 classes in
    six domains.

    domains: their order, "official" or "cassle" (real first, clipart last), or a list of some of
    them. lists: whichever lies there must be named, as the runs differ. At 224 pixels the decoded
    images take 88 GB."""

    title: ClassVar[str] = "DomainNet"
    source: ClassVar[str] = "Peng et al. 2019, arXiv 1812.01754"
    prompt: ClassVar[str] = TEMPLATE

    domains: str | Sequence[str] = "official"  # their order, or some of them
    lists: Literal[tuple(TOTALS)] = "cleaned"  # which of the two that are published
    per_class: Count = None  # only so many images of each class in each domain; None: all
    template: Template = TEMPLATE  # prompt, with {} for the class

    def own(self) -> Sequence[str]:
        return ("domainnet",)

    def check(self) -> None:
        super().check()
        chosen = self.chosen()
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"domains={self.domains!r}: must be one domain or more, each once")

    def chosen(self) -> tuple[str, ...]:
        """The domains asked for, in order."""
        if isinstance(self.domains, str):
            return ORDERS[choose("domains", self.domains, ORDERS)]
        return tuple(choose("domains", name, DOMAINS) for name in self.domains)

    def require(self) -> None:
        """Refuse what can be seen without a look into the lists."""
        chosen = self.chosen()
        needed = [
            path for name in chosen for path in (name, *(f"{name}_{split}.txt" for split in SPLITS))
        ]
        lacks = [path for path in needed if not (downloads() / "domainnet" / path).exists()]
        if lacks:
            there = [name for name in chosen if not any(path.startswith(name) for path in lacks)]
            advice = f'; or take what is there: benchmark_args={{"domains": {there}}}' if there else ""
            raise FileNotFoundError(
                f"not in {downloads()}: domainnet ({', '.join(lacks)}). {how_to_get(['domainnet'])}; "
                f"CLSTUDY_DATA names another folder{advice}")
        self.require_held_out()

    def load(self) -> BenchmarkData:
        self.require()
        chosen = self.chosen()
        listings = {name: _listings(name, self.lists, self.per_class)
                    for name in chosen}  # before hours of decoding
        names = tuple(about_classes("domainnet")["classes"].values())

        def labelled(split: str) -> Labelled:
            parts = [listings[name][split] for name in chosen]
            images = [
                _images(name, split, part, self.size)
                for name, part in zip(chosen, parts, strict=True)
            ]
            where = np.repeat(np.arange(len(chosen)), [len(part.files) for part in parts])
            labels = np.concatenate([part.labels for part in parts])
            return Labelled(Shards.join(images), labels, names, self.template, where, chosen)

        train, prompts = labelled("train"), [self.template.format(name) for name in names]
        captions = tuple(prompts[label] for label in train.labels.tolist())
        return BenchmarkData("domainnet", train, labelled("test"), captions, {},
                             self.held_out_sets(self.template))


def _listings(domain: str, lists: str, per_class: int | None) -> dict[str, Listing]:
    """Both lists of a domain. DamagedError: they are not those asked for, or pictures of theirs are
    not there."""
    found = {split: _read(domain, split) for split in SPLITS}
    total, place = sum(len(one.files) for one in found.values()), downloads() / "domainnet"
    if total != TOTALS[lists][domain]:
        other = [name for name in TOTALS if TOTALS[name][domain] == total]
        cure = f"They are the {other[0]} ones: lists={other[0]!r}" if other else again("domainnet")
        raise DamagedError(
            f"domainnet: the lists of {domain} in {place} name {total:,} images, not the "
            f"{TOTALS[lists][domain]:,} of the {lists} lists. {cure}")
    there = {
        f"{domain}/{entry.name}/{name}" for entry in os.scandir(place / domain) if entry.is_dir()
        for name in os.listdir(entry.path)
    }
    lost = [file for one in found.values() for file in one.files if file not in there]
    if lost:
        raise DamagedError(
            f"domainnet: {len(lost):,} pictures of the lists of {domain} are not in {place}, the first "
            f"is {lost[0]}. {again('domainnet')}")
    return {split: _some(one, per_class) for split, one in found.items()}


def _some(found: Listing, per_class: int | None) -> Listing:
    if per_class is None:
        return found
    keep = first_of_each(found.labels, per_class)
    return Listing([found.files[i] for i in keep], found.labels[keep])


def _read(domain: str, split: str) -> Listing:
    """DamagedError: a row is not of the form, or its label is not that of its folder."""
    place, label = downloads() / "domainnet" / f"{domain}_{split}.txt", {}
    for number, key in enumerate(about_classes("domainnet")["classes"]):
        label[f"{domain}/{key}"] = str(number)
    files, labels = [], []
    try:
        lines = place.read_text().splitlines()
    except ValueError as error:  # no text
        raise DamagedError(f"{place} cannot be read ({error}). {again('domainnet')}") from None
    for number, line in enumerate(lines, 1):
        file, _, told = line.strip().rpartition(" ")
        if not told or label.get(file.rpartition("/")[0]) != told:
            raise DamagedError(
                f"{place}, line {number}: {line!r} is not `{domain}/<class>/<picture> <label>` with the "
                f"published label of a class. {again('domainnet')}")
        files.append(file)
        labels.append(int(told))
    return Listing(files, np.array(labels, np.int64))


def _images(domain: str, split: str, found: Listing, size: int) -> Shards:
    place = downloads() / "domainnet"
    folders = sorted({file.rpartition("/")[0] for file in found.files})
    times = [os.stat(place / one).st_mtime_ns for one in folders]
    source = image_store.digest([image_store.VERSION, times, found.files])
    return sharded(f"domainnet-{domain}-{split}-{size}", source, size, len(found.files),
                   lambda: from_files([place / file for file in found.files], again("domainnet")))
