"""DomainNet on small files in its real form: the published lists, orders of domains, streams, what
is refused."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_sets
import torch

from clstudy import RunConfig
from clstudy.data import image_shards
from clstudy.data.benchmarks import BENCHMARKS, datasets, domainnet, photographs
from clstudy.data.benchmarks.domainnet import DOMAINS, TOTALS
from clstudy.data.image_store import DamagedError
from clstudy.data.streams import STREAMS
from clstudy.utils import paths
from tests.data.test_datasets import reference

SIZE = 32


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domainnet")
    return folder, small_sets.draw_domainnet(folder, np.random.default_rng(0))


@pytest.fixture
def disk(master, tmp_path, monkeypatch):
    """What should be read: split → domain → rows; an own copy of each file. Files of the cache hold
    five pictures."""
    folder, expected = master
    shutil.copytree(folder, tmp_path / "sets")
    small_sets.use(monkeypatch, tmp_path / "sets", tmp_path / "decoded", {})
    small = {name: sum(len(expected[split][name]) for split in expected) for name in DOMAINS}
    monkeypatch.setitem(TOTALS, "cleaned", small)
    monkeypatch.setitem(TOTALS, "original", {name: count + 1 for name, count in small.items()})
    monkeypatch.setattr(image_shards, "SHARD", 5 * 3 * SIZE ** 2)
    return expected


def place() -> Path:
    return paths.downloads() / "domainnet"


def agree(labelled, rows: dict, domains: tuple[str, ...]) -> None:
    assert labelled.domain_names == domains
    flat = [(picture, name, domain) for domain in domains for picture, name in rows[domain]]
    assert len(labelled) == len(labelled.images) == len(labelled.domains) == len(flat)
    for i, (picture, name, domain) in enumerate(flat):
        assert labelled.class_names[labelled.labels[i]] == name
        assert labelled.domain_names[labelled.domains[i]] == domain
        assert np.array_equal(labelled.images[i].numpy(), reference(picture, SIZE))


def test_pictures_classes_and_domains_are_those_of_the_lists(disk):
    found = BENCHMARKS["domainnet"](size=SIZE).load()
    assert len(found.train.class_names) == 345 and found.train.template == "a photo of a {}."
    agree(found.train, disk["train"], DOMAINS)
    agree(found.test, disk["test"], DOMAINS)
    assert found.captions[0] == f"a photo of a {disk['train']['clipart'][0][1]}."


@pytest.mark.parametrize(("asked", "order"), [
    ("cassle", ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")), (["sketch", "clipart"],) * 2])
def test_domains_come_in_the_order_asked_for_and_are_decoded_once(asked, order, disk, monkeypatch):
    BENCHMARKS["domainnet"](size=SIZE).load()
    monkeypatch.setattr(photographs, "from_files", None)
    found = BENCHMARKS["domainnet"](size=SIZE, domains=asked).load()
    agree(found.train, disk["train"], tuple(order))
    agree(found.test, disk["test"], tuple(order))


def test_a_domain_that_is_not_asked_for_need_not_be_there(disk):
    shutil.rmtree(place() / "real")
    agree(BENCHMARKS["domainnet"](size=SIZE, domains=["quickdraw"]).load().test, disk["test"],
          ("quickdraw", ))
    said = (r"domainnet \(domainnet/real\). `clstudy data get domainnet` fetches about 17.56 GB.*"
            r"\"domains\": \['clipart', 'inf")
    with pytest.raises(FileNotFoundError, match=said):
        BENCHMARKS["domainnet"]().require()


def test_so_many_of_each_class_in_each_domain_are_the_first_of_the_list(disk):
    found = BENCHMARKS["domainnet"](size=SIZE, per_class=1).load()
    for split, part in (("train", found.train), ("test", found.test)):
        first = {}
        for domain, rows in disk[split].items():
            names = [name for _, name in rows]
            first[domain] = [row for i, row in enumerate(rows) if row[1] not in names[:i]]
        agree(part, first, DOMAINS)
    assert len(found.train) == 4 * 6 - 1  # no painting of a t-shirt


def test_the_stream_of_domains_follows_the_order(disk):
    found = BENCHMARKS["domainnet"](size=SIZE, domains="cassle").load()
    stages = STREAMS["domains"](order="given").stages(found.train.labels, 0, found.train.domains)
    order = domainnet.ORDERS["cassle"]
    first = [found.train.domains[stage.index[0]] for stage in stages]
    assert tuple(found.train.domain_names[domain] for domain in first) == order
    assert [len(stage.index) for stage in stages] == [len(disk["train"][name]) for name in order]
    assert [len(stage.classes) for stage in stages] == [4, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("stream", "options"), [("domains", {"order": "given"}), ("disjoint", {"tasks": 2})])
def test_a_run_trains_and_tells_each_domain(stream, options, disk, toy_model):
    from small_runs import train

    asked = {"size": SIZE, "domains": ["real", "clipart"]}
    config = RunConfig(benchmark="domainnet", benchmark_args=asked, stream=stream,
                       stream_args=options, method="gdro", method_args={"size": 8},
                       model=str(toy_model), batch_size=8, steps_per_batch=1)
    evals, steps = train(config)
    told = {row["set"] for row in evals}
    domains = {name for name in told if name.startswith("domain")}
    assert steps and domains == {"domain real", "domain clipart"}
    assert "class t-shirt" in told and {row["stage"] for row in evals} == {0, 1, 2}


def test_a_batch_across_domains_is_the_decoded_pictures(disk):
    found = BENCHMARKS["domainnet"](size=SIZE).load()
    flat = [row for domain in DOMAINS for row in disk["train"][domain]]
    rows = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    for image, row in zip(found.train.images[rows], rows.tolist(), strict=True):
        assert np.array_equal(image.numpy(), reference(flat[row][0], SIZE))


# ---- what is refused


@pytest.mark.parametrize(("options", "said"), [
    ({"domains": "s-prompts"}, "domains='s-prompts' is unknown.*cassle, official"),
    ({"domains": ["clip"]}, "domains='clip' is unknown. Did you mean clipart"),
    ({"domains": ["real", "real"]}, "each once"), ({"domains": []}, "one domain or more"),
    ({"lists": "clean"}, "lists='clean' is unknown. Did you mean cleaned"), ({"per_class": 0}, "per_class=0"),
    ({"size": 4}, "size=4"), ({"template": "x"}, "template='x'"), ({"held_out": ["x"]}, "held_out='x'"),
], ids=str)
def test_impossible_options_are_refused_before_anything_is_looked_for(options, said, tmp_path,
                                                                      monkeypatch):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        BENCHMARKS["domainnet"](**options)
    with pytest.raises(ValueError, match=said):
        RunConfig(benchmark="domainnet", benchmark_args=options)


def refused(said: str) -> None:
    """For this reason, and before anything is decoded."""
    with pytest.raises(DamagedError, match=said):
        BENCHMARKS["domainnet"](size=SIZE).load()
    assert not list(Path(os.environ["CLSTUDY_CACHE"]).glob("*"))


def test_a_list_that_is_cut_is_refused(disk):
    path = place() / "sketch_test.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    refused("the lists of sketch in .* name 19 images, not the 20 of the cleaned lists. "
            "`clstudy data get domainnet`")
    path.write_text("".join(lines)[:-5])
    refused(f"sketch_test.txt, line {len(lines)}: .* is not `sketch/<class>/<picture> <label>`")


def test_a_label_that_is_not_that_of_the_folder_is_refused(disk):
    path = place() / "real_train.txt"
    path.write_text(path.read_text().replace(" 327\n", " 326\n"))
    form = "`real/<class>/<picture> <label>`"
    refused(f"real_train.txt, line .* is not {form} with the published label")


def test_other_lists_are_named_and_taken_when_they_are_asked_for(disk, monkeypatch):
    monkeypatch.setitem(TOTALS, "cleaned", {**TOTALS["cleaned"], "clipart": 19})
    monkeypatch.setitem(TOTALS, "original", {**TOTALS["cleaned"], "clipart": 20})
    refused("name 20 images, not the 19 of the cleaned lists. "
            "They are the original ones: lists='original'")
    found = BENCHMARKS["domainnet"](size=SIZE, lists="original").load()
    agree(found.train, disk["train"], DOMAINS)


def test_a_picture_that_is_not_there_is_named(disk):
    path = min((place() / "quickdraw").rglob("*.png"))
    path.unlink()
    refused("1 pictures of the lists of quickdraw are not in .*, "
            f"the first is quickdraw/.*{path.name}")


def test_a_picture_that_cannot_be_read_is_named(disk):
    path = min((place() / "quickdraw").rglob("*_train*.png"))
    path.write_bytes(b"no picture")
    with pytest.raises(DamagedError,
                       match=f"{path.name} cannot be read.*clstudy data get domainnet"):
        BENCHMARKS["domainnet"](size=SIZE).load()


def test_labels_are_positions_in_the_published_order():
    keys = list(datasets.about_classes("domainnet")["classes"])
    asked = ("aircraft_carrier", "cello", "cell_phone", "t-shirt", "zigzag")
    assert [keys.index(key) for key in asked] == [0, 66, 67, 327, 344] and len(keys) == 345


def test_totals_are_those_of_its_site():
    assert sum(TOTALS["cleaned"].values()) == 586_575
    assert sum(TOTALS["original"].values()) == 596_010
