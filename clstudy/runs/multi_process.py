"""One run on several processes: the first reads and writes, all compute."""
from collections.abc import Sequence
from pathlib import Path

from clstudy.utils.distributed import broadcast, first


def load_or_train(config, runs: Path | None = None, keep_model: bool = False,
                  probes: Sequence[str] = (), save_every: float | None = None):
    """As `clstudy.load_or_train`, called by all processes at once: the first reads, writes and
    tells the others what it computes. Numbers are those of one process up to rounding; a state is
    taken up by as many processes as wrote it. Busy: somebody else makes the run, and it is not
    waited for."""
    from clstudy.runs import run as run_module, store  # they import clip
    from clstudy.training.loop import train

    if first():
        run = store.load_or_train(config, runs, keep_model, probes=probes, save_every=save_every,
                                  wait=False)
        broadcast(None)
        return run
    while (told := broadcast()) is not None:
        train(config, probes=told["probes"], saver=_follower(**told))
    return run_module.find(config, runs)


def _follower(draft: Path, surroundings: dict, probes: Sequence[str]):
    """A saver that takes up what the first process saved, and writes nothing."""
    from clstudy.training.checkpoint import Saver

    class Follower(Saver):
        def save(self) -> None:
            if self.stopping:
                raise KeyboardInterrupt

        def clear(self) -> None:
            pass

    return Follower(draft, 0, surroundings)
