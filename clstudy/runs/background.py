"""A run in a process of its own, which tells what it finds, and can be paused and stopped.

    training = Training(config)
    training.start(); training.read(); training.pause(); training.go_on(); training.stop()

The process calls `load_or_train`, and its numbers do not depend on who watches. When it is stopped
it saves its state; when it is started again it resumes from there. It ends with the process that
started it."""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clstudy.runs import run, store
from clstudy.runs.workers import end_with
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from clstudy.utils.progress import Progress

EVERY = 0.3  # seconds between two lines of the feed
KINDS = ("all", "held-out set")  # of the evaluations in the feed


class Training:
    """One run in another process.

    state: "ready", "running", "paused", "stopped" (its state is saved), "finished" or "failed" (see
    `error`). share: how much is done. left: seconds left, None if unknown. probes: as of
    `load_or_train`."""

    def __init__(self, config: RunConfig, probes: Sequence[str] = ("drift",),
                 runs: Path | None = None):
        store.check_probes(probes)
        self.config, self.probes, self.runs = config, tuple(probes), Path(runs or paths.RUNS)
        self.process, self.error, self.share, self._left = None, "", 0.0, None
        self._folder: Path | None = None  # of the feed; a file `pause` in it holds the run

    @property
    def state(self) -> str:
        if self.process is None:
            return "finished" if run.find(self.config, self.runs) else "ready"
        code = self.process.poll()
        if code is None:
            return "paused" if (self._folder / "pause").exists() else "running"
        if code == 0:
            return "finished"
        return "stopped" if code in (-signal.SIGTERM, -signal.SIGINT) else "failed"

    @property
    def left(self) -> float | None:
        return self._left if self.state in ("running", "paused") else None

    def start(self) -> None:
        """Start the run, or resume it. Nothing happens if it is running."""
        if self.state in ("running", "paused"):
            return
        self._folder = Path(tempfile.mkdtemp(prefix="clstudy-live-"))
        self.error, self.share, self._left, self._offset = "", 0.0, None, 0
        (self._folder / "config.json").write_text(self.config.model_dump_json())
        command = [sys.executable, "-m", "clstudy.runs.background", self._folder,
                   self.runs.resolve(), *self.probes]
        with open(self._folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env={**os.environ, paths.QUIET: "1"})

    def pause(self) -> None:
        """Hold the run after its next batch; it keeps its memory."""
        if self.state == "running":
            (self._folder / "pause").touch()

    def go_on(self) -> None:
        """Let a paused run go on."""
        if self._folder:
            (self._folder / "pause").unlink(missing_ok=True)

    def stop(self, wait: float | None = None) -> None:
        """Let the run save its state and end. wait: at most so many seconds for that."""
        if self.state in ("running", "paused"):
            self.go_on()
            self.process.terminate()
            if wait is not None:
                self.process.wait(wait)

    def read(self) -> dict[str, list]:
        """Return what is new since the last call, and update `share` and `error`.

        steps: (step, term, value); evals: (images, set, value); drift: (step, texts, images)."""
        found = {"steps": [], "evals": [], "drift": []}
        if self._folder is None:
            return found
        ended = self.process.poll()  # before the feed is read, so that all of it is there
        for line in self._new_lines():
            self.share, self._left = line["share"], line["left"]
            for name, rows in found.items():
                rows += line[name]
        if ended is not None and self.state == "failed" and not self.error:
            said = (self._folder / "log").read_text(errors="replace").strip().splitlines()
            self.error = said[-1] if said else f"the process ended with {ended}"
        if self.state == "finished":
            self.share = 1.0
        return found

    def _new_lines(self) -> list[dict]:
        try:
            with open(self._folder / "feed.jsonl", "rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[:new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Feed(Progress):
    """Writes what is new in a run to feed.jsonl in a folder, and waits while the run is paused.

    parent: the process that watches; once it has ended, a pause holds nothing."""

    def __init__(self, folder: Path, parent: int):
        self.folder, self.parent, self.latest = folder, parent, 0.0
        self.told = {"steps": 0, "evals": 0, "drift": 0}  # rows so far

    def begin(self, position: Any, probes: Any, total: int) -> None:
        self.at, self.drift, self.total = position, probes.probes.get("drift"), total
        self.first, self.started = position.images, time.monotonic()
        self.file = open(self.folder / "feed.jsonl", "w")

    def update(self, images: int) -> None:
        now = time.monotonic()
        if now - self.latest >= EVERY:
            self._tell()
        while (self.folder / "pause").exists() and os.getppid() == self.parent:
            time.sleep(0.05)
        self.started += time.monotonic() - now  # time left counts no pauses

    def close(self) -> None:
        self._tell()
        self.file.close()

    def _tell(self) -> None:
        self.latest = time.monotonic()
        images, done = self.at.images, self.at.images - self.first
        per_image = (self.latest - self.started) / done if done else None
        drift: dict[int, list] = {}
        for row in self._new("drift", self.drift.rows if self.drift else []):
            drift.setdefault(row["step"], []).append((row["text"], row["image"]))
        line = {"share": images / self.total if self.total else 1.0,
                "left": per_image and (self.total - images) * per_image,
                "steps": [(row["step"], row["term"], row["value"])
                          for row in self._new("steps", self.at.steps)],
                "evals": [(row["images_seen"], row["name"], row["value"])
                          for row in self._new("evals", self.at.evals)
                          if row["metric"] == "accuracy" and row["kind"] in KINDS],
                "drift": [(step, *(sum(column) / len(column) for column in zip(*rows, strict=True)))
                          for step, rows in drift.items()]}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def _new(self, name: str, rows: Sequence[dict]) -> list[dict]:
        first, self.told[name] = self.told[name], len(rows)
        return list(rows[first:])


def main(folder: Path, runs: Path, probes: Sequence[str]) -> None:
    """Make the run of folder/config.json, in the process that `Training` starts."""
    parent = os.getppid()
    end_with(parent)
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    store.load_or_train(config, runs, progress=Feed(folder, parent), probes=probes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("probes", nargs="*")
    main(**vars(parser.parse_args()))
