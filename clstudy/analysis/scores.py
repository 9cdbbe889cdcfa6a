"""From one run to the metrics of a paper."""
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from clstudy.evaluation import metrics
from clstudy.runs.run import Run

NEVER_UPDATED = ("other classes", "tiered_imagenet_test")  # held-out sets that ZS-Acc is of


@lru_cache(maxsize=4096)
def scores(run: Run) -> dict[str, float]:
    """Metrics of one run, in percent: stream accuracy, forgetting, zero-shot and retrieval before and after.

    A_auc, A_avg and A_last are of classes seen so far (candidates: seen). Matrix metrics use candidates "all", for
    which row 0 (before training) exists. "NAME" and "NAME before" are held-out sets after the last stage and before the
    first."""
    every, ends = run.curve(), run.evals[run.evals.stage_end & (run.evals["set"] == "seen classes")]
    R, known = run.matrix("all"), run.classes("seen")
    values = {
        "A_auc": metrics.a_auc(every.value.tolist()),
        "A_avg": metrics.a_avg(ends.value.tolist()),
        "A_last": metrics.a_last(ends.value.tolist()),
        "forgetting": metrics.forgetting(R, "chaudhry2018"),
        "backward transfer": metrics.backward_transfer(R, "lopez_paz2017"),
        "Transfer": metrics.transfer(R),
        "F_last": metrics.f_last(known[known.index > 0].to_numpy()),
        "worst class": metrics.worst_class(known.iloc[-1].dropna().tolist()),
        "worst fifth": metrics.worst_fifth(known.iloc[-1].dropna().tolist()),
        "own tasks": float(pd.Series(run.matrix("own")[-1]).mean()),
        "seen classes": run.final("seen classes"),
        "all classes": run.final("all classes"),
        "all classes before": run.final("all classes", stage=0),
    }
    hands = run.domains("all")
    if len(hands):
        values["worst domain"], values["worst domain before"] = (metrics.worst_domain(hands.iloc[stage].tolist())
                                                                 for stage in (-1, 0))
    for name in held_out_sets(run):
        values[name] = run.final(name)
        values[f"{name} before"] = run.final(name, stage=0)
    for direction in ("image to text", "text to image"):
        for suffix, stage in (("", None), (" before", 0)):
            found = [run.final(name, metric="recall@1", stage=stage) for name in retrieval_sets(run, direction)]
            values[f"R@1 {direction}{suffix}"] = float(np.mean(found)) if found else float("nan")
    return {name: 100 * value for name, value in (values | _updated(run, values)).items()}


def _updated(run: Run, values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of VR-LwF (arXiv 2207.09248, code). Of the updated classes, "UT-Acc"; of those never updated,
    "ZS-Acc"; their mean, "A-Acc". On the matrix of class-balanced accuracies: "ACC", the mean of its last row, and BWT
    with the usual divisor, T − 1, and with theirs, T ("BWT p+1")."""
    R = run.matrix("all", "class-balanced accuracy")
    found, held_out = {}, [name for name in NEVER_UPDATED if name in values]
    if held_out:
        ends = {"UT-Acc": "all classes", "ZS-Acc": held_out[0]}
        found = {f"{new}{at}": values[f"{old}{at}"] for new, old in ends.items() for at in ("", " before")}
        found |= {f"A-Acc{at}": (found[f"UT-Acc{at}"] + found[f"ZS-Acc{at}"]) / 2 for at in ("", " before")}
    if not np.isnan(R).all():
        found |= {"ACC": metrics.last(R), "BWT": metrics.backward_transfer(R),
                  "BWT p+1": metrics.backward_transfer(R, "vr_lwf")}
    return found


def held_out_sets(run: Run) -> list[str]:
    """The zero-shot sets that the stream does not touch."""
    names = run.evals[(run.evals.metric == "accuracy") & (run.evals.candidates == "own")]["set"]
    return [name for name in dict.fromkeys(names) if not name.startswith("task ")]


def retrieval_sets(run: Run, direction: str) -> list[str]:
    """Names of the evaluations of retrieval in one direction; `scores` has the mean over them."""
    names = run.evals["set"][run.evals.metric == "recall@1"]
    return [name for name in dict.fromkeys(names) if name.endswith(f": {direction}")]


def means(runs: Sequence[Run], *names: str) -> list[float]:
    """The means over runs of some of their scores."""
    found = pd.DataFrame([scores(run) for run in runs])
    return [float(found[name].mean()) for name in names]


def cost(runs: Sequence[Run]) -> dict[str, str]:
    """What the runs took: tuned parameters, images of the stream per second of training, largest memory on a GPU."""
    results = [run.result for run in runs]
    speeds = [r["images_per_second"] for r in results if r.get("parameters")]  # a frozen model trains nothing
    peaks = [r["peak_memory"] for r in results if r.get("peak_memory")]
    return {"parameters": f"{max(r.get('parameters', 0) for r in results):,}",
            "images/s": f"{np.median(speeds):.0f}" if speeds else "-",
            "GPU memory, MB": f"{max(peaks) / 2**20:.0f}" if peaks else "-"}


def costs(groups: Mapping[tuple, Sequence[Run]], columns: Sequence[str]) -> dict[str, list[str]]:
    """`cost` of each group, as columns of a table with a row per group."""
    found = [cost(runs) for runs in groups.values()]
    return {name: [one[name] for one in found] for name in columns}
