"""From one run to the metrics of a paper."""
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from clstudy.evaluation import metrics
from clstudy.runs.run import Run, flat
from clstudy.training.config import RunConfig
from clstudy.utils.validation import choose

NEVER_UPDATED = ("other classes", "tiered_imagenet_test")  # held-out sets that ZS-Acc is of


Groups = Sequence[Run] | Mapping[str | float,
                                 Sequence[Run]]  # runs, or runs under labels: a column "label" then


def scores(runs: Groups, metrics: str | Sequence[str]) -> pd.DataFrame:
    """A row for each run, a column for its seed, each other setting that varies and each metric
    (percent).

    Options of an axis have their own name where no other setting has it ("size"), otherwise the
    dotted one ("method_args.size"); a run without the option has None. ValueError: a metric that a
    run does not have."""
    table = settings(runs)
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        table[metric] = [
            metrics_of(run)[choose("metric", metric, metrics_of(run))] for run in flattened(runs)
        ]
    return table


def settings(runs: Groups, constant: bool = False) -> pd.DataFrame:
    """A row for each run, a column for its seed and for each setting that varies between them (with
    `constant`: for all settings)."""
    table = pd.DataFrame([flat(run.config) for run in flattened(runs)], dtype=object)
    table = table.drop(columns="device", errors="ignore").astype(object)
    table = table.where(table.notna(), None)
    if not constant:
        table = table.loc[:,
                          [table[name].map(repr).nunique() > 1 or name == "seed" for name in table]]
    last = [name.rpartition(".")[2] for name in table]
    table = table.rename(
        columns={name: end for name, end in zip(table, last, strict=True) if last.count(end) == 1})
    if isinstance(runs, Mapping):
        table.insert(0, "label", [label for label, group in runs.items() for _ in group])
    return table


def flattened(runs: Groups) -> list[Run]:
    """The runs of all groups, one after the other."""
    return [run for group in runs.values()
            for run in group] if isinstance(runs, Mapping) else list(runs)


def grouped(runs: Groups, by: Sequence[str]) -> dict[tuple, list[Run]]:
    """Runs by their values of some settings (or their "label"), in order of first appearance.

    ValueError: a setting that no run has, with the choices."""
    table, found = settings(runs, constant=True), {}
    for name in by:
        choose("by", name, table.columns)
    for run, key in zip(flattened(runs), table[list(by)].itertuples(index=False, name=None),
                        strict=True):
        found.setdefault(tuple(key), []).append(run)
    return found


def look(config: RunConfig) -> str:
    """The key of a run's method in `plots.LOOKS`."""
    balanced = config.method == "er" and config.method_args.get("draw") == "balanced"
    return "er_balanced" if balanced else config.method


def labelled(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs under the names that figures have for them, in order of first appearance: that of the
    method, "joint" for one that has the whole stream at once."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        joint = run.config.stream == "joint" and run.config.method != "frozen"
        found.setdefault("joint" if joint else look(run.config), []).append(run)
    return found


@lru_cache(maxsize=4096)
def metrics_of(run: Run) -> dict[str, float]:
    """Metrics of one run, in percent: stream accuracy, forgetting, zero-shot and retrieval before
    and after.

    A_auc, A_avg and A_last are of classes seen so far (candidates: seen). Matrix metrics use
    candidates "all", for which row 0 (before training) exists. "NAME" and "NAME before" are
    held-out sets after the last stage and before the first."""
    every, ends = run.curve(), run.evals[run.evals.stage_end
                                         & (run.evals["name"] == "seen classes")]
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
        values["worst domain"], values["worst domain before"] = (metrics.worst_domain(
            hands.iloc[stage].tolist()) for stage in (-1, 0))
    for name in run.held_out_sets():
        values[name] = run.final(name)
        values[f"{name} before"] = run.final(name, stage=0)
    for direction in ("image to text", "text to image"):
        for suffix, stage in (("", None), (" before", 0)):
            metric = f"{direction.replace(' ', '-')} recall@1"
            found = [run.final(name, metric=metric, stage=stage) for name in retrieval_sets(run)]
            values[f"R@1 {direction}{suffix}"] = float(np.mean(found)) if found else float("nan")
    return {name: 100 * value for name, value in (values | _updated(run, values)).items()}


def _updated(run: Run, values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of VR-LwF (arXiv 2207.09248, code). Of the updated classes, "UT-Acc"; of those
    never updated, "ZS-Acc"; their mean, "A-Acc". On the matrix of class-balanced accuracies: "ACC",
    the mean of its last row, and BWT with the usual divisor, T − 1, and with theirs, T ("BWT
    p+1")."""
    R = run.matrix("all", "class-balanced accuracy")
    found, held_out = {}, [name for name in NEVER_UPDATED if name in values]
    if held_out:
        ends = {"UT-Acc": "all classes", "ZS-Acc": held_out[0]}
        found = {
            f"{new}{at}": values[f"{old}{at}"] for new, old in ends.items()
            for at in ("", " before")
        }
        found |= {
            f"A-Acc{at}": (found[f"UT-Acc{at}"] + found[f"ZS-Acc{at}"]) / 2
            for at in ("", " before")
        }
    if not np.isnan(R).all():
        found |= {"ACC": metrics.last(R), "BWT": metrics.backward_transfer(R),
                  "BWT p+1": metrics.backward_transfer(R, "vr_lwf")}
    return found


def retrieval_sets(run: Run) -> list[str]:
    """The sets of image-caption pairs of a run; `scores` has the mean recall over them."""
    return list(dict.fromkeys(run.evals["name"][run.evals.kind == "retrieval"]))


def means(runs: Sequence[Run], *names: str) -> list[float]:
    """The means over runs of some of their scores."""
    found = pd.DataFrame([metrics_of(run) for run in runs])
    return [float(found[name].mean()) for name in names]


def cost(runs: Sequence[Run]) -> dict[str, str]:
    """What the runs took: tuned parameters, images of the stream per second of training, largest
    memory on a GPU."""
    results = [run.result for run in runs]
    speeds = [r["images_per_second"] for r in results
              if r.get("parameters")]  # a frozen model trains nothing
    peaks = [r["peak_memory"] for r in results if r.get("peak_memory")]
    return {"parameters": f"{max(r.get('parameters', 0) for r in results):,}",
            "images/s": f"{np.median(speeds):.0f}" if speeds else "-",
            "GPU memory, MB": f"{max(peaks) / 2**20:.0f}" if peaks else "-"}


def costs(groups: Mapping[tuple, Sequence[Run]], columns: Sequence[str]) -> dict[str, list[str]]:
    """`cost` of each group, as columns of a table with a row per group."""
    found = [cost(runs) for runs in groups.values()]
    return {name: [one[name] for one in found] for name in columns}
