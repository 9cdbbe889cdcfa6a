"""Measure what the embedded worlds can show, before methods are compared in them, and write the
tables of `docs/worlds.md`.

    python scripts/worlds.py               # all; half an hour on one core, finished runs are reused
    python scripts/worlds.py emoji_kinds   # makes the runs of worlds whose name begins so

For each world: how large it is, what frozen CLIP and rules without training reach, what joint
training reaches, and what is forgotten over a stream. Free numbers (weight of a mix, strength of
the ridge) are chosen on validation images.
"""
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clstudy import RunConfig, load_clip, load_or_train
from clstudy.analysis.scores import metrics_of
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.streams import STREAMS, away_from_home
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.evaluation.accuracy import zero_shot
from clstudy.evaluation.features import Cache, class_features, features

PAGE = Path(__file__).parents[1] / "docs" / "worlds.md"
BLURRED = {"tasks": 5, "disjoint_share": 0, "blurry_share": 50, "random_sizes": False}
FIVE = {"tasks": 5}
SEEDS = range(8)  # of the streams whose share away from home is measured
RIDGES = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class World:
    """A benchmark with options, and the runs that show its headroom.

    runs: stream, its options, method, its options, rates. shared: settings of all runs. held_out:
    what the runs measure beside the test set."""

    benchmark: str
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[tuple[str, Mapping, str, Mapping, tuple[float, ...]], ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()

    def load(self, split: str = "test") -> BenchmarkData:
        return BENCHMARKS[self.benchmark](**self.options, split=split).load()

    def configs(self) -> list[RunConfig]:
        options = {**self.options, "held_out": list(self.held_out)}
        return [RunConfig(benchmark=self.benchmark, benchmark_args=options, stream=stream,
                          stream_args=dict(how), tuner="full", method=method,
                          method_args=dict(what), lr=lr, precision="bf16", held_out_every=100,
                          **self.shared)
                for stream, how, method, what, rates in self.runs for lr in rates]


OTHER = ("validation", "other classes", "validation, other classes")
UNTOUCHED = ("faces and people", "symbols", "flags")
JOINT = ("joint", {}, "finetune", {})
WORLDS = {
    "emoji_kinds": World("emoji_kinds", {}, (
        (*JOINT, (3e-5, 1e-4, 3e-4)),
        ("disjoint", FIVE, "finetune", {}, (3e-5, 1e-4)),
        ("si_blurry", BLURRED, "finetune", {}, (1e-4,)),
        ("si_blurry", BLURRED, "sit", {"size": 245}, (1e-4,)),
    ), {}, ("validation",)),
    "emoji_kinds, two groups updated": World("emoji_kinds", {"update": ["food-drink", "objects"]}, (
        (*JOINT, (3e-5, 1e-4, 3e-4)),
        ("disjoint", FIVE, "finetune", {}, (3e-5, 1e-4)),
    ), {"epochs": 2}, (*OTHER, *UNTOUCHED)),
    "emoji_kinds, one drawing in four": World(
        "emoji_kinds", {"train_drawings": 1, "update": ["animals-nature", "travel-places",
                                                        "food-drink", "activities"]}, (
            (*JOINT, (3e-5, 1e-4)),
            ("disjoint", FIVE, "finetune", {}, (3e-5,)),
            ("domains", {}, "finetune", {}, (3e-5,)),
        ), {"epochs": 20, "steps_per_batch": 1}, OTHER),
    "emoji": World("emoji", {"validation_share": 0.1}, ((*JOINT, (1e-4,)),)),
    "emoji_concepts": World("emoji_concepts", {"validation_share": 0.1}),
    "emoji_concepts, animals": World(
        "emoji_concepts", {"validation_share": 0.1, "update": ["animals-nature"]},
        ((*JOINT, (1e-4,)),), {"epochs": 4}),
    "emoji_styles": World("emoji_styles", {"validation_share": 0.1}),
}


def size(world: World, data: BenchmarkData, checked: Labelled) -> dict[str, Any]:
    """Count classes and images; measure how much of the blurred stream arrives away from home."""
    tested = np.bincount(data.test.labels, minlength=len(data.test.class_names))
    away = ""
    for how in {stream: how for stream, how, *_ in world.runs if stream == "si_blurry"}.values():
        shares = [away_from_home(STREAMS["si_blurry"](**how).stages(data.train.labels, seed),
                                 data.train.labels) for seed in SEEDS]
        away = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
    other = data.held_out.get("other classes")
    return {"classes": len(tested), "train": len(data.train), "validation": len(checked),
            "test": len(data.test), "smallest class": int(tested.min()),
            "classes with 20 tests": int((tested >= 20).sum()),
            "other classes": len(other) if other else 0,
            "retrieval": len(data.retrieval["drawings"]), "away from home": away}


def without_training(clip, data: BenchmarkData, checked: Labelled, cache: Cache
                     ) -> dict[str, float]:
    """Return the accuracy of frozen CLIP, and of rules on its features, in percent."""
    known, labels = features(clip, data.train.images, cache), torch.from_numpy(data.train.labels)
    text = class_features(clip, data.train.class_names, data.train.template)
    one_hot = torch.nn.functional.one_hot(labels, len(text)).float()
    means = torch.nn.functional.normalize(one_hot.T @ known, dim=1)
    gram, target = known.T @ known, known.T @ one_hot
    ridges = [torch.linalg.solve(gram + each * torch.eye(len(gram)), target).T for each in RIDGES]
    mixes = [each * means + (1 - each) * text for each in torch.linspace(0, 1, 11)]

    def accuracy(rows: torch.Tensor, of, owner: torch.Tensor | None = None) -> float:
        best = (features(clip, of.images, cache) @ rows.T).argmax(1)
        best = best if owner is None else owner[best]
        return 100 * float((best == torch.from_numpy(of.labels)).float().mean())

    def chosen(candidates: list[torch.Tensor]) -> float:
        best = int(np.argmax([accuracy(rows, checked) for rows in candidates]))
        return accuracy(candidates[best], data.test)

    other = data.held_out.get("other classes")
    return {"frozen": accuracy(text, data.test), "class means": accuracy(means, data.test),
            "means + text": chosen(mixes), "nearest neighbour": accuracy(known, data.test, labels),
            "ridge": chosen(ridges), "frozen, validation": accuracy(text, checked),
            "frozen, other classes": 100 * zero_shot(clip, other).mean() if other else np.nan}


def tuned(config: RunConfig) -> dict[str, Any]:
    """Make a run, or read it, and return what it reached, in percent."""
    run = load_or_train(config)
    found = metrics_of(run)
    named = " ".join(f"{name}={value}" for name, value in config.method_args.items())
    rest = {f"{name}{at}": found.get(f"{name}{at}")
            for name in ("other classes", "symbols", "flags") for at in (" before", "")}
    return {"stream": config.stream, "method": f"{config.method} {named}".strip(),
            "rate": f"{config.lr:g}", "passes × steps": f"{config.epochs} × {config.steps_per_batch}",
            "validation": found.get("validation"), "test before": found["all classes before"],
            "test": found["all classes"], "lowest fifth": found["lowest fifth"],
            "forgetting": found["forgetting"] if config.stream != "joint" else None, **rest,
            "R@1 before": found["R@1 image to text before"], "R@1": found["R@1 image to text"]}


def written(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table, a column for each key."""
    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), [":--", *["--:"] * (len(rows[0]) - 1)],
             *(list(map(cell, row.values())) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(page: str, name: str, table: str) -> str:
    """Return the page with a table between `<!-- NAME -->` and `<!-- /NAME -->`."""
    marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not marks.search(page):
        raise ValueError(f"{PAGE}: has no <!-- {name} --> and <!-- /{name} -->")
    return marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def main(wanted: str = "") -> None:
    torch.set_num_threads(1)
    if wanted:
        for name, world in WORLDS.items():
            for config in world.configs() if name.startswith(wanted) else ():
                print(name, tuned(config), flush=True)
        return
    clip, cache = load_clip("icon-clip"), Cache()
    clip.eval()
    sizes, rules = [], []
    for name, world in WORLDS.items():
        data, checked = world.load(), world.load("validation").test
        sizes.append({"world": name, **size(world, data, checked)})
        rules.append({"world": name, **without_training(clip, data, checked, cache)})
    runs = [{"world": name, **tuned(config)}
            for name, world in WORLDS.items() for config in world.configs()]
    page = PAGE.read_text()
    for name, rows in {"sizes": sizes, "without training": rules, "tuned": runs}.items():
        page = put(page, name, written(rows))
    PAGE.write_text(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
