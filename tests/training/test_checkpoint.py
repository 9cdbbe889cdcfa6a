"""A run that was killed goes on and ends with the tables of one that was not: every method, real
kills, bad disks."""
import ast
import builtins
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from clstudy import RunConfig
from clstudy.methods import METHODS
from clstudy.models.tuners import TUNERS
from clstudy.runs import lock, store
from clstudy.runs.run import find, finished
from clstudy.runs.store import load_or_train
from clstudy.training import checkpoint, loop, monitor, serialization
from clstudy.training.checkpoint import states
from clstudy.training.serialization import Unstorable, verify
from clstudy.utils.progress import Progress

TESTS = Path(__file__).parents[1]
ALWAYS = 1e-9  # seconds between two states: after each batch


class Killed(BaseException):
    """Stands for a kill: it comes between two batches, and nothing of the run is told."""


class Falling(Progress):
    """A progress bar at whose n-th batch from now `fall` is called."""

    def __init__(self, batches: int, fall=None):
        self.left, self.fall, self.seen = batches, fall, []

    def update(self, count):
        self.seen.append(count)
        self.left -= len(self.seen) > 1  # the first tells what was done before
        if self.left == 0:
            if self.fall is None:
                raise Killed
            self.fall()


def of(config, method: str, **changes):
    """The run with this method, with the tuner that it is made for."""
    needs = METHODS[method].needs_tuner
    if needs:
        changes |= {"tuner": needs, "tower": TUNERS[needs].towers[-1]}
    return config.replace(method=method, **changes)


def fall(config, runs: Path, batches: int, **options) -> Path:
    """Make a run up to the middle of this batch, counted from where it is taken up; its draft."""
    with pytest.raises(Killed):
        load_or_train(config, runs, progress=Falling(batches), save_every=ALWAYS, **options)
    return runs / f"{config.run_id}.draft"


def same(run, other, *files: str) -> None:
    """Two runs are equal to the byte."""
    for name in ("evals.jsonl", "steps.jsonl", "config.json", *files):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    for table in run.folder.glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(table), other.probe(table.stem),
                                      check_exact=True)


# ---- every method, tuners, settings

SMALL = {
    "er": {"size": 10, "replay": 5}, "derpp": {"size": 10, "replay": 5}, "clib": {
        "size": 12, "look": 6
    }, "sit": {"size": 10, "replay": 5}, "agem": {"size": 6, "replay": 5},
    "zscl": {"average_every": 2, "references": 4}, "ranpac": {"width": 40},
    "text_cache": {"learn": True, "per_class": 3}, "gcl": {"size": 10, "temperature": "individual"}
}


FORMS = [("ewc", {"streaming": 0.9}), ("replay_features", {"covariance": "laplace"})]  # other states


@pytest.mark.parametrize(("name", "args"),
                         [(name, SMALL.get(name, {})) for name in METHODS] + FORMS)
def test_every_method_goes_on_to_the_bit(tiny, runs, tmp_path, name, args):
    """It falls in the middle of the first stage, again in the second, and before the last batch."""
    config = of(tiny, name, method_args=args, eval_every=30)
    whole = load_or_train(config, tmp_path / "whole", keep_model=True)
    for batches in (3, 4, 2):
        fall(config, runs, batches, keep_model=True)
    parts = load_or_train(config, runs, keep_model=True, save_every=0)
    assert parts.result["resumed"] == 3 and whole.result["resumed"] == 0
    same(parts, whole, "model.safetensors")
    assert [path.name
            for path in runs.iterdir()] == [config.run_id]  # nothing that was saved is left


PROBES = ["classes", "drift", "gradients", "towers"]


@pytest.mark.parametrize("settings", [
    {"tuner": "adapter", "epochs": 3, "milestones": [1], "clip_norm": 1.0, "steps_per_batch": 2},  # dropout draws
    {"tuner": "full", "optimizer": "adam", "channels_last": True, "method": "derpp"},
    {"tuner": "full", "tower": "text", "optimizer": "sgd", "method": "imm", "method_args": {"mode": "mode"}},
    {"tuner": "rescale", "method": "er", "stream": "si_blurry", "batch_size": 5},
    {"tuner": "prompts", "method": "lwf", "held_out_every": 2, "precision": "bf16"},
    {"tuner": "coop", "tower": "text", "tuner_args": {"length": 4, "shared": False}, "method": "finetune"},
], ids=lambda settings: settings["tuner"])
def test_every_tuner_goes_on_to_the_bit_and_so_do_probes(tiny, runs, tmp_path, settings):
    config = tiny.replace(**settings)
    whole = load_or_train(config, tmp_path / "whole", keep_model=True, probes=PROBES)
    for batches in (2, 5):
        fall(config, runs, batches, keep_model=True, probes=PROBES)
    parts = load_or_train(config, runs, keep_model=True, probes=PROBES, save_every=0)
    assert parts.result["resumed"] == 2
    same(parts, whole, "model.safetensors")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_batch_norm_goes_on_to_the_bit(tiny, runs, tmp_path, toy_cfg, tower):
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    about = {"model_cfg": {**toy_cfg, "vision_cfg": resnet}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    config = tiny.replace(model=str(tmp_path), pretrained="random", tuner="full", tower=tower)
    whole = load_or_train(config, tmp_path / "whole", keep_model=True)
    for batches in (2, 5):
        fall(config, runs, batches, keep_model=True)
    same(load_or_train(config, runs, keep_model=True, save_every=0), whole, "model.safetensors")


def test_at_stage_ends_only(tiny, runs, tmp_path):
    progress = Falling(6)
    with pytest.raises(Killed):
        load_or_train(tiny, runs, progress=progress, save_every=0)
    progress = Falling(99)
    run = load_or_train(tiny, runs, progress=progress, save_every=0)
    assert progress.seen == [30, 8, 8, 8, 6]  # what was done before, then the second stage
    same(run, load_or_train(tiny, tmp_path / "whole"))


def test_what_is_wanted_can_change_between_two_processes(tiny, runs, tmp_path):
    """Weights are there at the end. A probe has missed its first steps: the run starts anew. One
    more does no harm."""
    fall(tiny, runs, 3)
    fall(tiny, runs, 3, probes=["drift"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = load_or_train(tiny, runs, keep_model=True)
    assert run.result["resumed"] == 1 and (run.folder / "model.safetensors").exists()
    whole = load_or_train(tiny, tmp_path / "whole", probes=["drift"])
    same(run, whole)
    assert len(run.probe("drift"))


@pytest.mark.parametrize(("name", "value"), [("threads", 99), ("torch", "1.0")])
def test_a_state_of_another_environment_is_not_used(monkeypatch, tiny, runs, name, value):
    fall(tiny, runs, 3)
    there = store.environment()
    monkeypatch.setattr(store, "environment", lambda: there | {name: value})
    with pytest.warns(UserWarning, match=f"its saved state was made with another {name}: "):
        assert load_or_train(tiny, runs).result["resumed"] == 0


def test_a_state_of_another_code_is_not_used(monkeypatch, tiny, runs):
    fall(tiny, runs, 3)
    monkeypatch.setattr(checkpoint, "SOURCES", "changed")
    with pytest.warns(UserWarning,
                      match="from the beginning, because .* was made with another code"):
        assert load_or_train(tiny, runs).result["resumed"] == 0


def reached(start: Path) -> set[Path]:
    """The files of the package that a file imports, and those that these import."""
    package, found, todo = TESTS.parent, set(), [start]
    while todo:
        path = todo.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clstudy"):
                place = package.joinpath(*node.module.split("."))
                todo += [file for one in (place, *(place / name.name for name in node.names))
                         for file in (one.with_suffix(".py"), one / "__init__.py")]
    return found


def test_what_counts_as_code_is_all_that_the_loop_imports():
    files = {path.relative_to(TESTS.parent / "clstudy") for path in reached(Path(loop.__file__))}
    rooms = {path.parts[0] for path in files if len(path.parts) > 1}
    assert {"replay_buffer", "clip", "accuracy", "image_shards"} <= {path.stem for path in files}
    assert rooms <= set(checkpoint.ROOMS)


@pytest.mark.parametrize("given", ["often", -1, float("nan")])
def test_save_every_is_a_number_of_seconds(tiny, runs, monkeypatch, given):
    monkeypatch.setenv("CLSTUDY_SAVE_EVERY", str(given))
    with pytest.raises(ValueError,
                       match=f"save_every='{given}': must be a number of seconds, or 0"):
        load_or_train(tiny, runs)


# ---- real processes

CHILD = """
import sys
import jaxtyping
jaxtyping.install_import_hook = lambda *_: None
sys.path.insert(0, sys.argv[1])
import conftest
from pathlib import Path
from clstudy import RunConfig, load_or_train
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.utils.progress import Progress

class Telling(Progress):
    def update(self, count):
        print(count, flush=True)

BENCHMARKS["toy"] = conftest.Toy
config = RunConfig.model_validate_json(sys.argv[2])
run = load_or_train(config, Path(sys.argv[3]), progress=Telling(), save_every=float(sys.argv[4]))
print(run.result["resumed"], flush=True)
"""


def child(config: RunConfig, runs: Path, save_every: float = ALWAYS) -> subprocess.Popen:
    """A process that makes this run, and prints a line before it begins and one after each
    batch."""
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([
        sys.executable, "-c", CHILD,
        str(TESTS),
        config.model_dump_json(),
        str(runs),
        str(save_every)
    ], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


def test_a_process_killed_at_random_moments_is_taken_up_by_the_next(tiny, runs, tmp_path,
                                                                    no_training):
    """The last one lives; this process wants the same run, waits, and reads what the other has
    made."""
    config = tiny.replace(method="er", method_args={"size": 10, "replay": 5}, tuner="adapter",
                          epochs=4, eval_every=8)
    whole = load_or_train(config, tmp_path / "whole")
    chance, done = random.Random(), [0]
    for _ in range(2):
        process = child(config, runs)
        done.append(int(process.stdout.readline()))
        for _ in range(chance.randint(2, 6)):  # two: the state of the first batch is saved by then
            process.stdout.readline()
        try:
            process.wait(chance.random() / 50)
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        assert find(config, runs) is None and finished(runs) == []
    assert done == sorted(done) and done[-1] > 0  # each began where the one before was killed
    process = child(config, runs)
    process.stdout.readline()
    with pytest.raises(lock.Busy,
                       match=rf"waiting for .*:{process.pid}, which makes {config.run_id}"):
        load_or_train(config, runs, wait=False)
    no_training()
    run = load_or_train(config, runs)
    assert process.wait() == 0 and 1 <= run.result["resumed"] <= 2
    same(run, whole)
    assert [path.name for path in runs.iterdir()] == [config.run_id]


# ---- interrupts, losses that are not finite


@pytest.fixture
def interrupts():
    """Python's own handling of Ctrl-C: the processes of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_saves_at_the_end_of_the_step_and_says_so(tiny, runs, tmp_path, capsys):
    progress = Falling(3, lambda: signal.raise_signal(signal.SIGINT))
    said = ("The run stopped. Its state after 24 images, in stage 1, is saved in .*draft. "
            "The same call resumes from there.")
    with pytest.raises(KeyboardInterrupt, match=said):
        load_or_train(tiny, runs, progress=progress, save_every=0)
    assert progress.seen == [0, 8, 8, 8] and "24 images" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    progress = Falling(99)
    run = load_or_train(tiny, runs, progress=progress)
    assert progress.seen == [24, 6, 8, 8, 8, 6]
    same(run, load_or_train(tiny, tmp_path / "whole"))


@pytest.mark.usefixtures("interrupts")
def test_a_second_interrupt_does_not_wait(tiny, runs):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        load_or_train(tiny, runs, progress=Falling(3, twice), save_every=0)
    assert not stopped.value.args and list(runs.iterdir()) == []  # nothing was saved


def test_a_loss_that_is_not_finite_leaves_nothing_and_starts_anew(tiny, runs):
    config = tiny.replace(lr=1e30)
    for _ in range(2):
        with pytest.raises(monitor.NotFinite,
                           match=r"stage 1, step [12], after (8|16) images, on the images \[\d"):
            load_or_train(config, runs, save_every=ALWAYS)
        assert list(runs.iterdir()) == [] and finished(runs) == [] and find(config, runs) is None
    assert load_or_train(tiny, runs).result["resumed"] == 0


# ---- damaged files, full disks


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:len(content)
                             // 2] if how == "cut" else b"" if how == "empty" else content)


@pytest.mark.parametrize("how", ["a bit", "cut", "empty"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(tiny, runs, tmp_path, how):
    draft = fall(tiny, runs, 4)
    damage(states(draft)[0], how)
    progress = Falling(99)
    with pytest.warns(UserWarning, match="state-3.pt is damaged: .* resumes from the state before"):
        run = load_or_train(tiny, runs, progress=progress)
    assert progress.seen[0] == 16  # not 24
    same(run, load_or_train(tiny, tmp_path / "whole"))


def test_where_both_are_damaged_the_run_starts_from_the_beginning(tiny, runs, tmp_path):
    draft = fall(tiny, runs, 4)
    for file in states(draft):
        damage(file, "a bit")
    with pytest.warns(UserWarning, match="All states in .* are damaged. .*from the beginning"):
        run = load_or_train(tiny, runs)
    assert run.result["resumed"] == 0
    same(run, load_or_train(tiny, tmp_path / "whole"))


def test_two_states_are_kept(tiny, runs):
    draft = fall(tiny, runs, 7)
    assert sorted(path.name for path in draft.glob("state-*")) == ["state-6.pt", "state-7.pt"]


def test_a_full_disk_is_told_once_and_the_run_goes_on(monkeypatch, tiny, runs, tmp_path):
    def full(path, mode):
        path.write_bytes(b"the first bytes")
        return builtins.open("/dev/full", mode)  # where every write fails as on a full disk

    with monkeypatch.context() as patch:
        patch.setattr(serialization, "open", full, raising=False)
        with pytest.warns(UserWarning,
                          match="could not be saved .*No space left.* goes on") as told:
            run = load_or_train(tiny, runs, save_every=ALWAYS)
    assert len(told) == 1
    same(run, load_or_train(tiny, tmp_path / "whole"))


def test_a_disk_that_is_full_at_the_end_loses_nothing(monkeypatch, tiny, runs, tmp_path):
    write = Path.write_text

    def full(path, *content, **options):
        if path.name.startswith("steps.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            load_or_train(tiny, runs, save_every=0)
    assert find(tiny, runs) is None and states(runs / f"{tiny.run_id}.draft")
    progress = Falling(99)
    run = load_or_train(tiny, runs, progress=progress)
    assert progress.seen == [60]  # nothing was trained again
    same(run, load_or_train(tiny, tmp_path / "whole"))


def test_what_cannot_be_saved_is_named(monkeypatch, tiny, runs):
    @dataclass
    class Holding(METHODS["sit"]):
        def before_stage(self, clip, stage, batches):
            self.rules = {"first": [1, lambda: 2]}

    monkeypatch.setitem(METHODS, "holding", Holding)
    with pytest.raises(Unstorable, match=r"state.method.rules.first\[1\] is a builtins.function, "):
        load_or_train(tiny.replace(method="holding"), runs)


def test_sigterm_saves_before_the_process_ends_by_it(tiny, runs, tmp_path):
    """As the workers of a sweep that is left early are ended, and jobs whose time is over."""
    process = child(tiny.replace(epochs=6), runs, save_every=0)
    for _ in range(4):  # three batches of the first stage, of which no state is due
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    draft = runs / f"{tiny.replace(epochs=6).run_id}.draft"
    assert 24 <= verify(states(draft)[0])["images"] < 2 * 6 * 30
    run = load_or_train(tiny.replace(epochs=6), runs)
    assert run.result["resumed"] == 1
    same(run, load_or_train(tiny.replace(epochs=6), tmp_path / "whole"))


def test_sigterm_does_not_wait_for_ever():
    """A second one ends the process at once, and so does the time limit."""
    for late in (False, True):
        script = ("import time\nfrom clstudy.training import checkpoint\ncheckpoint.GRACE = 0.2\n"
                  "with checkpoint.interruptible(checkpoint.Saver()):\n"
                  "    print('ready', flush=True)\n    time.sleep(60)\n    time.sleep(60)\n")
        process = subprocess.Popen(
            [sys.executable, "-c", script if late else script.replace("0.2", "50")],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        if not late:
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_sigterm_that_somebody_else_handles_is_theirs(tiny, runs):
    def theirs(*_):
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        progress = Falling(3, lambda: signal.raise_signal(signal.SIGTERM))
        load_or_train(tiny, runs, progress=progress)
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
