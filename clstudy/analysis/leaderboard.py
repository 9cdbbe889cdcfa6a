"""All finished runs on boards: a row per method, tuner and settings, ranked by paired differences.

    rows = settled(gather(runs, tried=TRIED))
    found, each = behind(rows, runs, ["A-Acc", "A_last"])
    print(summary(found))

A board is one problem: rows that were trained and tested on the same images, stream and model, so
that they may be compared. What a run measures besides makes no other board. Each row has the
settings that validation chose, where it can choose. Nothing is trained here."""
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis import scores, tables
from clstudy.analysis.comparisons import compare, family
from clstudy.evaluation import metrics
from clstudy.methods import METHODS
from clstudy.runs.run import Run, flat
from clstudy.utils.validation import choose

PROBLEM = ("benchmark", "benchmark_args", "stream", "stream_args", "model", "pretrained", "files")
MEASURED = ("eval_every", "held_out_every", "held_out", "device")  # change nothing of a model
TRIED = ("lr", "epochs", "weight", "alpha", "replay", "text", "strength")  # rates and strengths
ENTRY = ["board", "method", "tuner", "settings"]
SEEDS = ["seed", "stream_seed"]
LOWER = [name for name, column in scores.COLUMNS.items()
         if metrics.METRICS[column.metric].direction == "lower"]
HELP = ("No finished runs. Make some with `clstudy study`, `clstudy run 03_candidates`, or "
        "`train_all(grid(…))`; then run this notebook again.")
LINE = 44  # characters of a line of a name in a figure
NAMED = 5  # rows that the summary of a board names


# ---- which runs


def current(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that this version of the code and of the data would reuse."""
    found = []
    for run in runs:
        with suppress(ValueError, OSError, KeyError):  # an old setting, or missing data
            if run.config.run_id == run.id:
                found.append(run)
    return found


def select(runs: Sequence[Run], **wanted: Sequence[str]) -> list[Run]:
    """Return the runs whose benchmark, stream, tuner, method, … is among those wanted; an empty
    list wants all.

    ValueError: a value that none of the runs has, with the choices."""
    found = list(runs)
    for name, values in wanted.items():
        for value in values if runs else ():
            choose(name, value, {str(getattr(run.config, name)) for run in runs})
        found = [run for run in found if not values or str(getattr(run.config, name)) in values]
    return found


# ---- a row per run


def gather(runs: Sequence[Run], tried: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per run: board, method, tuner, settings (where rows of one method and tuner
    differ), tried, look (a key of `plots.LOOKS`), lr, seed, order (the seed of the class order),
    and its metrics. "choosing" is the mean over the held-out sets whose name begins with "validation",
    "zero-shot" over the others.

    tried: names of rates and strengths, which stand in the column "tried" and make no other row. Of
    runs that differ in nothing, the last one made counts. ValueError: no runs."""
    if not runs:
        raise ValueError(HELP)
    parts = [_settings(run, tried) for run in runs]
    problem, rates, strengths, rest = ([one[part] for one in parts] for part in range(4))
    configs = [run.config for run in runs]
    names = [f"{config.benchmark}, {config.stream}" for config in configs]
    boards = [f"{name} ({differs})" if differs else name
              for name, differs in zip(names, differences(names, problem), strict=True)]
    table = pd.DataFrame({"board": boards, "method": [config.method for config in configs],
                          "tuner": [config.tuner for config in configs]}, [run.id for run in runs])
    table["settings"] = differences(list(table.itertuples(index=False, name=None)), rest)
    rows = list(table.itertuples(index=False, name=None))
    table["tried"] = [", ".join(filter(None, (*(f"lr {lr}" for lr in rate.values()), differs)))
                      for rate, differs in zip(rates, differences(rows, strengths), strict=True)]
    table["look"] = [scores.look(config) for config in configs]
    table["lr"] = [config.lr for config in configs]
    table["seed"] = [config.seed for config in configs]
    table["order"] = [config.seed if config.stream_seed is None else config.stream_seed
                      for config in configs]  # what the class order is drawn from
    table["finished"] = [run.result.get("finished", 0.0) for run in runs]
    found = pd.DataFrame([scores.metrics_of(run) | _means(run) for run in runs], table.index)
    table = table.join(found).sort_values("finished", kind="stable").drop(columns="finished")
    return table.drop_duplicates([*ENTRY, "tried", "seed", "order"], keep="last")


def _settings(run: Run, tried: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Return what a run was made from: its problem; its rate and its strengths, as far as they were
    tried; all else. Seeds are left out, defaults of the method unless they were tried, and of a run
    that trains nothing what only training feels."""
    kind, defaults, trains = METHODS.get(run.config.method), {}, run.config.tuner != "none"
    with suppress(Exception):  # a method of a reader, or one that needs an option
        defaults = kind().options()
        trains = trains or run.config.make("method").trains
    found: tuple[dict[str, str], ...] = ({}, {}, {}, {})
    for name, value in (flat(run.config) | {"files": run.fingerprints}).items():
        axis, _, option = name.partition(".")
        if name in SEEDS or _named(name, MEASURED):
            continue
        if axis in PROBLEM:
            found[0][name] = brief(value)
        elif not trains and axis != "method_args":
            continue
        elif _named(name, tried):
            found[1 if name == "lr" else 2][name] = brief(value)
        elif axis != "method_args" or defaults.get(option, ...) != value:
            found[3][name] = brief(value)
    return found


def _named(name: str, wanted: Sequence[str]) -> bool:
    return name in wanted or name.rpartition(".")[2] in wanted


def _means(run: Run) -> dict[str, float]:
    """Return the mean accuracy over held-out sets, and over those that choose."""
    values, sets = scores.metrics_of(run), run.held_out_sets()
    choosing = [name for name in sets if name.startswith("validation")]
    return {column: float(np.mean([values[name] for name in names])) if names else np.nan
            for column, names in (("choosing", choosing),
                                  ("zero-shot", [one for one in sets if one not in choosing]))}


# ---- names


def brief(value: Any) -> str:
    """Return a value in at most some 30 characters, a list of words in 60; a longer one ends in
    digits of its hash, so that two different ones stay different."""
    text = json.dumps(value, sort_keys=True)
    short, most = "none" if value is None else value if isinstance(value, str) else text, 30
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        short, most = " + ".join(value), 60
    if len(short) <= most:
        return short
    start = f"list of {len(value)}" if isinstance(value, list) else f"{short[:20]}…"
    return f"{start} #{_digits(text)}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def differences(groups: Sequence[Hashable], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return for each run the settings in which the runs of its group differ, as "weight 2, order
    given". An option that only others of the group have is at its default, and left out."""
    members: dict[Hashable, list[Mapping[str, str]]] = {}
    for group, one in zip(groups, settings, strict=True):
        members.setdefault(group, []).append(one)
    differ = {}  # group → setting → the name to show: the last part, where no other ends so
    for group, found in members.items():
        names = [name for name in dict.fromkeys(name for one in found for name in one)
                 if len({one.get(name) for one in found}) > 1]
        last = [name.split(".")[-1] for name in names]
        differ[group] = {name: end if last.count(end) == 1 else name
                         for name, end in zip(names, last, strict=True)}
    return [", ".join(f"{shown} {one[name]}" for name, shown in differ[group].items()
                      if name in one)
            for group, one in zip(groups, settings, strict=True)]


def labels(found: pd.DataFrame) -> dict[str, str]:
    """Return what a figure of `behind` calls its rows, in two lines, and its boards, with the
    metric and the first."""
    heads = {row.board: f"{row.board}: {row.metric}, against {row.base}"
             for row in found.itertuples()}
    return ({name: _lines(name) for name in found.label}
            | {board: "\n".join(wrap(head, 2 * LINE - 20)) for board, head in heads.items()})


def _lines(name: str) -> str:
    """Return a name in at most two lines; a longer one ends in digits of its hash."""
    found = wrap(name, LINE)
    if len(found) > 2:
        found = [found[0], f"{found[1][:LINE - 7]}… #{_digits(name)}"]
    return "\n".join(found)


# ---- ranking


def settled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of each row of `gather` at what validation chooses of "tried", with the
    columns tries (how many there were) and chosen: "validation", "only one", or "not chosen".

    The highest mean of "choosing" over the seeds that all tries share counts, and of equal ones the
    smaller rate. Where it was not measured, or is the same for all, every try stays a row of its
    own, for the test images choose nothing."""
    parts = []
    for _, group in table.sort_values("lr", kind="stable").groupby(ENTRY, sort=False):
        wide = group.pivot(index=["seed", "order"], columns="tried", values="choosing").dropna()
        means, tries = wide[group.tried.unique()].mean().round(9), group.tried.nunique()
        how = "only one"
        if tries > 1 and len(wide) and means.nunique() > 1:
            how, group = "validation", group[group.tried == means.idxmax()]
        elif tries > 1:
            how, parts_of = "not chosen", group.tried.str.split(", ")
            shared = set.intersection(*map(set, parts_of))
            group = group.assign(settings=[
                ", ".join(filter(None, (settings, *(one for one in own if one not in shared))))
                for settings, own in zip(group.settings, parts_of, strict=True)])
        parts.append(group.assign(tries=tries, chosen=how))
    return pd.concat(parts)


def behind(rows: pd.DataFrame, runs: Sequence[Run], ranked_by: Sequence[str], seeds: int = 2
           ) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the rows of each board with its first, paired by seed: a table of `compare` with p
    corrected within each board, and the differences behind it, as of `tables.paired`.

    rows: of `settled`. ranked_by: metrics, of which the first that a board has ranks it. seeds: a
    row needs at least so many, and shares so many with the first. First is the row that no other is
    ahead of when paired with it. Rows follow by their difference, boards by their number of rows.
    ValueError: no board has two such rows."""
    by_id, boards = {run.id: run for run in runs}, []
    for board, mine in rows.groupby("board", sort=False):
        metric = next((name for name in ranked_by if name in mine and mine[name].notna().any()), "")
        if metric:
            entries = _entries(mine[mine[metric].notna()], metric, seeds)
            boards.append(_board(board, entries, metric, by_id, seeds))
    boards = sorted((one for one in boards if one), key=lambda one: -len(one[0]))
    if not boards:
        raise ValueError(f"seeds={seeds}: no board has two rows with so many in "
                         f"{' or '.join(ranked_by)}")
    found, each = (pd.concat(part, ignore_index=True) for part in zip(*boards, strict=True))
    return found, each


def called(row: Mapping[str, Any] | pd.Series) -> str:
    """Return what a row is: its method, its tuner where that says more, and its settings."""
    method = METHODS.get(row["method"])
    tuner = "" if row["tuner"] in ("none", row["method"]) else row["tuner"]
    title = method.title if method and method.title else row["method"]
    return ", ".join(filter(None, (title, tuner, row["settings"])))


def _entries(mine: pd.DataFrame, metric: str, seeds: int) -> dict[str, pd.DataFrame]:
    """Return the rows of a board by name, each a table by seed with the id and the value, where
    more is better."""
    sign, found = -1 if metric in LOWER else 1, {}
    for _, group in mine.groupby(ENTRY, sort=False):
        if len(group) >= seeds:
            values = group.reset_index(names="id").set_index(["seed", "order"])
            found[called(group.iloc[0])] = values[["id"]].assign(value=sign * values[metric])
    return found


def _board(board: str, entries: Mapping[str, pd.DataFrame], metric: str,
           by_id: Mapping[str, Run], seeds: int) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    top, found, each = _first(entries) if entries else "", [], []
    gaps = {name: _gap(entry, entries[top]) for name, entry in entries.items() if name != top}
    for name in sorted(gaps, key=lambda name: -gaps[name]):
        both = entries[name].join(entries[top].id.rename("first"), how="inner")
        if len(both) >= seeds:
            pair = {name: [by_id[id] for id in both.id],
                    top: [by_id[id] for id in both["first"]]}
            free = [one for one in scores.settings(pair) if one not in ("label", *SEEDS)]
            found.append(compare(pair, metric, "label", top, free=free))
            each.append(tables.paired(pair, metric, "label", top, free=free))
    if not found:
        return None
    joint = pd.concat(family(found)), pd.concat(each)
    for table in joint:
        table.insert(0, "board", board)
    return joint


def _first(entries: Mapping[str, pd.DataFrame]) -> str:
    """Return the row that none is ahead of; if each has one ahead, that with the smallest gap."""
    return max(entries, key=lambda name: min(_gap(entries[name], other)
                                             for other in entries.values()))


def _gap(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """Return the mean paired difference; without a common seed as far behind as can be."""
    gap = (ours.value - theirs.value).mean()
    return -np.inf if np.isnan(gap) else gap


# ---- as text


def summary(found: pd.DataFrame) -> str:
    """Write a line for each board of `behind`: which row is first, how many are behind it, and of
    which that is not shown."""
    said = []
    for board, mine in found.groupby("board", sort=False):
        worse = "higher" if mine.metric.iloc[0] in LOWER else "lower"
        open_ = mine[~mine.verdict.str.startswith(worse)]
        names = [f"{row.label} ({row.verdict})" for row in open_.itertuples()]
        names = names[:NAMED] + [f"and {len(names) - NAMED} more"] * (len(names) > NAMED)
        every, count = len(mine), len(mine) - len(open_)
        are = f"row{'s' * (every > 1)} {'is' if 1 in (count, every) else 'are'} {worse}"
        said.append(f"{board}: {mine.base.iloc[0]} has the best {mine.metric.iloc[0]}; {count} of "
                    f"{every} other {are}"
                    + (f", not shown to be: {'; '.join(names)}." if names else "."))
    return "\n".join(said)


def shown(rows: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the boards of `behind` as text, a row each, with what was chosen for it, of how many
    tries, and by what. rows: of `settled`."""
    rows = rows.assign(row=[called(row) for row in rows.to_dict("records")])
    about = {key: group for key, group in rows.groupby(["board", "row"], sort=False)}
    lines = []
    for board, mine in found.groupby("board", sort=False):
        top, metric = mine.base.iloc[0], mine.metric.iloc[0]
        best = about[board, top]
        ours = [{"label": top, "mean": best[metric].mean(), "verdict": "first",
                 "n": best.order.nunique()}, *mine.to_dict("records")]
        for one in ours:
            group = about[board, one["label"]]
            gap = (f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})"
                   if one["label"] != top else "–")
            lines.append({
                "board": board, "row": one["label"], "metric": metric,
                "mean": f"{one['mean']:.1f}", "minus the first": gap, "verdict": one["verdict"],
                "n": one["n"], "zero-shot": f"{group['zero-shot'].mean():.1f}".replace("nan", "–"),
                "tries": group.tries.iloc[0], "shown": ", ".join(dict.fromkeys(group.tried)) or "–",
                "chosen by": group.chosen.iloc[0]})
    return pd.DataFrame(lines).set_index(["board", "row"])
