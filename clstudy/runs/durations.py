"""How long runs will take, from those that were made: the nearest kind of past run that there is, and its range."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clstudy.training.config import RunConfig

# Kinds of likeness, the nearest first: which settings are equal. Seeds and rates take no time.
SAME_TIME = {"seed", "stream_seed", "lr", "weight_decay", "clip_norm", "milestones", "device"}
SIZES = ("benchmark", "benchmark_args", "model", "precision")
LIKE = (tuple(name for name in RunConfig.model_fields if name not in SAME_TIME),
        (*SIZES, "stream", "tuner", "tower", "method", "epochs", "steps_per_batch", "batch_size", "eval_every"),
        (*SIZES, "stream", "tuner", "tower", "epochs", "steps_per_batch"), (*SIZES, "epochs", "steps_per_batch"))


@dataclass(frozen=True)
class Seconds:
    """The quickest, the middle and the slowest of the past runs of a kind, in seconds."""

    low: float
    middle: float
    high: float


def past(runs: Path) -> list[dict[str, Any]]:
    """Settings, seconds and threads of all finished runs; what cannot be read is left out."""
    found = []
    for result in runs.glob("*/result.json"):
        try:
            about = json.loads((result.parent / "config.json").read_text())
            environment = json.loads((result.parent / "env.json").read_text())
            about |= {"seconds": float(json.loads(result.read_text())["seconds"]),
                      "threads": environment.get("threads"), "cuda": environment.get("cuda")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another thing, or damaged
            continue
        found.append(about)
    return found


def estimate(configs: Sequence[RunConfig], known: Sequence[dict[str, Any]], threads: int | None = None
             ) -> list[Seconds | None]:
    """For each run the seconds of the past runs that are most like it, or None. threads: those that used as many are
    taken first, for two runs at a time with half the cores each take longer."""
    tables = []
    for names in LIKE:
        for pool in ([one for one in known if one.get("threads") == threads], known):
            table: dict[str, list[float]] = {}
            for one in pool:
                table.setdefault(_kind(one, names), []).append(one["seconds"])
            tables.append((names, table))
    return [_nearest(config.model_dump(mode="json"), tables) for config in configs]


def _nearest(settings: dict[str, Any], tables: list) -> Seconds | None:
    for names, table in tables:
        if took := table.get(_kind(settings, names)):
            took = sorted(took)
            return Seconds(took[0], took[len(took) // 2], took[-1])
    return None


def _kind(settings: dict[str, Any], names: Sequence[str]) -> str:
    return json.dumps([settings.get(name) for name in names], sort_keys=True)


def together(each: Sequence[Seconds | None], workers: int) -> Seconds | None:
    """Of all on so many workers; those of which nothing is known count as the mean of the others. None: nothing is
    known of any."""
    known = [one for one in each if one]
    if not known:
        return None

    def total(values: list[float]) -> float:
        return max(sum(values) / len(values) * len(each) / max(min(workers, len(each)), 1), max(values))

    return Seconds(*(total([getattr(one, end) for one in known]) for end in ("low", "middle", "high")))
