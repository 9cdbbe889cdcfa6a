"""Class means: exact sums, each image once; ranking by hand; what is left to the texts."""
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small_runs import register, train
from torch.nn import functional as F

from clstudy.methods.class_means import ClassMeans
from clstudy.models.clip import Clip
from clstudy.training.setup import prepare


@dataclass
class Noted(ClassMeans):
    """Notes how many images were in at each evaluation of the stream."""

    found: list = field(default_factory=list, init=False)

    def scores(self, clip, image, text, classes):
        if classes is not None:
            self.found.append(0 if self.counts is None else int(self.counts.sum()))
        return super().scores(clip, image, text, classes)


def test_every_image_counts_once_and_at_once(monkeypatch, tiny):
    """Over two epochs, in batches of 8 or less; without augmentation, in evaluation mode."""
    method, encode, rows = Noted(), Clip.encode_image, []

    def encoded(clip, images):
        if images.dtype != torch.uint8:  # not evaluation
            assert not clip.training
            rows.append(len(images))
        return encode(clip, images)

    monkeypatch.setattr(Clip, "encode_image", encoded)
    register(monkeypatch, "noted", method)
    config = tiny.replace(method="noted", tuner="adapter", epochs=2, eval_every=8)
    evals, steps = train(config)
    clip, benchmark, _ = prepare(config)
    assert steps == [] and sum(rows) == len(benchmark.train) == 60
    assert method.found[:6] == [0, 8, 16, 24, 30, 30]  # row 0, the first epoch, then the second
    assert method.counts.tolist() == [10] * 6
    assert method.memory_bytes == 6 * 17 * 4
    with torch.no_grad():
        features = encode(clip.eval(), benchmark.train.images)
    for label, total in enumerate(method.sums):
        own = features[torch.from_numpy(benchmark.train.labels == label)]
        assert torch.allclose(total, own.sum(0), atol=1e-5)


def test_it_ranks_by_the_standardised_similarity_to_what_stands_for_each_class(clip):
    draws = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 5, generator=draws), dim=-1) for n in (4, 6))
    sums, counts = torch.randn(6, 5, generator=draws), torch.tensor([3., 0, 1, 0, 2, 4])
    method = ClassMeans(text=0.3)
    method.sums, method.counts = sums, counts
    classes, seen = [5, 1, 0, 2, 3], [0, 2, 3]  # four is not offered; positions of the seen ones
    found = method.scores(clip, image, text[:5], classes).numpy().astype(float)
    stand = [0.7 * sums[k] / sums[k].norm() + 0.3 * text[row] for row, k in enumerate(classes)]
    for i, f in enumerate(image):
        mixed = np.array([float(f @ (p / p.norm())) for p in stand])
        words = np.array([float(f @ t) for t in text[:5]])
        for row in range(5):
            value = mixed if row in seen else words
            expected = (value[row] - value[seen].mean()) / value[seen].std()
            assert found[i, row] == pytest.approx(expected, abs=1e-4)
        assert np.argsort(found[i, seen]).tolist() == np.argsort(mixed[seen]).tolist()


def test_with_one_class_seen_and_without_classes_the_texts_rank(clip):
    image, text = torch.randn(9, 5), torch.randn(4, 5)
    method = ClassMeans()
    assert torch.equal(method.scores(clip, image, text, range(4)), image @ text.T)
    method.sums, method.counts = torch.randn(4, 5), torch.tensor([0., 0, 7, 0])
    found, plain = method.scores(clip, image, text, range(4)), image @ text.T
    assert torch.allclose(found, plain - plain[:, 2:3], atol=1e-5)
    assert torch.equal(method.scores(clip, image, text, None), plain)


def test_with_the_text_alone_it_is_frozen_clip(tiny):
    frozen, means, only = (train(tiny.replace(tuner="none", eval_every=16, **settings))[0]
                           for settings in ({"method": "frozen"}, {"method": "class_means"},
                                            {"method": "class_means", "method_args": {"text": 1.0}}))
    assert only == frozen != means
    sides = ("held-out set", "retrieval")
    aside = [(one, other) for one, other in zip(frozen, means, strict=True)
             if one["kind"] in sides or one["stage"] == 0]
    assert aside and all(one == other for one, other in aside)
