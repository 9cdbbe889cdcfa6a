"""Fetching a set from a server on this machine: going on after a cut, checksums, and that a set is
there whole or not at all. And the command."""
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clstudy.cli import app
from clstudy.data import download
from clstudy.data.benchmarks import datasets as sets
from clstudy.data.benchmarks.datasets import Archive
from clstudy.data.download import get


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CLSTUDY_CACHE", str(tmp_path / "decoded"))
    return tmp_path / "data"


class Server:
    """Serves `files`; `asked` lists (name, range, bytes sent). cut: how many bytes are sent before
    the line breaks."""

    def __init__(self, ranges: bool = True):
        self.files, self.asked, self.cut, server = {}, [], None, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                data, wanted = server.files.get(self.path[1:]), self.headers.get("Range")
                if data is None:
                    return self.send_error(404)
                start = int(wanted[6:-1]) if wanted and ranges else 0
                if start >= len(data):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                sent = data[start:] if server.cut is None else data[start:start + server.cut]
                server.asked.append((self.path[1:], wanted, len(sent)))
                self.wfile.write(sent)

            def log_message(self, *given):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def packed(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def offer(monkeypatch, server, name: str, *files: bytes) -> None:
    """Let the set's archives come from the server, with their md5."""
    archives = []
    for known, data in zip(sets.SETS[name].archives, files, strict=True):
        file = known.url.rpartition("/")[2]
        server.files[file] = data
        archives.append(
            replace(known, url=f"{server.url}/{file}", md5=hashlib.md5(data).hexdigest()))
    monkeypatch.setitem(sets.SETS, name, replace(sets.SETS[name], archives=tuple(archives)))


NOISE = np.random.default_rng(0).bytes(300_000)  # does not compress
CIFAR = {f"cifar-100-python/{file}": data
         for file, data in (("meta", b"m"), ("train", NOISE), ("test", b"t"))}
EACH = {
    "cifar100": [packed(CIFAR)],
    "tiny_imagenet": [zipped({
        f"tiny-imagenet-200/{file}": b"x" for file in
        ("wnids.txt", "train/n1/images/a.JPEG", "val/val_annotations.txt", "val/images/v.JPEG")})],
    "imagenet_r": [packed({"imagenet-r/n01443537/a.jpg": b"x"}, "w")],
    "food101": [packed({"food-101/meta/test.json": b"{}", "food-101/images/waffles/1.jpg": b"x"})],
    "caltech101": [zipped({
        "caltech-101/101_ObjectCategories.tar.gz":
        packed({"101_ObjectCategories/anchor/image_0001.jpg": b"x"}),
        "caltech-101/show.m": b"x"})],
    "eurosat": [zipped({"2750/Forest/Forest_1.jpg": b"x"})],
    "flowers102": [packed({"jpg/image_00001.jpg": b"x"}), b"MATLAB 5.0 labels",
                   b"MATLAB 5.0 splits"],
    "oxford_pets": [packed({"images/Abyssinian_1.jpg": b"x"}),
                    packed({"annotations/test.txt": b"x"})],
    "aircraft": [packed({f"fgvc-aircraft-2013b/data/{file}": b"x" for file in
                         ("variants.txt", "images_variant_test.txt", "images/1.jpg")})],
    "dtd": [packed({"dtd/labels/train1.txt": b"x", "dtd/images/banded/banded_0001.jpg": b"x"})],
    "mnist": [gzip.compress(data) for data in (NOISE, b"a", b"b", b"c")],
    "sun397": [packed({"SUN397/ClassName.txt": b"x", "SUN397/a/abbey/sun_a.jpg": b"x"})],
    "coco": [zipped({"train2014/a.jpg": b"x"}), zipped({"val2014/a.jpg": b"x"}),
             zipped({f"annotations/instances_{year}2014.json": b"{}" for year in ("train", "val")})],
    "domainnet": [
        data for name in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
        for data in (zipped({f"{name}/zebra/1.jpg": b"x"}), b"a list", b"another")],
    "karpathy": [zipped({f"dataset_{name}.json": b"{}"
                         for name in ("coco", "flickr30k", "flickr8k")})],
}


def test_every_set_that_can_be_fetched_is_fetched_here():
    fetched = {name for name, one in sets.SETS.items() if one.archives}
    assert fetched == {"cifar10", *EACH}  # cifar10 as cifar100


@pytest.mark.parametrize("name", EACH)
def test_a_set_is_fetched_into_its_place_and_found_there(name, root, server, monkeypatch):
    offer(monkeypatch, server, name, *EACH[name])
    assert sets.missing(name)
    place = get(name)
    assert place == root / sets.SETS[name].folder and not sets.missing(name)
    assert [path.name for path in root.iterdir()] == [place.name]  # no archive, no draft
    server.files.clear()
    assert get(name) == place  # is there: nothing is asked for


def test_a_download_that_was_cut_off_continues(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    whole, server.cut = len(EACH["cifar100"][0]), 100_000
    with pytest.raises(ConnectionError,
                       match=r"cut off after 100,000 of 300,\d+ bytes. Call again to continue"):
        get("cifar100")
    assert sets.missing("cifar100") and not (root / "cifar-100-python").exists()
    server.cut = None
    assert (get("cifar100") / "train").read_bytes() == NOISE
    assert server.asked[1][1:] == ("bytes=100000-", whole - 100_000)


def test_a_server_without_ranges_begins_anew(root, monkeypatch):
    plain = Server(ranges=False)
    offer(monkeypatch, plain, "cifar100", *EACH["cifar100"])
    plain.cut = 100_000
    with pytest.raises(ConnectionError):
        get("cifar100")
    plain.cut = None
    assert (get("cifar100") / "train").read_bytes() == NOISE
    plain.http.shutdown()
    plain.http.server_close()


def test_all_was_fetched_but_not_yet_checked(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    staging = root / ".getting-cifar100"
    staging.mkdir(parents=True)
    (staging / "cifar-100-python.tar.gz.part").write_bytes(EACH["cifar100"][0])
    assert (get("cifar100") / "train").read_bytes() == NOISE and not server.asked


def test_another_checksum_is_refused_and_the_file_removed(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    right = server.files["cifar-100-python.tar.gz"]
    server.files["cifar-100-python.tar.gz"] = right[:-1] + b"!"
    with pytest.raises(OSError,
                       match=f"has md5 .*, not the published {hashlib.md5(right).hexdigest()}"):
        get("cifar100")
    assert sets.missing("cifar100")
    server.files["cifar-100-python.tar.gz"] = right
    assert get("cifar100").exists()


def test_unpacking_that_was_killed_leaves_no_set_and_is_done_again(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    unpack, name = download.unpack, "cifar-100-python"

    def killed(archive, file, place):
        unpack(archive, file, place)
        (place / name / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "unpack", killed)
    with pytest.raises(KeyboardInterrupt):
        get("cifar100")
    assert not (root / name).exists()
    monkeypatch.setattr(download, "unpack", unpack)
    assert sorted(path.name for path in get("cifar100").iterdir()) == ["meta", "test", "train"]
    assert len(server.asked) == 1  # the archive is not fetched twice


def test_an_archive_of_something_else_is_said(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", packed({"cifar-100-python/meta": b"m"}))
    with pytest.raises(FileNotFoundError,
                       match="does not hold cifar-100-python/train, cifar-100-python/test"):
        get("cifar100")
    assert not (root / "cifar-100-python").exists()


def test_a_compressed_file_is_decompressed(root, server, monkeypatch):
    offer(monkeypatch, server, "mnist", *EACH["mnist"])
    assert (get("mnist") / "raw" / "train-images-idx3-ubyte").read_bytes() == NOISE


def test_an_archive_without_a_published_checksum_is_held_to_its_own(root, server, monkeypatch):
    offer(monkeypatch, server, "karpathy", *EACH["karpathy"])
    only = sets.SETS["karpathy"]
    without = replace(only.archives[0], md5="")
    monkeypatch.setitem(sets.SETS, "karpathy", replace(only, archives=(without,)))
    whole = server.files["caption_datasets.zip"]
    for torn in (whole.replace(b"{}", b"{", 1), whole.replace(b"{}", b"{!", 1), whole[:-9]):
        server.files["caption_datasets.zip"] = torn
        with pytest.raises(OSError, match="is not a whole zip; it was removed: call again"):
            get("karpathy")
    server.files["caption_datasets.zip"] = whole
    assert (get("karpathy") / "dataset_coco.json").read_text() == "{}"


@pytest.mark.parametrize(("name", "said"), [("flickr30k", "request form.*flickr30k/flickr30k-images"),
                                            ("tiered_imagenet_test", "account at image-net.org"),
                                            ("stanford_cars", "site is gone")])
def test_what_needs_a_form_or_an_account_is_not_fetched(name, said, root):
    with pytest.raises(FileNotFoundError, match=f"{name} cannot be fetched: .*{said}"):
        get(name)
    assert not root.exists()


def test_a_set_that_is_partly_there_is_left_alone(root):
    (root / "cifar-100-python").mkdir(parents=True)
    (root / "cifar-100-python" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="not whole .*meta.* is missing.*: move it away"):
        get("cifar100")
    assert (root / "cifar-100-python" / "mine").exists()


def test_a_server_out_of_reach_is_said_with_what_to_do_by_hand(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    server.files.clear()
    with pytest.raises(ConnectionError,
                       match="404.*put the file there by hand: .*cifar-100-python.tar.gz"):
        get("cifar100")


def test_a_local_file_does(root, tmp_path):
    (tmp_path / "a.bin").write_bytes(NOISE)
    root.mkdir()
    archive = Archive((tmp_path / "a.bin").as_uri(), hashlib.md5(NOISE).hexdigest())
    assert download.fetch(archive, root).read_bytes() == NOISE


def test_nothing_is_unpacked_outside_of_the_folder(root, server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "cifar100", packed({**CIFAR, "../../../escaped": b"x"}))
    with pytest.raises(tarfile.TarError):
        get("cifar100")
    assert not list(tmp_path.rglob("escaped"))


# ---- the command


def say(*words: str):
    return CliRunner().invoke(app, ["data", *words])


def test_the_command_lists_what_is_there(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    assert say("get", "cifar100").exit_code == 0
    (root / "food-101").mkdir()
    said = say()
    assert said.exit_code == 0 and str(root) in said.output and "CLSTUDY_DATA" in said.output
    rows = {line.split()[0]: line for line in said.output.splitlines()
            if line.split() and line.split()[0] in sets.SETS}
    assert set(rows) == set(sets.SETS) and "get flickr" not in said.output
    for name, words in {
        "cifar100": ["found", "benchmark", "cifar-100-python"],
        "eurosat": ["missing", "benchmark", "`clstudy data get eurosat`", "0.09 GB"],
        "dtd": ["held-out set"],
        "flickr30k": ["missing", "request form"],
        "food101": ["PARTLY", "food-101/meta/test.json"],
    }.items():
        assert all(word in rows[name] for word in words), rows[name]


def test_the_command_refuses_an_unknown_name_before_it_fetches(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    said = say("get", "cifar100", "cifar1000")
    assert said.exit_code == 2 and not server.asked
    for word in ("'cifar1000' is unknown", "Choices", "tiny_imagenet"):
        assert word in said.output
    assert "Choices: get" in say("fetch", "cifar100").output
    assert "name what to fetch" in say("get").output


def test_the_command_says_what_went_wrong(root, server, monkeypatch):
    offer(monkeypatch, server, "cifar100", *EACH["cifar100"])
    server.files.clear()
    said = say("get", "cifar100")
    assert said.exit_code == 2 and "404" in said.output and "Traceback" not in said.output


@pytest.mark.parametrize(("parameters", "said"), [
    (["-p", "benchmark=cifar100", "-p", "benchmark_args={}"], "clstudy data get cifar100"),
    (["-p", "benchmark=folder:nowhere", "-p", "benchmark_args={}"], "nowhere is not a folder"),
    (["-p", "benchmark=cifar", "-p", "benchmark_args={}"], "benchmark='cifar' is unknown"),
    (["-p", "benchmark=cifar100", "-p", "benchmark_args={'families': []}"], "'families' is unknown"),
])
def test_a_notebook_is_not_executed_without_its_data(root, monkeypatch, parameters, said):
    from clstudy.notebooks import execute

    monkeypatch.setattr(execute, "run_notebook", None)
    found = CliRunner().invoke(app, ["run", "03_candidates", *parameters])
    assert found.exit_code == 2 and said in found.output


def test_every_set_names_its_archives_with_checksums():
    for name, one in sets.SETS.items():
        assert bool(one.archives) == (one.megabytes > 0) == (not one.by_hand), name
        assert bool(one.read) == (one.images.get("test", 0) > 0), name
        for archive in one.archives:
            assert archive.url.startswith("http"), name
            assert len(archive.md5) == (0 if name == "karpathy" else 32), name


def test_urls_and_checksums_are_those_of_torchvision():
    from torchvision import datasets

    known = {
        "cifar10": [(datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5)],
        "cifar100": [(datasets.CIFAR100.url, datasets.CIFAR100.tgz_md5)],
        "dtd": [(datasets.DTD._URL, datasets.DTD._MD5)],
        "food101": [(datasets.Food101._URL, datasets.Food101._MD5)],
        "sun397": [(datasets.SUN397._DATASET_URL, datasets.SUN397._DATASET_MD5)],
        "mnist": [(datasets.MNIST.mirrors[0] + file, md5) for file, md5 in datasets.MNIST.resources],
    }
    for name, archives in known.items():
        assert [(one.url, one.md5) for one in sets.SETS[name].archives] == archives, name
    aircraft = sets.SETS["aircraft"].archives[0]
    assert aircraft.url == datasets.FGVCAircraft._URL  # torchvision has no md5 of it
