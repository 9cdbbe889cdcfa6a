"""MTIL on small files in their real form: the classes of all sets, each with the prompt of its set,
in both orders."""
import pickle
import shutil

import numpy as np
import pytest
import small_sets
import torch
from PIL import Image

from clstudy import RunConfig
from clstudy.data import image_store
from clstudy.data.benchmarks import BENCHMARKS, datasets, mtil
from clstudy.data.image_store import DamagedError
from clstudy.evaluation.features import text_features
from clstudy.utils import paths

SMALL = ("dtd", "mnist", "eurosat")


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return folder, small_sets.make(folder, mtil.ORDERS["I"])


@pytest.fixture
def disk(master, tmp_path, monkeypatch):
    folder, expected = master
    shutil.copytree(folder, tmp_path / "sets")
    small_sets.use(monkeypatch, tmp_path / "sets", tmp_path / "decoded", expected)
    return expected


def rows(expected: dict, name: str, split: str) -> list:
    """(picture, name of its class) that the set contributes."""
    return expected[name][mtil.SPLITS.get(name, {}).get(split, split)]


def test_the_orders_are_those_of_the_paper():
    first, second = mtil.ORDERS["I"], mtil.ORDERS["II"]
    assert first == tuple(sorted(second)) == tuple(sorted(mtil.TEMPLATES)) and len(second) == 11
    assert second[:2] == ("stanford_cars", "food101")
    assert (second[5], second[-1]) == ("sun397", "cifar100")


@pytest.mark.parametrize("order", mtil.ORDERS)
def test_the_groups_are_the_sets_in_the_order_asked_for(order, disk):
    found = BENCHMARKS["mtil"](order=order, size=32).load()
    assert tuple(found.groups) == mtil.ORDERS[order]
    flat = [label for group in found.groups.values() for label in group]
    assert flat == list(range(1200))
    assert len(found.train.class_names) == len(set(found.train.class_names)) == 1200
    for name, classes in found.groups.items():
        known = list(datasets.about_classes(name)["classes"].values())
        names = [found.train.class_names[label] for label in classes]
        assert names == [f"{name}: {one}" for one in known]
        for part, split in ((found.train, "train"), (found.test, "test")):
            here = np.flatnonzero(np.isin(part.labels, classes))
            expected = rows(disk, name, split)
            names = [part.class_names[label] for label in part.labels[here]]
            assert names == [f"{name}: {one}" for _, one in expected]
            images = part.images[torch.from_numpy(here)]
            for image, (picture, _) in zip(images, expected, strict=True):
                assert np.array_equal(image.numpy(), image_store.fit(picture, 32))


def test_both_orders_share_what_is_decoded(disk, monkeypatch):
    first = BENCHMARKS["mtil"](sets=SMALL, size=32).load()
    monkeypatch.setattr(image_store, "fit", None)
    monkeypatch.setattr(mtil, "pictures", None)
    second = BENCHMARKS["mtil"](order="II", sets=SMALL, size=32).load()
    assert tuple(first.groups) == ("dtd", "eurosat", "mnist")
    assert tuple(second.groups) == ("mnist", "dtd", "eurosat")
    assert torch.equal(first.train.images, second.train.images)
    names = [[part.class_names[label] for label in part.labels]
             for part in (first.train, second.train)]
    assert names[0] == names[1] and first.train.labels.tolist() != second.train.labels.tolist()


def test_other_sets_are_decoded_anew(disk):
    few, more = (BENCHMARKS["mtil"](sets=chosen, size=32).load()
                 for chosen in (["dtd"], ["dtd", "mnist"]))
    assert len(few.train) == 3 and len(more.train) == 15


def test_each_class_has_the_prompt_of_its_set(disk, clip):
    found = BENCHMARKS["mtil"](size=32).load()
    prompt = {name: name.prompt for name in found.test.class_names}
    assert prompt["aircraft: 707-320"] == "a photo of a 707-320, a type of aircraft."
    assert prompt["dtd: polka-dotted"] == "a photo of a polka-dotted texture."
    assert prompt["mnist: 7"] == 'a photo of the number: "7".'
    assert prompt["eurosat: forest"] == "a centered satellite photo of forest."
    assert prompt["sun397: church indoor"] == "a photo of a church indoor."
    assert found.captions[0] == found.train.class_names[found.train.labels[0]].prompt
    few = found.train.class_names[:3]
    tokens = clip.class_text(list(few), found.train.template)
    assert torch.equal(tokens, clip.tokenize([name.prompt for name in few]))
    from clstudy.evaluation.features import class_features
    assert torch.equal(class_features(clip, few, found.test.template),
                       text_features(clip, [name.prompt for name in few]))


def test_a_name_that_carries_a_prompt_is_text_and_survives_copies():
    name = mtil.Prompted.of("dtd", "banded")
    assert name == "dtd: banded" and f"class {name}" == "class dtd: banded"
    assert pickle.loads(pickle.dumps(name)).prompt == "a photo of a banded texture."


def test_the_drawn_splits_share_no_picture_and_lose_none():
    for name in ("caltech101", "eurosat"):
        images = datasets.SETS[name].images
        assert images["train80"] + images["test20"] == images["test"]
    for count in (8677, 27_000, 108_754):
        train, test = datasets._part(count, "train80"), datasets._part(count, "test20")
        assert len(train) == int(0.8 * count) and sorted(train + test) == list(range(count))
    faces = range(435, 870)  # Faces_easy, the second folder
    for split in ("train80", "test20"):
        kept = [i for i in datasets._part(8677, split) if i not in faces]
        assert len(kept) == datasets.SETS["caltech101"].images[split]


def test_published_splits_have_the_real_numbers():
    real = {
        "aircraft": (3334, 3333), "cifar100": (50_000, 10_000), "dtd": (1880, 1880),
        "flowers102": (1020, 6149), "food101": (75_750, 25_250), "mnist": (60_000, 10_000),
        "oxford_pets": (3680, 3669), "stanford_cars": (8144, 8041), "sun397": (87_003, 21_751)
    }
    for name, counts in real.items():
        assert (datasets.SETS[name].images["train"], datasets.SETS[name].images["test"]) == counts


# ---- what is missing, damaged or impossible


def test_what_is_missing_is_said_and_what_is_there_can_be_taken(disk):
    for gone in ("SUN397", "dtd"):
        shutil.rmtree(paths.downloads() / gone)
    with pytest.raises(FileNotFoundError) as error:
        BENCHMARKS["mtil"]().require()
    said = str(error.value)
    assert "SUN397/ClassName.txt" in said and "`clstudy data get dtd sun397`" in said
    there = [name for name in mtil.ORDERS["I"] if name not in ("dtd", "sun397")]
    assert f'benchmark_args={{"sets": {there}}}' in said
    assert len(BENCHMARKS["mtil"](sets=there, size=32).load().groups) == 9


def test_a_picture_that_cannot_be_read_is_named_with_its_set(disk):
    path = paths.downloads() / "dtd" / "dtd" / "images" / "banded" / "banded_0000.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedError, match="banded_0000.jpg of dtd cannot be read"):
        BENCHMARKS["mtil"](sets=SMALL, size=32).load()
    Image.new("RGB", (9, 9)).save(path)
    assert len(BENCHMARKS["mtil"](sets=SMALL, size=32).load().train) == 3 + 12 + 4


@pytest.mark.parametrize(("options", "said"), [
    ({"order": "III"}, "order='III' is unknown. Did you mean II"), ({"sets": "dtd"}, r"\['dtd'\]"),
    ({"sets": []}, "one name or more"), ({"sets": ["cifar10"]}, "sets='cifar10' is unknown. Did you mean cifar100"),
    ({"size": 4}, "size=4")], ids=str)
def test_impossible_options_are_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["mtil"](**options).require()


def test_run_id_knows_the_names_of_the_sets_that_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    assert len(BENCHMARKS["mtil"]().fingerprint()) == 11
    dtd, mnist = (BENCHMARKS["mtil"](sets=[name]).fingerprint() for name in ("dtd", "mnist"))
    assert dtd != mnist


def test_a_run_over_the_sets_trains(disk, toy_model):
    from small_runs import train

    options = {"sets": ["mnist", "cifar100"], "size": 64, "order": "II"}
    config = RunConfig(benchmark="mtil", benchmark_args=options, model=str(toy_model),
                       stream_args={"tasks": "groups"}, batch_size=32, steps_per_batch=1)
    evals, _ = train(config)
    found = {(row["set"], row["candidates"]) for row in evals}
    assert {("task 1", "own"), ("task 2", "own"), ("class mnist: 3", "all"),
            ("class cifar100: lamp", "all")} <= found
    assert {row["stage"] for row in evals} == {0, 1, 2}
