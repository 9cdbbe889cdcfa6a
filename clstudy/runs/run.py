"""Finished runs: their tables, read from disk and checked."""
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clstudy.training.config import RunConfig
from clstudy.utils import paths


class Damaged(ValueError):
    """A file of a finished run is not as it was written; the message names it."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. `evals` has a row per (stage, images_seen, kind, name, candidates, metric),
    `steps` one per loss term."""

    config: RunConfig
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def evals(self) -> pd.DataFrame:
        return _rows(self.folder, "evals.jsonl")

    @cached_property
    def steps(self) -> pd.DataFrame:
        rows = _rows(self.folder, "steps.jsonl")
        return rows if len(rows) else pd.DataFrame(
            columns=["stage", "images_seen", "step", "term", "value"])

    def correct(self, name: str = "test", candidates: str = "seen") -> np.ndarray:
        """Which images of a set were right at stage ends: truth values, (measured stages, images);
        the first row is the model before training.

        name: "test", or a held-out set, whose candidates are "own". ValueError: there is no such
        set."""
        table = pd.read_parquet(_whole(self.folder, "correct.parquet"))
        rows = table[(table["set"] == name) & (table.candidates == candidates)]
        if rows.empty:
            choices = ", ".join(
                f"{a}/{b}" for a, b in table[["set", "candidates"]].drop_duplicates().to_numpy())
            raise ValueError(
                f"correct: there is no {name!r} with candidates {candidates!r}. Choices: {choices}")
        count = int(rows["count"].iloc[0])
        bits = [np.unpackbits(np.frombuffer(packed, np.uint8), count=count) for packed in rows.bits]
        return np.stack(bits).astype(bool)

    def probe(self, name: str) -> pd.DataFrame:
        """The table of a probe (see `clstudy.probes` for its columns), or "method": what a method
        has to tell of its own, as `gdro` of its weights. FileNotFoundError: the run was made
        without."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(
                f"run {self.id} has no {path.name}; make it with load_or_train(config, "
                f"probes=[{name!r}])")
        return pd.read_parquet(_whole(self.folder, path.name))

    @property
    def fingerprints(self) -> list[str]:
        """Of the data and weights that the run was made from; with its settings they are what it
        is."""
        return self.result.get("fingerprints", [])

    @cached_property
    def result(self) -> dict:
        return _object(self.folder / "result.json")

    def matrix(self, candidates: str = "all", metric: str = "accuracy") -> np.ndarray:
        """R[s, t]: accuracy on task t + 1 after stage s; row 0 is the model before training. NaN
        where there is none.

        candidates: "own" (task-incremental), "seen" (class-incremental) or "all" (zero-shot);
        metric: "accuracy" over images, or "class-balanced accuracy"."""
        rows = self.evals[(self.evals.kind == "task") & (self.evals.candidates == candidates)]
        rows = rows[rows.stage_end & (rows.metric == metric)]
        stages = int(self.evals.stage.max())
        R = np.full((stages + 1, stages), np.nan)
        R[rows.stage, rows["name"].astype(int) - 1] = rows.value
        return R

    def curve(self, name: str = "seen classes", metric: str = "accuracy",
              kind: str | None = None) -> pd.DataFrame:
        """`images_seen` and `value` of one set over the stream."""
        rows = self._of(name, metric, kind).drop_duplicates("images_seen", keep="last")
        return rows[["stage", "images_seen", "value"]].reset_index(drop=True)

    def final(self, name: str, candidates: str | None = None, metric: str = "accuracy",
              stage: int | None = None, kind: str | None = None) -> float:
        """The value of one set after the last stage, or after `stage` (0 is before training).

        kind: "task", "class", "domain", …; None: what is none of these three."""
        stage = int(self.evals.stage.max()) if stage is None else stage
        rows = self._of(name, metric, kind)
        rows = rows[rows.stage_end & (rows.stage == stage)]
        rows = rows if candidates is None else rows[rows.candidates == candidates]
        return float(rows.value.iloc[0]) if len(rows) else float("nan")

    def _of(self, name: str, metric: str, kind: str | None) -> pd.DataFrame:
        here = self.evals.kind.isin([kind] if kind else ["all", "held-out set", "retrieval"])
        return self.evals[here & (self.evals["name"] == name) & (self.evals.metric == metric)]

    def held_out_sets(self) -> list[str]:
        """The zero-shot sets that the stream does not touch."""
        return list(dict.fromkeys(self.evals["name"][self.evals.kind == "held-out set"]))

    def classes(self, candidates: str = "seen") -> pd.DataFrame:
        """Accuracy of each class at stage ends: index stage, a column per class name."""
        return self._by_stage("class", candidates)

    def domains(self, candidates: str = "all") -> pd.DataFrame:
        """Accuracy on each domain at stage ends: index stage (0 is before training), a column per
        domain."""
        return self._by_stage("domain", candidates)

    def _by_stage(self, kind: str, candidates: str) -> pd.DataFrame:
        rows = self.evals[(self.evals.kind == kind) & (self.evals.candidates == candidates)
                          & self.evals.stage_end]
        return rows.pivot(index="stage", columns="name", values="value")


class Runs(Sequence):
    """Runs in their order, which are chosen by their settings and joined.

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
        """Choose the runs whose settings have these values; a list means any of them.

        An option is named flat where no other setting ends so ("size"), else dotted
        ("method_args.size", as **{…}); a run without it has None. ValueError: no run has the
        setting."""
        settings = [flat(run.config) for run in self]
        kept = list(zip(self, settings, strict=True))
        for name, values in wanted.items():
            known = {full for one in settings for full in one}
            names = {name} & known or {full for full in known if full.endswith(f".{name}")}
            if len(names) != 1:
                kind = "several settings" if names else "no setting"
                listed = ", ".join(sorted(names or known))
                raise ValueError(f"where: {name} is {kind} of these runs; choices: {listed}")
            (full,) = names
            any_of = values if isinstance(values, list | tuple | set | range) else [values]
            kept = [(run, one) for run, one in kept if one.get(full) in any_of]
        return Runs(run for run, _ in kept)


def flat(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run by name, each option of an axis as "method_args.size"."""
    found = {}
    for name, value in config.model_dump().items():
        inner = {f"{name}.{key}": one
                 for key, one in value.items()} if isinstance(value, dict) else {name: value}
        found |= inner
    return found


def _rows(folder: Path, name: str) -> pd.DataFrame:
    """A table of a finished run. Damaged: it is not as it was written."""
    path = _whole(folder, name)
    try:
        return pd.read_json(path, lines=True, precise_float=True,
                            dtype={"name": str})  # otherwise the last digits are lost
    except Exception as error:  # pandas' own, of many kinds
        raise Damaged(_said(path, error)) from None


def _object(path: Path) -> dict:
    """A JSON file that holds an object. Damaged: it does not."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise Damaged(_said(path, error)) from None
    if not isinstance(found, dict):
        raise Damaged(_said(path, "it holds no object"))
    return found


def _whole(folder: Path, name: str) -> Path:
    """The path of a file of a finished run that is as it was written. Damaged: it is not.

    A run that was made before results held checksums is only seen to end in the middle of a row, or
    to be empty."""
    path, result = folder / name, folder / "result.json"
    known = (_object(result).get("sha256") if result.exists() else None) or {}
    if not path.is_file():
        raise Damaged(_said(path, "it is not there"))
    with open(path, "rb") as file:
        if name in known:
            fault = hashlib.file_digest(
                file, "sha256").hexdigest() != known[name] and "its checksum is wrong"
        else:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            fault = ((not size and name != "steps.jsonl" and "it is empty")
                     or (size and name.endswith(".jsonl") and file.read() != b"\n"
                         and "its last row is cut off"))
    if fault:
        raise Damaged(_said(path, fault))
    return path


def _said(path: Path, why: Any) -> str:
    return f"{path} is damaged ({why}): load_or_train with the run's settings makes it again; or remove its folder"


def find(config: RunConfig, runs: Path | None = None) -> Run | None:
    """The finished run of a configuration, if there is one."""
    return find_in((runs or paths.RUNS) / config.run_id, config)


def find_in(folder: Path, config: RunConfig) -> Run | None:
    """The finished run in a folder, if there is one."""
    return Run(config, folder) if (folder / "result.json").exists() else None


def load_tuned(run: Run):
    """The model of a run that was made with keep_model=True. FileNotFoundError: it was not."""
    from safetensors.torch import load_file

    from clstudy.training.setup import prepare

    path = run.folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"run {run.id} has no {path.name}; make it with load_or_train(config, keep_model=True)")
    clip, _, _ = prepare(run.config)
    _whole(run.folder, path.name)
    missing = clip.load_state_dict(load_file(path, device=str(clip.device)),
                                   strict=False).unexpected_keys
    if missing:
        raise ValueError(f"{path} holds {missing[0]}, which the model of the run does not have")
    return clip.eval()


def finished(folder: Path) -> list[Run]:
    """All finished runs of a folder, those of settings that no longer exist included. Damaged:
    settings of one."""
    return [
        Run(RunConfig.model_construct(**_object(_whole(path.parent, "config.json"))), path.parent)
        for path in sorted(folder.glob("*/result.json")) if "." not in path.parent.name
    ]


def load_runs(runs: Path | Iterable[Run] | None = None) -> pd.DataFrame:
    """All evaluations of many runs in one table, with the settings and the run_id of each as
    columns. Damaged: a file of one; no run is left out unsaid."""
    if runs is None or isinstance(runs, Path):
        runs = finished(runs or paths.RUNS)
    tables = []
    for run in runs:
        settings = {
            name: value if not isinstance(value, dict | list) else json.dumps(
                value, sort_keys=True) for name, value in run.config.model_dump().items()
        }
        tables.append(run.evals.assign(run_id=run.id, **settings))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
