"""Caches and regressions on frozen features: closed forms, limits, any order of images, no image
kept."""
import numpy as np
import pytest
import torch
from small_runs import register, train
from torch.nn import functional as F

from clstudy.data.streams import Stage
from clstudy.data.types import Batch
from clstudy.methods.ranpac import RIDGES, RanPAC
from clstudy.methods.text_cache import TextCache
from clstudy.models.clip import Clip

CLASSES, DIM = 5, 8
LABELS = [0, 1, 2, 3] * 15  # class 4 never comes


@pytest.fixture
def world(monkeypatch, clip):
    """Features of 60 images, of 9 more, and of 5 texts; what is given as pixels is the features."""
    clip.requires_grad_(False)
    monkeypatch.setattr(Clip, "encode_image",
                        lambda clip, images: F.normalize(images.flatten(1), dim=-1))
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, DIM, generator=draws)
    images = centres[LABELS] + 0.8 * torch.randn(60, DIM, generator=draws)
    others = torch.randn(9, DIM, generator=draws)
    texts = torch.randn(CLASSES, DIM, generator=draws)
    return [F.normalize(each, dim=-1) for each in (images, others, texts)]


def arrive(method, clip, images, order=range(60), size=7):
    """The method, once these images came in batches of this size."""
    prompts = torch.zeros(CLASSES, 4, dtype=torch.long)
    stage = Stage(1, tuple(range(CLASSES)), np.arange(60))
    order = list(order)
    for first in range(0, len(order), size):
        index = tuple(order[first:first + size])
        batch = Batch(images[list(index), :, None, None], tuple(LABELS[i] for i in index), index,
                      tuple(range(CLASSES)), prompts, stage)
        method.after_step(clip, batch)
    return method


def run(tiny, name: str, **settings):
    return train(tiny.replace(method=name, tuner="none", **settings))


def ranking(values) -> list:
    return np.argsort(-np.asarray(values), 1).tolist()


# ---- the cache


def test_the_logits_of_the_cache_by_hand(clip, world):
    images, others, texts = world
    method = arrive(TextCache(alpha=0.7, beta=3.0, per_class=None), clip, images)
    found = method.values(clip, others, texts[[3, 4, 0]], torch.tensor([3, 4, 0]))
    scale = float(clip.scale())
    for f, row in zip(others, found, strict=True):
        for value, label in zip(row, (3, 4, 0), strict=True):
            own = [images[i] for i in range(60) if LABELS[i] == label]
            near = sum(np.exp(-3 * (1 - float(f @ key))) for key in own)
            assert float(value) == pytest.approx(scale * float(f @ texts[label]) + 0.7 * near, rel=1e-4)
    assert method.memory_bytes == 60 * DIM * 4 + CLASSES * 4


def test_a_sharp_cache_is_the_nearest_neighbour_and_a_flat_one_counts_keys(clip, world):
    images, others, texts = world
    rows = torch.arange(CLASSES)
    sharp = arrive(TextCache(alpha=1e30, beta=150.0, per_class=None), clip, images)
    nearest = [LABELS[int(np.argmax([float(f @ key) for key in images]))] for f in others]
    assert len(set(nearest)) > 1
    assert sharp.values(clip, others, texts, rows).argmax(1).tolist() == nearest
    flat = arrive(TextCache(alpha=2.0, beta=0.0, per_class=3), clip, images)
    added = flat.values(clip, others, texts, rows) - clip.scale() * others @ texts.T
    assert torch.allclose(added, torch.tensor([6.0, 6, 6, 6, 0]).expand(9, 5), atol=1e-4)


def test_a_class_without_keys_competes_by_its_text(clip, world):
    images, others, texts = world
    method = arrive(TextCache(alpha=50.0), clip, images)
    found, words = method.scores(clip, others, texts, range(CLASSES)), others @ texts.T
    values = method.values(clip, others, texts, torch.arange(CLASSES))
    assert ranking(found[:, :4]) == ranking(values[:, :4]) != ranking(words[:, :4])
    expected = (words[:, 4] - words[:, :4].mean(1)) / words[:, :4].std(1, correction=0)
    assert torch.allclose(found[:, 4], expected, atol=1e-4)
    assert values.argmax(1).max() < 4 and 4 in found.argmax(1)  # as published it never wins
    assert torch.equal(method.scores(clip, others, texts, None), words)


def test_a_cache_of_no_weight_is_frozen_clip(tiny):
    frozen = run(tiny, "frozen")
    assert run(tiny, "text_cache", method_args={"alpha": 0.0}) == frozen
    evals = run(tiny, "text_cache", method_args={"alpha": 50.0})[0]
    aside = [(one, other) for one, other in zip(frozen[0], evals, strict=True)
             if one["kind"] in ("held-out set", "retrieval") or one["stage"] == 0]
    assert evals != frozen[0] and all(one == other for one, other in aside)


def test_keys_are_a_uniform_draw_of_the_images_of_each_class():
    torch.manual_seed(0)
    kept = np.zeros(6)
    for _ in range(1000):
        method, keys = TextCache(per_class=2), []
        for image in range(6):  # of class 1, and one of class 0 between them
            for label in (1, 0) if image == 3 else (1,):
                keys = [(*keys, (label, image))[i] for i in method.take([label])]
        assert [label for label, _ in keys] == method.labels and sorted(method.labels) == [0, 1, 1]
        kept[[image for label, image in keys if label == 1]] += 1
    assert abs(kept / 1000 - 1 / 3).max() < 4 * np.sqrt(2 / 9 / 1000)


def test_without_a_step_the_learned_cache_is_the_cache(monkeypatch, tiny):
    """And with steps only its keys move, all of them, and the loss falls."""
    plain, ends = run(tiny, "text_cache", epochs=3, method_args={"alpha": 5.0})[0], {}
    for lr in (1e-30, 1e-2):
        method, kept = TextCache(alpha=5.0, learn=True), []
        register(monkeypatch, "learned", method)
        config = tiny.replace(method="learned", tuner="none", lr=lr, epochs=3, weight_decay=0.0,
                              augmentation="none")
        evals, steps = train(config, keep=kept.append)
        ends[lr] = evals, [row["value"] for row in steps], method.keys.detach(), kept[0]
    still, moved = ends.values()
    assert still[0] == plain and moved[0] != plain
    assert len(moved[2]) == 60 and ((moved[2] - still[2]).abs().amax(1) > 1e-3).all()
    assert np.mean(moved[1][8:12]) < np.mean(moved[1][:4])  # the first stage, last epoch and first
    for (name, one), (_, other) in zip(*(end[3].state_dict().items() for end in (still, moved)),
                                       strict=True):
        assert torch.equal(one, other), name


def test_the_loss_of_the_learned_cache_is_that_of_its_logits(clip, batch):
    method = TextCache(learn=True, candidates="batch")
    method.after_step(clip, batch)
    assert method.trainable(clip) == [method.keys]
    present = batch.present()
    image, text = clip.encode_image(batch.image), clip.encode_text(present.text)
    v = method.logits(clip.scale(), image, text, torch.tensor(present.classes)).detach()
    expected = -v.log_softmax(1)[range(8), present.target].mean()
    term = method.loss(clip, batch)["task"]
    assert torch.allclose(term, expected)
    term.backward()
    assert (method.keys.grad != 0).any(1).all()


def test_only_what_trains_nothing_but_its_own_goes_without_a_tuner(tiny):
    tiny.replace(method="text_cache", method_args={"learn": True}, tuner="none")
    with pytest.raises(ValueError, match="tuner='none' leaves method='sit' nothing to train"):
        tiny.replace(method="sit", tuner="none")


# ---- the regression


def least_squares(h: np.ndarray, ridge: float, rows=range(60)) -> np.ndarray:
    """Weights that minimise |h W − Y|² + ridge |W|², without G and C."""
    h, rows = np.asarray(h, float), list(rows)
    y = np.eye(CLASSES)[np.array(LABELS)[rows]]
    tall = np.vstack([h[rows], np.sqrt(ridge) * np.eye(h.shape[1])])
    return np.linalg.lstsq(tall, np.vstack([y, np.zeros((h.shape[1], CLASSES))]), rcond=None)[0]


@pytest.mark.parametrize("width", [0, 40])
def test_its_weights_are_those_of_ridge_regression(clip, world, width):
    images, others, texts = world
    method = arrive(RanPAC(width=width, ridge=0.3), clip, images)
    h, new = images, others
    assert (method.projection is None) == (width == 0)
    if width:
        assert method.projection.shape == (DIM, width)
        h, new = ((each @ method.projection).clamp(min=0) for each in (images, others))
    expected = least_squares(h, 0.3)
    assert np.allclose(method.weights(), expected, atol=1e-5)
    found = method.values(clip, others, texts, torch.arange(CLASSES))
    assert np.allclose(found, new.numpy() @ expected, atol=1e-4)
    assert ranking(method.scores(clip, others, texts, range(CLASSES))[:, :4]) == ranking(found[:, :4])


def test_the_strength_is_that_of_the_smallest_error_on_the_images_tried(clip, world):
    images = world[0]
    method = arrive(RanPAC(width=30), clip, images)
    tried = [i for i in range(60) if out(i)]
    assert 5 < len(tried) < 20
    h = (images @ method.projection).clamp(min=0).double().numpy()
    y = np.eye(CLASSES)[LABELS]
    errors = []
    for ridge in RIDGES:
        weights = least_squares(h, ridge, [i for i in range(60) if i not in tried])
        errors.append(((h[tried] @ weights - y[tried])**2).sum() - len(tried))
    assert method.strength() == RIDGES[int(np.argmin(errors))] not in (RIDGES[0], RIDGES[-1])
    assert np.allclose(method.weights(), least_squares(h, method.strength()), atol=1e-5)
    method.after_stage(clip, [])
    assert method.table() == [{"stage": 1, "ridge": method.ridges[0]}]
    assert method.strength() == method.ridges[0]  # until the next stage has images of its own
    assert method.memory_bytes == 8 * 30 * (30 + CLASSES) + 4 * DIM * 30 + 4 * CLASSES


def out(image: int) -> bool:
    """Whether an image is tried out: the weights are not fitted on it."""
    method = RanPAC(width=0)
    method.add(torch.ones(1, 2), torch.eye(1), Batch(
        torch.ones(1, 3, 1, 1), (0,), (image,), (0,), torch.zeros(1, 4, dtype=torch.long),
        Stage(1, (0,), np.arange(1))))
    assert (method.fit is None) != (method.tried is None)
    return method.fit is None


def test_the_order_of_images_and_the_size_of_batches_do_not_matter(clip, world):
    found = []
    for order, size in ((range(60), 7), (range(59, -1, -1), 60), (range(60), 1)):
        torch.manual_seed(3)
        found.append(arrive(RanPAC(width=50), clip, world[0], order, size))
    first, *others = found
    arrive(first, clip, world[0])  # a second epoch
    for other in others:
        assert torch.equal(first.projection, other.projection)
        assert torch.allclose(first.total(), other.total(), atol=1e-10)
        assert first.strength() == other.strength()
        assert torch.allclose(first.weights(), other.weights(), atol=1e-8)


def test_where_small_ridges_differ_by_rounding_the_largest_of_them_is_taken():
    """Two orthogonal images are fitted exactly, and the one tried is orthogonal to both."""
    method = RanPAC(width=0)
    h, y = torch.eye(3, 9).double(), torch.eye(3).double()
    both = torch.cat([h, y], 1)
    method.fit, method.tried = h[:2].T @ both[:2], h[2:].T @ both[2:]
    assert method.strength() == RIDGES[-1]  # nothing is gained anywhere
    h[2] = h[0]
    both = torch.cat([h, y[[0, 1, 0]]], 1)
    method.tried = h[2:].T @ both[2:]  # (1 − 1 / (1 + λ))² − 1
    assert method.strength() == 1e-3


def test_at_a_large_ridge_the_class_sums_decide(clip, world):
    images, others, texts = world
    method = arrive(RanPAC(width=0, ridge=1e9), clip, images, range(50))  # classes of 12 and 13
    sums = torch.stack([images[[i for i in range(50) if LABELS[i] == label]].sum(0)
                        for label in range(4)])
    assert torch.allclose(1e9 * method.weights()[:, :4].T.float(), sums, atol=1e-4)
    found = method.scores(clip, others, texts, range(CLASSES))
    assert ranking(found[:, :4]) == ranking(others @ sums.T)


def test_where_the_images_have_much_in_common_it_beats_class_means(clip):
    """Ten directions of large variance that tell no class, and two of small variance that do."""
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(120, 10, generator=draws)
    signal = 0.3 * torch.eye(4)[torch.tensor(LABELS * 2)]
    h = F.normalize(torch.cat([noise, signal], 1), dim=-1).double().numpy()
    method = RanPAC(width=0)
    prompts = torch.zeros(CLASSES, 4, dtype=torch.long)
    member = F.one_hot(torch.tensor(LABELS), CLASSES).float()
    method.add(torch.from_numpy(h[:60]).float(), member, Batch(
        torch.zeros(60, 3, 1, 1), tuple(LABELS), tuple(range(60)), (0, 1, 2, 3), prompts,
        Stage(1, (0, 1, 2, 3), np.arange(60))))
    right = (h[60:] @ method.weights().numpy()).argmax(1) == np.array(LABELS)
    means = np.stack([h[:60][np.array(LABELS) == label].mean(0) for label in range(4)])
    nearest = (h[60:] @ means.T).argmax(1) == np.array(LABELS)
    assert right.mean() > 0.9 > nearest.mean() + 0.2


@pytest.mark.parametrize("name", ["text_cache", "ranpac"])
def test_on_the_stream_it_knows_more_than_frozen_clip(tiny, name):
    args = {"text_cache": {"alpha": 50.0, "beta": 20.0}, "ranpac": {"width": 60}}[name]
    found = {}
    for method, options in (("frozen", {}), (name, args)):
        evals, steps = run(tiny, method, method_args=options)
        assert steps == []
        found[method] = [row["value"] for row in evals
                         if row["set"] == "seen classes" and row["stage"] == 2]
    assert found[name][-1] > found["frozen"][-1] + 0.3


@pytest.mark.parametrize(("name", "args", "message"), [
    ("text_cache", {"alpha": -1}, "alpha=-1: must be at least 0"),
    ("text_cache", {"beta": -1}, "beta=-1: must be at least 0"),
    ("text_cache", {"per_class": 0}, "per_class=0: must be a whole number, at least 1, or None"),
    ("text_cache", {"candidates": "all"}, "candidates='all' is unknown"),
    ("ranpac", {"width": -1}, "width=-1: must be at least 0"),
    ("ranpac", {"ridge": 0.0}, "ridge=0.0: must be a number, above 0, or None"),
])
def test_impossible_options_are_refused(tiny, name, args, message):
    with pytest.raises(ValueError, match=message):
        tiny.replace(method=name, method_args=args)
