"""Runs on disk: one folder per `run_id`, which is complete or does not exist.

    runs/<run_id>/  config.json  env.json  evals.jsonl  steps.jsonl  correct.parquet  tests.parquet
                    result.json  [PROBE.parquet]  [model.safetensors]

    runs/<run_id>.draft    a run in the making, or one that was killed: it holds the saved states,
                           from which the run resumes (`training/checkpoint.py`)

A run is written into a folder of its draft, with `result.json` last, and then renamed; so a killed
run leaves nothing that looks finished. `result.json` holds the checksums of the other files: a
finished run that was damaged since is an error when it is read, and `load_or_train` makes it again.
If two processes want the same run, one makes it and the other waits (`lock.py`)."""
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clstudy.runs.lock import RunLock
from clstudy.runs.run import Damaged, Run, checked_file, read_object
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.files import clear_dead, sha256, write_text
from clstudy.utils.progress import Progress
from clstudy.utils.validation import choose

# of every finished run
TABLES = ("config.json", "evals.jsonl", "steps.jsonl", "correct.parquet", "tests.parquet")
WEIGHTS = "model.safetensors"


def load_or_train(config: RunConfig, runs: Path | None = None, keep_model: bool = False,
                  progress: Progress | None = None, probes: Sequence[str] = (),
                  save_every: float | None = None, wait: bool = True) -> Run:
    """Return a finished run; if it does not exist, make it or resume it.

    keep_model: also store the tuned weights. probes: also store the tables of these probes
    (`training.probing.PROBES`), which change no number. A finished run that is damaged, or lacks
    what is wanted, is made again with all that it had. save_every: seconds between two saved
    states, 0 for stage ends only; default 60, or CLSTUDY_SAVE_EVERY. wait: for another process that
    makes the same run. ValueError: an unknown probe, save_every. Busy: another process makes the
    run, and wait is False."""
    runs, seconds = runs or paths.RUNS, _save_every(save_every)
    check_probes(probes)
    fingerprints = config.fingerprints()  # once: files may change while the run is made
    folder = runs / config.id_of(fingerprints)

    def done() -> bool:
        return is_usable(folder, keep_model, probes)

    if not done():
        clear_dead(runs)
        with RunLock(_draft(folder), done, wait) as mine:
            if mine:
                _make(config, folder, fingerprints, keep_model, probes, progress, seconds)
    return Run(config, folder)


def is_usable(folder: Path, keep_model: bool, probes: Sequence[str]) -> bool:
    """Return whether a run is finished and undamaged, and has the wanted weights and probes."""
    wanted = [WEIGHTS] * keep_model + [f"{name}.parquet" for name in probes]
    there = all((folder / name).exists() for name in ("result.json", *wanted))
    return there and not _fault(folder, wanted)


def _fault(folder: Path, more: Iterable[str] = ()) -> str:
    """Say which file of a finished run is damaged; "" if none is."""
    try:
        for name in (*TABLES, *more):
            checked_file(folder, name)
        read_object(folder / "config.json")
    except Damaged as error:
        return str(error)
    return ""


def _draft(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.draft")


def _make(config: RunConfig, folder: Path, fingerprints: list[str], keep_model: bool,
          probes: Sequence[str], progress: Progress | None, save_every: float) -> None:
    """Make a run in its draft, or resume it. The draft stays only if a saved state is in it.

    A run whose numbers are not finite leaves no state: the next call starts from the beginning."""
    from clstudy.training.checkpoint import Saver, states
    from clstudy.training.loop import train
    from clstudy.training.monitor import NotFinite
    from clstudy.utils import distributed  # torch only when something is computed

    started, draft = time.perf_counter(), _draft(folder)
    done = draft / "run"
    keep_model, probes = _wanted(draft, folder, keep_model, probes)
    again = _warn_if_damaged(folder, probes)
    surroundings = _surroundings(config, probes)
    distributed.broadcast({"draft": draft, "surroundings": surroundings, "probes": probes})
    saver = Saver(draft, save_every, surroundings)
    try:
        shutil.rmtree(done, ignore_errors=True)  # of a process that was killed while it wrote
        done.mkdir()
        write_text(draft / "config.json", config.model_dump_json(indent=1))
        write_text(draft / "asked.json", json.dumps({"keep_model": keep_model, "probes": probes}))
        made = train(config, progress, probes, saver)
        _write(done, config, made, keep_model)
        if config.fingerprints() != fingerprints:
            warnings.warn(f"run {folder.name}: its files changed while it was made. Its numbers "
                          "are of both versions; remove its folder and call again", stacklevel=4)
        seconds = round(saver.seconds + time.perf_counter() - started, 1)
        result = {"run_id": folder.name, "fingerprints": fingerprints, "seconds": seconds,
                  "finished": time.time(), "resumed": saver.taken_up, "sha256": _checksums(done)}
        write_text(done / "result.json", json.dumps(result | made.cost))
        _publish(done, folder, again)
        saver.clear()
    except NotFinite:
        saver.clear()
        raise
    finally:
        if not states(draft):
            shutil.rmtree(draft, ignore_errors=True)


def _wanted(draft: Path, folder: Path, keep_model: bool,
            probes: Sequence[str]) -> tuple[bool, list[str]]:
    """Return what to store: what is wanted now, what the finished run has, and what the draft was
    begun with.

    A draft that was begun without a wanted probe missed its first steps; `Saver` then drops its
    states, because the probes belong to their surroundings."""
    if (folder / "result.json").exists():
        keep_model |= (folder / WEIGHTS).exists()
        stored = {path.stem for path in folder.glob("*.parquet")}
        probes = {*probes, *(stored & set(_known_probes()))}
    try:
        begun = json.loads((draft / "asked.json").read_text())
        if set(probes) <= set(begun["probes"]) <= set(_known_probes()):
            return bool(keep_model or begun["keep_model"]), sorted(begun["probes"])
    except (OSError, ValueError, KeyError, TypeError):  # there is no such file, or it is damaged
        pass
    return keep_model, sorted(probes)


def _warn_if_damaged(folder: Path, probes: Sequence[str]) -> bool:
    """Return whether a finished run is to be made again. If it is damaged, warn."""
    again = (folder / "result.json").exists()
    extras = [*(f"{name}.parquet" for name in probes), WEIGHTS]
    fault = _fault(folder, [name for name in extras if (folder / name).exists()])
    if again and fault:
        warnings.warn(f"the run is made again: {fault.partition('): ')[0]})", stacklevel=4)
    return again


def environment() -> dict[str, Any]:
    """Return what numbers may depend on besides the settings of a run."""
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {"python": platform.python_version(), "machine": platform.machine(),
             "threads": torch.get_num_threads(), "cuda": cuda}
    packages = ("torch", "open_clip_torch", "peft", "numpy")
    return found | {name: version(name) for name in packages}


def _surroundings(config: RunConfig, probes: Sequence[str]) -> dict[str, Any]:
    """Return what must be equal for a run to resume from a saved state."""
    from clstudy.methods import METHODS
    from clstudy.training.checkpoint import code
    from clstudy.training.setup import pick_device
    from clstudy.utils import distributed

    found = environment()
    del found["python"]  # moves no number
    found |= {"device": pick_device(config.device).type, "code": code(METHODS[config.method]),
              "probes": probes}
    if distributed.world_size() > 1:
        found["processes"] = distributed.world_size()
    return found


def _write(folder: Path, config: RunConfig, made: Any, keep_model: bool) -> None:
    """Write all files of a run except result.json."""
    if keep_model:
        save_tuned(made.model, folder)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    write_text(folder / "env.json", json.dumps(environment(), indent=1))
    for name, table in {"evals": made.evals, "steps": made.steps}.items():
        lines = [json.dumps(row) + "\n" for row in table.to_dict("records")]
        write_text(folder / f"{name}.jsonl", "".join(lines))
    for name, table in {"correct": made.correct, "tests": made.tests, **made.probes}.items():
        table.to_parquet(folder / f"{name}.parquet")


def save_tuned(clip, folder: Path) -> None:
    """Store the tuned parameters of a model and its buffers (such as a prompt pool's counts)."""
    from safetensors.torch import save_file

    stored = clip.state_dict()
    tuned = {name: p for name, p in clip.named_parameters() if p.requires_grad}
    tuned |= {name: buffer for name, buffer in clip.named_buffers() if name in stored}
    save_file({name: p.detach().cpu().contiguous() for name, p in tuned.items()}, folder / WEIGHTS)


def _checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file, once the file has reached the disk."""
    found = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        found[path.name] = sha256(path)
    return found


def _publish(done: Path, folder: Path, again: bool) -> None:
    """Give a complete run its name, unless a process of another host was first."""
    result = folder / "result.json"
    if again or not result.exists():  # without a result: the rest of a removal that was killed
        shutil.rmtree(folder, ignore_errors=True)
    try:
        done.rename(folder)
    except OSError:
        if not result.exists():
            raise


def _save_every(given: float | None) -> float:
    said = paths.save_every() if given is None else given
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(
            f"save_every={said!r}: must be a number of seconds, or 0 for stage ends only")
    return seconds


def check_probes(probes: Sequence[str]) -> None:
    """Raise a ValueError for an unknown probe."""
    for name in probes:
        choose("probes", name, _known_probes())


def _known_probes() -> Iterable[str]:
    from clstudy.training.probing import PROBES  # imports torch

    return PROBES
