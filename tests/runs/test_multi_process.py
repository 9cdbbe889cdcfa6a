"""Two processes on the CPU against one: the same losses, gradients, weights and tables, for every
method.

The processes are real ones, joined by gloo. They are started once for all methods, and once under
torchrun."""
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from clstudy import load_clip
from clstudy.methods import METHODS
from clstudy.runs.store import load_or_train
from clstudy.training.config import RunConfig
from clstudy.training.setup import pick_device
from clstudy.utils import distributed, paths

TESTS = Path(__file__).parents[1]
START = f"""
import sys
import jaxtyping
jaxtyping.install_import_hook = lambda *_: None
sys.path.insert(0, {str(TESTS)!r})
import conftest
from clstudy.data.benchmarks import BENCHMARKS
BENCHMARKS["toy"] = conftest.Toy
"""
SHORT = {
    "benchmark_args": {"images": 4}, "batch_size": 7, "steps_per_batch": 1, "optimizer": "sgd",
    "lr": 0.05
}
MORE = {
    "sit and a memory": {"method": "sit", "method_args": {"size": 9, "replay": 4}},
    "er, full": {"method": "er", "tuner": "full", "method_args": {"size": 9, "replay": 4}},
    "er, dropout": {"method": "er", "tuner": "adapter", "method_args": {"size": 9, "replay": 4}},
    "clip_loss, herding": {
        "method": "clip_loss", "method_args": {"size": 9, "replay": 4, "selection": "herding"}
    },
    "gcl, learned": {
        "method": "gcl", "method_args": {"size": 9, "replay": 4, "temperature": "individual"}
    },
    "text_cache, learned": {
        "method": "text_cache", "tuner": "none", "method_args": {"learn": True, "alpha": 5.0}
    },
    "vr_lwf, zscl": {"method": "vr_lwf", "method_args": {"form": "zscl", "size": 20}},
    "votes": {"method": "l2p", "tuner": "l2p", "tower": "image"},
    "clipped": {"method": "finetune", "clip_norm": 0.1},
    "one image": {"method": "finetune", "batch_size": 11},  # batches of 11 and 1
    "text tower": {"method": "finetune", "tower": "text"},
    "ewc, streaming": {"method": "ewc", "method_args": {"streaming": 0.9}},
    "a context each": {
        "method": "finetune", "tuner": "coop", "tower": "text",
        "tuner_args": {"length": 4, "shared": False}
    }
}
PROBED = "probed"
CASES = [*METHODS, *MORE, PROBED]
STILL = [name for name, kind in METHODS.items() if not kind().trains]


def settings(name: str, model: str) -> RunConfig:
    tuner = METHODS[name].needs_tuner if name in METHODS else ""
    tower = {"tower": "image"} if tuner in ("l2p", "dualprompt", "mvp") else {}
    own = {"method": "sit"} if name == PROBED else MORE.get(
        name, {"method": name, "tuner": tuner or "lora", **tower})
    return RunConfig(benchmark="toy", stream="disjoint", stream_args={"tasks": 2}, model=model,
                     **{**SHORT, **own})


def run(config: RunConfig, probes: tuple[str, ...]) -> dict:
    """A run: its tables, the gradients of every step, the weights at the end, and how many images
    were encoded."""
    from small_runs import train

    from clstudy.models.clip import Clip

    found, notes, average, encode = {"gradients": [],
                                     "rows": []}, {}, distributed.average, Clip._encode_image

    def averaged(parameters) -> None:
        average(parameters)
        found["gradients"].append(
            torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))

    def encoded(self, images):
        found["rows"].append((self.training, len(images)))
        return encode(self, images)

    def keep(clip) -> None:
        found["weights"] = torch.cat([p.detach().flatten() for p in clip.parameters()])

    with mock.patch.object(distributed, "average", averaged), mock.patch.object(
            Clip, "_encode_image", encoded):
        found["evals"], found["steps"] = map(list,
                                             train(config, keep=keep, probes=probes, notes=notes))
    return {**found, "probes": {name: notes[name].to_dict("list") for name in probes}}


def all_runs(model: str) -> dict[str, dict]:
    return {
        name: run(settings(name, model), ("gradients", ) if name == PROBED else ())
        for name in CASES
    }


def many_rows(model: str) -> torch.Tensor:
    """The gradient of a loss over 9 images and 1100 texts, with activations computed again in the
    backward pass."""
    clip, draws = load_clip(model).train(), torch.Generator().manual_seed(0)
    clip.model.set_grad_checkpointing()
    images, texts = torch.rand(9, 3, 64, 64, generator=draws), clip.random_text(1100, 3, draws)
    with distributed.sharing():
        similarity = clip.encode_image(images) @ clip.encode_text(texts).T
    weights = list(clip.parameters())
    (similarity.logsumexp(1).sum() + clip.scale() + sum(p.square().sum()
                                                        for p in weights)).backward()
    distributed.average(weights)
    return torch.cat([p.grad.flatten() for p in weights])


def agreement() -> dict:
    """What the processes find when one wants to stop, one alone has another number, and the first
    speaks."""
    rank = torch.distributed.get_rank()
    saver = SimpleNamespace(stopping=rank == 1, due=lambda: rank == 1)
    found = {
        "due": distributed.due(saver), "stopping": saver.stopping,
        "told": distributed.broadcast(f"by {rank}"), "first": distributed.first()
    }
    assert distributed.agreed("here", 1) == 1 and distributed.agreed("here", [torch.ones(2)])
    for name, what in (("number", rank), ("weights", [torch.ones(2) + rank])):
        with pytest.raises(RuntimeError, match="^here the processes differ"):
            distributed.agreed("here", what)
        found[name] = True
    return found


def work(model: str, out: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    with distributed.joined():
        found = {**all_runs(model), "many rows": many_rows(model), "agreement": agreement()}
        torch.save(found, f"{out}/{torch.distributed.get_rank()}.pt")


def processes(code: str) -> list[subprocess.Popen]:
    """Two, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "PYTHONPATH": os.pathsep.join(
            [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""
    }
    return [
        subprocess.Popen([sys.executable, "-c", START + code],
                         env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def runs(toy_model, tmp_path_factory):
    """Of each case: the run of one process, and those of the two."""
    from conftest import Toy

    from clstudy.data.benchmarks import BENCHMARKS

    out = tmp_path_factory.mktemp("distributed")
    started = processes(
        f"sys.path.insert(0, {str(TESTS / 'runs')!r})\n"
        f"import test_multi_process\ntest_multi_process.work({str(toy_model)!r}, {str(out)!r})")
    with mock.patch.dict(BENCHMARKS, {"toy": Toy}):
        alone = {
            **all_runs(str(toy_model)), "many rows": many_rows(str(toy_model)), "agreement": None
        }
    assert [process.wait(300) for process in started] == [0, 0]
    two = [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return {name: (alone[name], two[0][name], two[1][name]) for name in alone}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(runs, name):
    alone, *two = runs[name]
    for here in two:
        assert [{**row, "value": 0} for row in here["steps"]] == [{**row, "value": 0}
                                                                  for row in alone["steps"]]
        assert np.allclose(values(here["steps"]), values(alone["steps"]), atol=1e-5)
        assert len(here["gradients"]) == len(alone["gradients"]) == (0 if name in STILL else 4)
        for ours, theirs in zip(here["gradients"], alone["gradients"], strict=True):
            assert theirs.abs().max() > 1e-4 and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert torch.allclose(here["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
        assert len(here["evals"]) == len(alone["evals"]) and np.allclose(
            values(here["evals"]), values(alone["evals"]))
    assert torch.equal(two[0]["weights"], two[1]["weights"])  # to the bit


def values(rows: list[dict]) -> list[float]:
    return [row["value"] for row in rows]


@pytest.mark.parametrize("name", ["finetune", "er", "vr_lwf", "text tower"])
def test_each_process_encodes_its_share_of_a_step(runs, name):
    """Teachers too; and of an evaluation."""
    alone, first, second = (here["rows"] for here in runs[name])
    assert [(mode, a + b) for (mode, a), (_, b) in zip(first, second, strict=True)] == alone
    assert all(0 <= b - a <= 1 for (_, a), (_, b) in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["er, dropout", "l2p", "dualprompt", "mvp", PROBED])
def test_what_cannot_be_cut_is_encoded_whole_in_training_and_shared_in_evaluation(runs, name):
    alone, first, _ = ([[rows for mode, rows in here["rows"] if mode == wanted]
                        for wanted in (True, False)] for here in runs[name])
    assert first[0] == alone[0] and sum(first[1]) < sum(alone[1])


def test_one_image_is_encoded_by_both(runs):
    alone, first, _ = ([rows for mode, rows in here["rows"] if mode] for here in runs["one image"])
    assert alone == [11, 1, 11, 1] and first == [5, 1, 5, 1]


def test_a_probe_finds_what_it_finds_in_one_process(runs):
    alone, first, second = (here["probes"]["gradients"] for here in runs[PROBED])
    assert len(alone["norm"]) > 4 and max(alone["norm"]) > 1e-3
    for here in (first, second):
        assert np.allclose(here["norm"], alone["norm"], rtol=1e-4, atol=1e-6)


def test_many_texts_and_checkpoints_have_the_same_gradient(runs):
    alone, first, second = runs["many rows"]
    assert torch.allclose(first, alone, rtol=1e-4, atol=1e-5) and torch.equal(first, second)


def test_processes_stop_together_and_notice_when_they_differ(runs):
    _, first, second = runs["agreement"]
    both = {"due": True, "stopping": True, "told": "by 0", "number": True, "weights": True}
    assert first == {**both, "first": True} and second == {**both, "first": False}


KILLED = """
import os, signal
from pathlib import Path
from clstudy.utils import distributed, paths
from clstudy.cli import app

average, calls = distributed.average, []

def killing(parameters):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)  # in the first step of the second stage
    average(parameters)

distributed.average, paths.RUNS = killing, Path(os.environ["RUNS"])
app(["train", os.environ["CONFIG"], "--probe", "drift", "--keep-model"])
"""


def test_torchrun_makes_one_run_folder_and_takes_up_a_run_of_which_a_process_was_killed(
        toy, toy_model, tmp_path):
    config = settings("sit and a memory", str(toy_model))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "main.py").write_text(START + KILLED)
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--max-restarts", "1",
            str(tmp_path / "main.py")
        ], capture_output=True, text=True, env={
            **os.environ, "PYTHONPATH": paths, "CONFIG": str(tmp_path / "config.json"), "RUNS": str(
                tmp_path / "runs"), "CLSTUDY_SAVE_EVERY": "0", "CUDA_VISIBLE_DEVICES": ""
        }, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(
        tmp_path / "runs" / config.run_id)) == 1  # the first process says where
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [config.run_id]
    run = load_or_train(config, tmp_path / "runs", keep_model=True,
                        probes=["drift"])  # nothing is made again
    assert run.result["resumed"] == 1
    alone = load_or_train(config, tmp_path / "alone", probes=["drift"])
    assert np.allclose(run.steps.value, alone.steps.value, atol=1e-5) and len(run.steps) == 4
    assert np.allclose(run.evals.value, alone.evals.value) and len(run.probe("drift")) == len(
        alone.probe("drift"))


# ---- one process


def test_alone_nothing_is_shared(clip, batch, monkeypatch):
    """Also where somebody else's processes are joined: only `joined` joins ours."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    whole = clip.encode_image(batch.image), clip.encode_text(batch.prompts)
    with distributed.joined(), distributed.sharing():
        assert distributed.world_size() == 1 and distributed.first() and distributed.broadcast(
            3) == 3
        shared = clip.encode_image(batch.image), clip.encode_text(batch.prompts)
    assert all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True))


def test_shares_are_all_rows_in_order(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = [list(range(7))[distributed.shard(7, rank)] for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("module", "whole"), [
    (nn.BatchNorm2d(3), True), (nn.Dropout(0.1), True), (nn.Dropout(0.0), False), (nn.Linear(2, 2), False),
    (nn.MultiheadAttention(4, 2, dropout=0.1), True), (nn.MultiheadAttention(4, 2), False)])
def test_statistics_and_chance_cannot_be_cut_in_training(module, whole):
    assert distributed.uncut(module) == whole
    assert not distributed.uncut(module.eval())


def test_every_process_has_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("cuda") == pick_device("auto") == torch.device(
        "cuda")  # alone: as torch chooses
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert pick_device("cuda") == pick_device("auto") == torch.device(
        "cuda", 1) and pick_device("cpu").type == "cpu"
    for device in ("cuda:0", "mps"):
        with pytest.raises(ValueError, match=f"device='{device}'.*a GPU for each"):
            pick_device(device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 3 of this host has no GPU, there are 2"):
        pick_device("auto")


def test_the_command_makes_a_run_alone_too(tiny, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from clstudy.cli import app

    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    file = tmp_path / "config.json"
    file.write_text(tiny.model_dump_json())
    done = CliRunner().invoke(app, ["train", str(file)])
    assert done.exit_code == 0 and str(tmp_path / "runs" / tiny.run_id) in done.output
    for text in ('{"method": "sitt"}', "[1]", "{", '{"nothing": 1}'):
        file.write_text(text)
        assert CliRunner().invoke(app, ["train", str(file)]).exit_code == 2
