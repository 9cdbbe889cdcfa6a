"""From finished runs to the metrics of a paper, one row per run."""
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from clstudy.evaluation import metrics
from clstudy.runs.run import Run, flat
from clstudy.training.config import RunConfig
from clstudy.utils.validation import choose

NEVER_UPDATED = ("other classes", "tiered_imagenet_test")  # the held-out sets of ZS-Acc

# runs, or runs under labels, which become a column "label"
Groups = Sequence[Run] | Mapping[str | float, Sequence[Run]]


def scores(runs: Groups, metrics: str | Sequence[str]) -> pd.DataFrame:
    """Return a row per run, with its seed, each other setting that varies, and each metric
    (percent).

    Options of an axis have their own name where no other setting has it ("size"), otherwise the
    dotted one ("method_args.size"); a run without the option has None. ValueError: a metric that a
    run does not have."""
    table, found = settings(runs), [metrics_of(run) for run in flattened(runs)]
    for metric in listed(metrics):
        table[metric] = [values[choose("metric", metric, values)] for values in found]
    return table


def settings(runs: Groups, constant: bool = False) -> pd.DataFrame:
    """Return a row per run, with its seed and each setting that varies (`constant`: all)."""
    table = pd.DataFrame([flat(run.config) for run in flattened(runs)], dtype=object)
    table = table.drop(columns="device", errors="ignore")
    table = table.where(table.notna(), None)
    if not constant:
        table = table[[name for name in table
                       if name == "seed" or table[name].map(repr).nunique() > 1]]
    short = [name.rpartition(".")[2] for name in table]
    table.columns = [end if short.count(end) == 1 else name
                     for name, end in zip(table, short, strict=True)]
    if isinstance(runs, Mapping):
        table.insert(0, "label", [label for label, group in runs.items() for _ in group])
    return table


def listed(names: str | Sequence[str]) -> list[str]:
    """Return one name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def flattened(runs: Groups) -> list[Run]:
    """Return the runs of all groups, one after the other."""
    groups = runs.values() if isinstance(runs, Mapping) else [runs]
    return [run for group in groups for run in group]


def grouped(runs: Groups, by: Sequence[str]) -> dict[tuple, list[Run]]:
    """Group runs by their values of some settings (or their "label"), in order of appearance.

    ValueError: a setting that no run has, with the choices."""
    table = settings(runs, constant=True)
    for name in by:
        choose("by", name, table.columns)
    found: dict[tuple, list[Run]] = {}
    keys = table[list(by)].itertuples(index=False, name=None)
    for run, key in zip(flattened(runs), keys, strict=True):
        found.setdefault(key, []).append(run)
    return found


def look(config: RunConfig) -> str:
    """Return the key of a run's method in `plots.LOOKS`."""
    balanced = config.method == "er" and config.method_args.get("draw") == "balanced"
    return "er_balanced" if balanced else config.method


def labelled(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs under their labels in figures, in order of appearance: the method, or "joint"
    where the whole stream comes at once."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        joint = run.config.stream == "joint" and run.config.tuner != "none"
        found.setdefault("joint" if joint else look(run.config), []).append(run)
    return found


@lru_cache(maxsize=4096)
def metrics_of(run: Run) -> dict[str, float]:
    """Return the metrics of one run, in percent: stream accuracy, forgetting, zero-shot, retrieval.

    A_auc, A_avg and A_last are of classes seen so far (candidates: seen). Matrix metrics use
    candidates "all", for which row 0 (before training) exists. "NAME" and "NAME before" are
    held-out sets after the last stage and before the first."""
    every, R, known = run.curve(), run.matrix("all"), run.classes("seen")
    ends = run.evals[run.evals.stage_end & (run.evals["name"] == "seen classes")].value.tolist()
    last = known.iloc[-1].dropna().tolist()
    values = {
        "A_auc": metrics.a_auc(every.value.tolist()),
        "A_avg": metrics.a_avg(ends),
        "A_last": metrics.a_last(ends),
        "forgetting": metrics.forgetting(R, "chaudhry2018"),
        "backward transfer": metrics.backward_transfer(R, "lopez_paz2017"),
        "Transfer": metrics.transfer(R),
        "F_last": metrics.f_last(known[known.index > 0].to_numpy()),
        "worst class": metrics.worst_class(last),
        "worst fifth": metrics.worst_fifth(last),
        "own tasks": float(pd.Series(run.matrix("own")[-1]).mean()),
        "seen classes": run.final("seen classes"),
        "all classes": run.final("all classes"),
        "all classes before": run.final("all classes", stage=0),
    }
    domains = run.domains("all")
    if len(domains):
        for name, stage in (("worst domain", -1), ("worst domain before", 0)):
            values[name] = metrics.worst_domain(domains.iloc[stage].tolist())
    for name in run.held_out_sets():
        values[name] = run.final(name)
        values[f"{name} before"] = run.final(name, stage=0)
    for direction in ("image to text", "text to image"):
        metric = f"{direction.replace(' ', '-')} recall@1"
        for suffix, stage in (("", None), (" before", 0)):
            found = [run.final(name, metric=metric, stage=stage) for name in retrieval_sets(run)]
            values[f"R@1 {direction}{suffix}"] = float(np.mean(found)) if found else float("nan")
    return {name: 100 * value for name, value in (values | _updated(run, values)).items()}


def _updated(run: Run, values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of VR-LwF (arXiv 2207.09248, code).

    "UT-Acc" is of the updated classes, "ZS-Acc" of those never updated, "A-Acc" their mean. Of the
    matrix of class-balanced accuracies, "ACC" is the mean of the last row, "BWT" has the usual
    divisor, T − 1, and "BWT p+1" theirs, T."""
    found, times = {}, ("", " before")
    if held_out := [name for name in NEVER_UPDATED if name in values]:
        found |= {f"UT-Acc{at}": values[f"all classes{at}"] for at in times}
        found |= {f"ZS-Acc{at}": values[f"{held_out[0]}{at}"] for at in times}
        found |= {f"A-Acc{at}": (found[f"UT-Acc{at}"] + found[f"ZS-Acc{at}"]) / 2 for at in times}
    R = run.matrix("all", "class-balanced accuracy")
    if not np.isnan(R).all():
        found |= {"ACC": metrics.last(R), "BWT": metrics.backward_transfer(R),
                  "BWT p+1": metrics.backward_transfer(R, "vr_lwf")}
    return found


def retrieval_sets(run: Run) -> list[str]:
    """Return the sets of image-caption pairs of a run; `scores` has the mean recall over them."""
    return list(dict.fromkeys(run.evals["name"][run.evals.kind == "retrieval"]))


def cost(runs: Sequence[Run]) -> dict[str, str]:
    """Return what the runs took, as text: the parameters tuned, the images of the stream per second
    of training, the largest memory on a GPU."""
    results = [run.result for run in runs]
    parameters = max(result.get("parameters", 0) for result in results)
    speeds = [result["images_per_second"] for result in results
              if result.get("parameters")]  # a frozen model trains nothing
    peaks = [result["peak_memory"] for result in results if result.get("peak_memory")]
    return {"parameters": f"{parameters:,}",
            "images/s": f"{np.median(speeds):.0f}" if speeds else "-",
            "GPU memory, MB": f"{max(peaks) / 2**20:.0f}" if peaks else "-"}
