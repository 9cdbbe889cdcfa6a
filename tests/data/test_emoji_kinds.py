"""The worlds of the main questions: large enough, and no image in two sets."""
import re
from itertools import combinations

import numpy as np
import pytest

from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.benchmarks.emoji import table
from clstudy.data.benchmarks.emoji_kinds import EmojiKinds
from clstudy.data.types import BenchmarkData, Labelled

THREE = ["travel-places", "food-drink", "activities"]
VALIDATION = ["validation", "validation, other classes"]


def pictures(images) -> set[bytes]:
    return {image.tobytes() for image in images.images.numpy()}


def parts(data: BenchmarkData) -> dict:
    return {"train": data.train, "test": data.test, **data.held_out, **data.retrieval}


def least(labelled: Labelled) -> int:
    return np.bincount(labelled.labels, minlength=len(labelled.class_names)).min()


@pytest.fixture(scope="module")
def whole() -> BenchmarkData:
    return EmojiKinds().load()


@pytest.fixture(scope="module")
def three() -> BenchmarkData:
    names = ["other classes", "faces and people", "symbols", "flags", *VALIDATION]
    return EmojiKinds(update=THREE, held_out=names).load()


@pytest.fixture(scope="module")
def checked() -> BenchmarkData:
    return EmojiKinds(update=THREE, split="validation").load()


def test_the_world_is_as_large_as_the_questions_need(whole, three):
    assert len(whole.test.class_names) == 47 and len(whole.train) == 1_700
    assert len(whole.test) >= 1_500 and least(whole.test) >= 10 and least(whole.train) >= 10
    assert list(whole.held_out) == ["faces and people", "symbols", "flags"]
    other = three.held_out["other classes"]
    assert list(three.held_out)[0] == "other classes" and set(three.groups) == set(THREE)
    assert len(three.test) >= 700 <= len(other) and len(three.test) + len(other) >= 1_500
    assert least(three.test) >= 10 <= least(other)
    assert not set(other.class_names) & set(three.train.class_names)
    assert set(other.class_names) | set(three.test.class_names) == set(whole.test.class_names)


def test_no_image_is_in_two_sets(whole, three, checked):
    shown = parts(three)
    pairs = list(combinations({name: pictures(each) for name, each in shown.items()}.items(), 2))
    assert len(pairs) == 36 and [(a, b) for (a, one), (b, two) in pairs if one & two] == []
    for name in shown:
        assert len(pictures(shown[name])) == len(shown[name]), name
    held = {name: pictures(each) for name, each in parts(checked).items()}
    for name in ("test", "other classes", "faces and people", "symbols", "flags", "drawings"):
        assert held[name] and not held[name] & set().union(*map(pictures, parts(whole).values()))
        assert not held[name] & pictures(shown[name]), name


def test_validation_images_never_train_and_change_nothing_about_training(three, checked):
    assert np.array_equal(three.train.images.numpy(), checked.train.images.numpy())
    assert three.train.class_names == checked.test.class_names
    for name, shown in (("validation", checked.test),
                        ("validation, other classes", checked.held_out["other classes"])):
        assert np.array_equal(three.held_out[name].images.numpy(), shown.images.numpy())
        assert np.array_equal(three.held_out[name].labels, shown.labels) and least(shown) >= 2
    assert not set(checked.test.concepts) & set(three.test.concepts)
    assert set(checked.test.concepts) | set(three.test.concepts) == set(three.train.concepts)


def test_every_concept_trains_in_some_styles_and_tests_in_others(whole):
    names = whole.train.domain_names
    assert {names[each] for each in whole.train.domains} == {"noto", "fluent-emoji"}
    assert {names[each] for each in whole.test.domains} == {"twemoji", "fluent-emoji-flat"}
    assert set(whole.test.concepts) <= set(whole.train.concepts)
    assert set(np.unique(whole.test.concepts, return_counts=True)[1]) == {2}
    streamline = table(["streamline-emojis"])
    assert 450 < len(whole.retrieval["drawings"]) < len(streamline)


def test_drawings_can_be_dealt_out_so_that_every_style_trains_and_tests():
    one = EmojiKinds(train_drawings=1, update=THREE).load()
    assert set(one.train.domains) == set(one.test.domains) == {0, 1, 2, 3}
    assert np.bincount(one.train.domains).min() > 0.2 * len(one.train)
    assert set(np.unique(one.train.concepts, return_counts=True)[1]) == {1}
    assert set(np.unique(one.test.concepts, return_counts=True)[1]) == {3}
    assert not pictures(one.train) & pictures(one.test) and least(one.test) >= 15
    assert not pictures(one.train) & pictures(one.held_out["other classes"])


@pytest.mark.parametrize(("options", "message"), [
    ({"split": "valid"}, "split='valid' is unknown. Did you mean validation? Choices: test, valid"),
    ({"split": "validation", "validation_share": 0.0}, "validation_share=0.0: must be above 0"),
    ({"validation_share": 1.0}, "validation_share=1.0: must be from 0 to below 1"),
    ({"train_families": ["notto"]}, "train_families='notto' is unknown. Did you mean noto"),
    ({"test_families": []}, "test_families=[]: needs at least one family; choices: noto, twemoji"),
    ({"test_families": ["noto"]}, "train_families and test_families share noto"),
    ({"train_drawings": 4}, "train_drawings=4: must be at most 3"),
    ({"update": ["animals"]}, "update='animals' is unknown. Did you mean animals-nature"),
])
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EmojiKinds(**options)


@pytest.mark.parametrize(("options", "message"), [
    ({"held_out": ["other styles"]}, "held_out='other styles' is unknown"),
    ({"validation_share": 0.97}, "validation_share=0.97 leaves no kind with 10 test images"),
])
def test_what_only_the_data_can_tell_is_refused_when_it_is_loaded(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EmojiKinds(**options).load()


# ---- the validation split of the others


@pytest.mark.parametrize(("name", "few"), [
    ("emoji", {"families": ["streamline-emojis"]}),
    ("emoji_styles", {"families": ["streamline-emojis"]}),
    ("emoji_concepts", {"train_families": ["streamline-emojis"], "test_families": ["twemoji"]}),
])
def test_the_other_embedded_benchmarks_have_a_validation_split_that_never_trains(name, few):
    test, checked = (BENCHMARKS[name](**few, validation_share=0.2, split=split).load()
                     for split in ("test", "validation"))
    assert np.array_equal(test.train.images.numpy(), checked.train.images.numpy())
    assert len(checked.test) > 40 and not pictures(checked.test) & pictures(test.test)
    assert not pictures(checked.test) & pictures(test.train)
    assert not set(checked.test.concepts) & set(test.test.concepts)
    assert set(checked.test.labels) <= set(test.train.labels)
    with pytest.raises(ValueError, match="validation_share=0.0: must be above 0"):
        BENCHMARKS[name](**few, split="validation")


def test_the_second_reading_of_the_test_images_is_named_last():
    found = BENCHMARKS["emoji"](families=["streamline-emojis"]).load()
    assert list(found.held_out)[-1] == "concepts"
    assert found.held_out["concepts"].images is found.test.images
