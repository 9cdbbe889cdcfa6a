"""ImageNet-1K on small files in its real form: pictures and names, flat validation pictures, what
is refused."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from small_sets import few_classes
from typer.testing import CliRunner

from clstudy import RunConfig
from clstudy.cli import app
from clstudy.data import image_shards
from clstudy.data.benchmarks import BENCHMARKS, datasets, imagenet, photographs
from clstudy.data.image_store import DamagedError
from clstudy.utils import paths
from tests.data.test_datasets import reference

SIZE = 32


@pytest.fixture(scope="module")
def master(request, tmp_path_factory):
    """The files, what should be read, and how validation pictures lie: in folders, but where a test
    asks otherwise."""
    folder, flat = tmp_path_factory.mktemp("imagenet"), getattr(request, "param", "")
    return folder, small_sets.draw_imagenet(folder, np.random.default_rng(0), flat), flat


def lying(*kinds: str):
    return pytest.mark.parametrize("master", kinds, indirect=True,
                                   ids=lambda kind: kind or "folders")


@pytest.fixture
def disk(master, tmp_path, monkeypatch):
    """What should be read; an own copy of each file. Files of the cache hold five pictures."""
    folder, expected, flat = master
    shutil.copytree(folder, tmp_path / "sets")
    small_sets.use(monkeypatch, tmp_path / "sets", tmp_path / "decoded", {})
    keys = sorted(os.listdir(folder / "imagenet" / "train"))
    few_classes(monkeypatch, "imagenet", (imagenet, photographs), keys)
    monkeypatch.setattr(imagenet, "COUNTS", {split: len(rows) for split, rows in expected.items()})
    monkeypatch.setattr(image_shards, "SHARD", 5 * 3 * SIZE ** 2)
    return expected


def agree(labelled, rows: list) -> None:
    assert len(labelled) == len(labelled.images) == len(rows)
    for image, label, (picture, name) in zip(labelled.images, labelled.labels, rows, strict=True):
        assert labelled.class_names[label] == name
        assert np.array_equal(image.numpy(), reference(picture, SIZE))


@lying("", "solution", "devkit")
def test_pictures_and_names_are_those_of_the_folders_or_of_the_ground_truth(disk):
    found = BENCHMARKS["imagenet"](size=SIZE).load()
    assert isinstance(found.train.images, image_shards.Shards)
    assert len(found.train.images.files) == 5
    agree(found.train, disk["train"])
    agree(found.test, disk["test"])
    assert found.train.template == "a photo of a {}." and found.held_out == {}
    assert found.captions == tuple(f"a photo of a {name}." for _, name in disk["train"])


def test_an_order_renumbers_the_classes_and_decodes_nothing(disk, monkeypatch):
    plain = BENCHMARKS["imagenet"](size=SIZE).load()
    monkeypatch.setattr(photographs, "from_files", None)
    ordered = BENCHMARKS["imagenet"](size=SIZE, order="seed1993").load()
    assert ordered.train.class_names == plain.train.class_names[::-1]  # of the small copy
    agree(ordered.train, disk["train"])
    agree(ordered.test, disk["test"])


def test_so_many_of_each_class_are_the_first_by_name(disk):
    found = BENCHMARKS["imagenet"](size=SIZE, per_class=1).load()
    for part, count in (("train", 4), ("test", 2)):
        agree(getattr(found, part), disk[part][::count])
    assert len(BENCHMARKS["imagenet"](size=SIZE, per_class=3).load().test) == 12  # all there are


def test_the_first_of_each_label():
    labels = np.array([5, 2, 5, 5, 2, 9])
    assert photographs.first_of_each(labels, 1).tolist() == [0, 1, 5]
    assert photographs.first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert photographs.first_of_each(labels, 9).tolist() == list(range(6))


def test_a_changed_folder_is_decoded_again(disk):
    BENCHMARKS["imagenet"](size=SIZE).load()
    path = min((paths.downloads() / "imagenet" / "train").rglob("*_41.JPEG"))
    path.rename(path.with_name(path.name.replace("_41", "_1")))  # now the first of its class
    found = BENCHMARKS["imagenet"](size=SIZE).load()
    rows = disk["train"][:4]  # by name: 10040, 2, 303, 41
    assert np.array_equal(found.train.images[0].numpy(), reference(rows[3][0], SIZE))


def test_a_run_of_class_incremental_stages_trains(disk, toy_model):
    from small_runs import train

    config = RunConfig(benchmark="imagenet", benchmark_args={"size": SIZE, "order": "seed1993"},
                       method="gcl", method_args={"size": 6}, model=str(toy_model), batch_size=5,
                       stream_args={"tasks": 3, "order": "given"}, steps_per_batch=1)
    evals, steps = train(config)
    assert {"task 3", "all classes", "class tench"} <= {row["set"] for row in evals} and steps
    last = [row["count"] for row in evals if row["set"] == "seen classes" and row["stage_end"]]
    assert last == [4, 8, 12]


def test_a_batch_of_the_stream_is_the_decoded_pictures(disk):
    from clstudy.data.streams import STREAMS
    from clstudy.training.loop import batches

    found = BENCHMARKS["imagenet"](size=SIZE).load()
    stage, = STREAMS["joint"]().stages(found.train.labels, 3)
    drawn = list(batches(stage, found, [], torch.zeros(6, 4, dtype=torch.long), 7, stage.index))
    assert [len(batch.index) for batch in drawn] == [7, 7, 7, 3]
    for batch in drawn:
        for image, row in zip(batch.image, batch.index, strict=True):
            assert np.array_equal((image * 255).round().numpy(),
                                  reference(disk["train"][row][0], SIZE))


# ---- what is refused


@pytest.mark.parametrize(("options", "said"), [
    ({"per_class": 0}, "per_class=0: must be"), ({"per_class": -1}, "per_class=-1"),
    ({"order": "icarl"}, "order='icarl' is unknown.*seed1993"), ({"size": 4}, "size=4"),
    ({"template": "x"}, "template"), ({"held_out": "dtd"}, "held_out='dtd'"),
], ids=str)
def test_impossible_options_are_refused_before_anything_is_looked_for(options, said, tmp_path,
                                                                      monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["imagenet"](**options)
    with pytest.raises(ValueError, match=said):
        RunConfig(benchmark="imagenet", benchmark_args=options)


def test_what_is_missing_is_said_with_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    said = f"not in {tmp_path}: imagenet .imagenet/train, imagenet/val.*account at image-net.org; put .*<WordNet id>"
    with pytest.raises(FileNotFoundError, match=said):
        BENCHMARKS["imagenet"]().require()
    said = CliRunner().invoke(app, ["data"]).output
    row, = [line for line in said.splitlines() if line.startswith("imagenet ")]
    assert "missing" in row and "benchmark" in row and "image-net.org" in row


def test_a_class_without_its_folder_is_named(disk):
    place = paths.downloads() / "imagenet" / "train"
    gone = sorted(place.iterdir())[2]
    shutil.rmtree(gone)
    with pytest.raises(FileNotFoundError,
                       match=rf"train lacks 1 of the 6 folders of classes \({gone.name}\)"):
        BENCHMARKS["imagenet"](per_class=1).require()


@lying("solution")
def test_flat_pictures_without_their_classes_are_refused(disk):
    BENCHMARKS["imagenet"]().require()
    (paths.downloads() / "imagenet" / "LOC_val_solution.csv").unlink()
    with pytest.raises(FileNotFoundError,
                       match="val has no folders of classes, and neither .*csv nor .*devkit"):
        BENCHMARKS["imagenet"]().require()


@lying("solution", "devkit")
def test_a_ground_truth_that_is_torn_is_refused_before_decoding(disk, master):
    told = {
        "solution": "LOC_val_solution.csv",
        "devkit": "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    }[master[2]]
    path = paths.downloads() / "imagenet" / told
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    said = "does not tell the class of every picture in .*val .KeyError: 'ILSVRC2012"
    with pytest.raises(DamagedError, match=said):
        BENCHMARKS["imagenet"](size=SIZE).load()
    assert not list(Path(os.environ["CLSTUDY_CACHE"]).glob("*"))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_picture_that_is_gone_is_noticed_before_decoding(disk, part):
    path = next((paths.downloads() / "imagenet" / part).rglob("*.JPEG"))
    path.unlink()
    with pytest.raises(DamagedError, match=rf"imagenet/{part} has (23|11) pictures, not (24|12)"):
        BENCHMARKS["imagenet"](size=SIZE).load()
    assert not list(Path(os.environ["CLSTUDY_CACHE"]).glob("*"))


def test_a_picture_that_is_cut_is_named_and_the_rest_stays_decoded(disk):
    path = sorted((paths.downloads() / "imagenet" / "train").rglob("*.JPEG"))[12]
    whole, kept = path.read_bytes(), path.parent.stat()
    path.write_bytes(whole[:-200])
    with pytest.raises(DamagedError, match=f"{path.name} cannot be read"):
        BENCHMARKS["imagenet"](size=SIZE).load()
    place, = Path(os.environ["CLSTUDY_CACHE"]).glob("imagenet-train-*")
    assert sorted(file.name for file in place.iterdir()) == ["00000.npy", "00001.npy"]
    path.write_bytes(whole)  # in place: its folder is as it was, so decoding goes on
    assert path.parent.stat().st_mtime_ns == kept.st_mtime_ns
    agree(BENCHMARKS["imagenet"](size=SIZE).load().train, disk["train"])
    assert list(Path(os.environ["CLSTUDY_CACHE"]).glob("imagenet-train-*")) == [place]


# ---- names


def test_names_are_those_of_clip_but_for_two_that_it_uses_twice():
    import open_clip

    about = datasets.about_classes("imagenet")
    keys, names = list(about["classes"]), list(about["classes"].values())
    assert keys == sorted(keys)
    pairs = zip(names, open_clip.IMAGENET_CLASSNAMES, strict=True)
    other = {mine: theirs for mine, theirs in pairs if mine != theirs}
    assert other == {"projectile": "missile", "sunglass": "sunglasses"}
    for name in ("imagenet_r", "tiered_imagenet_test"):  # smaller sets say the same of the same ids
        assert datasets.about_classes(name)["classes"].items() <= about["classes"].items()
