"""Primary outcomes: the comparisons that a notebook names before its runs are made.

    primary.save("03", runs, "A_last", between="method", base="finetune", by=["lr"])

writes figures/primary/03.csv, the rows of `compare`, and 03.json, what was asked of which runs: so
that stored runs give the table again, a smaller study stands beside it, and the README's tables are
made from it."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from clstudy.analysis.catalogue import put
from clstudy.analysis.comparisons import compare, family, tell
from clstudy.analysis.scores import Groups, flattened, listed
from clstudy.runs.evidence import NotStored
from clstudy.runs.run import Run
from clstudy.utils import paths
from clstudy.utils.files import write_json, write_text
from clstudy.utils.validation import choose

Metrics = str | Sequence[str] | Mapping[str, Mapping[str, str]]
INSIDE, OVERLAP, OUTSIDE = ("inside the stored interval", "outside, but the intervals overlap",
                            "outside")
NOT_STORED, NO_INTERVAL = "not in the stored evidence", "the stored evidence has no interval"


def save(name: str, runs: Groups, metrics: Metrics, **asked: Any) -> pd.DataFrame:
    """Compare runs, store the table as the primary outcome `name` in figures/primary, return it.

    metrics: as for `compare`; or metric → value of `between` → its base, and p is corrected over
    all of them. asked: the other arguments of `compare`."""
    found = _compare(runs, metrics, asked)
    labels = ([label for label, group in runs.items() for _ in group]
              if isinstance(runs, Mapping) else None)
    plain = metrics if isinstance(metrics, Mapping) else listed(metrics)
    about = {"metrics": plain, "asked": asked, "labels": labels,
             "runs": [run.id for run in flattened(runs)]}
    write_text(_file(name, "csv"), found.to_csv(index=False))
    write_json(_file(name, "json"), about)
    return found


def names(figures: Path | None = None) -> list[str]:
    """Return the names of the stored outcomes, in order."""
    return sorted(path.stem for path in ((figures or paths.FIGURES) / "primary").glob("*.csv"))


def read(name: str, figures: Path | None = None) -> pd.DataFrame:
    """Return a stored outcome. ValueError: there is none of this name."""
    choose("primary outcome", name, names(figures))
    return pd.read_csv(_file(name, "csv", figures))


def again(name: str, stored: Sequence[Run], figures: Path | None = None) -> pd.DataFrame:
    """Compute a stored outcome again from stored runs. NotStored: a run that it needs."""
    choose("primary outcome", name, names(figures))
    about = json.loads(_file(name, "json", figures).read_text(encoding="utf-8"))
    by_id = {run.id: run for run in stored}
    if missing := [id for id in about["runs"] if id not in by_id]:
        raise NotStored(f"primary outcome {name} needs {len(missing)} runs that are not stored: "
                        f"{', '.join(missing[:5])}")
    runs: Groups = [by_id[id] for id in about["runs"]]
    if labels := about["labels"]:
        runs = {label: [run for run, one in zip(runs, labels, strict=True) if one == label]
                for label in dict.fromkeys(labels)}
    return _compare(runs, about["metrics"], about["asked"])


def _compare(runs: Groups, metrics: Metrics, asked: Mapping[str, Any]) -> pd.DataFrame:
    if not isinstance(metrics, Mapping):
        return compare(runs, metrics, **asked)
    between, found = asked.get("between", "method"), []
    for metric, bases in metrics.items():
        for value, base in bases.items():
            table = compare(runs, metric, base=base, **asked)
            choose(f"primary outcome: value of {between}", value, list(table[between]))
            found.append(table[table[between] == value])
    return pd.concat(family(found), ignore_index=True)


def _file(name: str, kind: str, figures: Path | None = None) -> Path:
    return (figures or paths.FIGURES) / "primary" / f"{name}.{kind}"


# ---- a smaller study beside the stored evidence


def beside(found: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Put a table of `compare` beside the stored one, row by row.

    Returns a row for each of `found`, with its settings as text, base, metric; difference, n;
    stored difference, stored low, stored high, stored n; and the verdict: whether the difference
    lies inside the stored interval, or outside, and whether the two intervals overlap then (few
    seeds differ from many by chance). ValueError: the tables compare by different settings."""
    keys = _keys(found)
    if keys != _keys(stored):
        raise ValueError(f"beside: one table has {', '.join(keys)}, the stored one "
                         f"{', '.join(_keys(stored))}")
    numbers = ["difference", "low", "high", "n"]
    ours, theirs = (table[keys].map(_text).join(table[numbers]) for table in (found, stored))
    both = ours.merge(theirs.rename(columns={name: f"stored {name}" for name in numbers}),
                      on=keys, how="left")
    both["verdict"] = [_verdict(row) for row in both.to_dict("records")]
    return both.drop(columns=["low", "high"])


def _keys(table: pd.DataFrame) -> list[str]:
    """Return the columns that say what a row of `compare` is: the settings, base and metric."""
    return list(table.columns[:table.columns.get_loc("metric") + 1])


def _text(value: Any) -> str:
    """Write a setting as it is the same in a table of now and in one that was read."""
    if value is None or isinstance(value, float) and np.isnan(value):
        return "-"
    plain = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return f"{value:g}" if plain else str(value)


def _verdict(row: Mapping[str, Any]) -> str:
    low, high = row["stored low"], row["stored high"]
    if np.isnan(row["stored difference"]):
        return NOT_STORED
    if np.isnan(low):
        return NO_INTERVAL
    if low <= row["difference"] <= high:
        return INSIDE
    return OVERLAP if row["low"] <= high and row["high"] >= low else OUTSIDE


def report(mine: Path, stored: Path) -> str:
    """Write each primary outcome that both folders of figures have as lines, ours beside theirs."""
    lines = []
    for name in names(mine):
        if name not in names(stored):
            lines.append(f"{name}: {NOT_STORED}")
            continue
        rows = beside(read(name, mine), read(name, stored))
        lines.append(f"{name}: {(rows.verdict == INSIDE).sum()} of {len(rows)} {INSIDE}")
        lines += [f"  {_side_by_side(row)}" for row in rows.to_dict("records")]
    return "\n".join(lines)


def _side_by_side(row: Mapping[str, Any]) -> str:
    *by, between = list(row)[:list(row).index("base")]
    here = "".join(f"{name}={row[name]}, " for name in by if row[name] != "-")
    said = f"{row['metric']}, {here}{row[between]} − {row['base']}: {row['difference']:+.1f} "
    said += f"(n = {row['n']})"
    if row["verdict"] != NOT_STORED:
        said += f"; stored {_interval(row, 'stored ')} (n = {row['stored n']:.0f})"
    return f"{said}: {row['verdict']}"


def _interval(row: Mapping[str, Any], prefix: str = "") -> str:
    """Write "+20.4 (8.2 to 32.7)"."""
    mean, low, high = (row[prefix + name] for name in ("difference", "low", "high"))
    return f"{mean:+.1f}" + ("" if np.isnan(low) else f" ({low:+.1f} to {high:+.1f})")


# ---- the tables and sentences of the README


def filled(text: str, figures: Path | None = None,
           labels: Mapping[Any, str] = MappingProxyType({})) -> str:
    """Return a text with what stands between `<!-- table NAME -->` and `<!-- /table NAME -->`, and
    between `<!-- told NAME -->` and `<!-- /told NAME -->`, written anew from each stored outcome.

    labels: what to call a value of a setting."""
    for name in names(figures):
        found = read(name, figures)
        text = put(text, f"table {name}", markdown(found, labels))
        sentences = tell(found, labels).splitlines()
        text = put(text, f"told {name}", "".join(f"- {line}\n" for line in sentences))
    return text


def markdown(found: pd.DataFrame, labels: Mapping[Any, str] = MappingProxyType({})) -> str:
    """Write a table of `compare` as Markdown, a row for each comparison."""
    *by, between, _, _ = _keys(found)
    head = [*by, "compared", "metric", "difference (95 % interval)", "n", "verdict"]
    rows = [head, ["---"] * len(by) + ["---", "---", "---:", "---:", "---"]]
    for row in found.to_dict("records"):
        sides = [labels.get(row[name], _text(row[name])) for name in (between, "base")]
        rows.append([*(labels.get(row[name], _text(row[name])) for name in by), " − ".join(sides),
                     row["metric"], _interval(row), _text(row["n"]), row["verdict"]])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
