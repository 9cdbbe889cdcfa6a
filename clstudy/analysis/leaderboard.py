"""All finished runs as one table: a row per method, tuner and settings, the seeds gathered into a
mean and an interval.

A board is a problem: rows that were trained and tested on the same stream with the same model, so
that they may be compared. Nothing is trained here. Scores are read once and kept in
RUNS/scores.parquet, until `result.json` of the run or the code of the scores changes."""
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clstudy.analysis import scores, tables
from clstudy.analysis.scores import look
from clstudy.evaluation import metrics
from clstudy.runs import run as run_module
from clstudy.runs import store
from clstudy.runs.run import Run
from clstudy.training.config import RunConfig
from clstudy.utils.files import fingerprint
from clstudy.utils.validation import choose

PROBLEM = ("benchmark", "benchmark_args", "stream", "stream_args", "model", "pretrained",
           "eval_every", "files")
ENTRY = ["board", "method", "tuner", "settings"]
LOWER = ("forgetting", "F_last")  # the lower, the better
COST = {
    "parameters": ("parameters", 1), "images_per_second": ("images/s", 1),
    "peak_memory": ("GPU memory, MB", 2**20), "memory_bytes": ("memory, MB", 2**20)
}  # of result.json
HELP = (
    "No finished runs. Make some with `clstudy study` (half an hour on two cores), `clstudy run 03_candidates`, or "
    "load_or_train(RunConfig(…)); then run this notebook again.")


# ---- which runs


def current(runs: Sequence[Run]) -> list[Run]:
    """The runs that this version of the code, with the data that are here, would take for its
    own."""
    return [run for run in runs if _own(run)]


def _own(run: Run) -> bool:
    try:
        return run.config.run_id == run.id
    except (ValueError, OSError, KeyError):  # settings that no longer exist, data that are not here
        return False


def select(runs: Sequence[Run], **wanted: Sequence[str]) -> list[Run]:
    """Runs whose benchmark, stream, tuner, method, … is one of those wanted; an empty list wants
    all.

    ValueError: a value that none of the runs has; it lists those that there are."""
    found = list(runs)
    for name, values in wanted.items():
        for value in values if runs else ():
            choose(name, value, {str(getattr(run.config, name)) for run in runs})
        found = [run for run in found if not values or str(getattr(run.config, name)) in values]
    return found


# ---- reading them


def scored(runs: Sequence[Run], kept: Path | None = None) -> pd.DataFrame:
    """`tables.scores` of each run, a row by its id, and the names of its held-out sets, a line
    each, as "held_out". kept: a Parquet file that is read, and brought up to date."""
    code = "".join(fingerprint(Path(module.__file__)) for module in (tables, metrics, store))
    known = _read(kept)
    known = known[known.code == code]
    changed = {run.id: (run.folder / "result.json").stat().st_mtime_ns for run in runs}
    new = [
        run for run in runs if run.id not in known.index or known.changed[run.id] != changed[run.id]
    ]
    if new:
        rows = [{
            "code": code, "changed": changed[run.id], "held_out": "\n".join(run.held_out_sets()),
            **scores.metrics_of(run)
        } for run in new]
        fresh = pd.DataFrame(rows, [run.id for run in new])
        stays = known.drop(index=known.index.intersection(fresh.index))
        known = pd.concat([stays, fresh]) if len(stays) else fresh
        if kept:
            _write(known, kept)
    return known.loc[[run.id for run in runs]].drop(columns=["code", "changed"])


def _read(path: Path | None) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, TypeError):  # not there, not wanted, or not ours
        return pd.DataFrame({"code": [], "changed": []})


def _write(table: pd.DataFrame, path: Path) -> None:
    draft = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        table.to_parquet(draft)
        draft.replace(path)
    except OSError:  # a folder that may only be read: the next time is slower, nothing else
        draft.unlink(missing_ok=True)


def gather(runs: Sequence[Run], kept: Path | None = None) -> pd.DataFrame:
    """A row per run: board, method, tuner, settings (where rows of one method and tuner differ),
    look (a key of `plots.LOOKS`), seed, lr, its cost and its scores; "zero-shot" is the mean over
    the held-out sets.

    Of runs that differ in nothing, the last one made counts. ValueError: no runs."""
    if not runs:
        raise ValueError(HELP)
    about = [{**flat(run.config), "files": brief(run.fingerprints)} for run in runs]
    problem, rest = ([{
        name: value for name, value in one.items() if (name.split(".")[0] in PROBLEM) == inside
    } for one in about] for inside in (True, False))
    names = [(run.config.benchmark, run.config.stream) for run in runs]
    boards = [", ".join(name) + (f" ({differs})" if differs else "")
              for name, differs in zip(names, differences(names, problem), strict=True)]
    keys = [(board, run.config.method, run.config.tuner)
            for board, run in zip(boards, runs, strict=True)]
    table = pd.DataFrame(keys, [run.id for run in runs], ["board", "method", "tuner"])
    table["settings"] = differences(keys, rest)
    table["look"], table["machine"] = [look(run.config)
                                       for run in runs], [machine(run) for run in runs]
    table["seed"], table["lr"] = [run.config.seed for run in runs], [run.config.lr for run in runs]
    table["finished"] = [run.result.get("finished", 0.0) for run in runs]
    table = table.join(_cost(runs)).join(scored(runs, kept))
    for at in ("", " before"):
        table[f"zero-shot{at}"] = table[[f"{name}{at}"
                                         for name in held_out_sets(table)]].mean(axis=1)
    return table.sort_values("finished", kind="stable").drop_duplicates([*ENTRY, "seed"],
                                                                        keep="last")


def held_out_sets(table: pd.DataFrame) -> list[str]:
    """The zero-shot sets among the columns of `gather`, in alphabetical order."""
    return sorted({name for names in table.held_out for name in names.splitlines()})


def _cost(runs: Sequence[Run]) -> pd.DataFrame:
    table = pd.DataFrame([[run.result.get(name) for name in COST] for run in runs],
                         [run.id for run in runs], [name for name, _ in COST.values()], dtype=float)
    table.loc[table.parameters == 0, "images/s"] = np.nan  # a frozen model trains nothing
    return table / [unit for _, unit in COST.values()]


def machine(run: Run) -> str:
    """Where a run was made, as far as its speed goes: its GPU, or its kind of CPU and the
    threads."""
    path = run.folder / "env.json"
    env = run_module.read_object(path) if path.exists() else {}
    return env.get("cuda") or f"{env.get('machine', 'unknown')}, {env.get('threads', '?')} threads"


# ---- names


def flat(config: RunConfig) -> dict[str, str]:
    """Settings by name as text, options as "method_args.weight"; without seed and device."""
    found = {}
    for name, value in config.model_dump(exclude={"seed", "device"}).items():
        inner = {f"{name}.{key}": one
                 for key, one in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: brief(one) for key, one in inner.items()}
    return found


def brief(value) -> str:
    """A value in a few characters; long ones end in digits of their hash, so that two different
    ones stay different."""
    text = json.dumps(value, sort_keys=True)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        short = " + ".join(value)
    else:
        short = value if isinstance(value, str) else "none" if value is None else text
    if len(short) <= 30:
        return short
    digits = hashlib.sha256(text.encode()).hexdigest()[:4]
    return f"list of {len(value)} #{digits}" if isinstance(value,
                                                           list) else f"{short[:20]}… #{digits}"


def differences(groups: Sequence[tuple], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """For each, the settings in which those of its group differ, as "weight 2, order given". An
    option that others of the group have and this one has not is at its default, and left out."""
    members: dict[tuple, list] = {}
    for group, one in zip(groups, settings, strict=True):
        members.setdefault(group, []).append(one)
    differ = {
        group: [
            name for name in dict.fromkeys(name for one in found for name in one)
            if len({one.get(name) for one in found}) > 1
        ] for group, found in members.items()
    }
    return [
        ", ".join(f"{_short(name, differ[group])} {one[name]}" for name in differ[group]
                  if name in one) for group, one in zip(groups, settings, strict=True)
    ]


def _short(name: str, names: Sequence[str]) -> str:
    """An option without what it belongs to, where no other has the same last word."""
    last = name.split(".")[-1]
    return last if sum(other.split(".")[-1] == last for other in names) == 1 else name


# ---- ranking


def known(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those columns of `gather` in which there is a number: a stream of one stage has no
    forgetting."""
    return [name for name in names if name in table and table[name].notna().any()]


def standings(table: pd.DataFrame, columns: Sequence[str], seeds: int = 1) -> pd.DataFrame:
    """A row per entry with at least so many seeds: for each column NAME its mean, "NAME ±" the half
    width of the 95 % interval over seeds (Student t; NaN with one) and "NAME *", whether the entry
    shares the first place.

    Boards are sorted; within one the entries stand in the order of the first column, the best
    first. A cost is the median. ValueError: no entry has so many seeds."""
    groups = dict(list(table.groupby(ENTRY, sort=False)))
    most = max(map(len, groups.values()))
    if most < seeds:
        raise ValueError(f"seeds={seeds}: no row has so many; the most is {most}")
    found = pd.DataFrame([
        {**dict(zip(ENTRY, key, strict=True)), "look": group["look"].iloc[0], "seeds": len(group),
         **{name: group[name].median() for name, _ in COST.values()},
         **{name + end: value for name in columns for end, value in zip(
             ("", " ±"), metrics.interval(group[name].tolist()), strict=True)}}
        for key, group in groups.items() if len(group) >= seeds])
    for name in columns:
        found[f"{name} *"] = pd.concat([first(rows, name) for _, rows in found.groupby("board")])
    place = found[columns[0]] * (1 if columns[0] in LOWER else -1)
    order = found.assign(_by=place).sort_values(["board", "_by"], kind="stable")
    return order.drop(columns="_by").reset_index(drop=True)


def first(board: pd.DataFrame, column: str) -> pd.Series:
    """Which entries share the first place: those whose interval overlaps that of the best. An entry
    with one seed has no interval, so it is neither the best nor level with it."""
    sign = -1 if column in LOWER else 1
    mean, half = sign * board[column], board[f"{column} ±"]
    told = half.notna() & mean.notna()
    if not told.any():
        return pd.Series(False, board.index)
    best = mean[told].idxmax()
    return told & (mean + half >= mean[best] - half[best])


def gaps(table: pd.DataFrame, found: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each entry minus the best of its board on the seeds that both have: mean and half_width of
    the 95 % interval of the paired differences. NaN for the best itself, and where fewer than two
    seeds are shared."""
    entries = {key: group.set_index("seed")[column] for key, group in table.groupby(ENTRY)}
    said = pd.DataFrame(np.nan, found.index, ["mean", "half_width"])
    for _, rows in found.groupby("board"):
        told = rows[rows[f"{column} ±"].notna()]
        if told.empty:
            continue
        best = (told[column] if column not in LOWER else -told[column]).idxmax()
        top = entries[tuple(found.loc[best, ENTRY])]
        for place in rows.index.drop(best):
            mine = entries[tuple(found.loc[place, ENTRY])]
            shared = mine.index.intersection(top.index)
            if len(shared) > 1:
                said.loc[place] = metrics.paired_interval(mine[shared].tolist(),
                                                          top[shared].tolist())
    return said


def behind(table: pd.DataFrame, found: pd.DataFrame, column: str) -> pd.Series:
    """`gaps` to read."""
    rows = gaps(table, found, column)
    return pd.Series(
        ["-" if np.isnan(mean) else f"{mean:+.1f} ± {half:.1f}" for mean, half in rows.to_numpy()],
        rows.index)


def shown(found: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Standings to read: "mean ± half width", with a star where the first place is shared; cost
    only where known."""
    table = found[[*ENTRY, "seeds"]].copy()
    for name in columns:
        table[name] = [
            _text(*row)
            for row in zip(found[name], found[f"{name} ±"], found[f"{name} *"], strict=True)
        ]
    for name, form in (("parameters", ",.0f"), ("images/s", ".0f"), ("GPU memory, MB", ".0f"),
                       ("memory, MB", ".1f")):
        if found[name].notna().any():
            table[name] = [
                format(value, form) if np.isfinite(value) else "-" for value in found[name]
            ]
    return table.set_index(ENTRY)


def _text(mean: float, half: float, star: bool) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}") + " *" * bool(star)


# ---- in words


def leaders(found: pd.DataFrame, column: str) -> str:
    """For each board, who shares the first place in a column, and how many cannot be ranked."""
    said = []
    for board, rows in found.groupby("board"):
        ranked = rows[rows[f"{column} ±"].notna()]
        best = ranked[ranked[f"{column} *"]].sort_values(column, ascending=column in LOWER)
        if ranked.empty:
            said.append(f"{board}: one seed each, so nobody is ahead")
            continue
        words = "; ".join(_name(row) for _, row in best.iterrows())
        said.append(
            f"{board}: {len(best)} of {len(ranked)} share the first place in {column}: {words}"
            + (f"; {len(rows) - len(ranked)} with one seed, not ranked" if len(rows) >
               len(ranked) else ""))
    return "\n".join(said)


def sharper(table: pd.DataFrame, found: pd.DataFrame, column: str) -> str:
    """How many of those that share a first place are behind when compared seed by seed."""
    gap = gaps(table, found, column)
    shares = found[f"{column} *"] & gap["mean"].notna()
    clear = found[shares & (gap["mean"].abs() > gap.half_width)]
    names = "; ".join(f"{row['board']}: {_name(row)}" for _, row in clear.iterrows())
    return (
        f"Paired by seed, {len(clear)} of the {int(shares.sum())} rows that share a first place with the best are "
        "behind it by an interval clear of zero" + (f": {names}" if names else "") + ".")


def both(found: pd.DataFrame, one: str, other: str) -> str:
    """For each board, which rows share the first place in two columns at once."""
    said = []
    for board, rows in found.groupby("board"):
        ranked = rows[rows[f"{one} ±"].notna()]
        held = ranked[ranked[f"{one} *"] & ranked[f"{other} *"]]
        names = "; ".join(_name(row) for _, row in held.iterrows())
        if ranked.empty:
            continue
        said.append(
            f"{board}: {len(held)} of {len(ranked)} rows share the first place in {one} and in {other}"
            + (f": {names}" if names else ""))
    return "\n".join(said) or "No row has an interval."


def fastest(found: pd.DataFrame, column: str) -> str:
    """For each board, which of the rows that share the first place trains fastest."""
    said = []
    for board, rows in found.groupby("board"):
        timed = rows[rows[f"{column} *"] & rows["images/s"].notna()]
        if len(timed):
            top, slow = timed.loc[timed["images/s"].idxmax()], timed["images/s"].min()
            said.append(
                f"{board}: of the {len(timed)} trained that share the first place in {column}, {_name(top)} is "
                f"the fastest ({top['images/s']:.0f} images/s; the slowest {slow:.0f})")
    return "\n".join(said) or "No row with an interval was trained at a known speed."


def _name(entry: pd.Series) -> str:
    return ", ".join(filter(None, (entry["method"], entry["tuner"], entry["settings"])))


def care(table: pd.DataFrame) -> pd.DataFrame:
    """What to doubt: for each board, method and tuner, the seeds of its entries, how many settings
    were tried (the best of many is ahead by luck too), and the learning rates among them (one: not
    tuned here)."""
    rows = []
    for key, group in table.groupby(ENTRY[:3]):
        counts = group.groupby("settings").size()
        rates = sorted(set(group.lr))
        rows.append({
            **dict(zip(ENTRY, key, strict=False)), "settings tried": len(counts),
            "seeds": f"{counts.min()}" if counts.min() == counts.max() else
            f"{counts.min()}-{counts.max()}", "learning rates": ", ".join(
                f"{rate:g}" for rate in rates) if key[1] != "frozen" else "-"
        })
    return pd.DataFrame(rows).set_index(ENTRY[:3])


def doubts(table: pd.DataFrame, found: pd.DataFrame) -> str:
    """The same in sentences, with the numbers."""
    tuned = table[table.method != "frozen"]
    rates = tuned.groupby(ENTRY[:3]).lr.nunique()
    most, machines = table.groupby(ENTRY[:3]).settings.nunique(), sorted(set(table.machine))
    return "\n".join([
        f"{len(found)} rows from {len(table)} runs. {int((found.seeds == 1).sum())} of them have one seed and no "
        f"interval, {int((found.seeds == 2).sum())} have two, whose intervals are 3.6 times as wide as those of three.",
        f"In {int((rates == 1).sum())} of {len(rates)} cases (board, method, tuner) one learning rate was tried: "
        "it was not tuned for the method.",
        f"Of one method up to {most.max()} settings were tried, and judged by the test images: the best row of many "
        "is ahead by luck too.",
        f"Speeds are of {len(machines)} kind{'s' * (len(machines) > 1)} of machine ({'; '.join(machines)}), "
        "with other processes beside them."
    ])


# ---- for figures


def of_boards(runs: Sequence[Run], table: pd.DataFrame,
              boards: Sequence[str] | pd.Series) -> list[Run]:
    """The runs that stand behind these boards of `gather`."""
    return [run for run in runs if run.id in table.index and table.board[run.id] in set(boards)]


def dots(found: pd.DataFrame, columns: Sequence[str], rows: int = 2) -> pd.DataFrame:
    """Standings of the boards with at least so many rows, long, for `plots.ranking`: board, column,
    label, look, mean, half_width, first."""
    entries = [{
        "board": one["board"], "column": name, "look": one["look"], "label": label(one),
        "mean": one[name], "half_width": one[f"{name} ±"], "first": one[f"{name} *"]
    } for _, one in found[_sizes(found) >= rows].iterrows() for name in columns]
    return pd.DataFrame(entries)


def label(entry: pd.Series) -> str:
    """What distinguishes an entry from others of its method; a tuner that says nothing is left
    out."""
    told = entry["tuner"] if entry["tuner"] not in ("none", entry["method"]) else ""
    return ", ".join(filter(None, (told, entry["settings"])))


def pairs(found: pd.DataFrame, x: str, y: str, rows: int = 2) -> pd.DataFrame:
    """Two columns against each other for `plots.clouds`: panel, label, x, x_half, y, y_half. A cost
    has no interval."""
    found = found[(_sizes(found) >= rows) & found[y].notna()]
    half = {name: found[f"{name} ±"].fillna(0) if f"{name} ±" in found else 0.0 for name in (x, y)}
    return pd.DataFrame({
        "panel": found.board, "label": found["look"], "x": found[x], "x_half": half[x],
        "y": found[y], "y_half": half[y]
    }).reset_index(drop=True)


def _sizes(found: pd.DataFrame) -> pd.Series:
    return found.groupby("board").board.transform("size")
