"""A run in a process of its own that tells what it finds while it goes on, and can be paused and
stopped.

    training = Training(config)
    training.start(); training.read(); training.pause(); training.go_on(); training.stop()

The run is that of `load_or_train`, with the same number at the end whoever watches: the kernel's
random numbers are not its own. Stopped, it saves its state; started again, it goes on from there.
It ends with the process that started it."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clstudy.runs import run, store
from clstudy.runs.workers import end_with
from clstudy.training.config import RunConfig
from clstudy.utils import paths

EVERY = 0.3  # seconds between two lines of the feed
KINDS = ("all", "held-out set")  # whose accuracies are told


class Training:
    """One run in another process. state: "ready", "running", "paused", "stopped" (its state is
    saved), "finished" or "failed" (see `error`).

    probes: as of `load_or_train`. share, left: how much is done, and the seconds left, None where
    nothing is known."""

    def __init__(self, config: RunConfig, probes: Sequence[str] = ("drift", ),
                 runs: Path | None = None):
        store._check_probes(probes)
        self.config, self.probes, self.runs = config, tuple(probes), Path(runs or paths.RUNS)
        self.process, self.error, self.share = None, "", 0.0
        self._held, self._place = False, None

    @property
    def state(self) -> str:
        if self.process is None:
            return "finished" if run.find(self.config, self.runs) else "ready"
        code = self.process.poll()
        if code is None:
            return "paused" if self._held else "running"
        if code == 0:
            return "finished"
        return "stopped" if code in (-signal.SIGTERM, 128 + signal.SIGTERM, 130) else "failed"

    def start(self) -> None:
        """Begin, or go on from the last saved state. Nothing where it is running."""
        if self.state in ("running", "paused"):
            return
        self._place = Path(tempfile.mkdtemp(prefix="clstudy-live-"))
        self._held, self.error, self.share = False, "", 0.0
        self._offset, self._first, self._waited, self._since = 0, None, 0.0, 0.0
        (self._place / "config.json").write_text(self.config.model_dump_json())
        command = [
            sys.executable,
            "-m",
            "clstudy.runs.background",
            str(self._place),
            str(self.runs.resolve()),
            *self.probes,
        ]
        with open(self._place / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env={**os.environ, "CLSTUDY_QUIET": "1"})

    def pause(self) -> None:
        """Hold the run after its next batch; nothing is lost, and its memory stays taken."""
        if self.state == "running":
            (self._place / "pause").touch()
            self._held, self._since = True, time.monotonic()

    def go_on(self) -> None:
        if self._held:
            (self._place / "pause").unlink(missing_ok=True)
            self._waited += time.monotonic() - self._since
            self._held = False

    def stop(self, wait: float | None = None) -> None:
        """Save the state and end. wait: at most so many seconds for that."""
        if self.state in ("running", "paused"):
            self.go_on()
            self.process.terminate()
            if wait is not None:
                self.process.wait(wait)

    def read(self) -> dict[str, list]:
        """What is new since the last call: steps (step, term, value), evals (images, set, value),
        drift (step, of texts, of images). ValueError: the run failed, with what it said."""
        found = {"steps": [], "evals": [], "drift": []}
        if self._place is None:
            return found
        ended = self.process.poll()  # before the feed is read: what came until then is in it
        for line in self._lines():
            self.share = line["images"] / line["total"] if line["total"] else 1.0
            self._first = self._first or (line["images"], time.monotonic())
            self._last = line["images"], line["total"]
            for name, rows in found.items():
                rows += line[name]
        if ended is not None and self.state == "failed" and not self.error:
            said = (self._place / "log").read_text(errors="replace").strip().splitlines()
            self.error = said[-1] if said else f"the process ended with {ended}"
        if self.state == "finished":
            self.share = 1.0
        return found

    @property
    def left(self) -> float | None:
        """Seconds, as far as one can tell from what was done since the start; pauses do not
        count."""
        if self.state not in ("running", "paused") or self._first is None:
            return None
        (images, began), (now, total) = self._first, self._last
        taken = time.monotonic() - began - self._waited - (time.monotonic()
                                                           - self._since if self._held else 0)
        return (total - now) * taken / (now - images) if now > images else None

    def _lines(self) -> list[dict]:
        """Whole lines of the feed that were not read yet."""
        try:
            with open(self._place / "feed.jsonl", "rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[:new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Feed:
    """What `train` reports to: writes what is new to a file, and waits while it is paused. parent:
    the process that watches; when it is gone the run is not held any more."""

    def __init__(self, place: Path, parent: int):
        self.place, self.parent, self.latest = place, parent, 0.0
        self.done = {"steps": 0, "evals": 0, "drift": 0}

    def begin(self, at, probes, total: int) -> None:
        self.at, self.drift, self.total = at, probes.probes.get("drift"), total
        self.file = open(self.place / "feed.jsonl", "w")

    def update(self, images: int) -> None:
        if time.monotonic() - self.latest >= EVERY:
            self._tell()
        while (self.place / "pause").exists() and os.getppid() == self.parent:
            time.sleep(0.05)

    def close(self) -> None:
        self._tell()
        self.file.close()

    def _tell(self) -> None:
        self.latest = time.monotonic()
        steps, evals = self._new("steps", self.at.steps), self._new("evals", self.at.evals)
        evals = [row for row in evals if row["metric"] == "accuracy" and row["kind"] in KINDS]
        drift: dict[int, list] = {}
        for row in self._new("drift", self.drift.rows if self.drift else []):
            drift.setdefault(row["step"], []).append((row["text"], row["image"]))
        line = {"images": self.at.images, "total": self.total,
                "steps": [(row["step"], row["term"], row["value"]) for row in steps],
                "evals": [(row["images_seen"], row["name"], row["value"]) for row in evals],
                "drift": [(step, *(sum(column) / len(column) for column in zip(*rows, strict=True)))
                          for step, rows in drift.items()]}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def _new(self, name: str, rows: Sequence[dict]) -> list[dict]:
        first, self.done[name] = self.done[name], len(rows)
        return list(rows[first:])


def main(place: Path, runs: Path, probes: Sequence[str]) -> None:
    """The other process: make the run of `place`/config.json, until it ends, is asked to stop, or
    is alone."""
    parent = os.getppid()
    end_with(parent)
    config = RunConfig(**json.loads((place / "config.json").read_text()))
    store.load_or_train(config, runs, progress=Feed(place, parent), probes=probes)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except KeyboardInterrupt:
        sys.exit(130)
