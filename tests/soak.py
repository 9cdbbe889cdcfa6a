"""`make soak`: the toy world under kills, full disks and damaged files, for some minutes; nothing
may be lost.

    MINUTES=5 make soak        python tests/soak.py [--minutes 5] [--only kills …] [--seed 0] [--keep]

Each trial prints what was tried and what came of it; the table at the end has all of them. What
counts is that a finished run has the very bytes of one that was left alone, and that a damaged file
is either made good or named: never half a table, never another exception. Exit code 1: something
was lost. The program is its own child: `--sweep` drives one sweep, `--disk` fills a small disk of
its own."""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("CLSTUDY_SAVE_EVERY", "0.02")
os.environ.update(CLSTUDY_HEADLESS="1", CLSTUDY_QUIET="1", PYTHONWARNINGS="ignore")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import psutil  # noqa: E402 (of ipykernel)
from toy_world import SETTINGS, toy_model  # noqa: E402 (workers import this program, and with it the toy world)

from clstudy.methods import METHODS  # noqa: E402
from clstudy.models.tuners import TUNERS  # noqa: E402
from clstudy.runs import status, sweep  # noqa: E402
from clstudy.runs.run import find, finished, load_runs, load_tuned  # noqa: E402
from clstudy.runs.store import load_or_train  # noqa: E402
from clstudy.training.checkpoint import states  # noqa: E402
from clstudy.training.config import RunConfig  # noqa: E402
from clstudy.utils.progress import Progress  # noqa: E402

SMALL = {
    "sit": {"size": 10, "replay": 5}, "finetune": {}, "er": {"size": 10, "replay": 5}, "lwf": {},
    "derpp": {"size": 10, "replay": 5}, "clib": {"size": 12,
                                                 "look": 6}, "agem": {"size": 6, "replay": 5},
    "zscl": {"average_every": 2, "references": 4}, "gcl": {"size": 10, "temperature": "individual"}
}
NAMES = [*SMALL, *(name for name in METHODS if name not in SMALL)
         ]  # every method; where few runs are made, the first
OURS = (ValueError, OSError)  # of these, with the name of the file
TABLES = ("config.json", "evals.jsonl", "steps.jsonl")


class Lost(AssertionError):
    """Something that was found wanting."""


def configs(model: Path, count: int, **changes) -> list[RunConfig]:
    """Short runs of all methods in turn, each with the tuner that it is made for."""
    made = []
    for i in range(count):
        name = NAMES[i % len(NAMES)]
        needs = METHODS[name].needs_tuner
        own = {"tuner": needs, "tower": TUNERS[needs].towers[-1]} if needs else {}
        made.append(
            RunConfig(
                **{
                    **SETTINGS, "model": str(model), "method": name, "method_args": SMALL.get(
                        name, {}), "seed": i // len(NAMES), **own, **changes
                }))
    return made


def compare(wanted: list[RunConfig], runs: Path, alone: Path) -> str:
    """All is there, and has the very bytes of what was left alone. Otherwise Lost."""
    for config in wanted:
        run, other = find(config, runs), find(config, alone)
        if run is None:
            raise Lost(f"{config.run_id} is not there")
        for name in TABLES:
            if (run.folder / name).read_bytes() != (other.folder / name).read_bytes():
                raise Lost(f"{run.folder / name} is not that of {other.folder}")
        if run.evals.shape != other.evals.shape or run.steps.shape != other.steps.shape:
            raise Lost(f"{run.folder}: rows are missing")
    left = [path.name for path in runs.iterdir() if ".draft" in path.name]
    if left:
        raise Lost(f"{runs} still holds {left}")
    return f"{len(wanted)} runs equal to the byte"


# ---- sweeps in processes of their own


def start(model: Path, runs: Path, count: int, name: str = "soak",
          dask: bool = False) -> subprocess.Popen:
    """A sweep on two workers, in a session of its own, so that what it leaves behind can be
    found."""
    words = [
        sys.executable, __file__, "--sweep",
        str(model),
        str(runs),
        str(count), name, *["dask"] * dask
    ]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=open(
        runs.parent / "log.txt", "a"))


def drive(model: str, runs: str, count: str, name: str, how: str = "") -> int:
    """What `start` starts: the sweep itself."""
    wanted = configs(Path(model), int(count))
    options = {"runs": Path(runs), "name": name, "workers": 2, "show": False}
    if not how:
        return sweep.sweep(wanted, **options).code
    from clstudy.runs import dask_workers

    with dask_workers.connect("local", workers=2) as (engine, _):
        setup(engine.keywords["client"])
        return sweep.sweep(wanted, engine=engine, **options).code


def setup(client) -> None:
    """Workers of dask do not import this program: they are told, each one, also one that replaces a
    dead one."""
    from distributed.diagnostics.plugin import WorkerPlugin

    class Toy(WorkerPlugin):
        def setup(self, worker):
            sys.path[:0] = [str(HERE), str(HERE.parent)]
            import toy_world  # noqa: F401

    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[Toy.__module__])
    client.register_plugin(Toy())


def at_work(runs: Path, name: str) -> list[int]:
    """Processes that make a run now."""
    return sorted({about["pid"] for about in status.now(runs / "sweeps" / name).values()})


def kill(process: subprocess.Popen, runs: Path, whom: str, name: str = "soak",
         wait: float = 60) -> str:
    """Wait until somebody is at a run, and a moment more; then end the sweep's driver, or one of
    its workers."""
    until = time.monotonic() + wait
    while time.monotonic() < until and process.poll() is None:
        found = [pid for pid in at_work(runs, name) if pid in below(process)]
        if found:
            time.sleep(CHANCE.random() / 2)
            if not below(process) >= set(found):
                continue
            pid, number = (process.pid,
                           signal.SIGKILL) if whom == "driver" else (CHANCE.choice(found),
                                                                     signal.SIGKILL)
            if whom == "polite":
                pid, number = process.pid, CHANCE.choice([signal.SIGINT, signal.SIGTERM])
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            if whom != "worker":
                process.wait(60)
            return whom
        time.sleep(0.01)
    return ""


def below(process: subprocess.Popen) -> set[int]:
    """What a process started. A number in a file that was left behind may be somebody else's by
    now."""
    try:
        return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def killed(model: Path, place: Path, count: int, kinds: list[str], dask: bool = False,
           save: str = "0.02") -> str:
    """A sweep of `count` runs, killed so often; against one that is left alone."""
    os.environ["CLSTUDY_SAVE_EVERY"] = save
    alone, runs = place / "alone", place / "killed"
    for folder in (alone, runs):
        folder.mkdir(parents=True)
    wanted = configs(model, count)
    begun = time.monotonic()
    if start(model, alone, count).wait(1800):
        raise Lost(
            f"the sweep that was left alone failed: {(place / 'log.txt').read_text()[-500:]}")
    whole, begun = time.monotonic() - begun, time.monotonic()
    process, done, share = start(model, runs, count, dask=dask), [], count / (len(kinds) + 1)
    for i, whom in enumerate(kinds):
        while len(finished(runs)) < i * share and process.poll() is None:  # spread over the sweep
            time.sleep(0.05)
        hit = kill(process, runs, whom)
        done += [hit] if hit else []
        before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}
        if process.poll() is not None and len(before) < count:
            process = start(model, runs, count, dask=dask)
    if process.wait(1800) and start(model, runs, count, dask=dask).wait(1800):
        raise Lost(f"the sweep failed: {(place / 'log.txt').read_text()[-500:]}")
    took = time.monotonic() - begun
    said = compare(wanted, runs, alone)
    again = [
        id for id, changed in before.items()
        if (runs / id / "result.json").stat().st_mtime_ns != changed
    ]
    if again:
        raise Lost(f"finished runs were made again: {again}")
    taken = [find(config, runs).result["resumed"] for config in wanted]
    return (
        f"{said}; {len(done)} kills ({', '.join(f'{done.count(one)} {one}' for one in dict.fromkeys(done))}), "
        f"{sum(map(bool, taken))} runs taken up ({sum(taken)} times), finished runs made again: 0; "
        f"{took:.0f} s, alone {whole:.0f} s")


def proof(model: Path, place: Path) -> str:
    """100 short runs on two workers, killed ten times."""
    return killed(model, place, 100, ["driver", "worker"] * 5)


def methods(model: Path, place: Path) -> str:
    """A run of every method, and as many kills of whoever is at a run."""
    return f"{len(NAMES)} methods: {killed(model, place, len(NAMES), ['worker'] * len(NAMES))}"


def kills(model: Path, place: Path) -> str:
    kinds = [CHANCE.choice(["driver", "worker", "polite"]) for _ in range(4)]
    return killed(model, place, CHANCE.randint(8, 20), kinds, save=CHANCE.choice(
        ["0", "0.02", "0.2"]))


def dask(model: Path, place: Path) -> str:
    return killed(model, place, 10, ["worker", "worker"], dask=True)


def two_sweeps(model: Path, place: Path) -> str:
    """Two on one folder, the one begun first is killed and started again."""
    alone, runs = place / "alone", place / "shared"
    for folder in (alone, runs):
        folder.mkdir(parents=True)
    if start(model, alone, 20).wait(600):
        raise Lost("the sweep that was left alone failed")
    first, second = start(model, runs, 20, "first"), start(model, runs, 20, "second")
    kill(first, runs, "driver", "first")
    third = start(model, runs, 20, "first")
    codes = [second.wait(600), third.wait(600)]
    if codes != [0, 0]:
        raise Lost(f"exit codes {codes}")
    return compare(configs(model, 20), runs,
                   alone) + "; two sweeps at once, one killed and started again"


# ---- a full disk


def full_disk(model: Path, place: Path) -> str:
    """A disk of its own (tmpfs in a namespace of its own), or, where none may be had, files that
    cannot grow."""
    place.mkdir(parents=True)
    words = [sys.executable, __file__, "--disk", str(model), str(place)]
    own = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    done = subprocess.run(
        (["unshare", "-rm"] if own else []) + [*words, "mount" if own else "limit"],
        capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise Lost(done.stderr[-800:])
    return done.stdout.strip().splitlines()[-1]


def fill(model: str, place: str, how: str) -> int:
    """Make a run with so little room that it fails here and there; then with room: the tables are
    those of the run alone."""
    import resource

    place = Path(place)
    disk = place / "disk"
    disk.mkdir()
    small = how == "mount" and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True).returncode
    wanted = configs(Path(model), 2)
    for config in wanted:
        load_or_train(config, place / "alone", probes=["drift"])
    failed = told = 0

    def here(function, items):
        for item in items:
            yield item, function(item)

    rooms = [0, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
    for room in rooms:  # kB
        for config in wanted:
            runs, filler = disk / "runs", disk / "filler"
            try:
                if small:
                    free = shutil.disk_usage(disk).free
                    filler.write_bytes(bytes(max(free - room * 1024, 0)))
                else:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (room * 1024, resource.RLIM_INFINITY))
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    made = sweep.sweep([config], runs=runs, name="mine", engine=here, show=False,
                                       probes=["drift"])
                if any("No space" not in one.error and "too large" not in one.error
                       for one in made.failed.values()):
                    raise Lost(str(made))
                failed += bool(made.failed)
                told += any("could not be saved" in str(one.message) for one in heard)
            except BaseException:
                print(f"with {room} kB of room:\n{traceback.format_exc()}", file=sys.stderr)
                return 1
            finally:
                if not small:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
                filler.unlink(missing_ok=True)
            finished(runs)
            load_or_train(config, runs, probes=["drift"])
            compare([config], runs, place / "alone")
            shutil.rmtree(runs)
    kind = "a disk of 4 MB with 0 to 768 kB of room" if small else "files of at most 0 to 768 kB"
    print(
        f"{kind}: {len(rooms) * len(wanted)} runs, {failed} broke off, {told} went on without states; then equal to "
        "the byte")
    return 0


# ---- damaged files


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "cut", content[:len(content) // 2]
    yield "less a byte", content[:-1]
    yield "zeros", bytes(len(content))
    yield "noise", CHANCE.randbytes(max(len(content), 64))
    if content:
        flipped = bytearray(content)
        flipped[CHANCE.randrange(len(content))] ^= 1 << CHANCE.randrange(8)
        yield "a bit", bytes(flipped)
    yield "another thing", b'["a list", 7]'


def try_out(file: Path, read: Callable, right: Callable | None = None, quiet: bool = False) -> int:
    """Read with every damage: it fails in our words, which name the file, or what comes is right.
    The number tried.

    quiet: the file is only looked at, and may be passed over."""
    whole, count = file.read_bytes(), 0
    for how, content in damages(whole):
        file.write_bytes(content)
        count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read()
            if right is not None and content != whole and not right(found):
                raise Lost(f"{file.name}, {how}: a wrong value was read in silence")
        except OURS as error:
            if file.name not in str(error) and not quiet:
                raise Lost(
                    f"{file}, {how}: {type(error).__name__} names no file: {error}") from error
        except Lost:
            raise
        except Exception as error:
            raise Lost(f"{file}, {how}: {type(error).__name__}: {error}") from error
        finally:
            file.write_bytes(whole)
    return count


def damaged(model: Path, place: Path) -> str:
    """Every kind of file that is read, one after the other."""
    tried = {}
    for kind, one in KINDS.items():
        try:
            tried[kind] = one(model, place / kind.replace(" ", "-").replace("/", "-"))
        except Exception as error:
            raise Lost(f"{kind}: {type(error).__name__}: {error}") from error
    return f"{sum(tried.values())} damages of {len(tried)} kinds: " + ", ".join(
        f"{k} {n}" for k, n in tried.items())


def one_run(model: Path, place: Path) -> tuple[RunConfig, Path]:
    config = configs(model, 1)[0]
    load_or_train(config, place / "runs", keep_model=True, probes=["drift"])
    load_or_train(config, place / "alone", keep_model=True, probes=["drift"])
    return config, place / "runs"


def result_files(model: Path, place: Path) -> int:
    """Whatever is damaged in a finished run, it is read right or not at all; and made again."""
    config, runs = one_run(model, place)
    evals, folder = find(config, runs).evals, runs / config.run_id
    count = 0
    for name in (*TABLES, "result.json"):
        count += try_out(folder / name,
                         lambda: load_runs(runs).assign(steps=find(config, runs).steps.value.sum()),
                         lambda found: len(found) == len(evals) and found.value.equals(evals.value))
    for name, read in (("model.safetensors", load_tuned), ("drift.parquet",
                                                           lambda run: run.probe("drift"))):
        count += try_out(folder / name, lambda read=read: read(find(config, runs)),
                         lambda found: False)
    for name in (*TABLES, "result.json", "model.safetensors", "drift.parquet"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-3])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_or_train(config, runs, keep_model=True, probes=["drift"])
        compare([config], runs, place / "alone")
    return count + 6


def draft_files(model: Path, place: Path) -> int:
    """Saved states, and what else a draft holds: the run ends as if nothing had been."""
    config = configs(model, 1)[0]
    load_or_train(config, place / "alone")

    class Killed(BaseException):
        pass

    class Falling(Progress):
        def update(self, count):
            self.left = getattr(self, "left", 5) - 1
            if not self.left:
                raise Killed

    count, kept = 0, place / "kept"
    try:
        load_or_train(config, place / "runs", progress=Falling(), save_every=1e-9)
    except Killed:
        shutil.move(place / "runs", kept)
    names = [path.name for path in (kept / f"{config.run_id}.draft").iterdir() if path.is_file()]
    if not states(kept / f"{config.run_id}.draft"):
        raise Lost("no state was saved")
    for name in names:
        for _, content in damages((kept / f"{config.run_id}.draft" / name).read_bytes()):
            shutil.copytree(kept, place / "runs")
            (place / "runs" / f"{config.run_id}.draft" / name).write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_or_train(config, place / "runs")
            compare([config], place / "runs", place / "alone")
            shutil.rmtree(place / "runs")
            count += 1
    return count


def sweep_files(model: Path, place: Path) -> int:
    """What a sweep writes of itself: the next one goes on whatever it finds there."""
    wanted, runs = configs(model, 2), place / "runs"

    def here(function, items):
        for item in items:
            yield item, function(item)

    def again():
        status.status(None, runs)
        return sweep.sweep(wanted, runs=runs, name="mine", engine=here, show=False)

    again()
    now = runs / "sweeps" / "mine" / "now" / f"{wanted[0].run_id}.json"
    now.parent.mkdir(exist_ok=True)
    now.write_text(json.dumps({"host": "a", "pid": 1, "share": 0.5, "left": 3.0}))
    state = runs / "sweeps" / "mine" / "state.json"
    state.write_text(
        json.dumps({
            **json.loads(state.read_text()), "finished": None, "pid": os.getpid(),
            "beat": time.time()
        }))
    count = sum(
        try_out(file, again, lambda made: made.code == 0, quiet=True) for file in (state, now))
    return count + try_out(runs / wanted[0].run_id / "env.json",
                           lambda: sweep.plan(wanted, runs=runs), quiet=True)


def gathered(model: Path, place: Path) -> int:
    """Tables beside the weights of a run are made again."""
    import pandas as pd

    from clstudy.runs import cleanup

    runs = place / "runs"
    for config in configs(model, 2):
        load_or_train(config, runs)
    kept = runs / "kept.parquet"
    pd.DataFrame({"one": 1.0}, [run.id for run in finished(runs)]).to_parquet(kept)
    return try_out(kept, lambda: cleanup.unneeded(runs, place / "figures"), quiet=True)


def data_files(model: Path, place: Path) -> int:
    """Embedded parquet, the optional file of a folder, texts, sweeps as TOML, notebooks."""
    import numpy as np
    from PIL import Image

    from clstudy.data.benchmarks import emoji, folder
    from clstudy.losses import vocabularies
    from clstudy.notebooks import parameters
    from clstudy.runs import grid

    place.mkdir(parents=True)
    count, table = 0, place / "emoji.parquet"
    rows = emoji.table().groupby("family").head(3)
    rows.to_parquet(table)
    emoji.PATH = table

    def read():
        emoji._everything.cache_clear()
        return emoji.decode(emoji.table().image)

    pixels = read()
    count += try_out(table, read, lambda found: found.shape == pixels.shape)
    for kind in ("a", "b"):
        (place / "own" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(
                place / "own" / kind / f"{i}.png")
    about = place / "own" / "clstudy.json"
    about.write_text(
        json.dumps(
            {"classes": {"a": "one"}, "captions": {"a/0.png": "first"}, "groups": {"g": ["a"]}}))
    count += try_out(about, lambda: folder.Folder(path=str(place / "own")).require())
    os.environ["CLSTUDY_CACHE"] = str(place / "cache")
    own = folder.Folder(path=str(place / "own"), size=8).load()
    wanted = own.train.images.clone()
    for file in sorted((place / "cache").glob("*train*/*.npy")):
        count += try_out(
            file, lambda: folder.Folder(path=str(place / "own"), size=8).load().train.images.shape,
            lambda shape: shape == wanted.shape)
    picture = place / "own" / "a" / "0.png"

    def pictures():
        shutil.rmtree(place / "cache", ignore_errors=True)
        return folder.Folder(path=str(place / "own"), size=8).load()

    count += try_out(picture, pictures)
    texts = place / "texts.txt"
    texts.write_text("a dog\na cat\n")
    count += try_out(
        texts, lambda: (vocabularies.lines.cache_clear(), vocabularies.check(f"file:{texts}")))
    toml = place / "mine.toml"
    toml.write_text('method = ["sit", "er"]\nseed = "0..4"\n[sweep]\nworkers = 2\n')
    count += try_out(toml, lambda: grid.read(toml))
    notebook = place / "n.ipynb"
    cell = {
        "cell_type": "code", "source": ["size: int = 3  # how many"],
        "metadata": {"tags": ["parameters"]}
    }
    notebook.write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return count + try_out(notebook, lambda: parameters.check_parameters(notebook, {"size": "4"}),
                           quiet=True)


KINDS = {
    "finished runs": result_files, "drafts": draft_files, "sweeps": sweep_files,
    "gathered tables": gathered, "data, grids, notebooks": data_files
}


# ---- all of it


TRIALS = {
    "damaged": damaged, "full disk": full_disk, "two sweeps": two_sweeps, "dask": dask,
    "proof": proof, "methods": methods, "kills": kills
}
CHANCE = random.Random(0)


def main() -> int:
    if sys.argv[1:2] == ["--sweep"]:
        return drive(*sys.argv[2:])
    if sys.argv[1:2] == ["--disk"]:
        return fill(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 5),
                        help="each trial once, then kills until so many have passed")
    parser.add_argument("--only", nargs="*", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="leave the folder in place")
    given = parser.parse_args()
    CHANCE.seed(given.seed)
    place, begun, told = Path(tempfile.mkdtemp(prefix="clstudy-soak-")), time.monotonic(), []
    tempfile.tempdir = os.environ["TMPDIR"] = str(place)
    model = toy_model(place / "model")
    print(f"soak, seed {given.seed}, in {place}", flush=True)
    todo = [name for name in TRIALS if name in given.only]
    while todo or ("kills" in given.only and time.monotonic() - begun < 60 * given.minutes):
        name = todo.pop(0) if todo else "kills"
        here, started = place / f"{len(told)}-{name.replace(' ', '-')}", time.monotonic()
        try:
            said, good = TRIALS[name](model, here), True
        except Exception as error:
            said, good = f"{type(error).__name__}: {error}", False
            if not isinstance(error, Lost):
                traceback.print_exc()
        told.append((name, good, time.monotonic() - started, said))
        print(f"  {name:10}  {'held' if good else 'LOST'}  {said}", flush=True)
        if good and not given.keep:
            shutil.rmtree(here, ignore_errors=True)
    lost = sum(not good for _, good, _, _ in told)
    print(f"\n{'trial':10}  {'':4}  seconds")
    for name, good, seconds, _ in told:
        print(f"{name:10}  {'held' if good else 'LOST'}  {seconds:7.0f}")
    print(f"{len(told)} trials in {(time.monotonic() - begun) / 60:.1f} min: " + (
        "nothing was lost" if not lost else f"{lost} LOST something; what they left is in {place}"))
    if not lost and not given.keep:
        shutil.rmtree(place, ignore_errors=True)
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
