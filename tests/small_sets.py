"""Small copies of the published sets, in the form in which they lie on disk: `make(folder)`, then
`use(monkeypatch, folder, cache)` lets the package take them for the real ones (it knows the md5 and
the number of the real files).

`make` returns for each set and split what should be read: (picture, name of its class), in
order."""
import hashlib
import json
import pickle
import struct
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clstudy.data.benchmarks import datasets as sets
from clstudy.data.benchmarks.coco import RETRIEVAL

Expected = dict[str, dict[str, list]]
BREEDS = ("Abyssinian", "american_bulldog", "american_pit_bull_terrier")


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours, which survive JPEG and tell pictures apart."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> Image.Image:
    """Store as JPEG; what is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG")
    return Image.open(path).convert("RGB")


def names(name: str) -> dict[str, str]:
    return sets.about_classes(name)["classes"]


def make(folder: Path, only: Collection[str] | None = None) -> Expected:
    return {
        name: maker(folder, np.random.default_rng(number))
        for number, (name, maker) in enumerate(MAKERS.items()) if only is None or name in only
    }


def _pickled(path: Path, rng, labels: list[int], field: str) -> list[tuple[Image.Image, int]]:
    data = np.stack(
        [np.asarray(picture(rng, 32, 32)).transpose(2, 0, 1).reshape(-1) for _ in labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        pickle.dumps({"data": data, field: labels, "filenames": ["x.png"] * len(labels)},
                     protocol=2))
    return [(Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)), label)
            for row, label in zip(data, labels, strict=True)]


def cifar10(folder: Path, rng) -> dict:
    place, keys = folder / "cifar-10-batches-py", list(names("cifar10"))
    found = [
        row for part in range(1, 6)
        for row in _pickled(place / f"data_batch_{part}", rng, [(part + i) % 10
                                                                for i in range(6)], "labels")
    ]
    test = _pickled(place / "test_batch", rng, list(range(10)), "labels")
    (place / "batches.meta").write_bytes(
        pickle.dumps({"label_names": keys, "num_vis": 3072}, protocol=2))
    return {split: [(image, keys[label]) for image, label in rows] for split, rows in
            (("train", found), ("test", test))}


def cifar100(folder: Path, rng) -> dict:
    place, keys = folder / "cifar-100-python", list(names("cifar100"))
    train = _pickled(place / "train", rng,
                     rng.permutation(np.repeat(np.arange(100), 2)).tolist(), "fine_labels")
    test = _pickled(place / "test", rng, rng.permutation(100).tolist(), "fine_labels")
    (place / "meta").write_bytes(
        pickle.dumps({"fine_label_names": keys, "coarse_label_names": []}, protocol=2))
    return {
        split: [(image, keys[label].replace("_", " ")) for image, label in rows]
        for split, rows in (("train", train), ("test", test))
    }


def tiny_imagenet(folder: Path, rng) -> dict:
    place, known = folder / "tiny-imagenet-200", names("tiny_imagenet")
    place.mkdir()
    (place / "wnids.txt").write_text("\n".join(known) + "\n")
    used = list(known)[3:8]  # in the set's order, which is not that of the folders
    train = []
    for wnid in sorted(used):
        for i in range(4):
            image = picture(rng, 64, 64).convert(
                "L" if i == 0 else "RGB")  # the real set has grey ones too
            train.append((save(
                image, place / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"), known[wnid]))
        (place / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    rows, test = [], {}
    for i, wnid in enumerate(2 * used):
        file = f"val_{i}.JPEG"
        test[file] = save(picture(rng, 64, 64), place / "val" / "images" / file), known[wnid]
        rows.append(f"{file}\t{wnid}\t0\t32\t44\t62")
    (place / "val" / "val_annotations.txt").write_text("\n".join(rows[::-1]) + "\n")
    return {"train": train, "test": [test[file] for file in sorted(test)]}


def imagenet_r(folder: Path, rng) -> dict:
    place, known = folder / "imagenet-r", names("imagenet_r")
    found = []
    for wnid in ["n01443537", *sorted(known)[5:10]]:
        for i in range(5):
            size = (80 + 20 * i, 60 + 30 * (i % 3))
            found.append((save(picture(rng, *size), place / wnid / f"art_{i}.jpg"), known[wnid]))
    (place / "README.txt").write_text("n01443537 goldfish\n")
    parts = torch.utils.data.random_split(range(30), (24, 6),
                                          generator=torch.Generator().manual_seed(0))
    return {split: [found[i] for i in sorted(part.indices)] for split, part in
            zip(("train", "test"), parts, strict=True)}


def food101(folder: Path, rng) -> dict:
    place, listed, found = folder / "food-101", {}, {}
    for split, numbers in (("test", (301, 17)), ("train", (5, 300, 9))):
        listed[split] = {key: [f"{key}/{number}" for number in numbers]
                         for key in ("apple_pie", "cheese_plate", "waffles")}
        found[split] = [(save(picture(rng, 96, 64),
                              place / "images" / f"{file}.jpg"), key.replace("_", " "))
                        for key, files in listed[split].items() for file in files]
        (place / "meta").mkdir(exist_ok=True)
        (place / "meta" / f"{split}.json").write_text(json.dumps(listed[split]))
    return found


def drawn(rows: list) -> dict:
    """The parts that ZSCL's released code draws: 80 % and the rest, seed 42."""
    parts = torch.utils.data.random_split(range(
        len(rows)), (int(0.8 * len(rows)), len(rows) - int(0.8 * len(rows))),
                                          generator=torch.Generator().manual_seed(42))
    return {
        name: [rows[i] for i in sorted(part.indices)]
        for name, part in zip(("train80", "test20"), parts, strict=True)
    }


def caltech101(folder: Path, rng) -> dict:
    place, found = folder / "caltech101" / "101_ObjectCategories", []
    for key, name in (("BACKGROUND_Google", None), ("Faces", "face"), ("Faces_easy", None),
                      ("airplanes", "airplane"), ("car_side", "side of a car")):
        for i in range(1, 4):
            image = picture(rng, 90, 70).convert("L" if key == "car_side" else "RGB")
            found.append((save(image, place / key / f"image_{i:04d}.jpg"), name))
    parts = {"test": found,
             **drawn(found[3:])}  # torchvision drops the background before anything is counted
    return {split: [row for row in rows if row[1]] for split, rows in parts.items()}


def eurosat(folder: Path, rng) -> dict:
    known = names("eurosat")
    found = [(save(picture(rng, 64, 64),
                   folder / "eurosat" / "2750" / key / f"{key}_{i}.jpg"), known[key])
             for key in ("AnnualCrop", "Forest", "SeaLake") for i in (1, 2)]
    return {"test": found, **drawn(found), "but500": found[::2],
            "last500": found[1::2]}  # the last one, see use()


def flowers102(folder: Path, rng) -> dict:
    from scipy.io import savemat

    place, known = folder / "flowers-102", list(names("flowers102").values())
    labels = [77, 1, 102, 60, 77, 9, 1, 1]  # from 1, as in the real file
    images = [
        save(picture(rng, 70, 100), place / "jpg" / f"image_{i:05d}.jpg") for i in range(1, 9)
    ]
    savemat(place / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(place / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[8, 5, 6]]})
    return {split: [(images[i - 1], known[labels[i - 1] - 1]) for i in ids]
            for split, ids in (("test", (8, 5, 6)), ("train", (1, 2)))}


def oxford_pets(folder: Path, rng) -> dict:
    place, rows, found = folder / "oxford-iiit-pet", {"trainval": [],
                                                      "test": []}, {"test": [], "train": []}
    for label, breed in enumerate(BREEDS, 1):
        for i in range(1, 5):
            image = save(picture(rng, 80, 90), place / "images" / f"{breed}_{i}.jpg")
            split = "test" if i > 2 else "trainval"
            rows[split].append(f"{breed}_{i} {label} {1 if label == 1 else 2} 1")
            found["test" if i > 2 else "train"].append(
                (image, breed if label == 1 else breed.replace("_", " ")))
    for split, lines in rows.items():
        path = place / "annotations" / f"{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return found


def aircraft(folder: Path, rng) -> dict:
    place, known = folder / "fgvc-aircraft-2013b" / "data", ["707-320", "A300B4", "F-16A/B"]
    found, lines = {"train": [], "val": [], "test": []}, {}
    for number, split in enumerate(found):
        for i, name in enumerate(known[::-1]):
            file = f"{1000 * number + i:07d}"
            found[split].append((save(picture(rng, 90, 60),
                                      place / "images" / f"{file}.jpg"), name))
            lines.setdefault(split, []).append(f"{file} {name}")
        (place / f"images_variant_{split}.txt").write_text("\n".join(lines[split]) + "\n")
    (place / "variants.txt").write_text("\n".join(known) + "\n")
    return {split: found[split] for split in ("train", "test")}


def dtd(folder: Path, rng) -> dict:
    place, found = folder / "dtd" / "dtd", {}
    (place / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        files = [f"{key}/{key}_{number:04d}.jpg" for key in ("banded", "polka-dotted", "zigzagged")]
        found[split] = [(save(picture(rng, 70, 80), place / "images" / file), file.split("/")[0])
                        for file in files]
        (place / "labels" / f"{split}1.txt").write_text("\n".join(files) + "\n")
    return {split: found[split] for split in ("train", "test")}


def mnist(folder: Path, rng) -> dict:
    place, found = folder / "MNIST" / "raw", {}
    place.mkdir(parents=True)
    for split, file, labels in (("train", "train", [*range(10), 3,
                                                    1]), ("test", "t10k", [7, *range(10)])):
        images = np.stack([np.asarray(picture(rng, 28, 28).convert("L")) for _ in labels])
        (place / f"{file}-images-idx3-ubyte"
         ).write_bytes(struct.pack(">iiii", 2051, len(labels), 28, 28) + images.tobytes())
        (place / f"{file}-labels-idx1-ubyte"
         ).write_bytes(struct.pack(">ii", 2049, len(labels)) + bytes(labels))
        found[split] = [(Image.fromarray(image).convert("RGB"), str(label))
                        for image, label in zip(images, labels, strict=True)]
    return found


def stanford_cars(folder: Path, rng) -> dict:
    from scipy.io import savemat

    place, known, found = folder / "stanford_cars", list(names("stanford_cars").values()), {}
    (place / "devkit").mkdir(parents=True)
    form = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, file, labels in (("train", "devkit/cars_train_annos.mat", [14, 196, 1]),
                                ("test", "cars_test_annos_withlabels.mat", [196, 2])):
        files = [f"{i:05d}.jpg" for i in range(1, len(labels) + 1)]
        found[split] = [(save(picture(rng, 100, 70),
                              place / f"cars_{split}" / name), known[label - 1])
                        for name, label in zip(files, labels, strict=True)]
        rows = np.array([(1, 1, 9, 9, label, name)
                         for label, name in zip(labels, files, strict=True)], dtype=form)
        savemat(place / file, {"annotations": rows[None]})
    savemat(place / "devkit" / "cars_meta.mat",
            {"class_names": np.array(known, dtype=object)[None]})
    return found


def sun397(folder: Path, rng) -> dict:
    place, known, found = folder / "SUN397", names("sun397"), {}
    for key in ("c/church/indoor", "a/abbey", "b/bedroom"):
        for i in "zabq":
            file = place / key / f"sun_{i}.jpg"
            found[file.as_posix()] = save(picture(rng, 60, 50), file), known[key[2:]]
    (place / "ClassName.txt").write_text("/a/abbey\n/b/bedroom\n/c/church/indoor\n")
    parts = drawn([found[file] for file in sorted(found)])
    return {"train": parts["train80"], "test": parts["test20"]}


def tiered_imagenet_test(folder: Path, rng) -> dict:
    place, known, found = folder / "tiered-imagenet" / "test", names("tiered_imagenet_test"), []
    for key in [*list(known)[4:7], "n02123045"]:  # the last is a class of the training split
        images = [
            save(picture(rng, 60, 50), place / key / f"{key}_{number}.JPEG")
            for number in (7, 12, 100)
        ]
        found += [(image, known[key])
                  for image in (images[2], images[1])] if key in known else []  # by name, see use()
    return {"test": found}


def draw_imagenet(folder: Path, rng, flat: str = "") -> dict:
    """Six classes of four and two pictures; flat: validation pictures without folders, and what
    tells their classes, "solution" or "devkit". What should be read."""
    place, known = folder / "imagenet", names("imagenet")
    keys, found, told = list(known)[::180], {"train": [], "test": []}, {}
    for key in keys:
        for number in (10040, 2, 303, 41):
            image = picture(rng, 70 + number % 30, 50).convert(
                "L" if number == 2 else "RGB")  # there are grey ones
            save(image, place / "train" / key / f"{key}_{number}.JPEG")
    for number in range(1, 2 * len(keys) + 1):
        name, key = f"ILSVRC2012_val_{number:08}", keys[number * 5 % len(keys)]
        save(picture(rng, 50, 60), place / "val" / ("" if flat else key) / f"{name}.JPEG")
        told[name] = key
    for split, part in (("train", "train"), ("test", "val")):
        files = sorted((place / part).rglob("*.JPEG"))
        found[split] = [(Image.open(file).convert("RGB"),
                         known[told[file.stem] if file.stem in told else file.parent.name])
                        for file in files]
    if flat == "solution":
        rows = "\n".join(f"{name},{key} 1 2 3 4 {key} 5 6 7 8 "
                         for name, key in sorted(told.items(), reverse=True))
        (place / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}\n")
    if flat == "devkit":
        _devkit(place / "ILSVRC2012_devkit_t12" / "data", keys, list(told.values()))
    return found


def _devkit(place: Path, keys: list[str], told: list[str]) -> None:
    """The classes have numbers of its own, and there are groups of classes beside them."""
    from scipy.io import savemat

    place.mkdir(parents=True)
    number = {key: len(keys) - i for i, key in enumerate(keys)}
    rows = [(number[key], key, "words", 0) for key in keys] + [(1001, "n00001740", "entity", 3)]
    form = [("ILSVRC2012_ID", "f8"), ("WNID", object), ("words", object), ("num_children", "f8")]
    savemat(place / "meta.mat", {"synsets": np.array(rows, dtype=form)[:, None]})
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(
        f"{number[key]}\n" for key in told))


def imagenet(folder: Path, rng) -> dict:
    draw_imagenet(folder, rng)
    return {}  # read by its benchmark


DRAWN = {
    "aircraft_carrier": "aircraft carrier", "The_Mona_Lisa": "The Mona Lisa", "t-shirt": "t-shirt",
    "teddy-bear": "teddy bear"
}


def draw_domainnet(folder: Path, rng) -> dict:
    """Four classes in each domain, but a t-shirt is not among the paintings. What should be read:
    split → domain → (picture, name)."""
    place, keys, found = folder / "domainnet", list(names("domainnet")), {"train": {}, "test": {}}
    for number, domain in enumerate(
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
        for split, count in (("train", 3), ("test", 2)):
            rows = [(key, i) for i in range(count) for key in DRAWN
                    if (domain, key) != ("painting", "t-shirt")]
            lines, found[split][domain] = [], []
            for key, i in [rows[row] for row in rng.permutation(len(rows))]:
                name = f"{domain}/{key}/{domain}_{keys.index(key):03}_{split}{i}.{'png' if number == 3 else 'jpg'}"
                found[split][domain].append((save(picture(rng, 60, 40 + 5 * number),
                                                  place / name), DRAWN[key]))
                lines.append(f"{name} {keys.index(key)}\n")
            (place / f"{domain}_{split}.txt").write_text("".join(lines))
    return found


def domainnet(folder: Path, rng) -> dict:
    draw_domainnet(folder, rng)
    return {}


CELL = 16  # pixels: JPEG does not mix the colours of cells of this size
WIDE, HIGH = 6, 4  # cells of a picture of COCO


def colour(category: int) -> tuple[int, int, int]:
    """Tells the categories of COCO apart, and from the grey ground."""
    return category * 37 % 256, category * 91 % 256, 30 + category * 53 % 200


def cells() -> dict[int, tuple[int, int]]:
    """The cells of a picture that are painted: eight, in every second column."""
    return dict(enumerate((x, y) for x in (1, 3) for y in range(HIGH)))


def coco(folder: Path, rng) -> dict:
    """Ten training pictures of eight cells, in which each category is painted once, and six for
    validation."""
    place, ids = folder / "coco", [int(key) for key in names("coco")]
    supercategories = [{"id": number, "name": names("coco")[str(number)], "supercategory": "x"}
                       for number in ids]
    for year, count in (("train2014", 10), ("val2014", 6)):
        images, boxes = [], []
        for i in range(count):
            number = 9 * (count - i)  # the list is not sorted
            file, image = f"COCO_{year}_{number:012d}.jpg", Image.new(
                "RGB", (WIDE * CELL, HIGH * CELL), (128, ) * 3)
            images.append({
                "id": number, "file_name": file, "width": WIDE * CELL, "height": HIGH * CELL,
                "license": 1
            })
            for cell, (x, y) in cells().items():
                category = ids[8 * i + cell]
                image.paste(colour(category), (x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL))
                boxes.append(
                    _box(len(boxes), number, category,
                         [x * CELL + 0.4, y * CELL + 0.6, 15.2, 15.1]))
            boxes.append(_box(len(boxes), number, ids[0],
                              [0, 0, 4, 30]))  # too narrow, too low, just large enough
            boxes.append(_box(len(boxes), number, ids[0], [0, 0, 30, 4.0]))
            boxes.append(_box(len(boxes), number, ids[8 * i], [CELL, 0, 4.5, 4.5], crowd=True))
            (place / year).mkdir(parents=True, exist_ok=True)
            image.save(place / year / file, "JPEG", quality=95,
                       subsampling=0)  # colours stay in their cells
        (place / "annotations").mkdir(exist_ok=True)
        (place / "annotations" / f"instances_{year}.json").write_text(
            json.dumps({
                "info": {}, "licenses": [], "images": images, "annotations": boxes[::-1],
                "categories": supercategories
            }))
    return {}


def _box(number: int, image: int, category: int, box: list[float], crowd: bool = False) -> dict:
    outline = {"counts": [1, 2], "size": [64, 96]} if crowd else [[0, 0, 1, 1, 2, 2]]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box,
        "area": box[2] * box[3], "iscrowd": int(crowd), "segmentation": outline
    }


def _captioned(file: str, split: str, number: int, captions: int = 5, **more) -> dict:
    said = [{
        "raw": f"Caption {i} of {file}.", "tokens": ["caption"], "imgid": number,
        "sentid": 10 * number + i
    } for i in range(captions)]
    return {
        "filename": file, "split": split, "imgid": number,
        "sentids": [one["sentid"] for one in said], "sentences": said, **more
    }


def karpathy(folder: Path, rng) -> dict:
    """Of the validation pictures 54, 9, 36 and 18 are test, in this order; 36 has six captions."""
    splits = [(54, "test"), (45, "restval"), (9, "test"), (36, "test"), (27, "val"), (18, "test")]
    rows = [
        _captioned(f"COCO_val2014_{number:012d}.jpg", split, i, 6 if number == 36 else 5,
                   cocoid=number, filepath="val2014") for i, (number, split) in enumerate(splits)
    ]
    rows.append(
        _captioned("COCO_train2014_000000000009.jpg", "train", 6, cocoid=9, filepath="train2014"))
    flickr = [_captioned(f"{number}.jpg", split, i) for i, (number, split) in
              enumerate(((311, "train"), (205, "test"), (7, "val"), (91, "test")))]
    (folder / "karpathy").mkdir()
    for name, images in (("coco", rows), ("flickr30k", flickr)):
        (folder / "karpathy" / f"dataset_{name}.json").write_text(
            json.dumps({"images": images, "dataset": name}))
    return {}


def flickr30k(folder: Path, rng) -> dict:
    for number in (7, 91, 205, 311):
        save(picture(rng, 70, 50), folder / "flickr30k" / "flickr30k-images" / f"{number}.jpg")
    return {}


MAKERS = {
    "cifar10": cifar10, "cifar100": cifar100, "tiny_imagenet": tiny_imagenet,
    "imagenet_r": imagenet_r, "food101": food101, "caltech101": caltech101, "eurosat": eurosat,
    "flowers102": flowers102, "oxford_pets": oxford_pets, "aircraft": aircraft, "dtd": dtd,
    "mnist": mnist, "stanford_cars": stanford_cars, "sun397": sun397,
    "tiered_imagenet_test": tiered_imagenet_test, "coco": coco, "karpathy": karpathy,
    "flickr30k": flickr30k, "imagenet": imagenet, "domainnet": domainnet
}


def use(monkeypatch, folder: Path, cache: Path, expected: Expected) -> None:
    """Let the package read the sets of `folder`; what it decodes goes to `cache`."""
    from torchvision import datasets

    monkeypatch.setenv("CLSTUDY_DATA", str(folder))
    monkeypatch.setenv("CLSTUDY_CACHE", str(cache))
    monkeypatch.setattr(sets, "LAST", 1)
    monkeypatch.setattr(sets, "EACH", 2)
    for name, count, folds in (("coco 5k", 4, 2), ("flickr30k", 2, 1)):
        monkeypatch.setitem(RETRIEVAL, name, replace(RETRIEVAL[name], count=count, folds=folds))
    for name, splits in expected.items():
        counts = {split: len(rows) for split, rows in splits.items()}
        monkeypatch.setitem(sets.SETS, name, replace(sets.SETS[name], images=counts))

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    for kind in [
            kind for name, kind in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100))
            if name in expected
    ]:
        place = folder / kind.base_folder
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(place / kind.meta["filename"])})
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(kind, files,
                                [[file, md5(place / file)] for file, _ in getattr(kind, files)])
    if "flowers102" not in expected:
        return
    files = {key: (file, md5(folder / "flowers-102" / file) if key != "image" else known)
             for key, (file, known) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


def few_classes(monkeypatch, name: str, modules: Collection, keys: Collection[str]) -> None:
    """Let modules take a set for one of these classes only; the order "seed1993" is then
    backwards."""
    whole = sets.about_classes(name)
    few = {"classes": {key: whole["classes"][key] for key in keys},
           "orders": {"seed1993": list(range(len(keys)))[::-1]}}
    for module in modules:
        monkeypatch.setattr(module, "about_classes",
                            lambda asked: few if asked == name else sets.about_classes(asked))
