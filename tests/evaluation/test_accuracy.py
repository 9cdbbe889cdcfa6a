"""Accuracy against a loop over images, in all three scenarios; held-out sets; retrieval ranks
against another way."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import said

from clstudy.data.types import BenchmarkData, Captioned, Labelled
from clstudy.evaluation import features as features_module
from clstudy.evaluation.accuracy import evaluate, hits, zero_shot
from clstudy.evaluation.features import Cache, class_features, features
from clstudy.evaluation.retrieval import ranks, retrieval


def table(rows: list[dict]) -> dict[tuple, tuple[float, int]]:
    found = {
        (said(row), row["candidates"], row["metric"].split("-image ")[-1].split("-text ")[-1]): (
            row["value"], row["count"]) for row in rows
    }
    assert len(found) == len(rows)
    return found


def random_benchmark(clip, images: int = 70, classes: int = 9) -> BenchmarkData:
    """Noise in nine classes, of which class 4 has no test image."""
    rng = np.random.default_rng(3)
    labels = rng.choice([c for c in range(classes) if c != 4], images)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 3, 64, 64), dtype=np.uint8))
    names = tuple(f"thing number {'abcdefghi'[i]}" for i in range(classes))
    test = Labelled(pixels, labels, names, "a {}")
    held_out = {
        "others": Labelled(255 - pixels[:20], rng.integers(0, 3, 20), ("dog", "cat", "cow"),
                           "the {}")
    }
    return BenchmarkData("random", test, test, ("",) * images, {}, held_out)


def best(similarity: np.ndarray, offered) -> int:
    """The most similar of the classes offered, by a loop; the first of equals."""
    winner = None
    for label in sorted(offered):
        if winner is None or similarity[label] > similarity[winner]:
            winner = label
    return winner


TASKS = [(3, 0), (), (5, 1, 4),
         (8, 2)]  # 6 and 7 have no home; one task is empty; one class has no test image


def naive(clip, benchmark: BenchmarkData, seen: list[int]) -> dict[tuple, tuple[float, int]]:
    test = benchmark.test
    prompts = [test.template.format(name) for name in test.class_names]
    with torch.inference_mode():
        text = torch.cat([clip.encode_text(clip.tokenize([prompt])) for prompt in prompts])
        similarity = (torch.cat([clip.encode_image(image[None])
                                 for image in test.images]) @ text.T).numpy()
    streamed = {c for task in TASKS for c in task}
    right: dict[tuple, list[bool]] = {}
    for row, label in zip(similarity, test.labels.tolist(), strict=True):
        in_all = label in streamed and best(row, streamed) == label
        in_seen = label in seen and best(row, seen) == label
        if label in seen:
            right.setdefault(("seen classes", "seen"), []).append(in_seen)
            right.setdefault((f"class {test.class_names[label]}", "seen"), []).append(in_seen)
        if label not in streamed:
            continue
        right.setdefault(("all classes", "all"), []).append(in_all)
        right.setdefault((f"class {test.class_names[label]}", "all"), []).append(in_all)
        number, own = next((i, task) for i, task in enumerate(TASKS, 1) if label in task)
        right.setdefault((f"task {number}", "own"), []).append(best(row, own) == label)
        right.setdefault((f"task {number}", "all"), []).append(in_all)
        if seen:
            right.setdefault((f"task {number}", "seen"), []).append(in_seen)
    return {(*key, "accuracy"): (sum(found) / len(found), len(found))
            for key, found in right.items()}


@pytest.mark.parametrize("seen", [[], [3], [0, 3, 5], [3, 0, 5, 1, 4, 8, 2]], ids=str)
def test_accuracies_are_those_of_a_loop_over_images(clip, seen):
    benchmark = random_benchmark(clip)
    found = table(evaluate(clip, benchmark, TASKS, seen, sides=False).rows)
    found = {key: row for key, row in found.items() if key[2] == "accuracy"}
    expected = naive(clip, benchmark, seen)
    assert found.keys() == expected.keys()
    for key, (value, count) in expected.items():
        assert found[key] == (pytest.approx(value), count), key


def test_a_balanced_accuracy_is_the_mean_over_the_classes_of_the_task(clip):
    benchmark = random_benchmark(clip)
    found = table(evaluate(clip, benchmark, TASKS, [3, 0, 5, 1, 4, 8, 2], sides=False).rows)
    for number, classes in enumerate(TASKS, 1):
        tested = [c for c in classes if c in benchmark.test.labels]
        for candidates in ("seen", "all") if tested else ():
            each = [
                found[f"class {benchmark.test.class_names[c]}", candidates, "accuracy"][0]
                for c in tested
            ]
            value, count = found[f"task {number}", candidates, "class-balanced accuracy"]
            assert value == pytest.approx(np.mean(each)) and count == len(tested)
    assert ("task 2", "all", "class-balanced accuracy") not in found  # no class, no row
    plain, balanced = (found["task 3", "own", f"{kind}accuracy"][0]
                       for kind in ("", "class-balanced "))
    assert plain != balanced  # the classes have different numbers of images


def test_looking_in_between_measures_the_seen_classes_alone(clip):
    benchmark = random_benchmark(clip)
    whole = evaluate(clip, benchmark, TASKS, [0, 3]).rows
    assert evaluate(clip, benchmark, TASKS, [0, 3], complete=False, sides=False).rows == whole[:1]
    assert evaluate(clip, benchmark, TASKS, [], complete=False, sides=False).rows == []


def test_evaluation_leaves_the_weights_and_the_random_numbers(clip):
    before, state = {k: v.clone() for k, v in clip.state_dict().items()}, torch.get_rng_state()
    clip.train()
    evaluate(clip, random_benchmark(clip), TASKS, [3])
    assert all(torch.equal(before[key], value) for key, value in clip.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not clip.training


def test_one_class_offered_is_always_right_and_a_class_not_offered_never():
    similarity, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    offered = torch.tensor([[False, True, False]])
    assert hits(similarity, labels, offered).tolist() == [False, True, False, False, True, False]
    assert not hits(similarity, labels, torch.zeros(1, 3, dtype=torch.bool)).any()
    own = torch.nn.functional.one_hot(labels, 3).bool()  # an offer for each image
    assert hits(similarity, labels, own).all()
    assert torch.equal(hits(similarity, labels, torch.ones(1, 3, dtype=torch.bool)),
                       similarity.argmax(1) == labels)


def test_images_are_encoded_in_chunks_with_the_same_features(clip, monkeypatch):
    images = torch.rand(10, 3, 64, 64)
    whole = features(clip, images)
    monkeypatch.setattr(features_module, "CHUNK", 3)
    assert torch.allclose(features(clip, images), whole, atol=1e-6)


def test_class_features_are_those_of_the_prompts(clip):
    expected = clip.encode_text(clip.tokenize(["a dog.", "a cat."]))
    assert torch.allclose(class_features(clip, ("dog", "cat"), "a {}."), expected, atol=1e-6)


def test_a_held_out_set_is_classified_among_its_own_classes(clip):
    held_out = random_benchmark(clip).held_out["others"]
    image, text = features(clip, held_out.images), class_features(clip, held_out.class_names,
                                                                  held_out.template)
    similar = (image @ text.T).numpy()
    expected = [
        best(row, range(3)) == label for row, label in zip(similar, held_out.labels, strict=True)
    ]
    assert zero_shot(clip, held_out).tolist() == expected
    rows = table(evaluate(clip, random_benchmark(clip), TASKS, [0]).rows)
    assert rows["others", "own", "accuracy"] == (pytest.approx(np.mean(expected)), 20)


def test_an_empty_held_out_set_gives_no_row(clip):
    benchmark = random_benchmark(clip)
    held_out = benchmark.held_out["others"]
    empty = replace(held_out, images=held_out.images[:1], labels=held_out.labels[:1])
    rows = evaluate(clip, replace(benchmark, held_out={"one": empty}), TASKS, [0]).rows
    assert table(rows)["one", "own", "accuracy"][1] == 1
    assert ("others", "own", "accuracy") not in table(rows)


def test_what_is_kept_is_the_same_and_is_encoded_once(clip, monkeypatch):
    benchmark, cache, encoded = random_benchmark(clip), Cache(), []
    plain = evaluate(clip, benchmark, TASKS, [0, 3]).rows
    original = clip.encode_image
    monkeypatch.setattr(clip, "encode_image",
                        lambda images: encoded.append(len(images)) or original(images))
    assert evaluate(clip, benchmark, TASKS, [0, 3], cache=cache).rows == plain
    assert encoded == [70, 20]
    assert evaluate(clip, benchmark, TASKS, [0, 3],
                    cache=cache).rows == plain and encoded == [70, 20]
    cache.forget(image=False)
    assert evaluate(clip, benchmark, TASKS, [0, 3],
                    cache=cache).rows == plain and encoded == [70, 20]
    cache.forget(image=True, text=False)
    assert evaluate(clip, benchmark, TASKS, [0, 3],
                    cache=cache).rows == plain and encoded == [70, 20, 70, 20]


# ---- retrieval


def slow_ranks(similarity: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Sort every row and column, what is foreign first among equals, and look for the first of
    one's own."""
    images, texts = similarity.shape
    image_rank, text_rank = [], []
    for i in range(images):
        order = sorted(range(texts), key=lambda t: (-similarity[i, t], owner[t] == i))
        image_rank.append(next((place for place, t in enumerate(order) if owner[t] == i), texts))
    for t in range(texts):
        order = sorted(range(images), key=lambda i: (-similarity[i, t], owner[t] == i))
        text_rank.append(order.index(owner[t]))
    return image_rank, text_rank


@pytest.mark.parametrize("levels", [2, 5, 1000])  # few levels make many ties
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_places_in_a_sorted_list_with_ties_against(levels, seed):
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(7), rng.integers(0, 7, 9)])  # one caption or more each
    similarity = rng.integers(0, levels, (7, 16)).astype(np.float32)
    found = ranks(similarity, owner)
    assert tuple(rank.tolist() for rank in found) == slow_ranks(similarity, owner)


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.2, 0.3]])
    image_rank, text_rank = ranks(similarity, np.array(
        [0, 0, 1]))  # two captions of image 0, one of image 1
    assert image_rank.tolist() == [0, 1]  # 0.9 leads; 0.3 of image 1 stands behind the foreign 0.9
    assert text_rank.tolist() == [1, 1, 1]  # a tie counts against; 0.1 behind 0.2; 0.3 behind 0.5


def test_recall_counts_ranks_below_k(clip):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (12, 3, 64, 64), dtype=np.uint8))
    owner = np.concatenate([np.arange(12), np.arange(12)])
    pairs = Captioned(images, tuple(f"caption {chr(97 + i)}" for i in range(24)), owner)
    similarity = (features(clip, images) @ class_features(clip, pairs.captions, "{}").T).numpy()
    image_rank, text_rank = slow_ranks(similarity, owner)
    found = retrieval(clip, pairs, "pictures")
    rows = table(found.rows)
    right = [right.tolist() for right in found.correct.values()]
    assert right == [[rank < 1 for rank in ranked] for ranked in (image_rank, text_rank)]
    for k in (1, 5, 10):
        for direction, rank in (("image to text", image_rank), ("text to image", text_rank)):
            expected = (pytest.approx(np.mean(np.array(rank) < k)), len(rank))
            assert rows[f"pictures: {direction}", "all", f"recall@{k}"] == expected


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_folds_are_retrieved_from_by_themselves_and_averaged(clip, folds):
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (12, 3, 64, 64), dtype=np.uint8))
    owner = np.concatenate([np.arange(12), rng.permutation(12)])  # captions in no order
    captions = tuple(f"caption {chr(97 + i)}" for i in range(24))
    found = table(retrieval(clip, Captioned(images, captions, owner, folds), "pictures").rows)
    similarity = (features(clip, images) @ class_features(clip, captions, "{}").T).numpy()
    image_hits, text_hits, size = [], [], 12 // folds
    for fold in range(folds):
        rows = np.arange(fold * size, (fold + 1) * size)
        mine = [j for j in range(24) if owner[j] in rows]
        ranked = slow_ranks(similarity[rows][:, mine], owner[mine] - rows[0])
        image_hits += [rank < 1 for rank in ranked[0]]
        text_hits += [rank < 1 for rank in ranked[1]]
    assert found["pictures: image to text", "all", "recall@1"] == (pytest.approx(
        np.mean(image_hits)), 12)
    assert found["pictures: text to image", "all", "recall@1"] == (pytest.approx(
        np.mean(text_hits)), 24)


def test_accuracy_on_each_domain_is_that_of_a_loop(clip):
    plain = random_benchmark(clip)
    domain = np.arange(len(plain.test)) % 3
    test = replace(plain.test, domains=domain, domain_names=("ink", "oil", "chalk"))
    seen = [3, 0, 5]
    found = table(evaluate(clip, replace(plain, test=test), TASKS, seen, sides=False).rows)
    each = naive(clip, replace(plain, test=test), seen)
    for number, name in enumerate(test.domain_names):
        here = np.flatnonzero(domain == number)
        part = replace(test, images=test.images[torch.from_numpy(here)], labels=test.labels[here])
        expected = naive(clip, replace(plain, test=part), seen)
        assert found[f"domain {name}", "all", "accuracy"] == expected["all classes", "all",
                                                                      "accuracy"]
        assert found[f"domain {name}", "seen", "accuracy"] == expected["seen classes", "seen",
                                                                       "accuracy"]
    assert {key: row for key, row in found.items() if key in each} == {
        key: (pytest.approx(row[0]), row[1]) for key, row in each.items()
    }  # and nothing else has changed


def test_an_image_that_stands_in_several_sets_is_encoded_once(clip, monkeypatch):
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    sets = [
        images, images[[3, 3, 11]].clone(),
        torch.cat([images[:2], images[:2] ^ 1]),
        images.flip(0).contiguous()
    ]
    encoded, real = [], type(clip).encode_image
    monkeypatch.setattr(type(clip), "encode_image",
                        lambda self, some: encoded.append(len(some)) or real(self, some))
    cache = Cache()
    found = [features(clip, some, cache) for some in sets]
    assert encoded == [12, 2]  # of the third, the two that are new
    for some, mine in zip(sets, found, strict=True):
        torch.testing.assert_close(mine, features(clip, some), atol=1e-5, rtol=0)
    cache.forget(text=False)
    encoded.clear()
    features(clip, sets[1], cache)
    assert encoded == [3]  # the features that it had are those of other weights
    other = cache.copy()
    features(clip, sets[0], other)
    assert len(cache.image) == 1 and len(cache.places) < len(other.places)
