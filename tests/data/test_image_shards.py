"""Images in many files: the same pictures as from one array, nothing decoded twice, nothing kept in
memory."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clstudy.data import image_shards
from clstudy.data.image_shards import Shards, sharded
from clstudy.data.image_store import DamagedError, Pictures
from clstudy.data.types import Labelled

WIDTH, COUNT, EACH = 8, 95, 20  # so there are five files, the last of 15
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSTUDY_CACHE", str(tmp_path / "decoded"))
    monkeypatch.setattr(image_shards, "SHARD", EACH * 3 * WIDTH ** 2 + 100)
    return tmp_path / "decoded" / "set-train-8-abc"


def plain(opened: list | None = None, bad: int | None = None, die: int | None = None) -> Pictures:
    """Pictures of one colour each: number i is (i, i, i)."""

    def read(i: int):
        if i == die:
            os.kill(os.getpid(), signal.SIGKILL)
        if opened is not None:
            opened.append(i)
        if i == bad:
            raise OSError("truncated")
        return Image.new("RGB", (WIDTH, WIDTH), (i, i, i)), 0

    return Pictures(COUNT, read, lambda i: f"picture-{i}.png", "Get another.")


def make(pictures: Pictures | None = None) -> Shards:
    return sharded("set-train-8", "abc", WIDTH, COUNT, lambda: pictures or plain())


def numbers(images: torch.Tensor) -> list[int]:
    """The pictures' numbers; every pixel must have them."""
    assert images.dtype == torch.uint8 and (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


# ---- reading


def test_a_batch_across_files_is_the_pictures_asked_for_in_their_order(place):
    found = make()
    rows = torch.tensor([94, 0, 19, 20, 59, 60, 20, 3])
    assert numbers(found[rows]) == rows.tolist() and found[rows].shape == (8, 3, WIDTH, WIDTH)
    every = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    assert numbers(found[every]) == every.tolist()
    files = sorted(path.name for path in place.iterdir())
    assert files == [f"0000{number}.npy" for number in range(5)]


def test_it_is_indexed_split_and_measured_as_a_tensor_is():
    found, values = make(), torch.arange(COUNT, dtype=torch.uint8)
    tensor = values[:, None, None, None].expand(-1, 3, WIDTH, WIDTH)
    assert len(found) == len(tensor) and found.shape == tuple(tensor.shape)
    assert found.device == tensor.device and found.dtype == tensor.dtype
    assert found.nbytes == COUNT * 3 * WIDTH**2
    mask = torch.arange(COUNT) % 7 == 0
    none, square = torch.tensor([], dtype=torch.long), torch.tensor([[1, 50], [94, 0]])
    for index in (5, -1, slice(15, 45), slice(None, None, 9), mask, none, square):
        assert torch.equal(found[index], tensor[index])
    for chunk, same in zip(found.split(32), tensor.split(32), strict=True):
        assert torch.equal(chunk, same)
    assert [int(image[0, 0, 0]) for image in found] == list(range(COUNT))
    for outside in (COUNT, torch.tensor([0, COUNT])):
        with pytest.raises(IndexError):
            found[outside]


def test_several_are_joined_to_one():
    one, other = make(), make()
    both = Shards.join([one, other])
    rows = torch.tensor([0, 94, 95, 115, 189])
    assert len(both) == 2 * COUNT and numbers(both[rows]) == [0, 94, 0, 20, 94]


def test_only_the_files_of_a_batch_are_opened(monkeypatch):
    found, opened, load = make(), [], np.load
    monkeypatch.setattr(np, "load",
                        lambda file, **options: opened.append(file.name) or load(file, **options))
    found[torch.tensor([21, 90, 39, 20])]
    assert sorted(opened) == ["00001.npy", "00004.npy"]


def test_it_stays_on_the_host_and_is_read_whole_for_another_device():
    found = make()
    held = Labelled(found, np.zeros(COUNT, int), ("a",), "{}")
    assert found.to("cpu") is found and held.to("cpu").images is found
    moved = held.to("meta").images
    assert isinstance(moved, torch.Tensor) and moved.shape == found.shape


def test_a_set_that_is_too_large_for_a_device_stays(monkeypatch):
    from clstudy.data import types

    found = make()
    monkeypatch.setattr(types, "LARGEST", found.nbytes - 1)
    assert Labelled(found, np.zeros(COUNT, int), ("a",), "{}").to("meta").images is found


def test_features_are_those_of_the_pictures(clip):
    from clstudy.evaluation.features import features

    found = make()
    assert torch.equal(features(clip, found), features(clip, found[:]))


def test_a_large_set_does_not_go_to_memory(tmp_path):
    """1.2 GB of files, looked at once from end to end and a thousand times at random, by a process
    of its own."""
    code = """
import re, sys
from pathlib import Path
import numpy as np, torch
from clstudy.data.image_shards import Shards
files = [Path(sys.argv[1], f"{i}.npy") for i in range(8)]
for file in files:  # holes: no place on the disk
    np.lib.format.open_memmap(file, "w+", np.uint8, (1000, 3, 224, 224))
found = Shards(files, [1000] * 8, 224)
used = lambda: int(re.search("VmHWM:[^0-9]+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1e3
found[torch.arange(256)]
before = used()
for chunk in found.split(256):
    pass
for _ in range(20):
    found[torch.randint(8000, (64,))]
print(found.nbytes / 1e6, used() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=True).stdout
    whole, grown = map(float, said.split())
    assert whole > 1200 and grown < 250


# ---- making


def test_nothing_is_decoded_twice():
    opened = []
    for _ in range(2):
        make(plain(opened))
    assert sorted(opened) == list(range(COUNT))
    sharded("set-train-8", "abc", WIDTH, COUNT, lambda: pytest.fail("the pictures are not needed"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_decoding_goes_on_where_it_was(place):
    child = os.fork()
    if child == 0:  # never returns
        try:
            make(plain(die=50))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert {path.name for path in place.glob("*.npy")} == {"00000.npy", "00001.npy"}
    assert list(place.glob("*.draft-*"))
    opened = []
    assert numbers(make(plain(opened))[:]) == list(range(COUNT))
    assert sorted(opened) == list(range(40, COUNT))
    assert len(list(place.iterdir())) == 5  # the dead draft is gone


@pytest.mark.parametrize("fault", ["cut", "gone", "empty", "header", "shape"])
def test_a_damaged_file_is_decoded_again_and_only_that(place, fault):
    make()
    path = place / "00002.npy"
    if fault == "gone":
        path.unlink()
    elif fault == "shape":
        np.save(path, np.zeros((EACH, 3, WIDTH, WIDTH - 1), np.uint8))
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:-1], "empty": b"", "header": bytes(64) + whole[64:]}[fault])
    opened = []
    assert numbers(make(plain(opened))[:]) == list(range(COUNT))
    assert sorted(opened) == list(range(40, 60))


def test_a_picture_that_cannot_be_read_is_named_and_what_was_decoded_stays(place):
    with pytest.raises(DamagedError,
                       match=r"picture-70.png cannot be read \(OSError: truncated\). Get another."):
        make(plain(bad=70))
    assert sorted(path.name for path in place.iterdir()) == ["00000.npy", "00001.npy", "00002.npy"]


def test_processes_share_the_files_out(place):
    """Another process is at file 0, and makes file 3 while this one is at file 1."""
    place.mkdir(parents=True)
    (place / f"00000.draft-elsewhere-{os.getpid()}").mkdir()
    opened = []

    def read(i: int):
        opened.append(i)
        if i == 20:
            np.save(place / "00003.npy", np.full((EACH, 3, WIDTH, WIDTH), 9, np.uint8))
        return Image.new("RGB", (WIDTH, WIDTH), (i, i, i)), 0

    found = make(Pictures(COUNT, read, str))
    # file 0 in the end: who was at it may be dead
    assert [i // EACH for i in opened[::EACH]] == [1, 2, 4, 0]
    assert numbers(found[torch.tensor([0, 20, 60])]) == [0, 20, 9]


def test_threads_make_the_same(monkeypatch):
    from clstudy.data import image_store

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(image_store, "BLOCK", 3)
    assert numbers(make()[:]) == list(range(COUNT))


def test_a_full_disk_is_said_before_decoding_and_counts_what_is_missing_only(place, monkeypatch):
    make()
    (place / "00004.npy").unlink()
    monkeypatch.setattr(shutil, "disk_usage",
                        lambda path: SimpleNamespace(free=15 * 3 * WIDTH**2 - 1))
    with pytest.raises(OSError, match="set-train-8-abc needs 0.0 GB"):
        make(Pictures(COUNT, lambda i: pytest.fail("decoded"), str))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=15 * 3 * WIDTH**2))
    assert numbers(make()[90:]) == list(range(90, COUNT))
