"""Finished runs: their tables, which are read from disk and checked."""
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.files import sha256


class Damaged(ValueError):
    """A file of a finished run differs from what was written; the message names the file."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    `evals` has a row for each (stage, images_seen, kind, name, candidates, metric), `steps` one for
    each loss term of each step."""

    config: RunConfig
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def evals(self) -> pd.DataFrame:
        return _read_rows(self.folder, "evals.jsonl")

    @cached_property
    def steps(self) -> pd.DataFrame:
        rows = _read_rows(self.folder, "steps.jsonl")
        columns = ["stage", "images_seen", "step", "term", "value"]
        return rows if len(rows) else pd.DataFrame(columns=columns)

    @cached_property
    def result(self) -> dict:
        return read_object(self.folder / "result.json")

    @cached_property
    def environment(self) -> dict:
        """What the numbers may depend on besides the settings: versions, machine, threads."""
        path = self.folder / "env.json"
        return read_object(checked_file(self.folder, path.name)) if path.exists() else {}

    @property
    def fingerprints(self) -> list[str]:
        """The fingerprints of the data and weights that the run was made from."""
        return self.result.get("fingerprints", [])

    @cached_property
    def bits(self) -> pd.DataFrame:
        """Which images were right, packed: stage, images_seen, stage_end, set, candidates, count,
        bits."""
        return pd.read_parquet(checked_file(self.folder, "correct.parquet"))

    @cached_property
    def tests(self) -> pd.DataFrame:
        """What the images are of which `bits` tells: set, label, concept, domain, task, arrived."""
        return pd.read_parquet(checked_file(self.folder, "tests.parquet"))

    def has_tests(self) -> bool:
        """Return whether there are `bits` and `tests`: runs of before have none."""
        return all((self.folder / f"{name}.parquet").exists() for name in ("correct", "tests"))

    def correct(self, name: str = "test", candidates: str = "seen",
                stage_ends: bool = True) -> np.ndarray:
        """Return which images of a set were right at stage ends: bool, (measured stages, images).

        The first row is the model before training. name: "test"; a held-out set, whose candidates
        are "own"; pairs of retrieval ("image-to-text"), or "NAME: captions" ("text-to-image").
        stage_ends: False: at the periodic checkpoints between them. ValueError: no such set."""
        table = self.bits
        rows = table[(table["set"] == name) & (table.candidates == candidates)]
        if rows.empty:
            known = table[["set", "candidates"]].drop_duplicates().agg("/".join, axis=1)
            raise ValueError(f"correct: there is no {name!r} with candidates {candidates!r}. "
                             f"Choices: {', '.join(known)}")
        count = int(rows["count"].iloc[0])
        rows = rows[rows.stage_end == stage_ends]
        bits = [np.unpackbits(np.frombuffer(packed, np.uint8), count=count) for packed in rows.bits]
        return np.array(bits, bool).reshape(len(rows), count)

    def tables(self) -> list[str]:
        """Return the names of the tables that `probe` reads."""
        return sorted({path.stem for path in self.folder.glob("*.parquet")} - {"correct", "tests"})

    def probe(self, name: str) -> pd.DataFrame:
        """Return the table of a probe (see `clstudy.probes` for its columns).

        name: also "method", the table of a method that keeps one, as `gdro` its class weights.
        FileNotFoundError: the run was made without the probe."""
        note([self.id], name)
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"run {self.id} has no {path.name}; make it with "
                                    f"load_or_train(config, probes=[{name!r}])")
        return pd.read_parquet(checked_file(self.folder, path.name))

    def kept(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table that is computed from the weights of the run: stored beside its others
        when it is first made, so that it can be packed and read where the weights are not.

        name: of the table, as `kept_name` makes it."""
        with suppress(OSError, ValueError):  # missing or damaged: it is made again
            return self.probe(name)
        table, path = make(), self.folder / f"{name}.parquet"
        draft = path.with_suffix(f".{uuid.uuid4().hex[:8]}.new")
        table.to_parquet(draft)
        draft.replace(path)
        return table

    def matrix(self, candidates: str = "all", metric: str = "accuracy") -> np.ndarray:
        """Return R[s, t], the accuracy on task t + 1 after stage s; row 0 is before training.

        NaN: not measured. candidates: "own" (task-incremental), "seen" (class-incremental) or "all"
        (zero-shot); metric: "accuracy" over images, or "class-balanced accuracy"."""
        rows = self.evals[(self.evals.kind == "task") & (self.evals.candidates == candidates)]
        rows = rows[rows.stage_end & (rows.metric == metric)]
        stages = int(self.evals.stage.max())
        R = np.full((stages + 1, stages), np.nan)
        R[rows.stage, rows["name"].astype(int) - 1] = rows.value
        return R

    def curve(self, name: str = "seen classes", metric: str = "accuracy",
              kind: str | None = None) -> pd.DataFrame:
        """Return `images_seen` and `value` of one set over the stream. kind: as in `final`."""
        rows = self._of(name, metric, kind).drop_duplicates("images_seen", keep="last")
        return rows[["stage", "images_seen", "value"]].reset_index(drop=True)

    def final(self, name: str, candidates: str | None = None, metric: str = "accuracy",
              stage: int | None = None, kind: str | None = None) -> float:
        """Return the value of one set after the last stage, or after `stage` (0: before training).

        kind: "task", "class" or "domain"; None: any other kind."""
        stage = int(self.evals.stage.max()) if stage is None else stage
        rows = self._of(name, metric, kind)
        rows = rows[rows.stage_end & (rows.stage == stage)]
        rows = rows if candidates is None else rows[rows.candidates == candidates]
        return float(rows.value.iloc[0]) if len(rows) else float("nan")

    def _of(self, name: str, metric: str, kind: str | None) -> pd.DataFrame:
        here = self.evals.kind.isin([kind] if kind else ["all", "held-out set", "retrieval"])
        return self.evals[here & (self.evals["name"] == name) & (self.evals.metric == metric)]

    def held_out_sets(self) -> list[str]:
        """Return the names of the zero-shot sets, which the stream does not touch."""
        return list(dict.fromkeys(self.evals["name"][self.evals.kind == "held-out set"]))

    def classes(self, candidates: str = "seen") -> pd.DataFrame:
        """Return the accuracy of each class at stage ends: index stage, a column for each class."""
        return self._by_stage("class", candidates)

    def domains(self, candidates: str = "all") -> pd.DataFrame:
        """Return the accuracy on each domain at stage ends: index stage, a column for each."""
        return self._by_stage("domain", candidates)

    def _by_stage(self, kind: str, candidates: str) -> pd.DataFrame:
        rows = self.evals[(self.evals.kind == kind) & (self.evals.candidates == candidates)]
        return rows[rows.stage_end].pivot(index="stage", columns="name", values="value")


class Runs(Sequence):
    """A sequence of runs, which can be chosen by their settings and joined.

        runs.where(method="sit", seed=[0, 2]) + other          each run once
    """

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs = list(runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int | slice) -> "Run | Runs":
        found = self._runs[index]
        return Runs(found) if isinstance(index, slice) else found

    def __add__(self, other: Iterable[Run]) -> "Runs":
        return Runs({run.folder: run for run in (*self, *other)}.values())

    def __radd__(self, other: Iterable[Run]) -> "Runs":
        return Runs(other or ()) + self  # sum() starts with 0

    def __repr__(self) -> str:
        return f"{len(self)} runs"

    def where(self, **wanted: Any) -> "Runs":
        """Return the runs whose settings have these values; a list means any of them.

        An option is named flat where no other setting ends so ("size"), else dotted
        ("method_args.size", as **{…}); a run without it has None. ValueError: no run has the
        setting."""
        settings = [flat(run.config) for run in self]
        known = {name for one in settings for name in one}
        kept = list(zip(self, settings, strict=True))
        for name, values in wanted.items():
            names = {name} & known or {full for full in known if full.endswith(f".{name}")}
            if len(names) != 1:
                kind = "several settings" if names else "no setting"
                listed = ", ".join(sorted(names or known))
                raise ValueError(f"where: {name} is {kind} of these runs; choices: {listed}")
            (full,) = names
            any_of = values if isinstance(values, list | tuple | set | range) else [values]
            kept = [(run, one) for run, one in kept if one.get(full) in any_of]
        return Runs(run for run, _ in kept)


def kept_name(kind: str, *asked: Any) -> str:
    """Return a name for `Run.kept`. asked: all that the table depends on besides the run."""
    return f"{kind}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"


def note(ids: Iterable[str], table: str = "") -> None:
    """Add runs, or a table of theirs, to the list of those asked for, if there is one."""
    if file := paths.asked():
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write("".join(f"{id} {table}\n" for id in ids))


def flat(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run by name, each option of an axis as "method_args.size"."""
    found = {}
    for name, value in config.model_dump().items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            found[name] = value
    return found


def _read_rows(folder: Path, name: str) -> pd.DataFrame:
    path = checked_file(folder, name)
    try:  # without precise_float the last digits are lost
        return pd.read_json(path, lines=True, precise_float=True, dtype={"name": str})
    except Exception as error:  # pandas' own, of many kinds
        raise _damaged(path, error) from None


def read_object(path: Path) -> dict:
    """Return the object in a JSON file. Damaged: the file holds none."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no object")
    return found


def checked_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a finished run, after comparing its checksum. Damaged: it
    differs.

    The results of old runs hold no checksums. Of these, only an empty file or a row that is cut off
    is noticed."""
    path, result = folder / name, folder / "result.json"
    known = (read_object(result).get("sha256") if result.exists() else None) or {}
    if not path.is_file():
        raise _damaged(path, "it is not there")
    if name in known:
        wrong = sha256(path) != known[name]
        fault = "its checksum is wrong, or that in result.json" if wrong else ""
    elif not path.stat().st_size:
        fault = "it is empty" if name != "steps.jsonl" else ""
    else:
        cut_off = name.endswith(".jsonl") and _last_byte(path) != b"\n"
        fault = "its last row is cut off" if cut_off else ""
    if fault:
        raise _damaged(path, fault)
    return path


def _last_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read()


def _damaged(path: Path, why: Any) -> Damaged:
    return Damaged(f"{path} is damaged ({why}): load_or_train with the run's settings makes it "
                   "again; or remove its folder")


def find(config: RunConfig, runs: Path | None = None) -> Run | None:
    """Return the finished run of a configuration, if there is one."""
    folder = (runs or paths.RUNS) / config.run_id
    return Run(config, folder) if (folder / "result.json").exists() else None


def load_tuned(run: Run):
    """Return the model of a run that was made with keep_model=True. FileNotFoundError: it was
    not."""
    from safetensors.torch import load_file

    from clstudy.training.setup import prepare

    path = run.folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"run {run.id} has no {path.name}; make it with "
                                "load_or_train(config, keep_model=True)")
    clip, _, _ = prepare(run.config)
    weights = load_file(checked_file(run.folder, path.name), device=str(clip.device))
    unknown = clip.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{path} holds {unknown[0]}, which the model of the run does not have")
    return clip.eval()


def finished_folders(runs: Path) -> list[Path]:
    """Return the folders of all finished runs, by name."""
    folders = (path.parent for path in runs.glob("*/result.json"))
    return sorted(folder for folder in folders if "." not in folder.name)


def finished(folder: Path, only: Collection[str] | None = None) -> list[Run]:
    """Return all finished runs of a folder, also those with settings that no longer exist.

    only: their ids; None: all. Damaged: the settings of a run."""
    found = []
    for one in finished_folders(folder):
        if only is not None and one.name not in only:
            continue
        settings = read_object(checked_file(one, "config.json"))
        found.append(Run(RunConfig.model_construct(**settings), one))
    return found


def load_runs(runs: Path | Iterable[Run] | None = None) -> pd.DataFrame:
    """Return all evaluations of many runs in one table; run_id and settings are columns.

    Damaged: a file of a run."""
    if runs is None or isinstance(runs, Path):
        runs = finished(runs or paths.RUNS)
    tables = []
    for run in runs:
        settings = run.config.model_dump()
        for name, value in settings.items():
            if isinstance(value, dict | list):  # as text, so that runs can be grouped by it
                settings[name] = json.dumps(value, sort_keys=True)
        tables.append(run.evals.assign(run_id=run.id, **settings))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
