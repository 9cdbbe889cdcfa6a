"""Runs on disk: one folder per `run_id`, complete or not there at all.

    runs/<run_id>/config.json  env.json  evals.jsonl  steps.jsonl  [PROBE.parquet]  [model.safetensors]  result.json

A run is written into a folder of its own beside these and renamed when `result.json` stands in it, so a run that was
killed leaves nothing that could be read as finished, and two processes that make the same run do not disturb each
other."""
import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd

from .config import RunConfig, choose
from .progress import bar

RUNS = Path(os.environ.get("CLSTUDY_RUNS") or Path(__file__).parent.parent / "runs")


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
        return pd.read_json(self.folder / "evals.jsonl", lines=True, precise_float=True)

    @cached_property
    def steps(self) -> pd.DataFrame:
        path = self.folder / "steps.jsonl"
        columns = ["stage", "images_seen", "step", "term", "value"]
        if not path.stat().st_size:
            return pd.DataFrame(columns=columns)
        return pd.read_json(path, lines=True, precise_float=True)  # otherwise the last digits are lost

    def probe(self, name: str) -> pd.DataFrame:
        """The table of a probe (see `clstudy.probes` for its columns), or "method": what a method has to tell of its
        own, as `gdro` of its weights. FileNotFoundError: the run was made without."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"run {self.id} has no {path.name}; make it with load_or_train(config, "
                                    f"probes=[{name!r}])")
        return pd.read_parquet(path)

    @cached_property
    def result(self) -> dict:
        return json.loads((self.folder / "result.json").read_text())

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
    """Whether a run is finished, and has its weights and probe tables where they are wanted."""
    wanted = ["model.safetensors"] * keep_model + [f"{name}.parquet" for name in probes]
    return run is not None and all((run.folder / name).exists() for name in wanted)


def load_or_train(config: RunConfig, runs: Path | None = None, keep_model: bool = False, progress=None,
                  probes: Sequence[str] = ()) -> Run:
    """Read a finished run, or make it.

    keep_model: also store the tuned weights. probes: also store the tables of these probes (`probes.PROBES`), which
    change no number. A finished run that lacks what is wanted is made again, with all that it had.
    ValueError: an unknown probe."""
    runs = runs or RUNS
    _check_probes(probes)
    found = find(config, runs)
    if found and _usable(found, keep_model, probes):
        return found
    from .train import train  # torch and open_clip only when something is to be computed

    if found:
        keep_model |= (found.folder / "model.safetensors").exists()
        probes = sorted({*probes, *(path.stem for path in found.folder.glob("*.parquet") if path.stem in _probes())})
    draft = runs / f"{config.run_id}.draft-{platform.node()}-{os.getpid()}"
    clear_dead(runs)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    started = time.perf_counter()
    try:
        (draft / "config.json").write_text(config.model_dump_json(indent=1))
        (draft / "env.json").write_text(json.dumps(environment(), indent=1))
        notes = {}
        keep = (lambda clip: save_tuned(clip, draft)) if keep_model else None
        evals, steps = train(config, progress, keep, probes, notes)
        for name, rows in (("evals", evals), ("steps", steps)):
            (draft / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in (*probes, *(["method"] if "method" in notes else [])):
            notes[name].to_parquet(draft / f"{name}.parquet")
        result = {"run_id": config.run_id, "seconds": round(time.perf_counter() - started, 1), "finished": time.time(),
                  **notes["cost"]}
        (draft / "result.json").write_text(json.dumps(result))
        folder = runs / config.run_id
        if found or not (folder / "result.json").exists():  # without a result: what a killed removal left
            shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            if not (folder / "result.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Run(config, runs / config.run_id)


def _check_probes(probes: Sequence[str]) -> None:
    for name in probes:
        choose("probes", name, _probes())


def _probes() -> Iterable[str]:
    from .probes import PROBES  # imports torch

    return PROBES


def clear_dead(runs: Path) -> None:
    """Remove the drafts of processes of this machine that are no more."""
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
    missing = clip.load_state_dict(load_file(path, device=str(clip.device)), strict=False).unexpected_keys
    if missing:
        raise ValueError(f"{path} holds {missing[0]}, which the model of the run does not have")
    return clip.eval()


def many(configs: Sequence[RunConfig], workers: int | None = None, runs: Path | None = None,
         keep_model: bool = False, probes: Sequence[str] = ()) -> list[Run]:
    """`load_or_train` for each, in worker processes with the cores divided among them; finished runs are read.

    workers: default one per core, or one where a GPU computes. One run that fails stops no other; the first error
    is raised when all others are done. The processes stay for the next call, with what they have loaded, and end with
    this one; an interrupt ends them at once."""
    runs = runs or RUNS
    _check_probes(probes)
    todo = {config.run_id: config for config in configs if not _usable(find(config, runs), keep_model, probes)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers or (1 if _gpu(configs) else cores), max(len(todo), 1))
    errors = []
    with bar(total=len(configs), initial=len(configs) - len(todo), desc="runs", unit="run") as shown:
        pool = _pool(workers, max(cores // workers, 1)) if todo else None
        try:
            for done in as_completed([pool.submit(load_or_train, config, runs, keep_model, None, probes)
                                      for config in todo.values()]):
                errors += [done.exception()] if done.exception() else []
                shown.update()
        except BaseException:
            close_pool()
            raise
    if any(isinstance(error, BrokenProcessPool) for error in errors):
        close_pool()
    if errors:
        raise errors[0]
    return [load_or_train(config, runs, keep_model, probes=probes) for config in configs]


def _gpu(configs: Sequence[RunConfig]) -> bool:
    import torch

    return torch.cuda.is_available() and any(config.device != "cpu" for config in configs)


_POOL: dict[tuple, ProcessPoolExecutor] = {}  # the one of the last call


def _pool(workers: int, threads: int) -> ProcessPoolExecutor:
    """Worker processes: those of the last call, where neither code, surroundings nor numbers have changed since."""
    code = max(path.stat().st_mtime_ns for path in Path(__file__).parent.rglob("*.py"))
    key = (workers, threads, code, *sorted(item for item in os.environ.items() if item[0].startswith("CLSTUDY_")))
    if key not in _POOL:
        close_pool()
        _POOL[key] = ProcessPoolExecutor(workers, get_context("spawn"), _worker, (threads, os.getpid()))
    return _POOL[key]


def close_pool() -> None:
    """End the worker processes; a run that is being made is lost."""
    for pool in _POOL.values():
        running = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
    _POOL.clear()


def _worker(threads: int, parent: int) -> None:
    """What each worker process does first. Two processes with all threads each would be five times slower."""
    import torch

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)  # the parent was killed: nobody wants the runs that are waiting

    Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its workers
    os.environ["CLSTUDY_QUIET"] = "1"
    torch.set_num_threads(threads)


def finished(folder: Path) -> list[Run]:
    """All finished runs of a folder, those of settings that no longer exist included."""
    return [Run(RunConfig.model_construct(**json.loads((path.parent / "config.json").read_text())), path.parent)
            for path in sorted(folder.glob("*/result.json")) if ".draft-" not in path.parent.name]


def load_runs(runs: Path | Iterable[Run] | None = None) -> pd.DataFrame:
    """All evaluations of many runs in one table, with the settings and the run_id of each as columns."""
    if runs is None or isinstance(runs, Path):
        runs = finished(runs or RUNS)
    tables = []
    for run in runs:
        settings = {name: value if not isinstance(value, dict | list) else json.dumps(value, sort_keys=True)
                    for name, value in run.config.model_dump().items()}
        tables.append(run.evals.assign(run_id=run.id, **settings))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
