"""Small copies of the published sets, in the form in which they lie on disk: `make(folder)`, then `use(monkeypatch,
folder, cache)` lets the package take them for the real ones (it knows the md5 and the number of the real files).

`make` returns for each set and split what should be read: (picture, name of its class), in order."""
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clstudy.benchmarks import sets

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


def make(folder: Path) -> Expected:
    return {name: maker(folder, np.random.default_rng(number)) for number, (name, maker) in enumerate(MAKERS.items())}


def _pickled(path: Path, rng, labels: list[int], field: str) -> list[tuple[Image.Image, int]]:
    data = np.stack([np.asarray(picture(rng, 32, 32)).transpose(2, 0, 1).reshape(-1) for _ in labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": data, field: labels, "filenames": ["x.png"] * len(labels)}, protocol=2))
    return [(Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)), label)
            for row, label in zip(data, labels, strict=True)]


def cifar10(folder: Path, rng) -> dict:
    place, keys = folder / "cifar-10-batches-py", list(names("cifar10"))
    found = [row for part in range(1, 6)
             for row in _pickled(place / f"data_batch_{part}", rng, [(part + i) % 10 for i in range(6)], "labels")]
    test = _pickled(place / "test_batch", rng, list(range(10)), "labels")
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": keys, "num_vis": 3072}, protocol=2))
    return {split: [(image, keys[label]) for image, label in rows] for split, rows in
            (("train", found), ("test", test))}


def cifar100(folder: Path, rng) -> dict:
    place, keys = folder / "cifar-100-python", list(names("cifar100"))
    train = _pickled(place / "train", rng, rng.permutation(np.repeat(np.arange(100), 2)).tolist(), "fine_labels")
    test = _pickled(place / "test", rng, rng.permutation(100).tolist(), "fine_labels")
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": keys, "coarse_label_names": []}, protocol=2))
    return {split: [(image, keys[label].replace("_", " ")) for image, label in rows] for split, rows in
            (("train", train), ("test", test))}


def tiny_imagenet(folder: Path, rng) -> dict:
    place, known = folder / "tiny-imagenet-200", names("tiny_imagenet")
    place.mkdir()
    (place / "wnids.txt").write_text("\n".join(known) + "\n")
    used = list(known)[3:8]  # in the set's order, which is not that of the folders
    train = []
    for wnid in sorted(used):
        for i in range(4):
            image = picture(rng, 64, 64).convert("L" if i == 0 else "RGB")  # the real set has grey ones too
            train.append((save(image, place / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"), known[wnid]))
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
    parts = torch.utils.data.random_split(range(30), (24, 6), generator=torch.Generator().manual_seed(0))
    return {split: [found[i] for i in sorted(part.indices)] for split, part in
            zip(("train", "test"), parts, strict=True)}


def food101(folder: Path, rng) -> dict:
    place, listed, found = folder / "food-101", {}, []
    for key in ("apple_pie", "cheese_plate", "waffles"):
        listed[key] = [f"{key}/{number}" for number in (301, 17)]
        found += [(save(picture(rng, 96, 64), place / "images" / f"{file}.jpg"), key.replace("_", " "))
                  for file in listed[key]]
    (place / "meta").mkdir()
    (place / "meta" / "test.json").write_text(json.dumps(listed))
    return {"test": found}


def caltech101(folder: Path, rng) -> dict:
    place, found = folder / "caltech101" / "101_ObjectCategories", []
    for key, name in (("BACKGROUND_Google", None), ("Faces", "face"), ("Faces_easy", None), ("airplanes", "airplane"),
                      ("car_side", "side of a car")):
        for i in range(1, 4):
            image = picture(rng, 90, 70).convert("L" if key == "car_side" else "RGB")
            found.append((save(image, place / key / f"image_{i:04d}.jpg"), name))
    return {"test": [row for row in found if row[1]]}


def eurosat(folder: Path, rng) -> dict:
    known = names("eurosat")
    return {"test": [(save(picture(rng, 64, 64), folder / "eurosat" / "2750" / key / f"{key}_{i}.jpg"), known[key])
                     for key in ("AnnualCrop", "Forest", "SeaLake") for i in (1, 2)]}


def flowers102(folder: Path, rng) -> dict:
    from scipy.io import savemat

    place, known = folder / "flowers-102", list(names("flowers102").values())
    labels = [77, 1, 102, 60, 77, 9, 1, 1]  # from 1, as in the real file
    images = [save(picture(rng, 70, 100), place / "jpg" / f"image_{i:05d}.jpg") for i in range(1, 9)]
    savemat(place / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(place / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[8, 5, 6]]})
    return {"test": [(images[i - 1], known[labels[i - 1] - 1]) for i in (8, 5, 6)]}


def oxford_pets(folder: Path, rng) -> dict:
    place, rows, found = folder / "oxford-iiit-pet", {"trainval": [], "test": []}, []
    for label, breed in enumerate(BREEDS, 1):
        for i in range(1, 5):
            image = save(picture(rng, 80, 90), place / "images" / f"{breed}_{i}.jpg")
            split = "test" if i > 2 else "trainval"
            rows[split].append(f"{breed}_{i} {label} {1 if label == 1 else 2} 1")
            if split == "test":
                found.append((image, breed if label == 1 else breed.replace("_", " ")))
    for split, lines in rows.items():
        path = place / "annotations" / f"{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return {"test": found}


MAKERS = {"cifar10": cifar10, "cifar100": cifar100, "tiny_imagenet": tiny_imagenet, "imagenet_r": imagenet_r,
          "food101": food101, "caltech101": caltech101, "eurosat": eurosat, "flowers102": flowers102,
          "oxford_pets": oxford_pets}


def use(monkeypatch, folder: Path, cache: Path, expected: Expected) -> None:
    """Let the package read the sets of `folder`; what it decodes goes to `cache`."""
    from torchvision import datasets

    monkeypatch.setenv("CLSTUDY_DATA", str(folder))
    monkeypatch.setenv("CLSTUDY_CACHE", str(cache))
    for name, splits in expected.items():
        counts = {split: len(rows) for split, rows in splits.items()}
        monkeypatch.setitem(sets.SETS, name, replace(sets.SETS[name], images=counts))

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        place = folder / kind.base_folder
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(place / kind.meta["filename"])})
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(kind, files, [[file, md5(place / file)] for file, _ in getattr(kind, files)])
    files = {key: (file, md5(folder / "flowers-102" / file) if key != "image" else known)
             for key, (file, known) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
