"""What a small memory holds, and how well moving averages know the sums that no batch can hold.

    g_i = mean over j ∈ S, y_j ≠ y_i of exp( (f_j·t_{y_i} − f_i·t_{y_i}) / τ )
    ĝ_i: the same over a batch,   u_i ← (1 − γ) u_i + γ ĝ_i

S: the images of the stage and the memory; u: SogCLR, arXiv 2202.12387, as in
`losses/global_contrastive.py`. γ = 1 is the plain estimate of the batch. Its logarithm is too low
on average (Jensen); u has seen more images, but some of them under earlier weights. Both are
measured here against g at the current weights."""
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.replay_buffer import ReplayBuffer
from clstudy.data.streams import Stage
from clstudy.data.types import BenchmarkData
from clstudy.evaluation.features import class_features, features
from clstudy.losses.global_contrastive import Average, log_mean_exp
from clstudy.models.loading import load_clip
from clstudy.runs.run import Run, kept_name, load_tuned
from clstudy.training.config import RunConfig
from clstudy.training.loop import batches
from clstudy.training.setup import prepare

# of images, and of class texts
Features = tuple[Float[Tensor, "images dim"], Float[Tensor, "classes dim"]]


def remembered(config: RunConfig) -> Iterator[tuple[Stage, ReplayBuffer, BenchmarkData]]:
    """Yield the memory of a run after each stage, filled as the methods with policy "quota" fill
    it; nothing is trained.

    The images drawn differ from those of the run itself, which makes other random choices in
    between."""
    clip, benchmark, stages = prepare(config)
    memory, seen = ReplayBuffer(config.method_args["size"], "quota", "random"), []
    names, template = benchmark.train.class_names, benchmark.train.template
    prompts = clip.class_text(list(names), template).to(clip.device)
    for stage in stages:
        stream = batches(stage, benchmark, seen, prompts, config.batch_size, stage.index)
        memory.refill(stream, clip)
        yield stage, memory, benchmark


def held(configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Return what each memory holds after each stage: columns size (images allowed), stage,
    classes, images, fewest and most per class, kilobytes of the images, and of the moving averages
    (two numbers per image kept)."""
    rows = []
    for config in configs:
        for stage, memory, _ in remembered(config):
            count = np.unique(memory.labels, return_counts=True)[1] if len(memory) else np.zeros(1)
            rows.append({"size": memory.size, "stage": stage.number,
                         "classes": len(set(memory.arrived.values())), "images": len(memory),
                         "fewest": int(count.min()), "most": int(count.max()),
                         "kB": round(memory.bytes / 1000, 1),
                         "kB of averages": round(8 * len(memory) / 1000, 1)})
    return pd.DataFrame(rows)


def log_sums(found: Features, label: Int[Tensor, " images"], tau: float,
             anchors: Int[Tensor, " batch"],
             among: Int[Tensor, " others"]) -> Float[Tensor, " batch"]:
    """Return log g of the images `anchors`, with the images `among` as negatives."""
    image, text = found
    own = text[label[anchors]]
    d = image[among] @ own.T - (image[anchors] * own).sum(1)
    return log_mean_exp(d.T / tau, label[anchors][:, None] != label[among][None])


def errors(start: Features, end: Features, label: Int[Tensor, " images"], tau: float,
           gammas: Sequence[float], size: int = 96, visits: int = 10,
           seed: int = 0) -> pd.DataFrame:
    """Return how far log u is from log g: columns gamma, visit, error (root of the mean square) and
    bias (mean).

    Images come in batches of `size`, each once a visit, in another order each time. Meanwhile the
    features go from `start` to `end` on a straight line, put back on the sphere: the model moves.
    Images whose batch holds no other class are left out. ValueError: gammas."""
    if not all(0 < gamma <= 1 for gamma in gammas):
        raise ValueError(f"gammas={list(gammas)!r}: must be above 0 and at most 1")
    generator, everything = torch.Generator().manual_seed(seed), torch.arange(len(label))
    averages, rows = {gamma: Average() for gamma in gammas}, []
    for visit in range(1, visits + 1):
        parts = torch.randperm(len(label), generator=generator).split(size)
        gaps: dict[float, list[Tensor]] = {gamma: [] for gamma in gammas}
        for step, batch in enumerate(parts):
            share = (visit - 1 + step / len(parts)) / visits
            now = tuple(F.normalize((1 - share) * a + share * b, dim=-1)
                        for a, b in zip(start, end, strict=True))
            exact = log_sums(now, label, tau, batch, everything)
            estimate = log_sums(now, label, tau, batch, batch)
            some = estimate.isfinite()
            for gamma, average in averages.items():
                u = average.update(batch[some], len(label), estimate[some], gamma)
                gaps[gamma].append(u - exact[some])
        for gamma, found in gaps.items():
            gap = torch.cat(found)
            rows.append({"gamma": gamma, "visit": visit, "error": float(gap.square().mean().sqrt()),
                         "bias": float(gap.mean())})
    return pd.DataFrame(rows)


def of_runs(runs: Sequence[Run], gammas: Sequence[float], size: int = 96,
            visits: int = 10) -> pd.DataFrame:
    """Return `errors` at the last stage of each run, whose weights were kept; with a column seed.

    S is the last stage and the memory before it. The model goes from the one before training to the
    one of the run: a whole stream's way, so an upper bound of what it moves in one stage. The table
    of each run is stored in its folder, and read when it is there."""
    name = kept_name("averages", list(map(float, gammas)), size, visits)
    tables = [run.kept(name, partial(_of_run, run, gammas, size, visits)) for run in runs]
    return pd.concat([table.assign(seed=run.config.seed)
                      for run, table in zip(runs, tables, strict=True)], ignore_index=True)


def _of_run(run: Run, gammas: Sequence[float], size: int, visits: int) -> pd.DataFrame:
    *_, (index, benchmark) = remembered_ids(run.config)
    train = benchmark.train
    images = train.images[torch.from_numpy(index).to(train.images.device)]
    before = load_clip(run.config.model, run.config.pretrained).eval()
    ends = [(features(clip, images).float().cpu(),
             class_features(clip, train.class_names, train.template).float().cpu())
            for clip in (before, load_tuned(run))]
    label, tau = torch.from_numpy(train.labels[index]), float(1 / before.scale().detach())
    return errors(*ends, label, tau, gammas, size, visits, run.config.seed)


def remembered_ids(config: RunConfig) -> Iterator[tuple[np.ndarray, BenchmarkData]]:
    """Yield, for each stage, the ids of its images and of the memory before it."""
    before: list[int] = []
    for stage, memory, benchmark in remembered(config):
        yield np.concatenate([stage.index, np.array(before, np.int64)]), benchmark
        before = list(memory.index)
