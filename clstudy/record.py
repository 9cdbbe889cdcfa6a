"""Runs on disk: one folder per `run_id`, complete or not there at all.

    runs/<run_id>/config.json  env.json  evals.jsonl  steps.jsonl  [PROBE.parquet]  [model.safetensors]  result.json

    runs/<run_id>.draft    a run that is being made, or was killed: saved states, from which it goes on (`resume.py`)
    runs/<run_id>.broken   a run whose numbers are no longer finite, as it stood then; the next call starts anew

A run is written into a folder in its draft and renamed when `result.json` stands in it, so a run that was killed leaves
nothing that could be read as finished. `result.json` holds the checksums of the other files: a finished run that was
damaged since is an error where it is read, and made again by `load_or_train`. Of two processes that want the same run
one makes it and the other waits (`claim.py`)."""
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import claim
from .claim import Busy as Busy
from .claim import claimed
from .config import RunConfig, choose

RUNS = Path(os.environ.get("CLSTUDY_RUNS") or Path(__file__).parent.parent / "runs")
EVERY = 60.0  # seconds between two saved states, where nothing else is said
TABLES = ("config.json", "evals.jsonl", "steps.jsonl")  # what every finished run has, besides its result


class Damaged(ValueError):
    """A file of a finished run is not as it was written; the message names it."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. `evals` has a row per (stage, images_seen, set, candidates, metric), `steps` one per loss
    term."""

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
        return rows if len(rows) else pd.DataFrame(columns=["stage", "images_seen", "step", "term", "value"])

    def probe(self, name: str) -> pd.DataFrame:
        """The table of a probe (see `clstudy.probes` for its columns), or "method": what a method has to tell of its
        own, as `gdro` of its weights. FileNotFoundError: the run was made without."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"run {self.id} has no {path.name}; make it with load_or_train(config, "
                                    f"probes=[{name!r}])")
        return pd.read_parquet(_whole(self.folder, path.name))

    @cached_property
    def result(self) -> dict:
        return _object(self.folder / "result.json")

    def matrix(self, candidates: str = "all", metric: str = "accuracy") -> np.ndarray:
        """R[s, t]: accuracy on task t + 1 after stage s; row 0 is the model before training. NaN where there is none.

        candidates: "own" (task-incremental), "seen" (class-incremental) or "all" (zero-shot); metric: "accuracy" over
        images, or "class-balanced accuracy"."""
        rows = self.evals[self.evals["set"].str.fullmatch(r"task \d+") & (self.evals.candidates == candidates)]
        rows = rows[rows.stage_end & (rows.metric == metric)]
        stages = int(self.evals.stage.max())
        R = np.full((stages + 1, stages), np.nan)
        R[rows.stage, rows["set"].str[5:].astype(int) - 1] = rows.value
        return R

    def curve(self, name: str = "seen classes", metric: str = "accuracy") -> pd.DataFrame:
        """`images_seen` and `value` of one set over the stream."""
        rows = self.evals[(self.evals["set"] == name) & (self.evals.metric == metric)]
        rows = rows.drop_duplicates("images_seen", keep="last")
        return rows[["stage", "images_seen", "value"]].reset_index(drop=True)

    def final(self, name: str, candidates: str | None = None, metric: str = "accuracy",
              stage: int | None = None) -> float:
        """The value of one set after the last stage, or after `stage` (0 is before training)."""
        stage = int(self.evals.stage.max()) if stage is None else stage
        rows = self.evals[(self.evals["set"] == name) & (self.evals.metric == metric) & self.evals.stage_end
                          & (self.evals.stage == stage)]
        rows = rows if candidates is None else rows[rows.candidates == candidates]
        return float(rows.value.iloc[0]) if len(rows) else float("nan")

    def classes(self, candidates: str = "seen") -> pd.DataFrame:
        """Accuracy of each class at stage ends: index stage, a column per class name."""
        return self._by_stage("class ", candidates)

    def domains(self, candidates: str = "all") -> pd.DataFrame:
        """Accuracy on each domain at stage ends: index stage (0 is before training), a column per domain."""
        return self._by_stage("domain ", candidates)

    def _by_stage(self, kind: str, candidates: str) -> pd.DataFrame:
        rows = self.evals[self.evals["set"].str.startswith(kind) & (self.evals.candidates == candidates)
                          & self.evals.stage_end]
        return rows.assign(name=rows["set"].str[len(kind):]).pivot(index="stage", columns="name", values="value")


def _rows(folder: Path, name: str) -> pd.DataFrame:
    """A table of a finished run. Damaged: it is not as it was written."""
    path = _whole(folder, name)
    try:
        return pd.read_json(path, lines=True, precise_float=True)  # otherwise the last digits are lost
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

    A run that was made before results held checksums is only seen to end in the middle of a row, or to be empty."""
    path, result = folder / name, folder / "result.json"
    known = (_object(result).get("sha256") if result.exists() else None) or {}
    if not path.is_file():
        raise Damaged(_said(path, "it is not there"))
    with open(path, "rb") as file:
        if name in known:
            fault = hashlib.file_digest(file, "sha256").hexdigest() != known[name] and "its checksum is wrong"
        else:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            fault = ((not size and name != "steps.jsonl" and "it is empty")
                     or (size and name.endswith(".jsonl") and file.read() != b"\n" and "its last row is cut off"))
    if fault:
        raise Damaged(_said(path, fault))
    return path


def _said(path: Path, why: Any) -> str:
    return f"{path} is damaged ({why}): load_or_train with the run's settings makes it again; or remove its folder"


def environment() -> dict:
    """What a number may depend on besides its settings."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "open_clip_torch", "peft", "numpy")
    return {"python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            **{name: version(name) for name in packages}}


def find(config: RunConfig, runs: Path | None = None) -> Run | None:
    """The finished run of a configuration, if there is one."""
    folder = (runs or RUNS) / config.run_id
    return Run(config, folder) if (folder / "result.json").exists() else None


def _usable(run: Run | None, keep_model: bool, probes: Sequence[str]) -> bool:
    """Whether a run is finished and whole, and has its weights and probe tables where they are wanted."""
    wanted = ["model.safetensors"] * keep_model + [f"{name}.parquet" for name in probes]
    return (run is not None and all((run.folder / name).exists() for name in wanted)
            and not _fault(run.folder, wanted))


def _fault(folder: Path, more: Iterable[str] = ()) -> str:
    """What is damaged in the folder of a finished run; nothing where all is as it was written."""
    try:
        for name in (*TABLES, *more):
            _whole(folder, name)
        _object(folder / "config.json")
    except Damaged as error:
        return str(error)
    return ""


def load_or_train(config: RunConfig, runs: Path | None = None, keep_model: bool = False, progress=None,
                  probes: Sequence[str] = (), save_every: float | None = None, wait: bool = True) -> Run:
    """Read a finished run, take up one that was killed, or make it.

    keep_model: also store the tuned weights. probes: also store the tables of these probes (`probes.PROBES`), which
    change no number. A finished run that lacks what is wanted, or is damaged, is made again, with all that it had.
    save_every: seconds between two saved states, from which a killed run goes on; 0: at stage ends only; default 60,
    or CLSTUDY_SAVE_EVERY. wait: for another process that makes the same run.
    ValueError: an unknown probe, save_every. Busy: another process makes it, and wait is False."""
    runs, every = runs or RUNS, _save_every(save_every)
    _check_probes(probes)

    def usable() -> bool:
        return _usable(find(config, runs), keep_model, probes)

    if not usable():
        clear_dead(runs)
        draft = runs / f"{config.run_id}.draft"
        with claimed(draft, usable, wait) as mine:
            if mine:
                _make(config, runs, draft, keep_model, probes, progress, every)
    return Run(config, runs / config.run_id)


def _make(config: RunConfig, runs: Path, draft: Path, keep_model: bool, probes: Sequence[str], progress,
          every: float) -> None:
    """Make a run in a draft that is ours, or go on with it. What is saved stays there, unless it ends well."""
    from . import distributed
    from .methods import METHODS  # torch and open_clip only when something is to be computed
    from .resume import Saver, code, states
    from .train import NotFinite, pick_device, train

    folder, done, started = runs / config.run_id, draft / "run", time.perf_counter()
    again = (folder / "result.json").exists()
    keep_model, probes = _asked(draft, folder, keep_model, probes)
    extras = (*(f"{name}.parquet" for name in probes), "model.safetensors")
    if again and (fault := _fault(folder, [name for name in extras if (folder / name).exists()])):
        warnings.warn(f"the run is made again: {fault.partition('): ')[0]})", stacklevel=3)
    surroundings = {name: value for name, value in environment().items() if name != "python"}  # moves no number
    surroundings |= {"device": pick_device(config.device).type, "code": code(METHODS[config.method]), "probes": probes}
    surroundings |= {"processes": distributed.world()} if distributed.world() > 1 else {}
    distributed.tell({"draft": draft, "surroundings": surroundings, "probes": probes})
    saver = Saver(draft, every, surroundings)
    try:
        shutil.rmtree(done, ignore_errors=True)  # of a process that was killed while it wrote
        done.mkdir()
        (draft / "config.json").write_text(config.model_dump_json(indent=1))
        (draft / "asked.json").write_text(json.dumps({"keep_model": keep_model, "probes": probes}))
        notes = {}
        keep = (lambda clip: save_tuned(clip, done)) if keep_model else None
        evals, steps = train(config, progress, keep, probes, notes, saver)
        (done / "config.json").write_text(config.model_dump_json(indent=1))
        (done / "env.json").write_text(json.dumps(environment(), indent=1))
        for name, rows in (("evals", evals), ("steps", steps)):
            (done / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in (*probes, *(["method"] if "method" in notes else [])):
            notes[name].to_parquet(done / f"{name}.parquet")
        result = {"run_id": config.run_id, "seconds": round(saver.seconds + time.perf_counter() - started, 1),
                  "finished": time.time(), "taken_up": saver.taken_up, "sha256": _seal(done), **notes["cost"]}
        (done / "result.json").write_text(json.dumps(result))
        if again or not (folder / "result.json").exists():  # without a result: what a killed removal left
            shutil.rmtree(folder, ignore_errors=True)
        try:
            done.rename(folder)
        except OSError:  # a process of another host was first
            if not (folder / "result.json").exists():
                raise
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(_broken(folder), ignore_errors=True)
    except NotFinite as error:
        with suppress(TypeError):  # a method that holds what cannot be saved
            saver.attempt()
        _leave_broken(draft, _broken(folder), error)
        raise
    finally:
        if draft.exists() and not states(draft):
            shutil.rmtree(draft, ignore_errors=True)


def _seal(folder: Path) -> dict[str, str]:
    """The checksum of each file, once it is on the disk and not only on its way there."""
    found = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _asked(draft: Path, folder: Path, keep_model: bool, probes: Sequence[str]) -> tuple[bool, list[str]]:
    """What a run is to hold: what is wanted now, what the finished one has, and what its draft was begun with.

    A draft that was begun without a probe that is wanted has missed its first steps: its states are not taken up."""
    if (folder / "result.json").exists():
        keep_model |= (folder / "model.safetensors").exists()
        probes = {*probes, *(path.stem for path in folder.glob("*.parquet") if path.stem in _probes())}
    try:
        begun = json.loads((draft / "asked.json").read_text())
        if set(probes) <= set(begun["probes"]) <= set(_probes()):
            return bool(keep_model or begun["keep_model"]), sorted(begun["probes"])
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        pass
    return keep_model, sorted(probes)


def _broken(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.broken")


def _leave_broken(draft: Path, broken: Path, error: Exception) -> None:
    """Put the draft of a run that cannot go on aside, to be looked at: its last states, the newest as it is now."""
    shutil.rmtree(broken, ignore_errors=True)
    shutil.rmtree(draft / "run", ignore_errors=True)
    about = {"error": str(error), "states": "the newest as it was found, the one before as it was saved", **error.where}
    (draft / "broken.json").write_text(json.dumps(about, indent=1))
    draft.rename(broken)
    for name in (claim.LOCK, claim.OWNER):
        (broken / name).unlink(missing_ok=True)


def _save_every(given: float | None) -> float:
    """Seconds between two states."""
    said = os.environ.get("CLSTUDY_SAVE_EVERY") or EVERY if given is None else given
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"save_every={said!r}: must be a number of seconds, or 0 for stage ends only")
    return seconds


def _check_probes(probes: Sequence[str]) -> None:
    for name in probes:
        choose("probes", name, _probes())


def _probes() -> Iterable[str]:
    from .probes import PROBES  # imports torch

    return PROBES


def clear_dead(runs: Path) -> None:
    """Remove drafts `NAME.draft-HOST-PID` of processes of this machine that are no more: those of caches, for a run's
    draft bears no process in its name and is taken up."""
    for draft in runs.glob(f"*.draft-{platform.node()}-*"):
        try:
            os.kill(int(draft.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(draft, ignore_errors=True)
        except (PermissionError, ValueError):  # somebody else's, or not ours
            continue


def save_tuned(clip, folder: Path) -> None:
    """The tuned parameters of a model and its buffers (a prompt pool counts there), as safetensors."""
    from safetensors.torch import save_file

    tuned = {name: p for name, p in clip.named_parameters() if p.requires_grad}
    tuned |= {name: buffer for name, buffer in clip.named_buffers() if name in clip.state_dict()}
    save_file({name: p.detach().cpu().contiguous() for name, p in tuned.items()}, folder / "model.safetensors")


def load_tuned(run: Run):
    """The model of a run that was made with keep_model=True. FileNotFoundError: it was not."""
    from safetensors.torch import load_file

    from .train import prepare

    path = run.folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"run {run.id} has no {path.name}; make it with load_or_train(config, keep_model=True)")
    clip, _, _ = prepare(run.config)
    _whole(run.folder, path.name)
    missing = clip.load_state_dict(load_file(path, device=str(clip.device)), strict=False).unexpected_keys
    if missing:
        raise ValueError(f"{path} holds {missing[0]}, which the model of the run does not have")
    return clip.eval()


def finished(folder: Path) -> list[Run]:
    """All finished runs of a folder, those of settings that no longer exist included. Damaged: settings of one."""
    return [Run(RunConfig.model_construct(**_object(_whole(path.parent, "config.json"))), path.parent)
            for path in sorted(folder.glob("*/result.json")) if "." not in path.parent.name]


def load_runs(runs: Path | Iterable[Run] | None = None) -> pd.DataFrame:
    """All evaluations of many runs in one table, with the settings and the run_id of each as columns. Damaged: a file
    of one; no run is left out unsaid."""
    if runs is None or isinstance(runs, Path):
        runs = finished(runs or RUNS)
    tables = []
    for run in runs:
        settings = {name: value if not isinstance(value, dict | list) else json.dumps(value, sort_keys=True)
                    for name, value in run.config.model_dump().items()}
        tables.append(run.evals.assign(run_id=run.id, **settings))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
