"""Streams of domains: accuracy matrices over domains, forgetting and transfer between them."""
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
    """Return the domains of a stream `domains` in their order of arrival."""
    config, train = run.config, benchmark.train
    seed = config.seed if config.stream_seed is None else config.stream_seed
    stages = Domains(**config.stream_args).stages(train.labels, seed, train.domains)
    return [train.domain_names[train.domains[stage.index[0]]] for stage in stages]


def domain_matrix(run: Run, benchmark: BenchmarkData) -> np.ndarray:
    """Return R[s, t], the accuracy on the domain that came as number t + 1, after stage s; row 0 is
    before training. All classes are candidates. The metrics of a matrix apply
    (`metrics.METRICS`)."""
    return run.domains("all")[arrival(run, benchmark)].to_numpy()


def domain_means(groups: Mapping[str, Sequence[Run]],
                 benchmark: BenchmarkData) -> dict[str, np.ndarray]:
    """Return the mean of `domain_matrix` over the runs of each group. Where runs differ in the
    order of arrival, a column is a place in the order."""
    return {label: np.mean([domain_matrix(run, benchmark) for run in runs], axis=0)
            for label, runs in groups.items()}


def domain_scores(runs: Groups, benchmark: BenchmarkData,
                  held_out: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per run as `scores` does, with metrics over domains and of held-out sets, in
    points: "average" and "worst domain" of the last row of the matrix, "forgetting" (Chaudhry et
    al. 2018), and "transfer": by how much a domain is better just before it comes than before
    training (FWT, Lopez-Paz and Ranzato 2017). The last two are NaN where the stream is not of
    domains."""
    rows = []
    for run in flattened(runs):
        last = 100 * run.domains("all").iloc[-1].to_numpy()
        row = {"average": last.mean(), "worst domain": metrics.worst_domain(last),
               "forgetting": np.nan, "transfer": np.nan}
        if run.config.stream == "domains":
            R = 100 * domain_matrix(run, benchmark)
            row |= {"forgetting": metrics.forgetting(R), "transfer": metrics.forward_transfer(R)}
        rows.append(row | {name: metrics_of(run)[name] for name in held_out})
    return pd.concat([settings(runs), pd.DataFrame(rows)], axis=1)


def domain_gains(groups: Mapping[str, Sequence[Run]], benchmark: BenchmarkData) -> pd.DataFrame:
    """Return by how much domains that have come, and those still to come, are better after each
    stage than before training, in points: columns panel, method, x, mean, half_width. After the
    last stage none is to come."""
    rows = []
    for label, runs in groups.items():
        gains = [100 * (R - R[0]) for R in (domain_matrix(run, benchmark) for run in runs)]
        for stage in range(1, len(gains[0])):
            for panel, part in (("have come", slice(stage)),
                                ("are still to come", slice(stage, None))):
                found = [gain[stage, part] for gain in gains]
                if found[0].size:
                    means = tables.spread([one.mean() for one in found])
                    rows.append({"panel": panel, "method": label, "x": stage, **means})
    return pd.DataFrame(rows)


def in_every_domain(benchmark: BenchmarkData,
                    things: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return one training image of each thing in each domain, uint8 (things × domains, 3, height,
    width), thing after thing, and a title for each: the domain. White where a domain has none.

    things: classes, or what captions begin with. ValueError: a thing that no domain has."""
    train, names = benchmark.train, benchmark.train.class_names
    begins = np.array([caption.split(":")[0] for caption in benchmark.captions])
    classes = np.array([names[label] for label in train.labels])
    empty, pictures = np.full(train.images.shape[1:], 255, np.uint8), []
    for thing in things:
        mine = (begins == thing) | (classes == thing)
        if not mine.any():
            raise ValueError(f"things: no training image is of {thing!r}, by its class or the "
                             "beginning of its caption")
        for domain in range(len(train.domain_names)):
            first = torch.from_numpy(np.flatnonzero(mine & (train.domains == domain))[:1])
            first = first.to(train.images.device)
            pictures.append(train.images[first][0].cpu().numpy() if len(first) else empty)
    return np.stack(pictures), list(train.domain_names) * len(things)
