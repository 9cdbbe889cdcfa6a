"""Whatever a reader is given, it makes something valid of it or refuses it in words of ours: never
another error.

The examples are the same at every call (derandomize), so a failure here is a failure everywhere."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import evaluations, make

from clstudy import RunConfig
from clstudy.data.benchmarks import coco, datasets, domainnet, emoji, folder, imagenet
from clstudy.data.image_store import DamagedError
from clstudy.data.types import BenchmarkData  # noqa: F401 (imported before the clock runs)
from clstudy.losses import vocabularies
from clstudy.notebooks import parameters
from clstudy.runs import grid, status
from clstudy.runs.run import Damaged, Run, find, finished, load_runs

# jaxtyping's checks and a cold import take longer than a deadline for one example
settings.register_profile("fuzz", derandomize=True, deadline=None, max_examples=60, database=None,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("fuzz")

NAMES = st.sampled_from(
    ["emoji", "toy", "disjoint", "lora", "none", "sit", "er", "folder:/nowhere", "a\x00b", ""])
PLAIN = st.none() | st.booleans() | st.integers(
    -9, 9) | st.integers() | st.floats() | st.text(max_size=8) | NAMES
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
FIELDS = st.sampled_from(list(RunConfig.model_fields))
OPTIONS = st.sampled_from(
    ["tasks", "size", "replay", "weight", "families", "rank", "vocabulary", "path", "held_out"])
NOISE = st.binary(max_size=60)


def refused(call, *names: str, kinds=(ValueError, OSError)):
    """What a call returns; None where it is refused in words that name what is wrong, one of
    `names`."""
    try:
        return call()
    except kinds as error:
        said = str(error)
        assert said and (not names or any(name in said
                                          for name in names)), f"{type(error).__name__}: {said}"
        return None


@st.composite
def hurt(draw, whole: bytes) -> bytes:
    """A file that was cut, of which bytes were changed, or that became something else."""
    how = draw(st.sampled_from(["cut", "bytes", "insert", "noise"]))
    if how == "noise":
        return draw(NOISE)
    at = draw(st.integers(0, len(whole)))
    if how == "cut":
        return whole[:at]
    if how == "insert":
        return whole[:at] + draw(NOISE) + whole[at:]
    new = draw(st.binary(min_size=1, max_size=4))
    return whole[:at] + new + whole[at + len(new):]


def written(value) -> bytes:
    return json.dumps(value).encode()


# ---- settings, grids, parameters


@given(st.dictionaries(FIELDS | st.text(max_size=6), JSON, max_size=4))
@example({"benchmark": "folder", "benchmark_args": {"path": "a\x00b"}})
@example({"model": "a\x00b"})
@example({"benchmark": "folder:~nobody/x"})
@example({"benchmark": "folder:x", "benchmark_args": 3})
def test_settings(said):
    config = refused(lambda: RunConfig.model_validate_json(written(said)))
    if config is not None:
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert len(refused(lambda: config.run_id) or "x" * 12) == 12


@given(st.sampled_from(["method", "tuner", "stream", "benchmark"]), NAMES, st.dictionaries(OPTIONS, JSON, max_size=2))
def test_options_of_methods_tuners_streams_and_benchmarks(axis, name, options):
    config = refused(lambda: RunConfig(**{axis: name, f"{axis}_args": options}))
    assert config is None or getattr(config, f"{axis}_args").keys() >= options.keys()


@given(NOISE | st.text().map(str.encode))
def test_settings_of_any_bytes(content):
    refused(lambda: RunConfig.model_validate_json(content))


WORDS = st.one_of(st.text(max_size=30), st.builds("{}={}".format, FIELDS, st.text(max_size=20)),
                  st.builds("{}={}..{}".format, FIELDS, st.integers(-5, 5), st.integers(-5, 50)),
                  st.builds("{}.{}={},{}".format, FIELDS, OPTIONS, JSON, JSON))


@given(st.lists(WORDS, max_size=3))
@example(["seed=0..99999999999999999999"])
@example(["seed=0..999999", "lr=0..999999"])
@example(["seed=" + "[" * 5000])
@example(["seed=" + "-" * 50000 + "1"])
@example(["seed=" + "9" * 5000])
@example(["seed=0.." + "9" * 5000])
@example([".=1"])
@example(["method_args=1", "method_args.size=2"])
@example(["method_args.size=2", "method_args=1"])
@example(["tuner=[1]"])
@example(["method={1:2}"])
def test_words_of_a_grid(said):
    tasks = refused(lambda: grid.run_tasks([grid.words(said)]))
    assert tasks is None or all(isinstance(task.config, RunConfig) for task in tasks)


TOML = b'method = ["sit", "er"]\nseed = "0..4"\nmilestones = [[3, 5]]\n[sweep]\nworkers = 2\n[[grid]]\nlr = 1e-3\n'


@given(hurt(TOML))
@example(b"grid = 3")
@example(b"grid = [3]")
@example(b"sweep = 3")
@example(b"seed = " + b"[" * 5000)
def test_a_file_with_a_grid(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "grid.toml"
    path.write_bytes(content)
    refused(lambda: grid.read(path), "grid.toml")


TYPES = st.sampled_from([
    "int", "float", "bool", "str", "list[int]", "str | None", "dict[str, int]", "list",
    'Literal["a", "b"]', "int | None", "set", "nothing", "list[nothing]", "x.y", "1 +"
])


@given(TYPES, JSON | st.text(max_size=20))
@example("int", "9" * 5000)
@example("list[int]", "[" * 5000)
@example("int", "-" * 50000 + "1")
@example("float", "1e999")
@example("str", "\x00")
@example("int", "\x00")
@example("Literal['a']", [])
def test_values_of_parameters(kind, value):
    parameter = parameters.Parameter("size", kind, "3", "how many")
    refused(lambda: parameter.convert(value), "size")


CELL = {"cell_type": "code", "source": ["size: int = 3  # how many\n", "names: list[str] = ['a']"],
        "metadata": {"tags": ["parameters"]}}
NOTEBOOK = {
    "cells": [CELL], "metadata": {"clstudy": {"profiles": {"quick": {"size": 1}}}}, "nbformat": 4
}


@given(hurt(written(NOTEBOOK)) | JSON.map(written)
       | st.text().map(lambda text: written({"cells": [{**CELL, "source": text}]})))
@example(b"[]")
@example(b"7")
@example(written({"cells": 7}))
@example(written({"cells": [7]}))
@example(written({"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}}]}))
@example(written({"cells": [{**CELL, "source": "size: int = (1 +"}]}))
@example(written({"cells": [{**CELL, "source": "size: int = '\x00'"}]}))
@example(written({**NOTEBOOK, "metadata": {"clstudy": 3}}))
@example(written({**NOTEBOOK, "metadata": {"clstudy": {"profiles": {"quick": 3}}}}))
def test_notebooks(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "some.ipynb"
    path.write_bytes(content)
    refused(lambda: parameters.check_parameters(path, {"size": "4"}), "some")
    refused(lambda: parameters.profile_parameters(path, "quick"), "some")


# ---- runs on disk


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    runs = tmp_path_factory.mktemp("runs")
    steps = [{"stage": 1, "images_seen": 8, "step": 1, "term": "task", "value": 0.123456789012345}]
    made = make(runs / RunConfig().run_id, evaluations(), steps=steps)
    (made.folder / "config.json").write_text(RunConfig().model_dump_json())
    (made.folder / "env.json").write_text(json.dumps({"threads": 1, "cuda": None}))
    return made


@pytest.mark.parametrize("name", ["evals.jsonl", "steps.jsonl", "config.json", "result.json", "env.json"])
@given(data=st.data())
@settings(max_examples=25)
def test_runs_of_before_that_have_no_checksums(run, name, data):
    """A table that is cut is never read; with checksums, see test_record.py."""
    file = run.folder / name
    whole = file.read_bytes()
    content = data.draw(hurt(whole) | JSON.map(written))
    try:
        file.write_bytes(content)
        table = refused(lambda: load_runs(run.folder.parent), run.folder.name, kinds=Damaged)
        refused(lambda: find(RunConfig(), run.folder.parent).steps, name, kinds=Damaged)
        refused(lambda: find(RunConfig(), run.folder.parent).result, name, kinds=Damaged)
        refused(lambda: finished(run.folder.parent), name, kinds=Damaged)
        assert table is None or name != "evals.jsonl" or content.endswith(b"\n")
    finally:
        file.write_bytes(whole)


STATE = {
    "name": "mine", "host": "a", "pid": 1, "started": 1.0, "finished": None, "code": None,
    "workers": 2, "beat": 1.0, "left": None,
    "tasks": {"x": {"label": "x", "state": "waiting", "seconds": None, "error": None, "log": None}}
}


@given(hurt(written(STATE)) | JSON.map(written))
@example(b"{}")
@example(b'{"name": "mine"}')
def test_the_state_of_a_sweep(tmp_path_factory, content):
    """A damaged one counts as none, for nothing but what is shown depends on it."""
    runs = tmp_path_factory.getbasetemp() / "status"
    path = runs / "sweeps/mine/state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert isinstance(status.status(None, runs), str)


# ---- data


@pytest.fixture
def data(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    return tmp_path


PARQUET: list[bytes] = []


def few_emoji(place: Path) -> bytes:
    if not PARQUET:
        emoji.table().groupby("family").head(1).to_parquet(place / "few.parquet")
        PARQUET.append((place / "few.parquet").read_bytes())
    return PARQUET[0]


@given(data=st.data())
@settings(max_examples=40)
def test_the_embedded_parquet(data, tmp_path_factory):
    place = tmp_path_factory.getbasetemp()
    content = data.draw(hurt(few_emoji(place)))
    path, kept = place / "emoji.parquet", emoji.PATH
    path.write_bytes(content)
    try:
        emoji.PATH = path
        emoji._everything.cache_clear()
        found = refused(lambda: emoji.decode(emoji.table().image), "emoji.parquet")
        assert found is None or found.dtype == np.uint8
    finally:
        emoji.PATH = kept
        emoji._everything.cache_clear()


def test_another_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "PATH", tmp_path / "emoji.parquet")
    pd.DataFrame({"family": ["a"]}).to_parquet(emoji.PATH)
    emoji._everything.cache_clear()
    try:
        with pytest.raises(DamagedError, match="emoji.parquet.*lacks"):
            emoji.table()
    finally:
        emoji._everything.cache_clear()


ABOUT = {
    "classes": {"a": "one"}, "order": ["b", "a"], "template": "a {}.",
    "captions": {"a/0.png": "first"}, "groups": {"g": ["a"]}
}
VALUES = st.fixed_dictionaries(
    {}, optional={key: JSON | st.just(value) for key, value in ABOUT.items()})


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("own")
    for kind in ("a", "b"):
        (place / kind).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(place / kind / f"{i}.png")
    return place


@given(content=hurt(written(ABOUT)) | JSON.map(written) | VALUES.map(written))
@example(content=written({"classes": {"a": 3}}))
@example(content=written({"classes": {"a": ["x"]}}))
@example(content=written({"captions": {"a/0.png": None}}))
@example(content=written({"captions": {"a\x00b": "x"}}))
@example(content=written({"groups": {"g": 3}}))
@example(content=written({"groups": {"g": [["a"]]}}))
@example(content=written({"order": [["a"], "b"]}))
@example(content=written({"order": ["a", 3]}))
@example(content=written({"template": "{x}"}))
@example(content=b"\xff")
@example(content=b"[" * 5000)
def test_the_optional_file_of_a_folder(own, content):
    (own / folder.ABOUT).write_bytes(content)
    found = refused(lambda: folder.Folder(path=str(own)).found(), folder.ABOUT, "template", "own")
    assert found is None or all(isinstance(text, str) for part in ("classes", "captions")
                                for text in getattr(found.about, part).values())


def classes_of_coco() -> list[dict]:
    return [{"id": int(key), "name": name}
            for key, name in datasets.about_classes("coco")["classes"].items()]


BOXES = {
    "images": [{"id": 1, "file_name": "x.jpg"}], "categories": classes_of_coco(),
    "annotations": [{"image_id": 1, "bbox": [0, 0, 9, 9.5], "category_id": 1, "segmentation": []}]
}


def boxes(**changed) -> bytes:
    return written({**BOXES, "annotations": [{**BOXES["annotations"][0], **changed}]})


@given(hurt(written(BOXES)) | JSON.map(written) | st.builds(
    lambda key, value: boxes(**{key: value}), st.sampled_from(["image_id", "bbox", "category_id"]), JSON))
@example(b"7")
@example(written({**BOXES, "images": 3}))
@example(written({**BOXES, "images": [[]]}))
@example(boxes(bbox=[0, 0, float("nan"), 9]))
@example(boxes(bbox=[float("inf"), 0, 9, 9]))
@example(b"[" * 100000)
def test_boxes_of_coco(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "instances.json"
    path.write_bytes(content)
    found = refused(lambda: coco._boxes(path), "instances.json", kinds=DamagedError)
    for box in found.itertuples(index=False) if found is not None else []:
        assert np.isfinite(box[2:]).all() and isinstance(box.file, str)


KARPATHY = {"images": [{"split": "test", "filename": "x.jpg", "sentences": [{"raw": "a dog"}]}]}


@given(hurt(written(KARPATHY)) | JSON.map(written)
       | JSON.map(lambda value: written({"images": [{**KARPATHY["images"][0], "sentences": value}]}))
       | JSON.map(lambda value: written({"images": [{**KARPATHY["images"][0], "filename": value}]})))
@example(b"[" * 100000)
def test_captions_of_karpathy(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "dataset.json"
    path.write_bytes(content)
    for one in refused(lambda: coco._karpathy(path), "dataset.json", kinds=DamagedError) or []:
        assert isinstance(one["filename"], str) and all(
            isinstance(said["raw"], str) for said in one["sentences"])


LINES = b"clipart/airplane/1.jpg 0\nclipart/alarm_clock/2 3.jpg 2\n"


@given(content=hurt(LINES) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@example(content=b"\xff\xfe")
@settings(suppress_health_check=list(HealthCheck))
def test_lists_of_domainnet(data, content):
    place = data / "domainnet"
    place.mkdir(exist_ok=True)
    (place / "clipart_train.txt").write_bytes(content)
    found = refused(lambda: domainnet._read("clipart", "train"), "clipart_train.txt",
                    kinds=DamagedError)
    assert found is None or len(found.files) == len(found.labels)


SOLUTION = b"ImageId,PredictionString\nILSVRC2012_val_1,n01440764 1 2 3 4\n"


@given(content=hurt(SOLUTION))
@settings(suppress_health_check=list(HealthCheck))
def test_the_labels_of_imagenet(data, content):
    (data / imagenet.SOLUTION).write_bytes(content)
    refused(lambda: imagenet._flat_labels(data, ["ILSVRC2012_val_1.JPEG"], {"n01440764": 0}),
            imagenet.SOLUTION, kinds=DamagedError)


@given(hurt(b"a dog\na cat\n"))
@example(b"\xff\xfe")
@example(b"\n \n")
def test_a_vocabulary_of_a_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "texts.txt"
    path.write_bytes(content)
    vocabularies.lines.cache_clear()
    refused(lambda: vocabularies.check(f"file:{path}"), "texts.txt", kinds=ValueError)


@given(st.text(max_size=20))
@example("\x00")
@example("~nobody/x")
def test_a_vocabulary_of_any_path(name):
    refused(lambda: vocabularies.check(f"file:{name}"), "vocabulary", kinds=ValueError)
