"""Streams of domains: the accuracy matrix over domains, forgetting and transfer between them."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from clstudy.analysis import tables
from clstudy.analysis.scores import Groups, flattened, metrics_of, settings
from clstudy.data.streams import Domains
from clstudy.data.types import BenchmarkData
from clstudy.evaluation import metrics
from clstudy.runs.run import Run


def arrival(run: Run, benchmark: BenchmarkData) -> list[str]:
    """The domains of a stream `domains`, in their order of arrival."""
    seed = run.config.seed if run.config.stream_seed is None else run.config.stream_seed
    stages = Domains(**run.config.stream_args).stages(benchmark.train.labels, seed,
                                                      benchmark.train.domains)
    return [
        benchmark.train.domain_names[benchmark.train.domains[stage.index[0]]] for stage in stages
    ]


def domain_matrix(run: Run, benchmark: BenchmarkData) -> np.ndarray:
    """R[s, t]: accuracy on the domain that came as number t + 1, after stage s; row 0 is before
    training. All classes are candidates. Metrics that take a matrix take it (`metrics.METRICS`)."""
    return run.domains("all")[arrival(run, benchmark)].to_numpy()


def domain_means(groups: Mapping[str, Sequence[Run]],
                 benchmark: BenchmarkData) -> dict[str, np.ndarray]:
    """The mean of `domain_matrix` over runs. With other orders of arrival, a column is a place in
    the order."""
    return {
        label: np.mean([domain_matrix(run, benchmark) for run in runs], axis=0)
        for label, runs in groups.items()
    }


def domain_scores(runs: Groups, benchmark: BenchmarkData,
                  held_out: Sequence[str] = ()) -> pd.DataFrame:
    """A row per run as `scores` gives it, with metrics of the matrix of domains and of held-out
    sets, in points: "average" of its last row, "worst domain" of it, "forgetting" (Chaudhry et al.
    2018), and "transfer": by how much a domain is better just before it comes than before training
    (FWT, Lopez-Paz and Ranzato 2017). Of a stream that is not of domains, the first two; the others
    are NaN."""
    rows = [
        _metrics(run, benchmark) | {name: metrics_of(run)[name] for name in held_out}
        for run in flattened(runs)
    ]
    return pd.concat([settings(runs), pd.DataFrame(rows)], axis=1)


def _metrics(run: Run, benchmark: BenchmarkData) -> dict[str, float]:
    last = 100 * run.domains("all").iloc[-1].to_numpy()
    found = {
        "average": float(last.mean()), "worst domain": metrics.worst_domain(last),
        "forgetting": float("nan"), "transfer": float("nan")
    }
    if run.config.stream == "domains":
        R = 100 * domain_matrix(run, benchmark)
        found |= {"forgetting": metrics.forgetting(R), "transfer": metrics.forward_transfer(R)}
    return found


def domain_gains(groups: Mapping[str, Sequence[Run]], benchmark: BenchmarkData) -> pd.DataFrame:
    """By how much domains that have come, and those that have not, are better than before training
    after each stage, in points, for `plots.series`: columns panel, method, x, mean, half_width.
    After the last stage none is to come."""
    rows = []
    for label, runs in groups.items():
        gains = [100 * (R - R[0]) for R in (domain_matrix(run, benchmark) for run in runs)]
        for stage in range(1, len(gains[0])):
            parts = {"have come": slice(None, stage), "are still to come": slice(stage, None)}
            rows += [{"panel": panel, "method": label, "x": stage,
                      **tables._point([float(gain[stage, part].mean()) for gain in gains])}
                     for panel, part in parts.items() if gains[0][stage, part].size]
    return pd.DataFrame(rows)


def in_every_domain(benchmark: BenchmarkData,
                    things: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One training image of each thing in each domain, uint8 (things × domains, 3, height, width),
    thing after thing, and a title for each: the domain. A thing is a class, or what a caption
    begins with. White where a domain has none. ValueError: a thing that no domain has."""
    train, names = benchmark.train, list(benchmark.train.class_names)
    begins = [caption.split(":")[0] for caption in benchmark.captions]
    empty, pictures = np.full(train.images.shape[1:], 255, np.uint8), []
    for thing in things:
        mine = np.array([
            thing in (begin, names[label])
            for begin, label in zip(begins, train.labels, strict=True)
        ])
        if not mine.any():
            raise ValueError(
                f"things: no training image is of {thing!r}, by its class or the begin of its caption"
            )
        for domain in range(len(train.domain_names)):
            rows = np.flatnonzero(mine & (train.domains == domain))
            first = torch.from_numpy(rows[:1]).to(train.images.device)
            pictures.append(train.images[first][0].cpu().numpy() if len(rows) else empty)
    return np.stack(pictures), list(train.domain_names) * len(things)
