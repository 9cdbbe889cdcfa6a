"""The published sets, on small copies in their real form: the right pictures, names and splits; a
second call decodes nothing; what is missing or damaged is said before training. And a folder of
one's own."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from clstudy import RunConfig
from clstudy.data import image_store
from clstudy.data.benchmarks import BENCHMARKS, datasets, photographs
from clstudy.data.benchmarks.photographs import SIT_HELD_OUT
from clstudy.data.image_store import DamagedError
from clstudy.data.types import Labelled
from clstudy.utils import paths

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = ("cifar10", "cifar100", "tiny_imagenet", "imagenet_r")
SIZES = {"cifar10": 32, "cifar100": 32, "tiny_imagenet": 64, "eurosat": 64,
         "mnist": 28}  # the others are resized


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return folder, small_sets.make(folder)


@pytest.fixture
def disk(master, tmp_path, monkeypatch):
    """The small sets, an own copy of each file, and what should be read from them."""
    folder, expected = master
    shutil.copytree(folder, tmp_path / "sets")
    small_sets.use(monkeypatch, tmp_path / "sets", tmp_path / "decoded", expected)
    return expected


def reference(image: Image.Image, size: int) -> np.ndarray:
    """What CLIP's own preprocessing makes of it, up to the normalisation."""
    look = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
    return np.asarray(look(image)).transpose(2, 0, 1)


def agree(labelled, rows: list, size: int) -> None:
    assert len(labelled) == len(labelled.images) == len(rows)
    for image, label, (picture, name) in zip(labelled.images, labelled.labels, rows, strict=True):
        assert labelled.class_names[label] == name
        assert np.array_equal(image.numpy(), reference(picture, size))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_benchmark_has_the_pictures_and_names_of_its_set(name, disk):
    found, size = BENCHMARKS[name](held_out=[], size=48).load(), SIZES.get(name, 48)
    assert found.train.images.shape[1:] == found.test.images.shape[1:] == (3, size, size)
    assert found.train.images.dtype == torch.uint8 and found.train.labels.dtype == np.int64
    agree(found.train, disk[name]["train"], size)
    agree(found.test, disk[name]["test"], size)
    assert found.train.class_names == found.test.class_names
    assert found.train.template == "a bad photo of a {}."
    assert found.captions == tuple(f"a bad photo of a {name}." for _, name in disk[name]["train"])
    assert found.held_out == found.retrieval == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_training_picture_is_a_test_picture(name, disk):
    found = BENCHMARKS[name](held_out=[]).load()
    train, test = ({image.tobytes() for image in part.images.numpy()}
                   for part in (found.train, found.test))
    assert len(train) == len(disk[name]["train"]) and len(test) == len(disk[name]["test"])
    assert not train & test


def test_held_out_sets_are_the_five_of_the_paper_with_their_own_names_and_the_same_prompt(disk):
    found = BENCHMARKS["cifar100"](size=40).load()
    assert tuple(found.held_out) == SIT_HELD_OUT
    assert SIT_HELD_OUT == ("food101", "caltech101", "eurosat", "flowers102", "oxford_pets")
    for name, held_out in found.held_out.items():
        agree(held_out, disk[name]["test"], SIZES.get(name, 40))
        assert held_out.template == "a bad photo of a {}."
    assert [len(side.class_names) for side in found.held_out.values()] == [101, 100, 10, 102, 37]


def test_any_published_set_can_be_a_held_out_set(disk):
    found = BENCHMARKS["cifar10"](held_out=["cifar100"], template="{}").load()
    agree(found.held_out["cifar100"], disk["cifar100"]["test"], 32)
    assert found.held_out["cifar100"].template == found.test.template == "{}"


def test_an_order_of_a_paper_renumbers_the_classes_and_nothing_else(disk):
    plain = BENCHMARKS["cifar100"](held_out=[]).load()
    ordered = BENCHMARKS["cifar100"](held_out=[], order="icarl").load()
    assert [plain.train.class_names.index(name)
            for name in ordered.train.class_names[:4]] == [87, 0, 52, 58]
    assert torch.equal(plain.train.images, ordered.train.images)
    for part in ("train", "test"):
        agree(getattr(ordered, part), disk["cifar100"][part], 32)
    for group, classes in plain.groups.items():
        assert {plain.train.class_names[c] for c in classes} == {ordered.train.class_names[c]
                                                                for c in ordered.groups[group]}
    with pytest.raises(ValueError, match="order='icarl' is unknown.*continual-clip"):
        BENCHMARKS["tiny_imagenet"](held_out=[], order="icarl").load()


@pytest.mark.parametrize("name", [name for name, one in datasets.SETS.items() if one.read])
def test_every_split_of_a_set_has_its_pictures_and_names(name, disk):
    names = tuple(datasets.about_classes(name)["classes"].values())
    assert set(disk[name]) == set(datasets.SETS[name].images)
    for split, rows in disk[name].items():
        agree(Labelled(*datasets.load(name, split, 40), names, "{}"), rows, SIZES.get(name, 40))


@pytest.mark.parametrize("name", datasets.SETS)
def test_a_second_call_opens_no_picture(name, disk, monkeypatch):
    splits = list(disk[name])
    first = [datasets.load(name, split, 40) for split in splits]
    monkeypatch.setattr(image_store, "fit", None)  # what makes pixels
    monkeypatch.setattr(datasets, "pictures", None)  # what reads the set
    for split, (images, labels) in zip(splits, first, strict=True):
        again, same = datasets.load(name, split, 40)
        assert torch.equal(again, images) and np.array_equal(same, labels)


def test_a_set_that_has_changed_is_decoded_again(disk):
    before, _ = datasets.load("eurosat", "test", 224)
    path = paths.downloads() / "eurosat" / "2750" / "Forest" / "Forest_1.jpg"
    Image.new("RGB", (64, 64), (0, 255, 0)).save(path)
    after, _ = datasets.load("eurosat", "test", 224)
    assert [i for i in range(6) if not torch.equal(before[i], after[i])] == [2]


# ---- what is missing or damaged


ONE = {  # a file of each set that is read for its test split
    "cifar10": "cifar-10-batches-py/test_batch", "cifar100": "cifar-100-python/test",
    "tiny_imagenet": "tiny-imagenet-200/val/images/val_3.JPEG", "imagenet_r": None,
    "food101": "food-101/images/waffles/17.jpg",
    "caltech101": "caltech101/101_ObjectCategories/airplanes/image_0002.jpg",
    "eurosat": "eurosat/2750/SeaLake/SeaLake_2.jpg",
    "flowers102": "flowers-102/jpg/image_00005.jpg",
    "oxford_pets": "oxford-iiit-pet/images/american_bulldog_4.jpg",
    "aircraft": "fgvc-aircraft-2013b/data/images/0002001.jpg",
    "dtd": "dtd/dtd/images/banded/banded_0002.jpg",
    "stanford_cars": "stanford_cars/cars_test/00002.jpg", "sun397": "SUN397/a/abbey/sun_a.jpg",
    "tiered_imagenet_test": "tiered-imagenet/test/n01494475/n01494475_100.JPEG"
}


@pytest.mark.parametrize("name", ONE)
def test_a_file_that_is_cut_short_is_named_with_what_to_do(name, disk):
    chosen = ONE[name] or next(f"imagenet-r/n01443537/art_{i}.jpg" for i in range(5))
    path = paths.downloads() / chosen
    path.write_bytes(path.read_bytes()[:-200])
    one = datasets.SETS[name]
    cure = f"clstudy data get {name}" if one.archives else f"into {one.folder}"
    with pytest.raises(DamagedError, match=f"(?s){path.name}.*{cure}"):
        for split in disk[name]:
            datasets.load(name, split, 32)
    assert not list(paths.image_store().glob(f"{name}-test-*"))  # nothing half-made stays


@pytest.mark.parametrize("name", ("food101", "flowers102", "oxford_pets", "tiny_imagenet"))
def test_a_list_that_is_torn_is_said(name, disk):
    path = {"food101": "food-101/meta/test.json", "flowers102": "flowers-102/setid.mat",
            "oxford_pets": "oxford-iiit-pet/annotations/test.txt",
            "tiny_imagenet": "tiny-imagenet-200/val/val_annotations.txt"}[name]
    file = paths.downloads() / path
    file.write_bytes(file.read_bytes()[:-4].replace(b"\t", b" "))
    said = f"{datasets.SETS[name].folder} cannot be read.*clstudy data get {name}"
    with pytest.raises(DamagedError, match=said):
        datasets.load(name, "test", 32)


@pytest.mark.parametrize(("name", "gone"), [("tiny_imagenet", "tiny-imagenet-200/train/n02802426"),
                                            ("imagenet_r", "imagenet-r/n01443537/art_2.jpg"),
                                            ("eurosat", "eurosat/2750/Forest/Forest_2.jpg")])
def test_a_set_that_is_not_whole_is_refused_with_both_counts(name, gone, disk):
    path = paths.downloads() / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    split, whole = next((split, len(rows)) for split, rows in disk[name].items())
    with pytest.raises(DamagedError,
                       match=f"{datasets.SETS[name].folder} has .* images, not {whole}"):
        datasets.load(name, split, 32)


def test_a_class_that_the_set_has_not_is_named(disk):
    place = paths.downloads() / "eurosat" / "2750"
    (place / "Forest").rename(place / "Wood")
    with pytest.raises(DamagedError, match="'Wood' is not one of eurosat"):
        datasets.load("eurosat", "test", 32)


def test_a_file_of_digits_that_is_cut_short_is_refused(disk):
    path = paths.downloads() / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedError, match="MNIST cannot be read.*clstudy data get mnist"):
        datasets.load("mnist", "test", 28)


def test_what_cannot_be_fetched_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        datasets.require(["tiered_imagenet_test", "dtd", "stanford_cars"])
    said = str(error.value)
    assert "`clstudy data get dtd` fetches about 0.62 GB" in said and "get dtd stanford_cars" not in said
    assert "needs an account at image-net.org" in said and "cars_test_annos_withlabels.mat" in said
    with pytest.raises(ValueError,
                       match="held_out='coco' is unknown"):  # no held-out set: a benchmark reads it
        BENCHMARKS["cifar10"](held_out=["coco"])


def test_what_is_missing_is_said_with_the_folder_and_the_command(disk):
    for gone in ("cifar-100-python/train", "food-101", "eurosat"):
        path = paths.downloads() / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        BENCHMARKS["cifar100"]().load()
    said = str(error.value)
    assert str(paths.downloads()) in said and "CLSTUDY_DATA" in said
    assert "cifar-100-python/train" in said
    assert "`clstudy data get cifar100`" in said
    with pytest.raises(FileNotFoundError,
                       match=r"`clstudy data get food101 eurosat`.*=\{\"held_out\": \[\]\}"):
        BENCHMARKS["cifar10"]().load()
    assert BENCHMARKS["cifar10"](held_out=[]).load().held_out == {}
    assert not list(paths.image_store().glob("cifar100*"))  # nothing was decoded before


def test_missing_data_stop_a_run_before_the_model_is_loaded(tmp_path, monkeypatch):
    from clstudy.training import loop, setup

    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    monkeypatch.setattr(setup, "load_clip", None)
    with pytest.raises(FileNotFoundError, match="clstudy data get cifar100"):
        loop.train(RunConfig(benchmark="cifar100"))


@pytest.mark.parametrize(("options", "said"), [
    ({"held_out": ["food"]}, "held_out='food' is unknown. Did you mean food101"),
    ({"held_out": "food101"}, r"\['food101'\]"),
    ({"size": 0}, "size=0"), ({"template": "a photo"}, "template='a photo'"),
    ({"order": "alphabetical"}, "order='alphabetical' is unknown.*icarl"),
], ids=str)
def test_impossible_options_are_refused_before_anything_is_looked_for(options, said, tmp_path,
                                                                      monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["cifar100"](**options)
    with pytest.raises(ValueError, match=said):
        RunConfig(benchmark="cifar100", benchmark_args=options)


def test_a_run_on_a_published_set_trains(disk, toy_model):
    from small_runs import train

    options = {"held_out": ["oxford_pets"], "size": 64}
    config = RunConfig(benchmark="cifar10", benchmark_args=options, model=str(toy_model),
                       stream_args={"tasks": "groups"}, batch_size=10, steps_per_batch=1)
    evals, _ = train(config)
    assert {"oxford_pets", "all classes", "class airplane"} <= {row["set"] for row in evals}


# ---- names and orders


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 100), ("tiny_imagenet", 200),
                                             ("imagenet_r", 200), ("food101", 101), ("caltech101", 100),
                                             ("eurosat", 10), ("flowers102", 102), ("oxford_pets", 37),
                                             ("aircraft", 100), ("dtd", 47), ("mnist", 10), ("stanford_cars", 196),
                                             ("sun397", 397), ("coco", 80), ("tiered_imagenet_test", 160),
                                             ("imagenet", 1000), ("domainnet", 345)])
def test_files_of_names_are_whole(name, count):
    about = datasets.about_classes(name)
    assert len(about["classes"]) == len(set(about["classes"].values())) == count
    for text in about["classes"].values():
        assert "_" not in text and text == " ".join(text.split())
    assert about["source"].startswith("names: ")
    for order in about.get("orders", {}).values():
        assert sorted(order) == list(range(count))
    groups = about.get("groups", {})
    assert not groups or sorted(key for members in groups.values()
                                for key in members) == sorted(about["classes"])


def test_names_of_imagenet_are_those_of_clip():
    import open_clip

    known = set(open_clip.IMAGENET_CLASSNAMES)
    for name in ("imagenet_r", "tiny_imagenet", "tiered_imagenet_test"):
        assert set(datasets.about_classes(name)["classes"].values()) <= known
    classes = datasets.about_classes("imagenet_r")["classes"]
    assert classes["n01443537"] == "goldfish" and list(classes) == sorted(classes)


def test_orders_that_a_seed_makes_are_that_seeds():
    for name, count in (("cifar100", 100), ("imagenet_r", 200), ("imagenet", 1000)):
        drawn = np.random.RandomState(1993).permutation(count).tolist()
        assert datasets.about_classes(name)["orders"]["seed1993"] == drawn


def test_keys_are_those_that_torchvision_gives():
    from torchvision.datasets import MNIST, Flowers102

    found = list(datasets.about_classes("flowers102")["classes"].values())
    names = enumerate(zip(found, Flowers102.classes, strict=True))
    other = {i for i, (mine, theirs) in names if mine != theirs}
    assert other == {15, 59, 92}  # spelt otherwise by CLIP, or by its other name
    assert list(datasets.about_classes("mnist")["classes"]) == MNIST.classes


# ---- a folder of one's own


def draw(path: Path, colour, size=(30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Three classes of five, ten and one pictures."""
    monkeypatch.setenv("CLSTUDY_CACHE", str(tmp_path / "decoded"))
    place = tmp_path / "my pictures"
    for i in range(5):
        draw(place / "red_brick" / f"{i}.png", (200 + i, 0, 0))
    for i in range(10):
        draw(place / "leaf" / "2024" / f"{i}.png", (0, 200 + i, 0))
    draw(place / "sea" / "0.PNG", (0, 0, 200))
    draw(place / "leaf" / ".hidden" / "0.png", (9, 9, 9))
    (place / "leaf" / "notes.txt").write_text("not a picture")
    return place


def about(place: Path, **given) -> None:
    (place / "clstudy.json").write_text(json.dumps(given))


def test_a_folder_is_a_benchmark(own):
    found = BENCHMARKS["folder"](path=str(own), size=16).load()
    assert found.train.class_names == ("leaf", "red brick", "sea")
    assert np.bincount(found.train.labels).tolist() == [8, 4, 1]
    assert np.bincount(found.test.labels).tolist() == [2, 1]
    images = [*found.train.images, *found.test.images]
    colours = {tuple(image[:, 0, 0].tolist()) for image in images}
    assert len(colours) == 16
    for part in (found.train, found.test):
        assert part.images.shape[1:] == (3, 16, 16)
        brightest = [int(image[:, 0, 0].argmax()) for image in part.images]
        assert brightest == [[1, 0, 2][label] for label in part.labels]
    assert found.captions[0] == "a bad photo of a leaf." and found.held_out == {}


def test_its_split_is_fixed_by_a_seed(own):
    def tested(**options) -> list:
        found = BENCHMARKS["folder"](path=str(own), size=8, **options).load()
        return found.test.images[:, :, 0, 0].tolist()

    assert tested() == tested(split_seed=0) != tested(split_seed=1)
    assert len(tested(test_share=0.5)) == 7


def test_train_and_test_of_ones_own_are_kept(own, tmp_path):
    place = tmp_path / "divided"
    for name in ("leaf", "sea"):
        for part in ("train", "test"):
            draw(place / part / name / "a.png", (50, 100, 150) if part == "train" else (5, 10, 15))
    found = BENCHMARKS["folder"](path=str(place), size=8).load()
    assert found.train.labels.tolist() == found.test.labels.tolist() == [0, 1]
    assert found.train.images[0, :, 0, 0].tolist() == [50, 100, 150]
    assert found.test.images[0, :, 0, 0].tolist() == [5, 10, 15]
    draw(place / "test" / "sky" / "a.png", (0, 0, 0))
    with pytest.raises(ValueError, match="test has classes that train has not: sky"):
        BENCHMARKS["folder"](path=str(place)).load()


def test_a_small_file_names_orders_prompts_captions_and_groups(own):
    about(own, classes={"leaf": "green leaf"}, order=["sea", "leaf", "red_brick"],
          template="this is a {}", captions={"sea/0.PNG": "water in the evening"},
          groups={"living": ["leaf"], "dead": ["sea", "red_brick"]})
    found = BENCHMARKS["folder"](path=str(own), size=8).load()
    assert found.test.class_names == ("sea", "green leaf", "red brick")
    assert found.captions[:2] == ("water in the evening", "this is a green leaf")
    assert found.groups == {"living": (1,), "dead": (0, 2)}
    assert found.train.images[0, :, 0, 0].tolist() == [0, 0, 200]
    assert BENCHMARKS["folder"](path=str(own), size=8, template="{}").load().test.template == "{}"


@pytest.mark.parametrize(("given", "said"), [
    ({"clases": {}}, "'clases' is unknown. Did you mean classes"),
    ({"classes": {"leave": "x"}}, "'classes': class='leave' is unknown. Did you mean leaf"),
    ({"order": ["sea", "leaf"]}, "'order' must hold each of the 3 classes once; it lacks red_brick"),
    ({"order": ["sea", "leaf", "leaf", "red_brick"]}, "repeats some"),
    ({"order": "sea"}, "order='sea': must be a list"),
    ({"template": "no place"}, "template='no place'"), ({"captions": {"sea/1.png": "x"}}, "'sea/1.png'"),
    ({"groups": {"a": ["sky"]}}, "class='sky' is unknown"),
    ({"classes": {"leaf": "sea"}}, "two classes are named 'sea'"),
], ids=lambda value: str(value)[:30])
def test_a_fault_in_the_small_file_is_named(own, given, said):
    about(own, **given)
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["folder"](path=str(own)).require()


def test_a_small_file_that_is_not_json_is_named(own):
    (own / "clstudy.json").write_text('{"order": ["sea",')
    with pytest.raises(ValueError, match="clstudy.json is not JSON"):
        BENCHMARKS["folder"](path=str(own)).require()
    (own / "clstudy.json").write_text('["sea"]')
    said = "clstudy.json: must be an object with some of the keys classes, order"
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["folder"](path=str(own)).require()


def test_a_folder_of_another_form_is_refused(own, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        BENCHMARKS["folder"](path=str(tmp_path / "nowhere")).load()
    with pytest.raises(ValueError, match="leaf has 1 sub-folders; a benchmark needs two classes"):
        BENCHMARKS["folder"](path=str(own / "leaf")).load()
    (own / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture"):
        BENCHMARKS["folder"](path=str(own)).load()
    with pytest.raises(ValueError, match="test_share=1.5"):
        BENCHMARKS["folder"](path=str(own), test_share=1.5).load()
    for name in ("one", "two"):
        draw(tmp_path / "single" / name / "a.png", (0, 0, 0))
    with pytest.raises(ValueError, match="no picture is left for testing"):
        BENCHMARKS["folder"](path=str(tmp_path / "single")).load()


def test_a_picture_that_cannot_be_read_is_named(own):
    (own / "leaf" / "2024" / "3.png").write_bytes(b"no picture at all")
    with pytest.raises(DamagedError, match="3.png cannot be read"):
        BENCHMARKS["folder"](path=str(own)).load()


def test_a_photograph_stands_upright(own):
    """Cameras store a turned picture with a note (EXIF) which side is up."""
    image = Image.new("RGB", (20, 20), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 20, 10))  # black above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    for i in range(2):
        image.save(own / "sea" / f"turned_{i}.png", exif=exif)
    found = BENCHMARKS["folder"](path=str(own), size=20).load()
    sea = found.train.images[found.train.labels == 2]
    turned = [image for image in sea if image[:, 0, 0].sum() != 200]
    assert turned and all(image[0, 0, 0] == 255 and image[0, -1, 0] == 0 for image in turned)


def test_a_path_behind_the_name_is_the_same_run(own, monkeypatch):
    config = RunConfig(benchmark=f"folder:{own}", benchmark_args={"size": 32})
    assert config.benchmark == "folder" and config.benchmark_args == {"size": 32, "path": str(own)}
    assert config == RunConfig(benchmark="folder", benchmark_args={"size": 32, "path": str(own)})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    monkeypatch.chdir(own.parent)
    assert RunConfig(benchmark=f"folder:{own.name}",
                     benchmark_args={"size": 32}).run_id == config.run_id
    with pytest.raises(ValueError, match="benchmark_args: 'path' is needed by Folder"):
        RunConfig(benchmark="folder")


def test_run_id_depends_on_what_is_in_the_folder(own):
    seen = [RunConfig(benchmark=f"folder:{own}").run_id]
    assert RunConfig(benchmark=f"folder:{own}").run_id == seen[0]
    os.utime(own / "sea" / "0.PNG", (1, 1))
    seen.append(RunConfig(benchmark=f"folder:{own}").run_id)
    (own / "sea" / "0.PNG").rename(own / "sea" / "1.png")
    seen.append(RunConfig(benchmark=f"folder:{own}").run_id)
    about(own, template="{}")
    seen.append(RunConfig(benchmark=f"folder:{own}").run_id)
    assert len(set(seen)) == 4


def test_run_id_of_a_published_set_does_not_need_the_set_but_depends_on_names(
        monkeypatch, tmp_path):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))

    def run_ids() -> list[str]:
        return [RunConfig(benchmark="cifar100", benchmark_args={"held_out": held_out}).run_id
                for held_out in ((), ("food101",))]

    before = run_ids()
    whole = datasets.about_classes

    def renamed(name: str) -> dict:
        return {**whole(name), "classes": {"x": "y"}} if name == "food101" else whole(name)

    monkeypatch.setattr(photographs, "about_classes", renamed)
    after = run_ids()
    assert before[0] == after[0] and before[1] != after[1]


def test_a_run_on_a_folder_trains(own, toy_model):
    from small_runs import train

    config = RunConfig(benchmark=f"folder:{own}", benchmark_args={"size": 64}, batch_size=4,
                       model=str(toy_model), stream_args={"tasks": 3}, steps_per_batch=1)
    evals, _ = train(config)
    assert "class red brick" in {row["set"] for row in evals}
