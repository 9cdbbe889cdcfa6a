"""The data of VR-LwF on small files in their real form: boxes are cut where they are painted, small
ones are left out, test is Karpathy's, captions belong to their images; and EuroSAT's split."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import small_sets
import torch
from PIL import Image
from small_sets import CELL, cells, colour

from clstudy import RunConfig
from clstudy.data import image_store
from clstudy.data.benchmarks import BENCHMARKS, coco, datasets
from clstudy.data.image_store import DamagedError
from clstudy.utils import paths

NEEDED = ("coco", "karpathy", "flickr30k", "tiered_imagenet_test", "eurosat")
NAMES = tuple(datasets.about_classes("coco")["classes"].values())
IDS = [int(key) for key in datasets.about_classes("coco")["classes"]]
BARE = {"held_out": [], "retrieval": []}


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return folder, small_sets.make(folder, NEEDED)


@pytest.fixture
def disk(master, tmp_path, monkeypatch):
    folder, expected = master
    shutil.copytree(folder, tmp_path / "sets")
    small_sets.use(monkeypatch, tmp_path / "sets", tmp_path / "decoded", expected)
    return expected


def crops(**options):
    return BENCHMARKS["coco_crops"](**{**BARE, "size": CELL, **options}).load()


def near(image: torch.Tensor, rgb: tuple[int, int, int]) -> bool:
    """Of one colour, up to what JPEG loses; a crop one pixel beside its cell would show the grey
    ground."""
    return bool((image.float() - torch.tensor(rgb).view(3, 1, 1)).abs().max() < 12)


def painted(numbers: list[int], count: int) -> dict[int, list[int]]:
    """For each picture the classes of its boxes, cell by cell, and that of the box that is just
    large enough."""
    each = {9 * (count - i): [8 * i + cell for cell in cells()] + [8 * i] for i in range(count)}
    return {number: each[number] for number in numbers}


# ---- crops


def test_each_box_is_an_image_of_what_is_painted_in_it():
    assert len({colour(number) for number in IDS}) == 80


def test_training_boxes_are_those_of_train2014(disk):
    found = crops().train
    assert found.class_names == NAMES and len(NAMES) == 80
    assert NAMES[0] == "person" and NAMES[-1] == "toothbrush"
    assert len(found) == 10 * 9  # of eleven boxes of a picture, two are too small
    assert found.images.shape == (90, 3, CELL, CELL) and found.images.dtype == torch.uint8
    expected = painted([9 * i for i in range(1, 11)], 10)
    assert sorted(found.labels.tolist()) == sorted(sum(expected.values(), []))
    for image, label in zip(found.images, found.labels, strict=True):
        assert near(image, colour(IDS[label])), NAMES[label]


def test_boxes_of_one_picture_stand_together(disk):
    """The annotations stand in another order, and the list of images in a third."""
    labels = crops().train.labels.reshape(10, 9)
    expected = painted([9 * i for i in range(10, 0, -1)], 10)
    assert [sorted(row) for row in labels.tolist()] == [
        sorted(row) for row in reversed(expected.values())]


def test_test_boxes_are_those_of_karpathys_test_images(disk):
    found = crops().test
    expected = painted([54, 9, 36, 18], 6)  # of 54, 45, 36, 27, 18, 9
    assert sorted(found.labels.tolist()) == sorted(sum(expected.values(), []))
    for image, label in zip(found.images, found.labels, strict=True):
        assert near(image, colour(IDS[label])), NAMES[label]


def test_a_box_is_widened_to_whole_pixels_inside_the_picture():
    assert coco._whole((16.4, 32.6, 31.6, 47.7), (96, 64)) == (16, 32, 32, 48)
    assert coco._whole((-0.5, 3.0, 96.2, 64.0), (96, 64)) == (0, 3, 96, 64)


def test_a_long_box_is_resized_by_its_shorter_side_and_cut_to_its_middle(tmp_path):
    image = Image.new("RGB", (80, 30), "white")
    image.paste((255, 0, 0), (10, 5, 40, 25))
    image.paste((0, 0, 255), (40, 5, 70, 25))
    image.save(tmp_path / "a.png")
    boxes = pd.DataFrame([("a.png", 7, 10, 5, 70, 25)],
                         columns=["file", "label", "left", "top", "right", "bottom"])
    read = coco._cut_out(tmp_path, boxes).read(0)
    found = image_store.fit(read[0], 10)
    assert read[1] == 7 and read[0].size == (60, 20)
    assert (found[:, :, 0].T == (255, 0, 0)).all() and (found[:, :, -1].T == (0, 0, 255)).all()


def test_boxes_of_four_pixels_are_left_out(tmp_path, disk):
    listed = tmp_path / "boxes.json"
    given = json.loads((paths.downloads() / "coco/annotations/instances_val2014.json").read_text())
    sizes = [(4, 9), (9, 4), (4.01, 4.01), (5, 3), (9, 9)]
    given["annotations"] = [{"image_id": 9, "category_id": 90, "bbox": [1.5, 2, *size]}
                            for size in sizes]
    listed.write_text(json.dumps(given))
    bounds = coco._boxes(listed)[["left", "top", "right", "bottom"]].to_numpy().tolist()
    assert bounds == [[1.5, 2, 5.51, 6.01], [1.5, 2, 10.5, 11]]


def test_prompts_captions_and_phases_are_those_of_the_released_code(disk):
    found = crops()
    assert found.name == "coco_crops" and found.train.template == found.test.template == coco.SCENE
    assert found.captions[0] == f"this is a photo of {NAMES[found.train.labels[0]]} in the scene ."
    assert len(found.captions) == len(found.train)
    assert list(found.groups) == [f"phase {i}" for i in range(1, 9)]
    assert [list(group) for group in found.groups.values()] == np.arange(80).reshape(8, 10).tolist()
    short = crops(template=coco.SHORT)
    assert short.captions[0] == f"this is a photo of {NAMES[found.train.labels[0]]} ."


def test_at_most_so_many_boxes_of_each_class(disk):
    whole, few = crops(), crops(per_class=1, test_per_class=1)
    assert sorted(few.train.labels.tolist()) == list(range(80))
    assert sorted(few.test.labels.tolist()) == sorted(set(whole.test.labels.tolist()))
    for image, label in zip(few.train.images, few.train.labels, strict=True):
        assert near(image, colour(IDS[label])), NAMES[label]
    assert len(crops().train) == len(whole.train)  # the small array is not taken for the whole


def test_a_picture_is_opened_once_for_its_boxes(disk, monkeypatch):
    opened, plain = [], Image.open
    monkeypatch.setattr(coco.Image, "open", lambda file: opened.append(file.name) or plain(file))
    crops()
    train = [name for name in opened if "train2014" in name]
    assert len(train) == len(set(train)) == 10
    assert {name[-6:-4] for name in opened if "val2014" in name} == {"54", "09", "36", "18"}


def test_a_second_call_decodes_nothing(disk, monkeypatch):
    options = {"held_out": ["tiered_imagenet_test"], "retrieval": ["coco 5k", "flickr30k"]}
    first = crops(**options)
    monkeypatch.setattr(image_store, "fit", None)
    monkeypatch.setattr(coco, "_boxes", None)
    again = crops(**options)
    parts = [(found.train, found.test, *found.retrieval.values()) for found in (first, again)]
    for one, same in zip(*parts, strict=True):
        assert torch.equal(one.images, same.images)
    assert np.array_equal(first.train.labels, again.train.labels)


def test_pictures_that_changed_are_cut_again(disk):
    crops()
    path = paths.downloads() / "coco" / "val2014" / "COCO_val2014_000000000054.jpg"
    Image.new("RGB", (96, 64), (0, 255, 0)).save(path, quality=95, subsampling=0)
    assert sum(near(image, (0, 255, 0)) for image in crops().test.images) == 9


# ---- retrieval and held-out sets


def test_coco_5k_is_karpathys_test_split_in_folds(disk):
    found = crops(retrieval=["coco 5k"], size=32).retrieval["coco 5k"]
    assert len(found) == 4 and found.folds == 2
    assert found.owner.tolist() == np.repeat(np.arange(4), 5).tolist()
    expected = tuple(f"Caption {i} of COCO_val2014_000000000036.jpg." for i in range(5))
    assert found.captions[10:15] == expected
    assert found.captions[0] == "Caption 0 of COCO_val2014_000000000054.jpg."
    for image, number in zip(found.images, (54, 9, 36, 18), strict=True):
        path = paths.downloads() / "coco" / "val2014" / f"COCO_val2014_{number:012d}.jpg"
        assert np.array_equal(image.numpy(), image_store.fit(Image.open(path), 32))


def test_flickr30k_is_karpathys_test_split(disk):
    found = crops(retrieval=["flickr30k"], size=32).retrieval["flickr30k"]
    assert len(found) == 2 and found.folds == 1 and found.owner.tolist() == [0] * 5 + [1] * 5
    assert found.captions[0] == "Caption 0 of 205.jpg."
    assert found.captions[-1] == "Caption 4 of 91.jpg."
    path = paths.downloads() / "flickr30k" / "flickr30k-images" / "91.jpg"
    assert np.array_equal(found.images[1].numpy(), image_store.fit(Image.open(path), 32))


def test_the_real_numbers_are_those_of_the_protocol():
    assert (coco.RETRIEVAL["coco 5k"].count, coco.RETRIEVAL["coco 5k"].folds) == (5000, 5)
    assert (coco.RETRIEVAL["flickr30k"].count, coco.RETRIEVAL["flickr30k"].folds) == (1000, 1)
    assert datasets.SETS["tiered_imagenet_test"].images == {"test": 8000}
    eurosat = datasets.SETS["eurosat"].images
    assert (eurosat["last500"], eurosat["but500"]) == (5000, 22_000)


def test_the_held_out_set_has_the_test_classes_of_tiered_imagenet_and_the_short_prompt(disk):
    found = crops(held_out=["tiered_imagenet_test"]).held_out["tiered_imagenet_test"]
    assert len(found.class_names) == 160 and found.template == "this is a photo of {} ."
    expected = [name for _, name in disk["tiered_imagenet_test"]["test"]]
    assert [found.class_names[label] for label in found.labels] == expected


# ---- what is missing or damaged


@pytest.mark.parametrize(("gone", "said"), [
    ("coco/annotations/instances_val2014.json", "coco .*instances_val2014.json.*`clstudy data get coco`"),
    ("karpathy", "karpathy/dataset_coco.json.*`clstudy data get karpathy` fetches about 0.04 GB"),
    ("flickr30k", r'request form.*\{"retrieval": \["coco 5k"\]\}'),
    ("tiered-imagenet", r'account at image-net.org.*\{"held_out": \[\]\}')])
def test_what_is_missing_is_said_before_anything_is_read(gone, said, disk):
    path = paths.downloads() / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for verb in (BENCHMARKS["coco_crops"]().load, BENCHMARKS["coco_crops"]().require):
        with pytest.raises(FileNotFoundError, match=said):
            verb()
    assert not paths.image_store().exists()


@pytest.mark.parametrize(("file", "said"), [
    ("coco/annotations/instances_train2014.json", "instances_train2014.json cannot be read.*`clstudy data get coco`"),
    ("karpathy/dataset_coco.json", "dataset_coco.json cannot be read.*`clstudy data get karpathy`"),
    ("coco/train2014/COCO_train2014_000000000018.jpg", "000000000018.jpg cannot be read.*`clstudy data get coco`"),
    ("flickr30k/flickr30k-images/91.jpg", "91.jpg cannot be read.*request form")])
def test_a_file_that_is_cut_short_is_named(file, said, disk):
    path = paths.downloads() / file
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DamagedError, match=said):
        crops(retrieval=["coco 5k", "flickr30k"])


def test_a_picture_that_is_not_there_is_named(disk):
    (paths.downloads() / "coco" / "train2014" / "COCO_train2014_000000000018.jpg").unlink()
    with pytest.raises(DamagedError,
                       match="COCO_train2014_000000000018.jpg cannot be read .FileNotFoundError"):
        crops()


def test_other_annotations_are_refused(disk):
    path = paths.downloads() / "coco" / "annotations" / "instances_train2014.json"
    given = json.loads(path.read_text())
    given["categories"][3]["name"] = "scooter"
    path.write_text(json.dumps(given))
    with pytest.raises(DamagedError, match="its categories are not those of COCO.*scooter"):
        crops()


def test_too_few_images_or_captions_are_refused(disk, monkeypatch):
    path = paths.downloads() / "karpathy" / "dataset_flickr30k.json"
    given = json.loads(path.read_text())
    given["images"][1]["sentences"].pop()
    path.write_text(json.dumps(given))
    with pytest.raises(DamagedError, match="205.jpg has not 5 captions"):
        crops(retrieval=["flickr30k"])
    given["images"].pop(1)
    path.write_text(json.dumps(given))
    with pytest.raises(DamagedError, match="1 test images, not 2"):
        crops(retrieval=["flickr30k"])


@pytest.mark.parametrize(("options", "said"), [
    ({"per_class": 0}, "per_class=0"), ({"test_per_class": -1}, "test_per_class=-1"),
    ({"retrieval": ["coco"]}, "retrieval='coco' is unknown. Did you mean coco 5k"),
    ({"retrieval": "coco 5k"}, r"\['coco 5k'\]"), ({"held_out": ["coco"]}, "held_out='coco' is unknown"),
    ({"template": "no place"}, "template='no place'"), ({"size": 4}, "size=4")], ids=str)
def test_impossible_options_are_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["coco_crops"](**options).require()


# ---- EuroSAT, and runs


def test_eurosat_keeps_the_last_pictures_of_each_class_for_testing(disk):
    found = BENCHMARKS["eurosat"](**BARE).load()
    first = ("annual crop", "forest", "herbaceous vegetation", "highway")
    assert found.train.class_names[:4] == first
    assert found.train.template == "this is a satellite photo of {} ."
    assert found.train.labels.tolist() == found.test.labels.tolist() == [0, 1, 9]
    for part, number in ((found.train, 1), (found.test, 2)):
        for image, key in zip(part.images, ("AnnualCrop", "Forest", "SeaLake"), strict=True):
            path = paths.downloads() / "eurosat" / "2750" / key / f"{key}_{number}.jpg"
            assert np.array_equal(image.numpy(), np.asarray(Image.open(path)).transpose(2, 0, 1))
    assert list(found.groups.items())[-1] == ("phase 5", (8, 9)) and len(found.groups) == 5
    assert found.captions[2] == "this is a satellite photo of sea lake ."


def test_run_id_knows_the_names_and_not_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    assert len(BENCHMARKS["coco_crops"]().fingerprint()) == 2
    assert len(BENCHMARKS["coco_crops"](**BARE).fingerprint()) == 1
    bare = [BENCHMARKS[name](**BARE).fingerprint() for name in ("eurosat", "coco_crops")]
    assert bare[0] != bare[1]
    without = RunConfig(benchmark="coco_crops", benchmark_args=BARE)
    assert RunConfig(benchmark="coco_crops").run_id != without.run_id


def test_a_run_over_the_phases_trains(disk, toy_model):
    from small_runs import train

    config = RunConfig(benchmark="coco_crops", benchmark_args={"size": 64, "per_class": 1},
                       batch_size=16, model=str(toy_model), stream_args={"tasks": "groups"},
                       steps_per_batch=1)
    evals, _ = train(config)
    names = {row["set"] for row in evals}
    assert {"task 5", "tiered_imagenet_test", "coco 5k: image to text",
            "flickr30k: text to image"} <= names
