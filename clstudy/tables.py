"""From runs to the numbers of a paper: the metrics of a run, their mean and interval over seeds, and paired
differences."""
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from . import metrics
from .record import Run

NEVER_UPDATED = ("other classes", "tiered_imagenet_test")  # side sets that ZS-Acc is of


@lru_cache(maxsize=4096)
def scores(run: Run) -> dict[str, float]:
    """Metrics of one run, in percent: stream accuracy, forgetting, zero-shot and retrieval before and after.

    A_auc, A_avg and A_last are of classes seen so far (candidates: seen). Matrix metrics use candidates "all", for
    which row 0 (before training) exists. "NAME" and "NAME before" are side sets after the last stage and before the
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
    for name in side_sets(run):
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


def side_sets(run: Run) -> list[str]:
    """The zero-shot sets that the stream does not touch."""
    names = run.evals[(run.evals.metric == "accuracy") & (run.evals.candidates == "own")]["set"]
    return [name for name in dict.fromkeys(names) if not name.startswith("task ")]


def retrieval_sets(run: Run, direction: str) -> list[str]:
    """Names of the evaluations of retrieval in one direction; `scores` has the mean over them."""
    names = run.evals["set"][run.evals.metric == "recall@1"]
    return [name for name in dict.fromkeys(names) if name.endswith(f": {direction}")]


def summary(groups: Mapping[tuple, Sequence[Run]], columns: Sequence[str], index: Sequence[str]) -> pd.DataFrame:
    """A row per group, a column per metric: "mean ± half width" of the 95 % interval over seeds (Student t)."""
    rows = {}
    for key, runs in groups.items():
        found = pd.DataFrame([scores(run) for run in runs])
        rows[key] = {name: _text(metrics.interval(found[name].tolist())) for name in columns}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(rows), names=list(index))
    return table


def _text(found: metrics.Interval) -> str:
    return f"{found.mean:.1f}" if np.isnan(found.half_width) else f"{found.mean:.1f} ± {found.half_width:.1f}"


def difference(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> metrics.Interval:
    """Mean and 95 % half width of ours − theirs, paired by seed, in points. ValueError: the seeds differ."""
    seeds = [[run.config.seed for run in runs] for runs in (ours, theirs)]
    if seeds[0] != seeds[1]:
        raise ValueError(f"a paired difference needs the same seeds on both sides, got {seeds[0]} and {seeds[1]}")
    return metrics.paired_interval([scores(run)[metric] for run in ours], [scores(run)[metric] for run in theirs])


def verdict(found: metrics.Interval, higher: str, lower: str) -> str:
    """What an interval of a difference allows to say, in words."""
    if np.isnan(found.mean):
        return "is not defined for these runs"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    said = f"{found.mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    if np.isnan(found.half_width):
        return f"{said.split(',')[0]}: one seed, so nothing can be said"
    return f"{said}: {higher if low > 0 else lower if high < 0 else 'no difference can be told'}"


def changes(groups: Mapping[tuple, Sequence[Run]], sets: Sequence[str]) -> pd.DataFrame:
    """Change of each set from before training to the end, in points: columns panel, set, method, mean, half_width.

    Keys of `groups` end in the method; what stands before it names the panel."""
    rows = []
    for (*panel, method), runs in groups.items():
        found = pd.DataFrame([scores(run) for run in runs])
        for name in sets:
            change = _point((found[name] - found[f"{name} before"]).tolist())
            rows.append({"panel": ", ".join(panel), "set": name, "method": method, **change})
    return pd.DataFrame(rows)


def _point(values: Sequence[float]) -> dict[str, float]:
    """Mean and half width of the 95 % interval, as plots take them: with one value there is no bar."""
    found = metrics.interval(values)
    return {"mean": found.mean, "half_width": 0.0 if np.isnan(found.half_width) else found.half_width}


def moved(runs: Sequence[Run], metric: str) -> str:
    """Whether a metric is higher or lower after the stream than before, in words."""
    found = pd.DataFrame([scores(run) for run in runs])
    change = metrics.interval((found[metric] - found[f"{metric} before"]).tolist())
    return f"    {metric} {verdict(change, 'raised', 'lowered')}"


def settings(groups: Mapping[tuple[str, float], Sequence[Run]], names: Sequence[str]) -> pd.DataFrame:
    """Metrics over several settings, for `plots.series`. Keys: (panel, x); a line per metric."""
    rows = []
    for (panel, x), runs in groups.items():
        for name in names:
            rows.append({"panel": panel, "method": name, "x": x, **_point([scores(run)[name] for run in runs])})
    return pd.DataFrame(rows)


def means(runs: Sequence[Run], *names: str) -> list[float]:
    """The means over runs of some of their scores."""
    found = pd.DataFrame([scores(run) for run in runs])
    return [float(found[name].mean()) for name in names]


def claim(groups: Mapping[tuple, Sequence[Run]], metric: str, said: str, lower: bool = False) -> str:
    """Whether `sit` beats `finetune` in `metric`, over all combinations, in words: holds, holds in part, or not."""
    lines, signs = [], []
    for (*where, method), runs in groups.items():
        if method == "sit":
            found = difference(runs, groups[*where, "finetune"], metric)
            good, bad = ("symmetric is lower", "asymmetric is lower") if lower else ("symmetric", "asymmetric")
            words = (good, bad) if lower else (f"{good} is higher", f"{bad} is higher")
            lines.append(f"    {', '.join(where)}: {metric} {verdict(found, *(reversed(words) if lower else words))}")
            low, high = found.mean - found.half_width, found.mean + found.half_width
            signs.append((1 if low > 0 else -1 if high < 0 else 0) * (-1 if lower else 1))
    if not signs:
        raise ValueError("a claim needs runs of method 'sit', and of 'finetune' on the same streams")
    held, against = signs.count(1), signs.count(-1)
    outcome = ("cannot be told from one seed" if all(len(runs) == 1 for runs in groups.values()) else
               "holds here" if held == len(signs) else "not reproduced here" if not held else
               f"holds in {held} of {len(signs)} cases" + (f", the opposite in {against}" if against else ""))
    return f"“{said}”: {outcome}.\n" + "\n".join(lines)


def contest(ours: Sequence[Run], theirs: Sequence[Run], metric: str, higher: str, lower: str) -> str:
    """Which of two groups of runs is higher in a metric, paired by seed, in words."""
    return f"    {metric} {verdict(difference(ours, theirs, metric), higher, lower)}"


def same_order(groups: Mapping[tuple, Sequence[Run]], first: str, second: str, metric: str) -> str:
    """Whether methods stand in the same order on two benchmarks: Spearman's rank correlation of their mean values, in
    words. Keys begin with the benchmark; what follows names the method."""
    found = [pd.Series({key[1:]: means(runs, metric)[0] for key, runs in groups.items() if key[0] == name})
             for name in (first, second)]
    both = pd.concat(found, axis=1).dropna()
    value = both.rank().corr().iloc[0, 1]
    return f"    {metric}, {len(both)} methods on {first} and on {second}: rank correlation {value:+.2f}"


def crosses(groups: Mapping[tuple[str, str | float], Sequence[Run]], x: str, y: str) -> pd.DataFrame:
    """Two metrics per group with the half widths of their 95 % intervals, for `plots.trade`. Keys: (panel, label)."""
    rows = []
    for (panel, label), runs in groups.items():
        at, over = (_point([scores(run)[name] for run in runs]) for name in (x, y))
        rows.append({"panel": panel, "label": label, "x": at["mean"], "x_half": at["half_width"], "y": over["mean"],
                     "y_half": over["half_width"]})
    return pd.DataFrame(rows)


def frontier(groups: Mapping[tuple[str, float | None], Sequence[Run]], x: str, y: str) -> pd.DataFrame:
    """`crosses` with a weight, for `plots.frontier`, and where they started, as "frozen". Keys: (label, weight)."""
    table = crosses(groups, x, y).rename(columns={"label": "weight", "panel": "label"})
    start = means(next(iter(groups.values())), f"{x} before", f"{y} before")
    frozen = {"label": "frozen", "weight": 0.0, "x": start[0], "x_half": 0.0, "y": start[1], "y_half": 0.0}
    return pd.concat([table, pd.DataFrame([frozen])], ignore_index=True)


def road(tables: Mapping[str, Sequence[pd.DataFrame]], x: str, y: str) -> pd.DataFrame:
    """Tables of `paths.along`, one per seed, as a line for `plots.frontier`; x, y: a set and its candidates, as
    "all classes/all". The weight is the share."""
    rows = []
    for label, seeds in tables.items():
        wide = [{key: 100 * _at(table, key) for key in (x, y)} for table in seeds]
        for share in wide[0][x].index:
            at, over = (_point([one[key][share] for one in wide]) for key in (x, y))
            rows.append({"label": label, "weight": share, "x": at["mean"], "x_half": at["half_width"],
                         "y": over["mean"], "y_half": over["half_width"]})
    return pd.DataFrame(rows)


def profile(lines: Mapping[str, Sequence[pd.DataFrame]], sets: Mapping[str, str]) -> pd.DataFrame:
    """Tables of `paths.along`, one per seed, for `plots.series`: a panel per line, the metrics over the share.

    sets: what a metric is called → its set and candidates, as "all classes/all"."""
    rows = []
    for panel, seeds in lines.items():
        for name, key in sets.items():
            values = pd.concat([100 * _at(table, key) for table in seeds], axis=1)
            for share, one in values.iterrows():
                rows.append({"panel": panel, "method": name, "x": share, **_point(one.tolist())})
    return pd.DataFrame(rows)


def midway(seeds: Sequence[pd.DataFrame], sets: Mapping[str, str]) -> str:
    """Whether the middle of a line is above or below the mean of its ends, for each metric, in words."""
    said = []
    for name, key in sets.items():
        values = [100 * _at(table, key) for table in seeds]
        found = metrics.interval([float(one[0.5] - (one[0.0] + one[1.0]) / 2) for one in values])
        said.append(f"    {name} half-way against the mean of the ends: {verdict(found, 'a hill', 'a valley')}")
    return "\n".join(said)


def hill(seeds: Sequence[pd.DataFrame], sets: Mapping[str, str]) -> str:
    """Whether the middle of a line has a higher mean of the metrics than each end, paired by seed, in words."""
    values = [sum(100 * _at(table, key) for key in sets.values()) / len(sets) for table in seeds]
    said = []
    for share, end in ((0.0, "the start"), (1.0, "the end")):
        found = metrics.interval([float(one[0.5] - one[share]) for one in values])
        said.append(f"    mean of {' and '.join(sets)} half-way against {end}: {verdict(found, 'better', 'worse')}")
    return "\n".join(said)


def _at(table: pd.DataFrame, key: str) -> pd.Series:
    name, candidates = key.split("/")
    rows = table[(table["set"] == name) & (table.candidates == candidates) & (table.metric == "accuracy")]
    return rows.set_index("share").value


def against(groups: Mapping[tuple[str, float], Sequence[Run]], names: Mapping[str, str]) -> pd.DataFrame:
    """Metrics over a setting, for `plots.series`. Keys: (method, x); names: metric → title of its panel."""
    rows = []
    for (method, x), runs in groups.items():
        for name, panel in names.items():
            rows.append({"panel": panel, "method": method, "x": x, **_point([scores(run)[name] for run in runs])})
    return pd.DataFrame(rows)


def readings(groups: Mapping[tuple[str, float], Sequence[Run]], stage: int) -> pd.DataFrame:
    """Accuracy on the tasks up to `stage`, after it, under each choice of candidates (own, seen, all), for
    `plots.series`. Keys: (method, x). A task without test images is left out."""
    rows = []
    for (method, x), runs in groups.items():
        for candidates in ("own", "seen", "all"):
            values = [100 * float(np.nanmean(run.matrix(candidates)[stage, :stage])) for run in runs]
            rows.append({"panel": candidates, "method": method, "x": x, **_point(values)})
    return pd.DataFrame(rows)


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


def panels(crosses: pd.DataFrame, pools: Sequence[str]) -> pd.DataFrame:
    """A table of `crosses` whose panel is the tuner, with all pools in one panel and frozen CLIP in each."""
    table = crosses.assign(panel=crosses.panel.map(lambda tuner: "prompt pools" if tuner in pools else tuner))
    frozen, rest = table[table.label == "frozen"], table[table.label != "frozen"]
    order = sorted(dict.fromkeys(rest.panel), key=lambda name: name != "lora")
    return pd.concat([part for name in order for part in (frozen.assign(panel=name), rest[rest.panel == name])])


def above(groups: Mapping[tuple, Sequence[Run]], frozen: Mapping[str, Sequence[Run]], metric: str) -> str:
    """Whether tuning was worth it: each group against frozen CLIP on the same stream, paired by seed."""
    rows = [f"    {', '.join(key)}: {metric} {verdict(difference(runs, frozen[key[0]], metric), 'above', 'below')}"
            for key, runs in groups.items()]
    return "Against frozen CLIP:\n" + "\n".join(rows)


def save(table: pd.DataFrame, name: str, caption: str, numbers: pd.DataFrame | None = None) -> None:
    """Write a table to figures/NAME.md, .csv and .tex (booktabs). numbers: goes into the .csv instead, with all
    digits."""
    from .plots import FIGURES

    FIGURES.mkdir(parents=True, exist_ok=True)
    flat = table.reset_index()
    head = "| " + " | ".join(flat.columns) + " |\n|" + " --- |" * len(flat.columns)
    body = "\n".join("| " + " | ".join(str(value).replace("|", r"\|") for value in row) + " |"
                     for row in flat.itertuples(index=False))
    (FIGURES / f"{name}.md").write_text(f"{caption}\n\n{head}\n{body}\n")
    (flat if numbers is None else numbers).to_csv(FIGURES / f"{name}.csv", index=False)
    lines = [" & ".join(tex(str(value)) for value in row) + r" \\"
             for row in [flat.columns, *flat.itertuples(index=False)]]
    align = "l" * table.index.nlevels + "r" * table.shape[1]
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
             r"\end{tabular}"]
    (FIGURES / f"{name}.tex").write_text("\n".join(lines) + "\n")


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
       "−": "$-$", "→": r"$\rightarrow$", "·": r"$\cdot$", "…": r"\dots{}", "*": "$^*$", "<": "$<$", ">": "$>$",
       **{sign: rf"\{sign}" for sign in "_%&#${}"}}


def tex(text: str) -> str:
    """Text as LaTeX takes it, with pdflatex and without packages."""
    return "".join(TEX.get(letter, letter) for letter in text)
