"""Runs on disk: one folder per `run_id`, complete or not there at all.

    runs/<run_id>/  config.json  env.json  evals.jsonl  steps.jsonl  correct.parquet  result.json
                    [PROBE.parquet]  [model.safetensors]

    runs/<run_id>.draft    a run that is being made, or was killed: saved states, from which it
                           resumes (`training/checkpoint.py`)

A run is written into a folder in its draft and renamed when `result.json` stands in it, so a run
that was killed leaves nothing that could be read as finished. `result.json` holds the checksums of
the other files: a finished run that was damaged since is an error where it is read, and made again
by `load_or_train`. Of two processes that want the same run one makes it and the other waits
(`lock.py`)."""
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
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
from clstudy.runs.run import Damaged, Run, _object, _whole, find_in, finished
from clstudy.utils.files import clear_dead, write_text
from clstudy.utils import paths

EVERY = 60.0  # seconds between two saved states, where nothing else is said
TABLES = ("config.json", "evals.jsonl", "steps.jsonl", "correct.parquet"
          )  # what every finished run has, besides its result


def environment() -> dict:
    """What a number may depend on besides its settings."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "open_clip_torch", "peft", "numpy")
    return {
        "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None, **{
            name: version(name) for name in packages
        }
    }


def _usable(run: Run | None, keep_model: bool, probes: Sequence[str]) -> bool:
    """Whether a run is finished and whole, and has its weights and probe tables where they are
    wanted."""
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


def load_or_train(config: RunConfig, runs: Path | None = None, keep_model: bool = False,
                  progress=None, probes: Sequence[str] = (), save_every: float | None = None,
                  wait: bool = True) -> Run:
    """Read a finished run, take up one that was killed, or make it.

    keep_model: also store the tuned weights. probes: also store the tables of these probes
    (`probes.PROBES`), which change no number. A finished run that lacks what is wanted, or is
    damaged, is made again, with all that it had. save_every: seconds between two saved states, from
    which a killed run goes on; 0: at stage ends only; default 60, or CLSTUDY_SAVE_EVERY. wait: for
    another process that makes the same run. ValueError: an unknown probe, save_every. Busy: another
    process makes it, and wait is False."""
    runs, every = runs or paths.RUNS, _save_every(save_every)
    _check_probes(probes)
    fingerprints = config.fingerprints()  # once: files may change while the run is made
    folder = runs / config.id_of(fingerprints)

    def usable() -> bool:
        return _usable(find_in(folder, config), keep_model, probes)

    if not usable():
        clear_dead(runs)
        with RunLock(folder.with_name(f"{folder.name}.draft"), usable, wait) as mine:
            if mine:
                _make(config, folder, fingerprints, keep_model, probes, progress, every)
    return Run(config, folder)


def _make(config: RunConfig, folder: Path, fingerprints: list[str], keep_model: bool,
          probes: Sequence[str], progress, every: float) -> None:
    """Make a run in a draft that is ours, or resume it. What is saved stays there, unless the run
    ends well.

    A run whose numbers are not finite leaves nothing: the next call starts it anew."""
    from clstudy.training.checkpoint import Saver, states
    from clstudy.training.loop import train
    from clstudy.training.monitor import NotFinite
    from clstudy.utils import distributed  # torch only when something is computed

    draft, started = folder.with_name(f"{folder.name}.draft"), time.perf_counter()
    done = draft / "run"
    keep_model, probes = _asked(draft, folder, keep_model, probes)
    again = _say_if_damaged(folder, probes)
    surroundings = _surroundings(config, probes)
    distributed.broadcast({"draft": draft, "surroundings": surroundings, "probes": probes})
    saver = Saver(draft, every, surroundings)
    try:
        shutil.rmtree(done, ignore_errors=True)  # of a process that was killed while it wrote
        done.mkdir()
        write_text(draft / "config.json", config.model_dump_json(indent=1))
        write_text(draft / "asked.json", json.dumps({"keep_model": keep_model, "probes": probes}))
        made = train(config, progress, probes, saver)
        _write(done, config, made, keep_model)
        if config.fingerprints() != fingerprints:
            warnings.warn(
                f"run {folder.name}: its files changed while it was made. Its numbers are of both versions; "
                "remove its folder and call again", stacklevel=4)
        result = {
            "run_id": folder.name, "fingerprints": fingerprints, "seconds": round(
                saver.seconds + time.perf_counter() - started, 1), "finished": time.time(),
            "resumed": saver.taken_up, "sha256": _seal(done), **made.cost
        }
        write_text(done / "result.json", json.dumps(result))
        _publish(done, folder, again)
        shutil.rmtree(draft, ignore_errors=True)
    except NotFinite:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        if draft.exists() and not states(draft):
            shutil.rmtree(draft, ignore_errors=True)


def _surroundings(config: RunConfig, probes: Sequence[str]) -> dict[str, Any]:
    """What the numbers of a run depend on besides its settings: a state that was saved in others is
    not resumed."""
    from clstudy.methods import METHODS
    from clstudy.training.checkpoint import code
    from clstudy.training.setup import pick_device
    from clstudy.utils import distributed

    found = {name: value for name, value in environment().items()
             if name != "python"}  # moves no number
    found |= {
        "device": pick_device(config.device).type, "code": code(METHODS[config.method]),
        "probes": probes
    }
    return found | ({"processes": distributed.world_size()} if distributed.world_size() > 1 else {})


def _say_if_damaged(folder: Path, probes: Sequence[str]) -> bool:
    """Whether there is a finished run to be made again; where it is damaged, a warning says why."""
    again = (folder / "result.json").exists()
    extras = [name for name in (*(f"{name}.parquet" for name in probes), "model.safetensors")
              if (folder / name).exists()]
    if again and (fault := _fault(folder, extras)):
        warnings.warn(f"the run is made again: {fault.partition('): ')[0]})", stacklevel=4)
    return again


def _write(folder: Path, config: RunConfig, made: Any, keep_model: bool) -> None:
    """Everything that a run holds but its result."""
    if keep_model:
        save_tuned(made.model, folder)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    write_text(folder / "env.json", json.dumps(environment(), indent=1))
    for name, table in (("evals", made.evals), ("steps", made.steps)):
        write_text(folder / f"{name}.jsonl", "".join(
            json.dumps(row) + "\n" for row in table.to_dict("records")))
    for name, table in {"correct": made.correct, **made.probes}.items():
        table.to_parquet(folder / f"{name}.parquet")


def _publish(done: Path, folder: Path, again: bool) -> None:
    """Give a whole run its name; a process of another host may have been first."""
    if again or not (folder
                     / "result.json").exists():  # without a result: what a killed removal left
        shutil.rmtree(folder, ignore_errors=True)
    try:
        done.rename(folder)
    except OSError:
        if not (folder / "result.json").exists():
            raise


def _seal(folder: Path) -> dict[str, str]:
    """The checksum of each file, once it is on the disk and not only on its way there."""
    found = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _asked(draft: Path, folder: Path, keep_model: bool,
           probes: Sequence[str]) -> tuple[bool, list[str]]:
    """What a run is to hold: what is wanted now, what the finished one has, and what its draft was
    begun with.

    A draft that was begun without a probe that is wanted has missed its first steps: its states are
    not taken up."""
    if (folder / "result.json").exists():
        keep_model |= (folder / "model.safetensors").exists()
        probes = {
            *probes, *(path.stem for path in folder.glob("*.parquet") if path.stem in _probes())
        }
    try:
        begun = json.loads((draft / "asked.json").read_text())
        if set(probes) <= set(begun["probes"]) <= set(_probes()):
            return bool(keep_model or begun["keep_model"]), sorted(begun["probes"])
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        pass
    return keep_model, sorted(probes)


def _save_every(given: float | None) -> float:
    """Seconds between two states."""
    said = os.environ.get("CLSTUDY_SAVE_EVERY") or EVERY if given is None else given
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(
            f"save_every={said!r}: must be a number of seconds, or 0 for stage ends only")
    return seconds


def _check_probes(probes: Sequence[str]) -> None:
    for name in probes:
        choose("probes", name, _probes())


def _probes() -> Iterable[str]:
    from clstudy.training.probing import PROBES  # imports torch

    return PROBES


def save_tuned(clip, folder: Path) -> None:
    """The tuned parameters of a model and its buffers (a prompt pool counts there), as
    safetensors."""
    from safetensors.torch import save_file

    tuned = {name: p for name, p in clip.named_parameters() if p.requires_grad}
    tuned |= {name: buffer for name, buffer in clip.named_buffers() if name in clip.state_dict()}
    save_file({name: p.detach().cpu().contiguous() for name, p in tuned.items()},
              folder / "model.safetensors")
