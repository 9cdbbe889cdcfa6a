"""DomainNet (Peng et al. 2019, arXiv 1812.01754): 345 classes, each in six domains, with its
published lists.

    domainnet/<domain>/<class>/<picture>
    domainnet/<domain>_train.txt  <domain>_test.txt      rows `<domain>/<class>/<picture> <label>`

`clstudy data get domainnet` fetches it with the cleaned lists, which leave out what the original
ones hold twice. Both lists have the same form and names. With the stream `domains` and
order="given" the domains come in the order asked for; every other stream takes them all together.
The pictures need not fit in memory: see `image_shards.py`."""
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from clstudy.data.benchmarks.datasets import about_classes, again, missing, refuse
from clstudy.data.benchmarks.imagenet import TEMPLATE
from clstudy.data.benchmarks.photographs import Count, Listing, Photographs, Template
from clstudy.data.image_shards import Shards
from clstudy.data.image_store import DamagedError
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.utils.paths import downloads
from clstudy.utils.validation import choose

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
ORDERS = {
    "official": DOMAINS,  # of its site; S-Prompts (Wang et al. 2022, arXiv 2207.12819) uses it
    # Fini et al. 2022, arXiv 2112.04215
    "cassle": ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"),
}
TOTALS = {  # images in both lists of a domain, as its site gives them
    "cleaned": dict(zip(DOMAINS, (48_129, 51_605, 72_266, 172_500, 172_947, 69_128), strict=True)),
    "original": dict(zip(DOMAINS, (48_837, 53_201, 75_759, 172_500, 175_327, 70_386), strict=True)),
}
SPLITS = ("train", "test")


@dataclass
class DomainNet(Photographs):
    """DomainNet (Peng et al. 2019, arXiv 1812.01754): 409,832 and 176,743 images of 345 classes in
    six domains.

    domains: their order, "official" or "cassle" (real first, clipart last), or a list of some of
    them. lists: which of the two published lists are on disk. At 224 pixels the decoded images take
    88 GB."""

    title: ClassVar[str] = "DomainNet"
    source: ClassVar[str] = "Peng et al. 2019, arXiv 1812.01754"
    of: ClassVar[str] = "domainnet"
    prompt: ClassVar[str] = TEMPLATE

    domains: str | Sequence[str] = "official"  # their order, or some of them
    lists: Literal[tuple(TOTALS)] = "cleaned"  # which of the two published ones are on disk
    per_class: Count = None  # only so many images of each class in each domain; None: all
    template: Template = TEMPLATE  # prompt, with {} for the class

    def check(self) -> None:
        super().check()
        chosen = self.chosen()
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"domains={self.domains!r}: must be one domain or more, each once")

    def chosen(self) -> tuple[str, ...]:
        """Return the domains asked for, in order."""
        if isinstance(self.domains, str):
            return ORDERS[choose("domains", self.domains, ORDERS)]
        return tuple(choose("domains", name, DOMAINS) for name in self.domains)

    def require(self) -> None:
        """Refuse missing data without a look into the lists."""
        chosen, absent = self.chosen(), missing("domainnet")
        absent = {name: [path for path in absent if f"/{name}" in path] for name in chosen}
        there = [name for name, paths in absent.items() if not paths]
        advice = f'; or take what is there: benchmark_args={{"domains": {there}}}' if there else ""
        refuse({"domainnet": sum(absent.values(), [])}, advice)
        self.require_held_out()

    def load(self) -> BenchmarkData:
        self.require()
        chosen = self.chosen()
        # all listings, before hours of decoding
        listings = {name: _listings(name, self.lists) for name in chosen}
        names = tuple(about_classes("domainnet")["classes"].values())

        def labelled(split: str) -> Labelled:
            parts = [listings[name][split].first(self.per_class) for name in chosen]
            images = [part.decoded(f"domainnet-{name}-{split}", self.size)
                      for name, part in zip(chosen, parts, strict=True)]
            domains = np.repeat(np.arange(len(chosen)), [len(part.files) for part in parts])
            labels = np.concatenate([part.labels for part in parts])
            return Labelled(Shards.join(images), labels, names, self.template, domains, chosen)

        train, test = labelled("train"), labelled("test")
        return BenchmarkData("domainnet", train, test, train.prompts(), {},
                             self.held_out_sets(self.template))


def _listings(domain: str, lists: str) -> dict[str, Listing]:
    """Read both lists of a domain. DamagedError: they are other lists, or pictures are missing."""
    found = {split: _read(domain, split) for split in SPLITS}
    files, place = [file for one in found.values() for file in one.files], downloads() / "domainnet"
    if len(files) != TOTALS[lists][domain]:
        other = [name for name in TOTALS if TOTALS[name][domain] == len(files)]
        cure = f"They are the {other[0]} ones: lists={other[0]!r}" if other else again("domainnet")
        raise DamagedError(
            f"domainnet: the lists of {domain} in {place} name {len(files):,} images, not the "
            f"{TOTALS[lists][domain]:,} of the {lists} lists. {cure}")
    there = {f"{domain}/{folder.name}/{name}" for folder in os.scandir(place / domain)
             if folder.is_dir() for name in os.listdir(folder)}
    lost = [file for file in files if file not in there]
    if lost:
        raise DamagedError(
            f"domainnet: {len(lost):,} pictures of the lists of {domain} are not in {place}, the "
            f"first is {lost[0]}. {again('domainnet')}")
    return found


def _read(domain: str, split: str) -> Listing:
    """Read one list. DamagedError: a row has another form, or its label is not its folder's."""
    place, cure = downloads() / "domainnet" / f"{domain}_{split}.txt", again("domainnet")
    keys = about_classes("domainnet")["classes"]
    label = {f"{domain}/{key}": str(number) for number, key in enumerate(keys)}
    files, labels = [], []
    try:
        lines = place.read_text().splitlines()
    except ValueError as error:  # no text
        raise DamagedError.unreadable(place, error, cure) from None
    for number, line in enumerate(lines, 1):
        file, _, told = line.strip().rpartition(" ")
        if not told or label.get(file.rpartition("/")[0]) != told:
            raise DamagedError(
                f"{place}, line {number}: {line!r} is not `{domain}/<class>/<picture> <label>` "
                f"with the published label of a class. {cure}")
        files.append(file)
        labels.append(int(told))
    return Listing("domainnet", files, np.array(labels, np.int64))
