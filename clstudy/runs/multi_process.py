"""One run on several processes: the first reads and writes, all of them compute."""
from collections.abc import Sequence
from pathlib import Path

from clstudy.runs import store
from clstudy.runs.run import Run, find
from clstudy.training.checkpoint import Saver
from clstudy.training.config import RunConfig
from clstudy.training.loop import train
from clstudy.utils.distributed import broadcast, first


class Follower(Saver):
    """A saver that resumes from what the first process saved, and writes nothing."""

    def save(self) -> None:
        if self.stopping:
            raise KeyboardInterrupt

    def clear(self) -> None:
        pass


def load_or_train(config: RunConfig, runs: Path | None = None, keep_model: bool = False,
                  probes: Sequence[str] = (), save_every: float | None = None) -> Run | None:
    """Do as `clstudy.load_or_train`, in all processes at once.

    The first one reads, writes and tells the others what it computes. Numbers are those of one
    process up to rounding; a run resumes on as many processes as saved its state. Busy: another
    program makes the run."""
    if first():
        run = store.load_or_train(config, runs, keep_model, probes=probes, save_every=save_every,
                                  wait=False)
        broadcast(None)
        return run
    while (told := broadcast()) is not None:
        saver = Follower(told["draft"], 0, told["surroundings"])
        train(config, probes=told["probes"], saver=saver)
    return find(config, runs)
