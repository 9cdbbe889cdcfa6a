"""Streams of domains: accuracy matrices over domains, in their order of arrival. Their metrics are
among those of `scores.metrics_of`."""
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from clstudy.analysis.scores import arrival, domain_names
from clstudy.data.types import BenchmarkData
from clstudy.runs.run import Run


def in_order(run: Run) -> list[str]:
    """Return the domains of a stream `domains` in their order of arrival. ValueError: another
    stream."""
    if not (order := arrival(run)):
        raise ValueError(f"stream={run.config.stream!r} of run {run.id}: must be 'domains', with "
                         "each domain in training and test images")
    names = domain_names(run)
    return [names[number] for number in order]


def domain_matrix(run: Run) -> np.ndarray:
    """Return R[s, t], the accuracy on the domain that came as number t + 1, after stage s; row 0 is
    before training. All classes are candidates. The metrics of a matrix apply
    (`metrics.METRICS`). ValueError: a stream that is not of domains."""
    return run.domains("all")[in_order(run)].to_numpy()


def domain_means(groups: Mapping[str, Sequence[Run]]) -> dict[str, np.ndarray]:
    """Return the mean of `domain_matrix` over the runs of each group. Where runs differ in the
    order of arrival, a column is a place in the order."""
    return {label: np.mean([domain_matrix(run) for run in runs], axis=0)
            for label, runs in groups.items()}


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
