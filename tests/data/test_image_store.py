"""Decoded once: what `fit` makes of a picture, and that nothing stale or torn is ever read."""
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from clstudy.data import image_store
from clstudy.data.image_store import DamagedError, Pictures, decoded, fingerprint, fit


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_CACHE", str(tmp_path / "decoded"))
    return tmp_path / "decoded"


def plain(count: int, opened: list | None = None, bad: int | None = None) -> Pictures:
    """Pictures of one colour each: number i is (i, i, i), of class i % 3."""

    def read(i: int):
        if opened is not None:
            opened.append(i)
        if i == bad:
            raise OSError("truncated")
        return Image.new("RGB", (8, 8), (i, i, i)), i % 3

    return Pictures(count, read, lambda i: f"picture-{i}.png", "Get another.")


# ---- pixels


@pytest.mark.parametrize("size", [(100, 61), (61, 100), (40, 40), (17, 90), (31, 33), (64, 32)])
def test_fit_is_what_clip_does(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    look = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])
    assert np.array_equal(fit(image, 32), np.asarray(look(image)).transpose(2, 0, 1))


def test_a_picture_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(fit(Image.fromarray(image), 32), image.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 2))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        image.info["transparency"] = image.getpixel((0, 3))
        assert image.getpixel((0, 0)) == image.getpixel((0, 3))  # so all of it is transparent
        assert (fit(image, 4) == 255).all()
        return
    seen = fit(image.convert(mode), 4)
    assert (seen[:, :2] == 0).all() and (seen[:, 2:] == 255).all()


def test_grey_and_print_colours_become_rgb_and_deep_grey_is_refused():
    assert (fit(Image.new("L", (4, 4), 100), 4) == 100).all()
    assert fit(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), 4).min() == 255
    with pytest.raises(ValueError, match="mode I;16: store it with 8 bits"):
        fit(Image.fromarray(np.full((4, 4), 3000, np.uint16)), 4)


# ---- the array


def test_pictures_are_decoded_once(place):
    opened = []
    for _ in range(2):
        images, labels = decoded("set-train-8", "abc", 8, lambda: plain(150, opened))
        assert images[:, 0, 0, 0].tolist() == list(range(150)) and images.shape == (150, 3, 8, 8)
        assert labels.tolist() == [i % 3 for i in range(150)]
    assert sorted(opened) == list(range(150))
    files = sorted(path.name for path in (place / "set-train-8-abc").iterdir())
    assert files == ["about.json", "images.npy", "labels.npy"]


def test_the_array_is_mapped_and_the_file_cannot_be_written_through_it(place):
    images, _ = decoded("set", "abc", 8, lambda: plain(5))
    file = place / "set-abc" / "images.npy"
    before = file.read_bytes()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) in maps.read_text()
    images.fill_(7)
    assert file.read_bytes() == before
    assert decoded("set", "abc", 8, lambda: plain(5))[0][3, 0, 0, 0] == 3


def test_another_source_is_another_array(place):
    opened = []
    decoded("set", "abc", 8, lambda: plain(5, opened))
    decoded("set", "abd", 8, lambda: plain(5, opened))
    assert len(opened) == 10 and {p.name for p in place.iterdir()} == {"set-abc", "set-abd"}


@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("fault", ["cut", "gone", "other"])
def test_a_torn_array_is_made_again(place, file, fault):
    decoded("set", "abc", 8, lambda: plain(5))
    path = place / "set-abc" / file
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros(3, np.uint8))
    opened = []
    images, labels = decoded("set", "abc", 8, lambda: plain(5, opened))
    assert len(opened) == 5 and images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert labels.tolist() == [0, 1, 2, 0, 1]


def test_a_picture_that_cannot_be_read_is_named_and_nothing_stays(place):
    with pytest.raises(DamagedError,
                       match=r"picture-70.png cannot be read \(OSError: truncated\). Get another."):
        decoded("set", "abc", 8, lambda: plain(200, bad=70))
    assert not list(place.iterdir())


def test_threads_make_the_same(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    images, labels = decoded("set", "abc", 8, lambda: plain(250))
    assert images[:, 1, 3, 3].tolist() == list(range(250))
    assert labels.tolist() == [i % 3 for i in range(250)]


def test_two_processes_at_once_end_with_one_array(place):
    """Another one stands there when ours is ready: it is taken, and ours is removed."""

    def while_ours_is_made() -> Pictures:
        draft = plain(5)
        np.save(_there(place) / "labels.npy", np.zeros(5, np.int64))
        np.save(_there(place) / "images.npy", np.full((5, 3, 8, 8), 99, np.uint8))
        return draft

    images, _ = decoded("set", "abc", 8, while_ours_is_made)
    assert (images == 99).all() and [p.name for p in place.iterdir()] == ["set-abc"]


def _there(place):
    (place / "set-abc").mkdir(parents=True, exist_ok=True)
    return place / "set-abc"


def test_a_full_disk_is_said_before_decoding(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    opened = []
    with pytest.raises(OSError,
                       match="needs 0.0 GB in .*decoded, where 0.0 GB are free; CLSTUDY_CACHE"):
        decoded("set", "abc", 8, lambda: plain(5, opened))
    assert not opened


def test_a_fingerprint_sees_names_sizes_and_times_but_no_hidden_file(tmp_path):
    folder = tmp_path / "files"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b").write_text("x")
    seen = [fingerprint(folder)]
    (folder / ".hidden").write_text("x")
    assert fingerprint(folder) == seen[0] != fingerprint(folder, 1)
    (folder / "a" / "b").write_text("xy")
    seen.append(fingerprint(folder))
    (folder / "a" / "b").rename(folder / "a" / "c")
    seen.append(fingerprint(folder))
    (folder / "a" / "c").rename(folder / "c")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == 4
    assert image_store.size(folder) == 2
