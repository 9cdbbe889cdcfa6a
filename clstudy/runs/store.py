"""Runs on disk: one folder per `run_id`, complete or not there at all.

    runs/<run_id>/config.json  env.json  evals.jsonl  steps.jsonl  correct.parquet  [PROBE.parquet]  [model.safetensors]  result.json

    runs/<run_id>.draft    a run that is being made, or was killed: saved states, from which it goes on (`resume.py`)
    runs/<run_id>.broken   a run whose numbers are no longer finite, as it stood then; the next call starts anew

A run is written into a folder in its draft and renamed when `result.json` stands in it, so a run that was killed leaves
nothing that could be read as finished. `result.json` holds the checksums of the other files: a finished run that was
damaged since is an error where it is read, and made again by `load_or_train`. Of two processes that want the same run
one makes it and the other waits (`lock.py`)."""
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

from clstudy.runs import lock
from clstudy.runs.lock import Busy as Busy
from clstudy.runs.lock import RunLock
from clstudy.training.config import RunConfig
from clstudy.utils.validation import choose
from clstudy.runs.run import Damaged, Run, _object, _whole, find, finished
from clstudy.utils.files import clear_dead
from clstudy.utils import paths

EVERY = 60.0  # seconds between two saved states, where nothing else is said
TABLES = ("config.json", "evals.jsonl", "steps.jsonl", "correct.parquet")  # what every finished run has, besides its result


def environment() -> dict:
    """What a number may depend on besides its settings."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "open_clip_torch", "peft", "numpy")
    return {"python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            **{name: version(name) for name in packages}}


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
    runs, every = runs or paths.RUNS, _save_every(save_every)
    _check_probes(probes)

    def usable() -> bool:
        return _usable(find(config, runs), keep_model, probes)

    if not usable():
        clear_dead(runs)
        draft = runs / f"{config.run_id}.draft"
        with RunLock(draft, usable, wait) as mine:
            if mine:
                _make(config, runs, draft, keep_model, probes, progress, every)
    return Run(config, runs / config.run_id)


def _make(config: RunConfig, runs: Path, draft: Path, keep_model: bool, probes: Sequence[str], progress,
          every: float) -> None:
    """Make a run in a draft that is ours, or go on with it. What is saved stays there, unless it ends well."""
    from clstudy.utils import distributed
    from clstudy.methods import METHODS  # torch and open_clip only when something is to be computed
    from clstudy.training.checkpoint import Saver, code, states
    from clstudy.training.monitor import NotFinite
    from clstudy.training.setup import pick_device
    from clstudy.training.loop import train

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
        made = train(config, progress, probes, saver)
        if keep_model:
            save_tuned(made.model, done)
        (done / "config.json").write_text(config.model_dump_json(indent=1))
        (done / "env.json").write_text(json.dumps(environment(), indent=1))
        for name, table in (("evals", made.evals), ("steps", made.steps)):
            rows = table.to_dict("records")
            (done / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, table in {"correct": made.correct, **made.probes}.items():
            table.to_parquet(done / f"{name}.parquet")
        result = {"run_id": config.run_id, "seconds": round(saver.seconds + time.perf_counter() - started, 1),
                  "finished": time.time(), "taken_up": saver.taken_up, "sha256": _seal(done), **made.cost}
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
    for name in (lock.LOCK, lock.OWNER):
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
    from clstudy.training.probing import PROBES  # imports torch

    return PROBES


def save_tuned(clip, folder: Path) -> None:
    """The tuned parameters of a model and its buffers (a prompt pool counts there), as safetensors."""
    from safetensors.torch import save_file

    tuned = {name: p for name, p in clip.named_parameters() if p.requires_grad}
    tuned |= {name: buffer for name, buffer in clip.named_buffers() if name in clip.state_dict()}
    save_file({name: p.detach().cpu().contiguous() for name, p in tuned.items()}, folder / "model.safetensors")


