"""The embedded world: what the file holds, that other tools read it, and that test is not in
train."""
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from clstudy.data.benchmarks import BENCHMARKS, emoji
from clstudy.data.types import BenchmarkData

SKIN_TONES = {f"1F3F{c}" for c in "BCDEF"}


@pytest.fixture(scope="module")
def rows():
    return emoji.table()


@pytest.fixture(scope="module")
def kinds() -> BenchmarkData:
    return BENCHMARKS["emoji"]().load()


@pytest.fixture(scope="module")
def concepts() -> BenchmarkData:
    return BENCHMARKS["emoji_concepts"]().load()


@pytest.fixture(params=["kinds", "concepts"])
def benchmark(request) -> BenchmarkData:
    return request.getfixturevalue(request.param)


def pictures(labelled) -> set[bytes]:
    return {image.tobytes() for image in labelled.images.numpy()}


# ---- the file


def test_the_world_is_as_large_as_it_should_be(rows):
    assert len(rows) >= 14_000
    assert rows.family.nunique() == 12 == len(set(emoji.PRETRAINING) | set(emoji.UNSEEN))
    assert not set(emoji.PRETRAINING) & set(emoji.UNSEEN)
    assert set(rows.family) == set(emoji.PRETRAINING) | set(emoji.UNSEEN)
    assert (rows.groupby("hexcode").family.nunique() >= 9).sum() >= 900


def test_each_family_draws_a_concept_once_and_names_are_one_per_concept(rows):
    assert not rows.duplicated(["family", "hexcode"]).any()
    assert (rows.groupby("hexcode")[["label", "subgroup", "group"]].nunique() == 1).all().all()
    assert rows.groupby("label").hexcode.nunique().max() == 1


def test_there_are_no_skin_tones(rows):
    assert not any(SKIN_TONES & set(code.upper().split("-")) for code in rows.hexcode)


def test_every_picture_is_64_pixels_wide_and_shows_something(rows):
    for start in range(0, len(rows), 2000):
        part = rows.iloc[start:start + 2000]
        rgba = emoji.decode(part.image)
        assert rgba.shape == (len(part), 64, 64, 4) and rgba.dtype == np.uint8
        ink = (rgba[..., 3] > 32).mean((1, 2))
        emptiest = part.iloc[int(ink.argmin())]
        assert ink.min() > 0.005, emptiest[["family", "hexcode", "label"]].tolist()


def test_the_file_is_read_by_datasets_as_pictures(tmp_path, monkeypatch, rows):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset("parquet", data_files=str(emoji.PATH), split="train[:5]",
                                   cache_dir=str(tmp_path))
    assert len(loaded) == 5 and set(emoji.COLUMNS) <= set(loaded.column_names)
    for found, (_, row) in zip(loaded, rows.head(5).iterrows(), strict=True):
        assert isinstance(found["image"], Image.Image) and found["image"].size == (64, 64)
        assert np.array_equal(np.asarray(found["image"].convert("RGBA")),
                              emoji.decode([row.image])[0])
        assert found["label"] == row.label and found["tags"] == list(row.tags)


def test_pictures_are_laid_on_white():
    rgba = np.zeros((1, 2, 2, 4), np.uint8)
    rgba[0, 0, 0], rgba[0, 1, 1] = (10, 20, 30, 255), (0, 0, 0, 51)  # opaque; black at a fifth
    white = emoji.on_white(rgba)
    assert white.shape == (1, 3, 2, 2) and white.dtype == np.uint8
    assert white[0, :, 0, 0].tolist() == [10, 20, 30] and white[0, :, 0, 1].tolist() == [255] * 3
    assert white[0, :, 1, 1].tolist() == [204] * 3


def test_pictures_are_stored_without_loss(rows):
    assert Image.open(io.BytesIO(rows.image[0]["bytes"])).format in ("PNG", "WEBP")
    for cell in rows.image:
        assert cell["bytes"][:4] == b"\x89PNG" or cell["bytes"][12:16] == b"VP8L"


# ---- both benchmarks


def test_labels_point_at_names_and_every_class_trains(benchmark):
    names = benchmark.train.class_names
    assert benchmark.test.class_names == names
    assert set(benchmark.train.labels) == set(range(len(names)))
    assert set(benchmark.test.labels) <= set(range(len(names)))
    for part in (benchmark.train, benchmark.test, *benchmark.held_out.values()):
        assert len(part.images) == len(part.labels) == len(part) > 0
        assert part.images.shape[1:] == (3, 64, 64) and str(part.images.dtype) == "torch.uint8"
        assert 0 <= part.labels.min() and part.labels.max() < len(part.class_names)
        assert "{}" in part.template


def test_class_names_are_unique_and_readable(kinds):
    for part in (kinds.train, *kinds.held_out.values()):
        assert len(set(part.class_names)) == len(part.class_names)
    # subgroups, made readable
    for part in (kinds.train, kinds.held_out["faces and people"], kinds.held_out["symbols"]):
        for name in part.class_names:
            assert re.fullmatch(r"[a-z& ]+", name), name


def test_concept_names_are_those_of_unicode(concepts):
    assert len(set(concepts.train.class_names)) == len(concepts.train.class_names) > 300
    assert not any("_" in name for name in concepts.train.class_names)


def test_every_training_image_has_a_caption_with_its_label_in_front(benchmark):
    assert len(benchmark.captions) == len(benchmark.train)
    labels = set(emoji.table().label)
    for caption in benchmark.captions:
        assert caption in labels or caption.rpartition(": ")[0] in labels
    if benchmark.name == "emoji_concepts":
        for caption, label in zip(benchmark.captions, benchmark.train.labels, strict=True):
            assert caption.startswith(benchmark.train.class_names[label])


def test_groups_hold_every_class_once(benchmark):
    classes = [c for group in benchmark.groups.values() for c in group]
    assert sorted(classes) == list(range(len(benchmark.train.class_names)))
    assert set(benchmark.groups) == set(emoji.OBJECTS)


def test_held_out_sets_and_test_share_no_image_with_train(benchmark):
    train = pictures(benchmark.train)
    assert not train & pictures(benchmark.test)
    for name, held_out in benchmark.held_out.items():
        assert not train & pictures(held_out), name
    for name, pairs in benchmark.retrieval.items():
        assert not train & {image.tobytes() for image in pairs.images.numpy()}, name


def test_untouched_sets_share_no_class_with_the_stream(benchmark):
    names = set(benchmark.train.class_names)
    for held_out in ("faces and people", "symbols", "flags"):
        shared = names & set(benchmark.held_out[held_out].class_names)
        # two animals are called as two kinds of faces are; their pictures differ
        assert shared <= ({"cat face", "monkey face"}
                          if benchmark.name == "emoji_concepts" else set()), held_out


def test_retrieval_has_captions_of_every_image(benchmark):
    pairs = benchmark.retrieval["drawings"]
    assert len(pairs.captions) == len(pairs.owner)
    assert sorted(set(pairs.owner.tolist())) == list(range(len(pairs)))
    assert all(pairs.captions)


# ---- what divides train from test


def test_no_test_concept_has_a_drawing_in_train(kinds):
    objects = kinds.held_out["concepts"]
    test = {objects.class_names[label] for label in objects.labels}
    train = {caption.rpartition(": ")[0] or caption for caption in kinds.captions}
    assert test and not test & train and test | train == set(objects.class_names)
    others = kinds.held_out["other styles"]
    assert set(others.labels) <= set(kinds.test.labels)


def test_every_class_is_tested_with_about_the_share_asked_for(kinds):
    objects = kinds.held_out["concepts"]
    tested = len(set(objects.labels)) / len(objects.class_names)
    assert 0.15 < tested < 0.25
    concepts = emoji.table(emoji.COLOUR).groupby("subgroup").hexcode.nunique()
    alone = {emoji.readable(subgroup) for subgroup in concepts[concepts == 1].index}
    untested = set(range(len(kinds.test.class_names))) - set(kinds.test.labels)
    assert {kinds.test.class_names[label]
            for label in untested} <= alone  # its one concept is needed for training
    small = BENCHMARKS["emoji"](families=("streamline-emojis",), test_share=0.5).load()
    assert 0.4 < len(small.test) / (len(small.test) + len(small.train)) < 0.6


def test_what_trains_and_tests_by_default_is_what_the_stored_runs_were_made_with(benchmark):
    arrays = (benchmark.train.labels, benchmark.train.concepts, benchmark.test.labels,
              benchmark.test.concepts, np.array(benchmark.test.images.numpy().sum((1, 2, 3))))
    found = hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()[:16]
    assert found == {"emoji": "19eb1ac8baf92453", "emoji_concepts": "10a9ce87fa2a9a59"}[benchmark.name]


def test_another_split_has_other_test_concepts():
    one, same, other = (BENCHMARKS["emoji"](families=["streamline-emojis"], split_seed=seed).load()
                        for seed in (0, 0, 1))
    assert pictures(one.test) == pictures(same.test) != pictures(other.test)


def test_test_families_draw_what_train_families_taught(concepts):
    rows = emoji.table(("noto", "fluent-emoji"))
    kept = rows[rows.label.isin(concepts.train.class_names)]
    assert len(concepts.train) == len(concepts.test) == len(kept)
    assert len(kept) == 2 * len(concepts.train.class_names)
    counts = np.bincount(concepts.test.labels)
    assert (counts == 2).all()  # each concept by both test families


def test_pretraining_families_are_in_no_benchmark(benchmark, rows):
    seen = rows[rows.family.isin(emoji.PRETRAINING)]
    known = {image.tobytes() for image in emoji.on_white(emoji.decode(seen.image))}
    parts = {"train": benchmark.train, "test": benchmark.test, **benchmark.held_out}
    for name, part in parts.items():
        share = np.mean([image.tobytes() in known for image in part.images.numpy()])
        assert share < 0.02, name  # a few flags and signs are drawn alike everywhere


# ---- what is refused


@pytest.mark.parametrize(("name", "options"), [
    ("emoji", {"families": ["notto"]}), ("emoji_concepts", {"train_families": ["notto"]}),
    ("emoji_concepts", {"test_families": ["notto"]}),
])
def test_an_unknown_family_is_refused_with_the_choices(name, options):
    with pytest.raises(ValueError, match="'notto' is unknown.*fluent-emoji.*noto-v1.*twemoji"):
        BENCHMARKS[name](**options).load()


def test_a_family_that_trains_and_tests_is_refused():
    with pytest.raises(ValueError, match="share noto"):
        BENCHMARKS["emoji_concepts"](train_families=["noto"], test_families=["noto",
                                                                             "twemoji"]).load()


@pytest.mark.parametrize("share", [0, 1, -0.5, 20])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="test_share"):
        BENCHMARKS["emoji"](test_share=share).load()


@pytest.mark.parametrize(("name", "options"), [
    ("emoji", {"families": []}), ("emoji_concepts", {"train_families": []}),
    ("emoji_concepts", {"test_families": []}),
])
def test_no_family_is_refused(name, options):
    with pytest.raises(ValueError, match="famil"):
        BENCHMARKS[name](**options).load()


def test_a_missing_file_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "PATH", tmp_path / "emoji.parquet")
    emoji._everything.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="build_emoji.py"):
            emoji.table()
    finally:
        emoji._everything.cache_clear()


# ---- updating some groups


@pytest.mark.parametrize("name", ["emoji", "emoji_concepts"])
def test_the_groups_that_are_not_updated_are_a_held_out_set_of_other_classes(name, kinds, concepts):
    whole = {"emoji": kinds, "emoji_concepts": concepts}[name]
    part = BENCHMARKS[name](update=["animals-nature", "activities"]).load()
    assert set(part.groups) == {"animals-nature", "activities"}
    other = part.held_out["other classes"]
    assert not set(other.class_names) & set(part.train.class_names)
    assert set(other.class_names) | set(part.train.class_names) == set(whole.test.class_names)
    seen, tested = pictures(part.train), pictures(part.test)
    assert not pictures(other) & seen and seen < pictures(whole.train)
    assert tested | pictures(other) == pictures(whole.test)
    assert "other classes" not in whole.held_out
    drawn = part.retrieval["drawings"]
    assert drawn.captions == whole.retrieval["drawings"].captions


@pytest.mark.parametrize("name", ["emoji", "emoji_concepts"])
@pytest.mark.parametrize(("update", "message"), [(["animals"], "update='animals' is unknown. Did you mean"),
                                                 ([], "needs at least one group; choices: animals-nature")])
def test_groups_to_update_are_checked(name, update, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BENCHMARKS[name](update=update).load()


def test_the_reference_is_every_drawing_that_pretraining_saw_with_its_words(kinds, rows):
    pairs = kinds.reference()
    assert len(pairs) == len(pairs.captions) == len(pairs.owner)
    assert len(pairs) == rows.family.isin(emoji.PRETRAINING).sum()
    assert not pictures(pairs) & (pictures(kinds.train) | pictures(kinds.test))
    assert pairs.captions[0].startswith("grinning face: ")
    assert kinds.reference() is pairs


@pytest.mark.parametrize("name", ["emoji", "emoji_concepts"])
def test_held_out_sets_can_be_chosen(name):
    found = BENCHMARKS[name](held_out=["flags", "symbols"]).load()
    assert list(found.held_out) == ["flags", "symbols"]
    assert BENCHMARKS[name](held_out=[]).load().held_out == {}
    with pytest.raises(ValueError, match="held_out='flag' is unknown. Did you mean flags?"):
        BENCHMARKS[name](held_out=["flag"]).load()


# ---- in several styles


def test_styles_are_the_kinds_with_the_family_as_domain(kinds):
    styles = BENCHMARKS["emoji_styles"]().load()
    assert styles.train.class_names == kinds.train.class_names
    assert styles.train.domain_names == styles.test.domain_names == emoji.UNSEEN
    first = np.flatnonzero(styles.train.domains == emoji.UNSEEN.index("twemoji"))[0]
    drawn = pictures(kinds.train) | pictures(kinds.test)
    assert styles.train.images[first].numpy().tobytes() in drawn
    assert set(styles.train.domains) == set(styles.test.domains) == set(range(6))
    counts = np.bincount(styles.train.domains)
    assert counts.min() > 200 and not pictures(styles.train) & pictures(styles.test)
    other = BENCHMARKS["emoji_styles"](families=["streamline-emojis", "openmoji"]).load()
    assert other.train.domain_names == ("streamline-emojis", "openmoji")
    assert set(other.test.domains) == {0, 1}


@pytest.mark.parametrize("share", [0, 1])
def test_styles_refuse_what_kinds_refuse(share):
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        BENCHMARKS["emoji_styles"](test_share=share).load()
