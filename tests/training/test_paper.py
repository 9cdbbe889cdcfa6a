"""The profile `paper` of the notebooks: every run that it asks for is collected, and each kind of
run makes two steps.

Nothing is downloaded. The models have the paper's architecture and random weights, and are built
once; data are small files in the form of the published sets. A kind of run (model, tuner, tower,
method) is trained on one of the benchmarks, in turn: those of the SIT paper differ in nothing else.
Streams are made for every run."""
import ast
import copy
import math
import re
import symtable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pytest
import small_runs
import torch

from clstudy import load_clip
from clstudy.analysis import choice
from clstudy.analysis.scores import grouped
from clstudy.data.benchmarks import BENCHMARKS, domainnet
from clstudy.data.benchmarks.photographs import SIT_HELD_OUT, SIT_PROMPT
from clstudy.notebooks import parameters
from clstudy.runs import store, workers
from clstudy.runs.run import Run, Runs
from clstudy.training import loop, setup
from clstudy.utils.paths import NOTEBOOKS
from tests import small_sets

SIT = (
    "cifar100", "tiny_imagenet", "imagenet_r")  # the benchmarks of the SIT paper, arXiv 2405.15155
OF_SIT = ("03_candidates", "04_gradients", "05_which_encoder", "06_streams")  # its notebooks
PATHS = {
    path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    if "paper" in parameters.profiles(path)
}
def variant_of_03(values: dict, changed: dict) -> int:
    """How many runs a variant adds: of a second softmax, those of the two losses alone."""
    pairs, one = 2 * len(values["tuners"]), sum(
        row["method"] in ("finetune", "sit") for row in values["beside"])
    return pairs + (one if "double_softmax" in changed else len(values["beside"]))


COUNTS = {  # how many runs a notebook makes for one seed, from its parameters
    "03_candidates": lambda p: (2 * len(p["tuners"]) + len(p["beside"])
                                + sum(variant_of_03(p, changed) for changed in p["variants"].values())),
    "04_gradients": lambda p: 2 + len(p["interventions"]),
    "05_which_encoder": lambda p: 3 * len(p["rates"]) + len(p["beside"]),
    "06_streams": lambda p: 2 * len(p["streams"]) * len(p["rates"]),
    "07_vocabulary": lambda p: len(p["in_sessions"]) + sum(
        math.prod(len(value) for value in one.values() if isinstance(value, list))
        for one in p["lines"].values()),
    "08_weights": lambda p: 1,
    "09_small_memory": lambda p: (2 + len(p["without"]) + len(p["rehearsing"]) + len(p["beside"])
                                  + sum(map(len, p["more_sizes"].values()))),
    "10_domains": lambda p: 2 + len(p["memories"]) + len(p["beside"]),
}


# ---- collecting


def names(table: symtable.SymbolTable, top: bool = True) -> tuple[set[str], set[str]]:
    """What a statement defines, and what it takes from elsewhere, inside functions and
    comprehensions too."""
    symbols = table.get_symbols()
    defined = {
        s.get_name() for s in symbols
        if top and (s.is_assigned() or s.is_imported() or s.is_namespace())
    }
    used = {s.get_name() for s in symbols if s.is_referenced() and (top or s.is_global())}
    return defined, used.union(*(names(child, False)[1] for child in table.get_children()))


def needed(path) -> list[ast.stmt]:
    """The statements of a notebook that make runs, also through a function of its own, and those
    that they depend on.

    What only looks at runs is left out; and the exercises, whose functions are not written yet."""
    source = [
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ]
    chosen, wanted, making = [], set(), {"train_all", "load_or_train"}
    statements = [(statement, names(symtable.symtable(ast.unparse(statement), path.stem, "exec")))
                  for text in source for statement in ast.parse(text).body]
    for statement, (defined, used) in statements:
        making |= defined if isinstance(statement, ast.FunctionDef) and making & used else set()
    for statement, (defined, used) in reversed(statements):
        if making & used or defined & wanted:
            chosen.insert(0, statement)
            wanted |= used | (defined if isinstance(statement, ast.AugAssign) else set())
    return chosen


def collect(path, values: dict) -> list:
    """The configurations of all runs that a notebook would make with these parameters, in order;
    none is made."""
    found, space = [], dict(values)

    def train_all(configs, *_, **__):
        found.extend(configs)
        return Runs(Run(config, Path(config.run_id)) for config in configs)

    body = [statement for statement in needed(path)
            if not isinstance(statement, ast.AnnAssign)]  # not the parameters
    with mock.patch.object(workers, "train_all", train_all), mock.patch("clstudy.train_all", train_all), \
            mock.patch.object(store, "load_or_train", lambda config, *_, **__: train_all([config])[0]):
        exec(compile(ast.Module(body, []), path.stem, "exec"), space)
    return list({config.run_id: config for config in found}.values())  # asked for again, a run is read


def profile(stem: str, benchmark: str | None = None) -> dict:
    """All parameters of a notebook under its profile `paper`; benchmark: another of the SIT paper,
    as its text says."""
    path = PATHS[stem]
    values = {p.name: p.value
              for p in parameters.parameters(path)} | parameters.profile_parameters(path, "paper")
    values["seeds"] = values["seeds"][:2]  # the others differ in nothing else
    if benchmark not in (None, values["benchmark"]):
        other = {"benchmark": benchmark, "augmentation": "autoaugment_imagenet"}
        other |= {"variants": {}} if "variants" in values else {}
        values |= parameters.check_parameters(path, other)
    return values


def benchmarks(stem: str) -> tuple[str, ...]:
    own = profile(stem)["benchmark"]
    return SIT if stem in OF_SIT else (own,)


EACH = [(stem, name) for stem in PATHS for name in benchmarks(stem)]
RUNS = {(stem, name): collect(PATHS[stem], profile(stem, name)) for stem, name in EACH}


def one_of_each() -> dict[str, list]:
    """For each model, tuner, tower and method, a run on each benchmark; with several stages, where
    there is one."""
    found: dict[str, list] = {}
    for config in sorted(sum(RUNS.values(), []), key=lambda c: (c.stream == "joint", c.seed)):
        group = found.setdefault(f"{config.model} {config.tuner} {config.tower} {config.method}",
                                 [])
        if config.benchmark not in {other.benchmark for other in group}:
            group.append(config)
    return found


KINDS = one_of_each()


def test_the_notebooks_of_the_sit_paper_have_the_profile():
    assert set(COUNTS) <= set(PATHS)


@pytest.mark.parametrize(("stem", "benchmark"), EACH)
def test_every_run_that_the_parameters_say_is_collected(stem, benchmark):
    found, values = RUNS[stem, benchmark], profile(stem, benchmark)
    if stem in COUNTS:
        assert len(found) == len(values["seeds"]) * COUNTS[stem](values)
        assert len({config.run_id for config in found}) == len(found)  # no run twice
    assert {config.seed for config in found} == set(values["seeds"])
    assert {config.benchmark for config in found} == {
        benchmark, *(changed.get("benchmark", benchmark)
                     for changed in values.get("variants", {}).values())
    }


def test_statements_that_only_look_at_runs_are_left_out():
    said = "\n".join(ast.unparse(statement) for statement in needed(PATHS["03_candidates"]))
    assert said.count("train_all(") == 8 and "shared = " in said and "variants.items()" in said
    assert not re.search(r"\b(curves|tables)\.|check\(", said)


def test_06_makes_no_run_that_03_does_not_make(monkeypatch):
    def largest(runs, metric, among, by=("method", "tuner")):
        """In place of `chosen`, which needs finished runs: those at the largest value."""
        groups = grouped(runs, [*by, among])
        return Runs(run for key, group in groups.items() for run in group
                    if key[-1] == max(other[-1] for other in groups if other[:-1] == key[:-1]))

    monkeypatch.setattr(choice, "chosen", largest)
    found = [{config.run_id for config in collect(PATHS[stem], {
        p.name: p.value for p in parameters.parameters(PATHS[stem])
    } | parameters.profile_parameters(PATHS[stem], "full"))}
        for stem in ("06_streams", "03_candidates")]
    assert found[0] and found[0] < found[1]


# ---- the settings of the SIT paper (its released code)

OPTIMISERS = {
    "lora": ("adamw", 5e-4, 1e-5), "adapter": ("adamw", 5e-4, 1e-5), "prompts": ("sgd", 1e-4, 1e-4),
    "mvp": ("adam", 1e-4, 0.0), "l2p": ("adam", 5e-3, 0.0), "dualprompt": ("adam", 5e-3, 0.0)
}
TUNERS = {
    "lora": {"init": "official"}, "prompts": {"init": "a bad photo of a"}, "mvp": {"experts": 5},
    "l2p": {"batchwise": False}
}
ARGUMENTS = {"er": {"size": 2000}, "clib": {"size": 2000},
             "mvp": {"alpha": 0.0, "margin": None, "candidates": "batch"}}


def softmaxes(config) -> int:
    return 1 + config.method_args.get("double_softmax", False)


@pytest.mark.parametrize(("stem", "benchmark"), [pair for pair in EACH if pair[0] in OF_SIT])
def test_runs_have_the_settings_of_the_paper(stem, benchmark):
    assert SIT_PROMPT == "a bad photo of a {}."
    for config in RUNS[stem, benchmark]:
        assert (config.model, config.pretrained, config.benchmark_args) == ("ViT-B-16-quickgelu",
                                                                            "openai", {})
        assert config.stream == "si_blurry" and config.stream_args["sampler"] == "official"
        assert config.stream_args["tasks"] == 5 and config.stream_args.get("blurry_share", 10) == 10
        assert config.stream_args.get("disjoint_share", 50) == 50 or stem == "06_streams"
        assert (config.batch_size, config.steps_per_batch, config.epochs,
                config.eval_every) == (64, 3, 1, 1000)
        assert config.precision == "fp32" and config.clip_norm is None and 1 <= config.seed <= 5
        assert config.augmentation == f"autoaugment_{'cifar' if config.benchmark == 'cifar100' else 'imagenet'}"
        if config.tuner != "none":
            assert (config.optimizer, config.lr, config.weight_decay) == OPTIMISERS[config.tuner]
        assert config.tuner_args == TUNERS.get(config.tuner, {})
        if softmaxes(config) == 1:
            assert config.method_args == ARGUMENTS.get(config.method, {})
        assert config.held_out_every >= 5  # held-out sets before and after the stream


def test_03_measures_the_second_softmax_of_the_released_code():
    found = [c for c in RUNS["03_candidates", "cifar100"] if c.benchmark == "cifar100"]
    once = {(c.tuner, c.method, c.seed) for c in found if c.method in ("finetune", "sit")}
    twice = {(c.tuner, c.method, c.seed) for c in found if softmaxes(c) == 2}
    assert once == twice and {tuner for tuner, *_ in twice} >= {"lora", "adapter"}


@pytest.mark.parametrize("stem", OF_SIT[1:])
def test_the_second_softmax_of_the_released_code_is_there_for_the_asking(stem):
    for asked in (False, True):
        values = profile(stem)
        values["more"] = values["more"] | ({"double_softmax": True} if asked else {})
        found = collect(PATHS[stem], values)
        could = [
            c for c in found if c.tuner in ("lora", "adapter") and c.method in ("finetune", "sit")
        ]
        assert could and all(softmaxes(config) == 1 + asked for config in could)
        assert all(softmaxes(config) == 1 for config in found if config not in could)


# ---- the settings of VR-LwF (its released code)


@pytest.mark.parametrize("stem", [stem for stem in PATHS if profile(stem)["benchmark"] == "coco_crops"])
def test_runs_have_the_settings_of_vr_lwf(stem):
    for config in RUNS[stem, "coco_crops"]:
        assert (config.model, config.pretrained) == ("ViT-B-32-quickgelu", "openai")
        assert (config.batch_size, config.epochs, config.steps_per_batch,
                config.clip_norm) == (100, 15, 1, 1.0)
        assert config.optimizer == "adam" and config.weight_decay == 0 and config.seed == 10
        several = config.stream == "disjoint"
        assert config.milestones == (
            [] if several else [10])  # the scheduler is stepped in one session only
        assert config.stream_args == ({"tasks": 8, "order": "given"} if several else {})
        if config.tuner == "full":
            assert config.lr == 1e-6 and config.tuner_args == {"temperature": True}
        if several:
            assert config.method_args["candidates"] == "phase"
        assert config.method_args.get("weight", 0.5) in (
            0.5, 0.0, 30)  # 0: averages alone; 30: EWC, which is ours


# ---- two steps of each


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small copies of the published sets on disk; what is in them."""
    folder = tmp_path_factory.mktemp("sets")
    return folder, small_sets.make(folder), tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="module")
def model():
    """A model with random weights by its name, and a copy of these. To be quick, it has six blocks
    in each tower, and products are of bf16 where the host has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")

    @lru_cache(maxsize=1)
    def build(name):
        torch.manual_seed(0)
        clip = load_clip(name, "random")
        for part in (clip.model.visual, clip.model):  # half as many blocks, the last one among them
            blocks = part.transformer.resblocks
            part.transformer.resblocks = torch.nn.ModuleList([*blocks[:5], blocks[-1]])
        return clip, [p.detach().clone() for p in clip.parameters()]

    yield build
    torch.set_float32_matmul_precision(before)


def few_files(monkeypatch, data) -> None:
    """Let the package take the small copies for the real sets."""
    small_sets.use(monkeypatch, data[0], data[2], data[1])
    place = data[0] / "domainnet"
    count = {
        name: sum(
            len((place / f"{name}_{split}.txt").read_text().split("\n")) - 1
            for split in ("train", "test")) for name in domainnet.DOMAINS
    }
    monkeypatch.setitem(domainnet.TOTALS, "cleaned", count)


def cut(benchmark):
    """The first twenty classes that have training images, two for each of ten stages; and no
    held-out set."""
    loop, keep = benchmark.train, np.unique(benchmark.train.labels)[:20]
    rows = np.flatnonzero(np.isin(loop.labels, keep))
    named = replace(loop, class_names=tuple(loop.class_names[label] for label in keep),
                    images=loop.images[torch.from_numpy(rows)], labels=np.searchsorted(
                        keep, loop.labels[rows]),
                    domains=None if loop.domains is None else loop.domains[rows])
    return replace(benchmark, train=named, test=named, held_out={})


def handful(benchmark, stages: list):
    """The first two stages that bring two classes, with an image of each, renumbered; and one image
    to test. Of a single stage, two such pairs."""
    labels, kept = benchmark.train.labels, []
    for stage in stages:
        first = np.unique(labels[stage.index], return_index=True)[1]
        if len(first) >= 2 and len(kept) < 2:
            kept.append(
                replace(stage, number=len(kept) + 1,
                        index=stage.index[first[:4 if len(stages) == 1 else 2]]))
    at_home = np.flatnonzero(np.isin(labels, sum((stage.classes for stage in kept), ())))[:1]
    test = replace(
        benchmark.test, images=benchmark.test.images[torch.from_numpy(at_home)],
        labels=labels[at_home],
        domains=None if benchmark.test.domains is None else benchmark.test.domains[at_home])
    return replace(benchmark, test=test), kept


@pytest.fixture
def small(data, model, monkeypatch):
    """Small data and the shared model under the loop; tells the tuned weights at the start."""
    few_files(monkeypatch, data)
    prepare, start = setup.prepare, {}

    def fewer(kind):
        def load(self):
            whole = kind.load(self)
            assert len(whole.test) and whole.held_out
            if whole.name in SIT:
                assert tuple(whole.held_out) == SIT_HELD_OUT and whole.test.template == SIT_PROMPT
            return cut(whole)

        return dataclass(type(kind.__name__, (kind,), {"load": load}))

    def load(name, pretrained):
        assert pretrained == "openai"
        clip = model(name)[0]
        return copy.deepcopy(
            clip, {id(p): p for p in clip.parameters()})  # modules anew, the same weights

    def prepared(config):
        clip, world, stages = prepare(config)
        start.update(
            {name: p.detach().clone() for name, p in clip.named_parameters() if p.requires_grad})
        return clip, *handful(world, stages)

    for name in {name for _, name in EACH}:
        monkeypatch.setitem(BENCHMARKS, name, fewer(BENCHMARKS[name]))
    monkeypatch.setattr(setup, "load_clip", load)
    monkeypatch.setattr(loop, "prepare", prepared)
    yield start


@pytest.mark.parametrize("name", KINDS)
def test_two_steps_move_what_is_tuned_and_nothing_else(name, small, model):
    group, kept = KINDS[name], []
    config = group[list(KINDS).index(name) % len(group)]
    assert config.pretrained == "openai"
    config = config.replace(steps_per_batch=1, batch_size=2, epochs=1, milestones=(), device="cpu")
    evals, steps = small_runs.train(config, keep=kept.append)
    assert {row["step"] for row in steps} == ({0, 1} if config.tuner != "none" else set())
    assert np.isfinite([row["value"] for row in steps]).all()
    assert {0, 1} <= {row["stage"] for row in evals}
    found, (clip, weights) = dict(kept[0].named_parameters()), model(config.model)
    originals = dict(zip((id(p) for p in clip.parameters()), weights, strict=True))
    frozen = {key: p for key, p in found.items() if key not in small}
    still = [key for key, before in small.items() if torch.equal(before, found[key])]
    touched = [key for key, p in frozen.items() if not torch.equal(p, originals[id(p)])]
    with torch.no_grad():  # as it was, for the next
        for p, q in zip(clip.parameters(), weights, strict=True):
            p.requires_grad_(True).copy_(q)
    assert bool(small) == config.make("method").trains and len(found) >= len(originals)
    assert (still, touched) == ([], [])


@pytest.mark.parametrize("benchmark", sorted({name for _, name in EACH}))
def test_the_stream_of_every_run_can_be_made(benchmark, data, monkeypatch):
    few_files(monkeypatch, data)
    streams = {(c.stream, str(c.stream_args), c.seed): c for (_, name), found in RUNS.items()
               for c in found if name == benchmark}
    labels, domains = (getattr(BENCHMARKS[benchmark]().load().train, name)
                       for name in ("labels", "domains"))
    for config in streams.values():
        count = config.stream_args.get("tasks", 1)
        if config.stream == "domains":
            count = len(np.unique(domains))
        stages = config.make("stream").stages(labels, config.seed, domains)
        assert len(stages) == count and sum(len(stage.index) for stage in stages) > 2
