"""What a memory holds, and the error of moving averages: naive loops, and cases in which there is
none."""
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clstudy.analysis import moving_averages
from clstudy.analysis.moving_averages import errors, log_sums

TAU = 0.1


def world(seed=0, images=12, classes=3):
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1)
                   for n in (images, classes))
    return (image, text), torch.arange(images) % classes


def naive(image, text, label, i, among):
    """log g of image i by a loop in float64."""
    image, text = image.double(), text.double()
    own = float(image[i] @ text[label[i]])
    others = [
        math.exp((float(image[j] @ text[label[i]]) - own) / TAU) for j in among
        if label[j] != label[i]
    ]
    return math.log(sum(others) / len(others))


def test_sums_agree_with_a_loop():
    (image, text), label = world()
    among = torch.tensor([0, 1, 2, 5, 7])
    found = log_sums((image, text), label, TAU, torch.tensor([3, 5]), among)
    assert found.tolist() == pytest.approx(
        [naive(image, text, label, i, among.tolist()) for i in (3, 5)], abs=1e-5)


def test_the_whole_set_as_a_batch_has_no_error():
    start, label = world()
    table = errors(start, start, label, TAU, [1.0, 0.3], size=len(label), visits=3)
    assert table.error.max() < 1e-5 and table.bias.abs().max() < 1e-5
    assert table[["gamma",
                  "visit"]].values.tolist() == [[g, v] for v in (1, 2, 3) for g in (1.0, 0.3)]


def test_errors_agree_with_a_loop_over_images():
    start, label = world(images=9)
    end = world(7, 9)[0]
    table = errors(start, end, label, TAU, [1.0, 0.4], size=4, visits=2, seed=5)
    generator, u = torch.Generator().manual_seed(5), {}
    for visit in (1, 2):
        gaps = {1.0: [], 0.4: []}
        for step, batch in enumerate(torch.randperm(9, generator=generator).split(4)):
            share = (visit - 1 + step / 3) / 2
            image, text = (F.normalize((1 - share) * a + share * b, dim=-1)
                           for a, b in zip(start, end, strict=True))
            for i in batch.tolist():
                if all(label[j] == label[i] for j in batch):
                    continue
                fresh, exact = (naive(image, text, label, i, among)
                                for among in (batch.tolist(), range(9)))
                before = u.get(i)
                u[i] = math.exp(fresh) if before is None else 0.6 * before + 0.4 * math.exp(fresh)
                gaps[1.0].append(fresh - exact)
                gaps[0.4].append(math.log(u[i]) - exact)
        for gamma, found in gaps.items():
            mine = table[(table.gamma == gamma) & (table.visit == visit)].iloc[0]
            assert mine.bias == pytest.approx(np.mean(found), abs=1e-4)
            assert mine.error == pytest.approx(np.sqrt(np.mean(np.square(found))), abs=1e-4)


def test_a_batch_alone_is_too_low_and_averages_help_while_nothing_moves():
    start, label = world(3, 120)
    table = errors(start, start, label, TAU, [1.0, 0.2], size=8, visits=12).set_index(
        ["gamma", "visit"])
    assert table.bias[1.0, 1] < -0.05  # Jensen
    assert table.error[0.2, 12] < 0.6 * table.error[1.0, 12] and table.error[0.2,
                                                                             1] == table.error[1.0,
                                                                                               1]


def test_averages_are_late_where_everything_moves():
    start, label = world(3, 120)
    end = (-start[0], start[1])
    slow = errors(start, end, label, TAU, [1.0, 0.05], size=60, visits=4).set_index(
        ["gamma", "visit"])
    assert slow.error[0.05, 4] > 2 * slow.error[1.0, 4]


@pytest.mark.parametrize("gammas", [[0.0], [0.5, 1.5], [-1.0]])
def test_impossible_gammas_are_refused(gammas):
    start, label = world()
    with pytest.raises(ValueError, match="gammas=.*above 0 and at most 1"):
        errors(start, start, label, TAU, gammas)


def test_a_memory_holds_its_quota_after_every_stage(tiny):
    config = tiny.replace(method="gcl", method_args={"size": 12}, stream_args={"tasks": 3})
    table = moving_averages.held([config, config.replace(method_args={"size": 7})])
    assert table["size"].tolist() == [12] * 3 + [7] * 3 and table.stage.tolist() == [1, 2, 3] * 2
    assert table.classes.tolist() == [2, 4, 6] * 2  # ten images of each arrive
    assert table.fewest.tolist() == table.most.tolist() == [6, 3, 2, 3, 1, 1]
    assert table.images.tolist() == [12, 12, 12, 6, 4, 6]
    assert table.kB.iloc[0] == pytest.approx(12 * 3 * 64 * 64 / 1000, abs=.05)


def test_the_sum_is_over_the_last_stage_and_the_memory_before_it(tiny):
    config = tiny.replace(method="gcl", method_args={"size": 4})
    (first, benchmark), (second, _) = moving_averages.remembered_ids(config)
    assert len(first) == 30 and len(second) == 30 + 3  # 4 // 3 of each class
    assert not set(first) & set(second[:30]) and set(second[30:]) < set(first)
    assert len({benchmark.train.labels[i] for i in second}) == 6


def test_a_run_whose_weights_were_kept_can_be_measured(tiny, tmp_path):
    from clstudy.runs.store import load_or_train

    config = tiny.replace(method="gcl", method_args={"size": 6})
    run = load_or_train(config, tmp_path, keep_model=True)
    table = moving_averages.of_runs([run], [1.0, 0.5], size=16, visits=2)
    assert len(table) == 4 and table.seed.tolist() == [0] * 4 and np.isfinite(table.error).all()
