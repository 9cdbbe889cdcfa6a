"""All finished runs in one table: a row per method, tuner and settings, with means over seeds.

A board is one problem: rows that were trained and tested on the same stream with the same model, so
that they may be compared. Nothing is trained here. Scores are read once and stored in
RUNS/scores.parquet, until `result.json` of the run or the code of the scores changes."""
import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis import scores
from clstudy.analysis.intervals import interval
from clstudy.evaluation import metrics
from clstudy.runs import run as run_module
from clstudy.runs.run import Run, flat
from clstudy.utils.files import fingerprint
from clstudy.utils.validation import choose

PROBLEM = ("benchmark", "benchmark_args", "stream", "stream_args", "model", "pretrained",
           "eval_every", "files")
ENTRY = ["board", "method", "tuner", "settings"]
LOWER = [name for name, column in scores.COLUMNS.items()
         if metrics.METRICS[column.metric].direction == "lower"]
# field of result.json → column, the unit it is divided by, and how it is written
COST = {"parameters": ("parameters", 1, ",.0f"), "images_per_second": ("images/s", 1, ".0f"),
        "peak_memory": ("GPU memory, MB", 2**20, ".0f"),
        "memory_bytes": ("memory, MB", 2**20, ".1f")}
COSTS = [column for column, _, _ in COST.values()]
HELP = ("No finished runs. Make some with `clstudy study` (half an hour on two cores), "
        "`clstudy run 03_candidates`, or `train_all(grid(…))`; then run this notebook again.")


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


def scored(runs: Sequence[Run], kept: Path | None = None) -> pd.DataFrame:
    """Return the metrics of each run, a row by its id, and the names of its held-out sets, a line
    each, as "held_out". kept: a Parquet file that is read and brought up to date."""
    code = "".join(fingerprint(Path(module.__file__)) for module in (scores, metrics, run_module))
    known, rows, new = {}, {}, False
    if kept:
        with suppress(Exception):  # missing, or damaged in any way
            known = pd.read_parquet(kept).to_dict("index")
    for run in runs:
        result = run.folder / "result.json"  # stored evidence has no such file
        when = result.stat().st_mtime_ns if result.exists() else run.result.get("finished")
        made = f"{code} {run.id} {when}"
        row = known.get(run.id, {})
        if row.get("seal") != _seal(made, row):
            new = True
            row = {"held_out": "\n".join(run.held_out_sets()), **scores.metrics_of(run)}
            row["seal"] = _seal(made, row)
        rows[run.id] = row
    if kept and new:
        _write(pd.DataFrame.from_dict(known | rows, orient="index"), kept)
    return pd.DataFrame.from_dict(rows, orient="index").drop(columns="seal")


def _seal(made: str, row: Mapping) -> str:
    """Return a checksum of a row and what it was made from: Parquet has none of its own."""
    values = sorted((name, value) for name, value in row.items()
                    if name != "seal" and not pd.isna(value))
    return hashlib.sha256(repr((made, [(name, value if isinstance(value, str) else float(value))
                                       for name, value in values])).encode()).hexdigest()


def _write(table: pd.DataFrame, path: Path) -> None:
    draft = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        table.to_parquet(draft)
        draft.replace(path)
    except (OSError, ValueError):  # a read-only folder, damaged rows: the next time is slower
        draft.unlink(missing_ok=True)


def gather(runs: Sequence[Run], kept: Path | None = None) -> pd.DataFrame:
    """Return a row per run: board, method, tuner, settings (where rows of one method and tuner
    differ), look (a key of `plots.LOOKS`), machine, seed, lr, finished, its cost and its metrics;
    "zero-shot" is the mean over the held-out sets.

    Of runs that differ in nothing, the last one made counts. kept: as for `scored`. ValueError: no
    runs."""
    if not runs:
        raise ValueError(HELP)
    problem, rest = [], []
    for run in runs:
        about = flat(run.config) | {"files": run.fingerprints}
        about = {name: brief(value) for name, value in about.items()
                 if name not in ("seed", "device")}
        inside = {name for name in about if name.split(".")[0] in PROBLEM}
        problem.append({name: about[name] for name in about if name in inside})
        rest.append({name: about[name] for name in about if name not in inside})
    ids, configs = [run.id for run in runs], [run.config for run in runs]
    names = [f"{config.benchmark}, {config.stream}" for config in configs]
    boards = [f"{name} ({differs})" if differs else name
              for name, differs in zip(names, differences(names, problem), strict=True)]
    table = pd.DataFrame({"board": boards, "method": [config.method for config in configs],
                          "tuner": [config.tuner for config in configs]}, ids)
    table["settings"] = differences(list(table.itertuples(index=False, name=None)), rest)
    table["look"] = [scores.look(config) for config in configs]
    table["machine"] = [machine(run) for run in runs]
    table["seed"] = [config.seed for config in configs]
    table["lr"] = [config.lr for config in configs]
    table["finished"] = [run.result.get("finished", 0.0) for run in runs]
    for field, (column, unit, _) in COST.items():
        table[column] = np.array([run.result.get(field) for run in runs], float) / unit
    table.loc[table.parameters == 0, "images/s"] = np.nan  # a frozen model trains nothing
    table = table.join(scored(runs, kept))
    for at in ("", " before"):
        sets = [f"{name}{at}" for name in held_out_sets(table)]
        table[f"zero-shot{at}"] = table[sets].mean(axis=1)
    table = table.sort_values("finished", kind="stable")
    return table.drop_duplicates([*ENTRY, "seed"], keep="last")


def held_out_sets(table: pd.DataFrame) -> list[str]:
    """Return the zero-shot sets among the columns of `gather`, in alphabetical order."""
    return sorted({name for names in table.held_out for name in names.splitlines()})


def machine(run: Run) -> str:
    """Return where a run was made, as far as its speed goes: its GPU, or its kind of CPU and the
    number of threads."""
    env = run.environment
    return env.get("cuda") or f"{env.get('machine', 'unknown')}, {env.get('threads', '?')} threads"


def of_boards(runs: Sequence[Run], table: pd.DataFrame, boards: Sequence[str] | pd.Series
              ) -> list[Run]:
    """Return the runs behind these boards of `gather`."""
    shown = set(table.index[table.board.isin(boards)])
    return [run for run in runs if run.id in shown]


# ---- names


def brief(value: Any) -> str:
    """Return a value in at most some 30 characters; a longer one ends in digits of its hash, so
    that two different ones stay different."""
    text = json.dumps(value, sort_keys=True)
    short = "none" if value is None else value if isinstance(value, str) else text
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        short = " + ".join(value)
    if len(short) <= 30:
        return short
    start = f"list of {len(value)}" if isinstance(value, list) else f"{short[:20]}…"
    return f"{start} #{hashlib.sha256(text.encode()).hexdigest()[:4]}"


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


# ---- ranking


def known(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return the columns of `gather` that hold a number: a stream of one stage has no
    forgetting."""
    return [name for name in names if name in table and table[name].notna().any()]


def standings(table: pd.DataFrame, columns: Sequence[str], seeds: int = 1) -> pd.DataFrame:
    """Return a row per entry with at least so many seeds: for each column NAME its mean, "NAME ±"
    the half width of the 95 % interval over seeds (Student t; NaN with one) and "NAME *", whether
    the entry shares the first place. A cost is the median.

    Boards are sorted; within one the entries stand in the order of the first column, the best
    first. ValueError: no entry has so many seeds."""
    rows, groups = [], table.groupby(ENTRY, sort=False)
    if (most := groups.size().max()) < seeds:
        raise ValueError(f"seeds={seeds}: no row has so many; the most is {most}")
    for key, group in groups:
        if len(group) >= seeds:
            row = dict(zip(ENTRY, key, strict=True))
            row |= {"look": group["look"].iloc[0], "seeds": len(group), **group[COSTS].median()}
            for name in columns:
                row[name], row[f"{name} ±"] = interval(group[name].to_numpy())
            rows.append(row)
    found = pd.DataFrame(rows)
    for name in columns:
        found[f"{name} *"] = pd.concat([first(board, name) for _, board in found.groupby("board")])
    place = found[columns[0]] * (1 if columns[0] in LOWER else -1)
    order = found.assign(place=place).sort_values(["board", "place"], kind="stable")
    return order.drop(columns="place").reset_index(drop=True)


def best(board: pd.DataFrame, column: str) -> Hashable | None:
    """Return the index of the best row of a board among those with an interval, if there is one."""
    ranked = board[column][board[f"{column} ±"].notna()]
    if ranked.empty:
        return None
    return ranked.idxmin() if column in LOWER else ranked.idxmax()


def first(board: pd.DataFrame, column: str) -> pd.Series:
    """Return which rows share the first place: those whose interval overlaps that of the best. A
    row with one seed has no interval, and no place."""
    top = best(board, column)
    if top is None:
        return pd.Series(False, board.index)
    mean, half = board[column] * (-1 if column in LOWER else 1), board[f"{column} ±"]
    return mean + half >= mean[top] - half[top]


def gaps(table: pd.DataFrame, found: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return each row of `standings` minus the best of its board on the seeds that both have: mean
    and half_width of the 95 % interval of the paired differences. NaN for the best itself, and
    where fewer than two seeds are shared."""
    entries = {key: group.set_index("seed")[column] for key, group in table.groupby(ENTRY)}
    gap = pd.DataFrame(np.nan, found.index, ["mean", "half_width"])
    for _, board in found.groupby("board"):
        top = best(board, column)
        for place in board.index.drop(top) if top is not None else ():
            ours, theirs = (entries[tuple(found.loc[row, ENTRY])] for row in (place, top))
            shared = ours.index.intersection(theirs.index)
            if len(shared) > 1:
                change = ours[shared] - theirs[shared]
                gap.loc[place] = interval(change.to_numpy())
    return gap


def places(table: pd.DataFrame, found: pd.DataFrame, column: str, other: str) -> pd.DataFrame:
    """Return a row per board: how many rows are ranked (have an interval), share the first place in
    `column`, in `other` and in both, and are first but behind the best when paired by seed; and
    which of the first trains fastest."""
    one, two, gap = found[f"{column} *"], found[f"{other} *"], gaps(table, found, column)
    counts = {"ranked": found[f"{column} ±"].notna(), f"first in {column}": one,
              f"first in {other}": two, "first in both": one & two,
              "behind when paired": one & (gap["mean"].abs() > gap.half_width)}
    rows = pd.DataFrame(counts).groupby(found.board).sum()
    timed = found[one & found["images/s"].notna()].sort_values("images/s")
    names = {row.board: ", ".join(filter(None, (row.method, row.tuner, row.settings)))
             for row in timed.itertuples()}  # the last of a board is its fastest
    rows["fastest of the first"] = [names.get(board, "-") for board in rows.index]
    return rows


def care(table: pd.DataFrame) -> pd.DataFrame:
    """Return what to doubt, for each board, method and tuner: how many settings were tried (the
    best of many is ahead by luck too), the seeds of each, and the learning rates among them (one:
    it was not tuned)."""
    groups = table.groupby(ENTRY[:3])
    seeds = table.groupby(ENTRY).size().groupby(ENTRY[:3]).agg(["min", "max"])
    said = groups.settings.nunique().rename("settings tried").to_frame()
    said["seeds"] = [str(low) if low == high else f"{low}-{high}" for low, high in seeds.to_numpy()]
    said["learning rates"] = [", ".join(f"{rate:g}" for rate in sorted(set(group.lr)))
                              if tuner != "none" else "-"
                              for (_, _, tuner), group in groups]
    return said


# ---- as text


def behind(table: pd.DataFrame, found: pd.DataFrame, column: str) -> pd.Series:
    """Return `gaps` as text."""
    gap = gaps(table, found, column)
    said = [f"{mean:+.1f} ± {half:.1f}" for mean, half in gap.to_numpy()]
    return pd.Series(said, gap.index).where(gap["mean"].notna(), "-")


def shown(found: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return standings as text: "mean ± half width", with a star where the first place is shared;
    a cost where it is known."""
    table = found[[*ENTRY, "seeds"]].copy()
    for name in columns:
        cells = zip(found[name], found[f"{name} ±"], found[f"{name} *"], strict=True)
        table[name] = [_text(*cell) for cell in cells]
    for name, _, form in COST.values():
        if found[name].notna().any():
            table[name] = [format(value, form) for value in found[name]]
    return table.set_index(ENTRY).replace("nan", "-")


def _text(mean: float, half: float, star: bool) -> str:
    return f"{mean:.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}") + " *" * bool(star)
