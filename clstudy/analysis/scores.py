"""From finished runs to the metrics of a paper, one row per run."""
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clstudy.data.streams import Domains
from clstudy.evaluation import metrics
from clstudy.evaluation.metrics import Value
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
    dotted one ("method_args.size"); a run without the option has None. A_auc is NaN, and warned of,
    where runs have no periodic checkpoints. ValueError: a metric that a run does not have."""
    table, found = settings(runs), [metrics_of(run) for run in flattened(runs)]
    for metric in listed(metrics):
        table[metric] = [values[choose("metric", metric, values)] for values in found]
    if "A_auc" in table and (without := table["A_auc"].isna().sum()):
        warnings.warn(f"A_auc is NaN in {without} of {len(table)} runs: it is the mean over "
                      "periodic checkpoints, and they have none (eval_every=None); A_time and "
                      "A_avg need none", stacklevel=2)
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


# ---- the metrics of a run


class Column(NamedTuple):
    """A metric of the stream: its definition, and which accuracies it is given."""

    metric: str  # its name in `METRICS`
    candidates: str  # whose texts compete: "own", "seen" or "all"
    accuracy: str = "accuracy"  # of the matrix: over images, or "class-balanced accuracy"
    protocol: str = ""  # of the field, which these candidates belong to


MTIL = "MTIL, ZSCL, Zheng et al. 2023, arXiv 2303.06628"
X_TAIL = "X-TAIL, RAIL, Xu et al. 2024, arXiv 2406.18868"
BALANCED = "class-balanced accuracy"
COLUMNS = {
    "A_auc": Column("a_auc", "seen"),
    "A_time": Column("a_time", "seen"),
    "A_avg": Column("a_avg", "seen"),
    "A_last": Column("a_last", "seen"),
    "forgetting": Column("forgetting/chaudhry2018", "all"),
    "zero-shot forgetting": Column("forgetting/zero_shot", "all"),
    "backward transfer": Column("backward_transfer/lopez_paz2017", "all"),
    "change on tasks to come": Column("forward_change", "all"),
    "Transfer (MTIL)": Column("transfer", "own", protocol=MTIL),
    "Avg (MTIL)": Column("average", "own", protocol=MTIL),
    "Last (MTIL)": Column("last", "own", protocol=MTIL),
    "Transfer (X-TAIL)": Column("transfer", "all", protocol=X_TAIL),
    "Avg (X-TAIL)": Column("average", "all", protocol=X_TAIL),
    "Last (X-TAIL)": Column("last", "all", protocol=X_TAIL),
    "F_last": Column("f_last", "seen"),
    "F_last (all)": Column("f_last", "all"),
    "lowest fifth": Column("lowest_fifth", "seen"),
    "own tasks": Column("last", "own"),
    "ACC": Column("last", "all", BALANCED),
    "BWT": Column("backward_transfer/lopez_paz2017", "all", BALANCED),
    "BWT p+1": Column("backward_transfer/vr_lwf", "all", BALANCED),
}


class Measured(ABC):
    """The accuracies of a run, as shares, from which its metrics are computed. Arrays may have an
    axis of replicates in front; NaN is what was not measured."""

    @abstractmethod
    def matrix(self, candidates: str, accuracy: str = "accuracy") -> np.ndarray:
        """Return R, (…, T + 1, T), as `Run.matrix`."""

    @abstractmethod
    def points(self, stage_ends: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return stage (K,), images seen (K,), and the accuracy on the classes seen so far (…, K),
        at stage ends or at the periodic checkpoints."""

    def all_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images seen (K,), rising, and the accuracy on the classes seen so far (…, K), at
        all points; of several with the same images, the last stage end."""
        both = zip(self.points(stage_ends=False), self.points(stage_ends=True), strict=True)
        stage, images, values = (np.concatenate(each, axis=-1) for each in both)
        order = np.lexsort((stage, images))  # stable: stage ends stay behind checkpoints
        kept = order[np.diff(images[order], append=np.inf) > 0]
        return images[kept], values[..., kept]

    @abstractmethod
    def classes(self, candidates: str) -> np.ndarray:
        """Return the accuracy of each class at the ends of the stages 1 … T, (…, T, classes)."""

    @abstractmethod
    def tests(self) -> np.ndarray:
        """Return the number of test images of each class of `classes`, (classes,)."""

    @abstractmethod
    def domains(self) -> np.ndarray:
        """Return the accuracy on each domain, (…, T + 1, domains), all classes as candidates: row 0
        is before training, columns are in the order of the benchmark."""

    @abstractmethod
    def share(self, name: str, before: bool, metric: str = "accuracy") -> Value:
        """Return the accuracy on "seen classes", "all classes", or a set, at the end, or before
        training; metric: of a set for retrieval, the recall@1 of a direction."""


class Formula(NamedTuple):
    """How a metric is computed, and the sets of test images that it reads (`Run.tests`)."""

    sets: tuple[str, ...]
    value: Callable[[Measured], Value]


def stream_metric(column: Column, of: Measured) -> Value:
    """Return a metric of the stream, from what its definition takes."""
    metric, candidates = metrics.METRICS[column.metric], column.candidates
    if metric.takes == "matrix":
        return metric.function(of.matrix(candidates, column.accuracy))
    if metric.takes == "class_matrix":  # of candidates "all" too only where a class has been seen
        seen = of.classes("seen")
        found = seen if candidates == "seen" else of.classes(candidates)
        return metric.function(np.where(np.isnan(seen), np.nan, found))
    if metric.takes == "class_vector":
        return metric.function(of.classes(candidates)[..., -1, :], of.tests())
    if metric.takes == "timed_curve":
        images, values = of.all_points()
        return metric.function(values, images)
    return metric.function(of.points(stage_ends=metric.takes == "stage_curve")[-1])


@lru_cache(maxsize=4096)
def formulas(run: Run) -> dict[str, Formula]:
    """Return the metrics that a run has, by the names of `metrics_of`."""
    of_stream = {name: Formula(("test",), partial(stream_metric, column))
                 for name, column in COLUMNS.items()
                 if column.accuracy != BALANCED or (run.evals.metric == BALANCED).any()}
    at_the_end = Formula(("test",), lambda of: of.share("seen classes", before=False))
    return of_stream | _over_domains(run) | {"seen classes": at_the_end} | {
        f"{name}{suffix}": Formula(sets, partial(value, before=before))
        for name, (sets, value) in _twice(run).items()
        for suffix, before in (("", False), (" before", True))}


def domain_names(run: Run) -> list[str]:
    """Return the domains of the test images, in the order of the benchmark."""
    return list(dict.fromkeys(run.evals["name"][run.evals.kind == "domain"]))


def arrival(run: Run) -> list[int]:
    """Return the numbers of the domains of a stream `domains` in their order of arrival; none where
    the stream is another one, or a domain does not train."""
    config, count = run.config, len(domain_names(run))
    if config.stream != "domains" or count != run.evals.stage.max():
        return []
    seed = config.seed if config.stream_seed is None else config.stream_seed
    rng = np.random.default_rng(seed)
    return Domains(**config.stream_args).arrival(np.arange(count), rng).tolist()


def _over_domains(run: Run) -> dict[str, Formula]:
    """Return the metrics of the matrix of domains, columns in their order of arrival."""
    order = arrival(run)
    over = {"domain forgetting": metrics.forgetting, "domain transfer": metrics.forward_transfer}
    return {name: Formula(("test",), lambda of, metric=metric: metric(of.domains()[..., order]))
            for name, metric in over.items() if order}


def _twice(run: Run) -> dict[str, Formula]:
    """Return the metrics that are measured at the end and before training.

    Those of VR-LwF (arXiv 2207.09248, code): "UT-Acc" is of the updated classes, "ZS-Acc" of those
    never updated, "A-Acc" their mean."""
    held_out, pairs = run.held_out_sets(), retrieval_sets(run)

    def mean(names: Sequence[str], metric: str = "accuracy") -> Callable[..., Value]:
        return lambda of, before: sum(of.share(name, before, metric)
                                      for name in names) / len(names) if names else np.nan

    found = {"all classes": Formula(("test",), mean(["all classes"]))}
    if (run.evals.kind == "domain").any():
        over = {"average domain": metrics.average_domain, "worst domain": metrics.worst_domain}
        found |= {name: Formula(("test",), lambda of, before, metric=metric:
                                metric(of.domains()[..., 0 if before else -1, :]))
                  for name, metric in over.items()}
    found |= {name: Formula((name,), mean([name])) for name in held_out}
    captions = tuple(f"{name}: captions" for name in pairs)
    for direction, sets in (("image to text", tuple(pairs)), ("text to image", captions)):
        metric = f"{direction.replace(' ', '-')} recall@1"
        found[f"R@1 {direction}"] = Formula(sets, mean(pairs, metric))
    if never := [name for name in NEVER_UPDATED if name in held_out][:1]:
        found |= {"UT-Acc": Formula(("test",), mean(["all classes"])),
                  "ZS-Acc": Formula((never[0],), mean(never)),
                  "A-Acc": Formula(("test", never[0]), mean(["all classes", *never]))}
    return found


@lru_cache(maxsize=4096)
def metrics_of(run: Run) -> dict[str, float]:
    """Return the metrics of one run, in percent: stream accuracy, forgetting, zero-shot, retrieval.

    Those of the stream are told by `COLUMNS`: A_auc, A_time, A_avg and A_last are of classes seen
    so far; forgetting and change take candidates "all", for which row 0 (before training) exists.
    A_auc is NaN where the run has no periodic checkpoints (eval_every=None). "F_last" is as in
    SIT's code, where more and more classes compete, so that frozen CLIP has one; in "F_last (all)"
    all compete from the start. "lowest fifth": of the classes with enough tests (`left_out` tells
    the others). "NAME" and "NAME before" are held-out sets after the last stage and before the
    first. "ACC" and "BWT" are of the matrix of class-balanced accuracies, "BWT p+1" with VR-LwF's
    divisor. "average domain" and "worst domain" are over domains at the end; in a stream of domains
    "domain forgetting" (Chaudhry et al. 2018) and "domain transfer", by how much a domain is better
    just before it comes than before training (FWT, Lopez-Paz and Ranzato 2017)."""
    measured = _Rows(run)
    return {name: 100 * float(one.value(measured)) for name, one in formulas(run).items()}


def left_out(run: Run, least: int = metrics.ENOUGH) -> int:
    """Return how many classes "lowest fifth" leaves out, because they have fewer tests."""
    return int((_Rows(run).tests() < least).sum())


class _Rows(Measured):
    """The accuracies in the rows of `evals`, read once."""

    def __init__(self, run: Run) -> None:
        evals = run.evals
        keys = [evals["stage_end"], evals["kind"], evals["candidates"], evals["metric"]]
        self._at = evals.groupby(keys, sort=False).indices
        self._columns = {name: evals[name].to_numpy()
                         for name in ("stage", "images_seen", "name", "value", "count")}
        self._stages = int(evals.stage.max())

    def _rows(self, *key: Any) -> list[np.ndarray]:
        """Return stage, images_seen, name, value and count of the rows of a stage end, kind,
        candidates and metric."""
        at = self._at.get(key, np.array([], int))
        return [column[at] for column in self._columns.values()]

    def matrix(self, candidates: str, accuracy: str = "accuracy") -> np.ndarray:
        stage, _, task, value, _ = self._rows(True, "task", candidates, accuracy)
        R = np.full((self._stages + 1, self._stages), np.nan)
        R[stage, task.astype(int) - 1] = value
        return R

    def points(self, stage_ends: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        stage, images, _, value, _ = self._rows(stage_ends, "all", "seen", "accuracy")
        return stage, images, value

    @cached_property
    def _of_classes(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return values, (T + 1, classes), by candidates; and the number of tests."""
        rows = [self._rows(True, "class", candidates, "accuracy") for candidates in ("seen", "all")]
        codes, names = pd.factorize(np.concatenate([name for _, _, name, _, _ in rows]))
        tables, tests = {}, np.zeros(len(names), int)
        for candidates, (stage, *_, value, count), mine in zip(
                ("seen", "all"), rows, np.split(codes, [len(rows[0][0])]), strict=True):
            tests[mine] = count
            tables[candidates] = np.full((self._stages + 1, len(names)), np.nan)
            tables[candidates][stage, mine] = value
        return tables, tests

    def classes(self, candidates: str) -> np.ndarray:
        return self._of_classes[0][candidates][1:]

    def tests(self) -> np.ndarray:
        return self._of_classes[1]

    def domains(self) -> np.ndarray:
        stage, _, name, value, _ = self._rows(True, "domain", "all", "accuracy")
        codes, names = pd.factorize(name)
        R = np.full((self._stages + 1, len(names)), np.nan)
        R[stage, codes] = value
        return R

    @cached_property
    def _shares(self) -> dict[tuple, float]:
        return {(stage, name, key[3]): value for key in self._at
                if key[0] and key[1] in ("all", "held-out set", "retrieval")
                for stage, _, name, value, _ in zip(*self._rows(*key), strict=True)}

    def share(self, name: str, before: bool, metric: str = "accuracy") -> float:
        return self._shares.get((0 if before else self._stages, name, metric), np.nan)


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
