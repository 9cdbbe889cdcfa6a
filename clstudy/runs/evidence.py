"""Stored evidence: many finished runs in one file, `figures/runs.parquet`.

    pack(finished(paths.RUNS), path)     add runs, or replace those of the same id
    load(path).where(method="sit")       the runs; tables and figures take them as any others

A row is a run: id, config, result and environment (JSON), and its tables as nested columns, so that
the same runs give the same bytes. Numbers are exact. `tests` stands once for all runs with the same
test images in the same order (`tests_of`: the id of the run that holds them). Weights are not
stored, and of the tables of probes those that were asked for."""
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clstudy.runs.grid import labels
from clstudy.runs.run import Damaged, Run, Runs, finished, note
from clstudy.training.config import RunConfig
from clstudy.utils import paths

WHERE = {"stage": pa.int32(), "images_seen": pa.int32()}
TABLES = {  # of a run → its columns
    "evals": WHERE | {"stage_end": pa.bool_(), "kind": pa.string(), "name": pa.string(),
                      "candidates": pa.string(), "metric": pa.string(), "value": pa.float64(),
                      "count": pa.int32()},
    "steps": WHERE | {"step": pa.int32(), "term": pa.string(), "value": pa.float64()},
    "bits": WHERE | {"stage_end": pa.bool_(), "set": pa.string(), "candidates": pa.string(),
                     "count": pa.int32(), "bits": pa.binary()},
    "tests": {"set": pa.string(), **dict.fromkeys(
        ("label", "concept", "domain", "task", "arrived"), pa.int32())},
    "tables": {"name": pa.string(), "content": pa.binary()},  # of probes, as Parquet files
}
TEXTS = ("id", "config", "result", "environment", "tests_of")
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS),
                    *((name, pa.list_(pa.struct(columns))) for name, columns in TABLES.items())])
WRITTEN = {"compression": "zstd", "compression_level": 19, "use_dictionary": False,
           "data_page_size": 2**28, "row_group_size": 2**20, "write_statistics": False,
           "store_schema": False, "write_page_checksum": True}
LISTED = 5  # runs named in one error


class NotStored(LookupError):
    """A run, or a part of it, is not in the stored evidence."""


@dataclass(frozen=True, eq=False)
class StoredRun(Run):
    """A run of the stored evidence: its `folder` is the file and its id, and does not exist."""

    packed: "Packed"
    row: int

    @cached_property
    def evals(self) -> pd.DataFrame:
        return self.packed.table("evals", self.row)

    @cached_property
    def steps(self) -> pd.DataFrame:
        rows = self.packed.table("steps", self.row)
        return rows if len(rows) else pd.DataFrame(columns=rows.columns)

    @cached_property
    def bits(self) -> pd.DataFrame:
        return self.packed.table("bits", self.row)

    @property
    def tests(self) -> pd.DataFrame:
        return self.packed.tests(self.packed.text("tests_of", self.row))

    def has_tests(self) -> bool:
        return True

    @cached_property
    def result(self) -> dict:
        return json.loads(self.packed.text("result", self.row))

    @cached_property
    def environment(self) -> dict:
        return json.loads(self.packed.text("environment", self.row))

    @cached_property
    def _tables(self) -> dict[str, bytes]:
        return dict(self.packed.table("tables", self.row).itertuples(index=False, name=None))

    def tables(self) -> list[str]:
        return list(self._tables)

    def probe(self, name: str) -> pd.DataFrame:
        note([self.id], name)
        if name not in self._tables:
            known = ", ".join(self._tables) or "none"
            raise NotStored(f"run {self.id} of {self.folder.parent} has no table {name!r} "
                            f"(stored: {known})")
        return pd.read_parquet(io.BytesIO(self._tables[name]))


class Packed:
    """A packed file in memory. Tables of a run are cut out of those of all when asked for."""

    def __init__(self, content: pa.Table) -> None:
        self._texts = {name: content[name].to_pylist() for name in TEXTS}
        self._lists = {name: content[name].combine_chunks() for name in TABLES}
        self._rows = {id: row for row, id in enumerate(self._texts["id"])}
        self._whole: dict[str, pd.DataFrame] = {}
        self._tests: dict[str, pd.DataFrame] = {}

    def text(self, name: str, row: int) -> str:
        return self._texts[name][row]

    def table(self, name: str, row: int) -> pd.DataFrame:
        """Return one table of the run in a row."""
        column = self._lists[name]
        if name not in self._whole:
            whole = pa.RecordBatch.from_struct_array(column.values).to_pandas()
            wide = () if name == "tests" else whole.select_dtypes("int32").columns
            self._whole[name] = whole.astype(dict.fromkeys(wide, np.int64))
        start, end = (column.offsets[at].as_py() for at in (row, row + 1))
        return self._whole[name].iloc[start:end].reset_index(drop=True)

    def tests(self, id: str) -> pd.DataFrame:
        """Return the tests that the run of this id holds, one table for all runs that share it."""
        if id not in self._tests:
            self._tests[id] = self.table("tests", self._rows[id]).astype({"set": "category"})
        return self._tests[id]

    def runs(self, path: Path) -> Runs:
        configs = (RunConfig.model_construct(**json.loads(text)) for text in self._texts["config"])
        return Runs(StoredRun(config, path / id, self, row)
                    for row, (id, config) in enumerate(zip(self._rows, configs, strict=True)))


# ---- reading


def load(path: Path | None = None) -> Runs:
    """Return the runs of a packed file, by id; the same objects until the file changes.

    NotStored: there is no such file. Damaged: it differs from what was written."""
    path = (path or paths.EVIDENCE).absolute()
    try:
        stat = path.stat()
    except OSError as error:
        raise NotStored(f"there is no stored evidence: {error}. `make all` makes it") from None
    return _load(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: Path, size: int, changed: int) -> Runs:
    try:  # each page has a checksum
        content = pq.ParquetFile(path, page_checksum_verification=True).read()
        if not content.schema.equals(SCHEMA):
            raise ValueError("it has other columns")
        content.validate(full=True)
        return Packed(content).runs(path)
    except Exception as error:  # pyarrow's own, of many kinds
        why = str(error).partition("\n")[0] or type(error).__name__
        raise Damaged(f"{path} is damaged ({why}): take it from the repository again "
                      "(git checkout), or `make all` makes it anew") from None


def shared(runs: Iterable[Run], stored: Iterable[Run]) -> pd.DataFrame:
    """Compare the runs that are in both: columns id, equal (evaluations, losses and bits, to the
    byte), apart (the largest difference of a value, in points), same machine (and versions)."""
    others, rows = {run.id: run for run in stored}, []
    for run in runs:
        if other := others.get(run.id):
            equal = all(getattr(run, name).equals(getattr(other, name))
                        for name in ("evals", "steps", "bits"))
            both = run.evals.merge(other.evals, on=list(run.evals.columns.drop("value")))
            rows.append({"id": run.id, "equal": equal,
                         "apart": 100 * (both.value_x - both.value_y).abs().max(),
                         "same machine": run.environment == other.environment})
    return pd.DataFrame(rows, columns=["id", "equal", "apart", "same machine"])


def known() -> Runs:
    """Return all finished runs: of the stored evidence where CLSTUDY_STORED names one, otherwise
    those of the folder of runs."""
    stored = paths.stored()
    return load(stored) if stored else Runs(finished(paths.RUNS))


def take(configs: Sequence[RunConfig], path: Path | None = None) -> Runs:
    """Return the stored runs of some configurations, in their order.

    NotStored: names the runs that are missing, and says whether the file has the same settings with
    other data or weights."""
    stored = load(path)
    by_id = {run.id: run for run in stored}
    ids = [config.run_id for config in configs]
    wanted = dict(zip(ids, configs, strict=True))
    missing = {id: config for id, config in wanted.items() if id not in by_id}
    if missing:
        raise NotStored(_missing(missing, len(wanted), stored, path or paths.EVIDENCE))
    return Runs(by_id[id] for id in ids)


def _missing(missing: Mapping[str, RunConfig], total: int, stored: Runs, path: Path) -> str:
    known = {_settings(run.config): run.id for run in stored}
    lines = []
    named = labels([config.model_dump(mode="json") for config in missing.values()],
                   always=["method", "tuner", "seed"])
    for label, (id, config) in list(zip(named, missing.items(), strict=True))[:LISTED]:
        other = known.get(_settings(config))
        why = f" (stored as {other}, made from other data or weights)" if other else ""
        lines.append(f"\n  {id} {label}{why}")
    more = f"\n  and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    return (f"{path} lacks {len(missing)} of {total} runs; `make all` makes them, and so does this "
            f"call without {paths.STORED}:{''.join(lines)}{more}")


def _settings(config: RunConfig) -> str:
    return json.dumps(config.model_dump(mode="json", exclude={"device"}), sort_keys=True)


def asked(file: Path) -> dict[str, set[str]]:
    """Return the ids of the runs that were asked for, with the names of the tables read of each.

    file: the one that CLSTUDY_ASKED named."""
    found: dict[str, set[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        id, _, table = line.partition(" ")
        found.setdefault(id, set()).update({table} - {""})
    return found


# ---- writing


def pack(runs: Iterable[Run], path: Path | None = None, only: Collection[str] | None = None,
         tables: Mapping[str, Collection[str]] = MappingProxyType({})) -> Path:
    """Write runs into a packed file, beside those that it has, sorted by id; return its path.

    A run replaces the stored one of its id. only: the ids that stay; None: all. tables: for the
    ids of runs, the names of the probes whose tables are packed; a stored table stays.
    Damaged: a file of a run, or the packed file."""
    path = path or paths.EVIDENCE
    found = {run.id: run for run in (load(path) if path.exists() else ())}
    found |= {run.id: run for run in runs}
    kept = sorted((run for run in found.values() if only is None or run.id in only),
                  key=lambda run: run.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    pq.write_table(_content(kept, tables), draft, **WRITTEN)
    return draft.replace(path)


def _content(runs: Sequence[Run], tables: Mapping[str, Collection[str]]) -> pa.Table:
    """Return the runs as one table, a row each."""
    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    holders: dict[bytes, str] = {}  # hash of tests → the run that holds them
    for run in runs:
        numbers = dict.fromkeys(run.tests.columns.drop("set"), np.int32)
        same = run.tests.astype(numbers | {"set": "category"})
        key = pd.util.hash_pandas_object(same, index=False).to_numpy().tobytes()
        tests_of = holders.setdefault(key, run.id)
        result = {name: value for name, value in run.result.items() if name != "sha256"}
        about = (run.id, run.config.model_dump(mode="json"), result, run.environment, tests_of)
        for name, value in zip(TEXTS, about, strict=True):
            texts[name].append(value if isinstance(value, str)
                               else json.dumps(value, sort_keys=True))
        parts["evals"].append(run.evals)
        parts["steps"].append(run.steps)
        parts["bits"].append(run.bits)
        parts["tests"].append(run.tests if tests_of == run.id else run.tests[:0])
        parts["tables"].append(_blobs(run, tables.get(run.id, ())))
    return pa.table([*texts.values(), *(_nested(name, each) for name, each in parts.items())],
                    schema=SCHEMA)


def _nested(name: str, tables: Sequence[pd.DataFrame]) -> pa.ListArray:
    """Return the tables of the runs as a column of lists of rows."""
    columns = TABLES[name]
    offsets = np.cumsum([0, *map(len, tables)])
    whole = pd.concat([pd.DataFrame(columns=list(columns)), *tables])
    arrays = [pa.array(whole[column], kind, from_pandas=False) for column, kind in columns.items()]
    struct = pa.StructArray.from_arrays(arrays, fields=[*pa.struct(columns)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct)


def _blobs(run: Run, names: Collection[str]) -> pd.DataFrame:
    """Return the tables of probes as Parquet files, those that are stored already unchanged."""
    stored = run.tables() if isinstance(run, StoredRun) else ()
    rows = []
    for name in sorted({*names, *stored} & {*run.tables()}):
        file = io.BytesIO()
        run.probe(name).to_parquet(file, compression="zstd", compression_level=19)
        rows.append({"name": name, "content": file.getvalue()})
    return pd.DataFrame(rows, columns=["name", "content"])
