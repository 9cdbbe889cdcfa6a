"""Class weights: the three forms by hand, their limits, the correction for how often a class is
drawn."""
import math
from dataclasses import replace

import pytest
import torch

from clstudy import load_or_train
from clstudy.losses.class_weights import ClassWeights, cvar
from clstudy.methods import METHODS

LOSS, LABEL = torch.tensor([1.0, 3.0, 0.5, 2.0]), torch.tensor(
    [0, 0, 2, 4])  # class 0: 2.0, class 2: 0.5, class 4: 2.0


def test_kl_weights_are_a_softmax_of_class_losses_over_the_classes_seen():
    p = ClassWeights("kl", strength=0.5).update(LOSS, LABEL, 6)
    e = [math.exp(value / 0.5) for value in (2.0, 0.5, 2.0)]
    assert p.tolist() == pytest.approx([e[0] / sum(e), 0, e[1] / sum(e), 0, e[2] / sum(e), 0])


def test_class_losses_are_averaged_and_those_absent_keep_theirs():
    weights = ClassWeights("kl", beta=0.25)
    weights.update(LOSS, LABEL, 6)
    weights.update(torch.tensor([6.0, 1.0]), torch.tensor([2, 3]), 6)
    assert weights.average.tolist()[:1] + weights.average.tolist()[2:5] == pytest.approx(
        [2.0, 0.75 * 0.5 + 0.25 * 6, 1.0, 2.0])
    assert weights.average.isnan().tolist() == [False, True, False, False, False, True]
    assert weights.rates().tolist() == pytest.approx([2 / 6, 0, 2 / 6, 1 / 6, 1 / 6, 0])
    weights.stage()
    weights.update(torch.tensor([1.0]), torch.tensor([3]), 6)
    assert weights.rates().tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("strength", "expected"), [(1e6, [1 / 3, 1 / 3, 1 / 3]), (1e-4, [0, 0, 1])])
def test_the_limits_of_kl_are_the_mean_and_the_worst_class(strength, expected):
    p = ClassWeights("kl", strength=strength).update(torch.tensor([1.0, 2.0, 3.0]),
                                                     torch.tensor([0, 1, 2]), 3)
    assert p.tolist() == pytest.approx(expected, abs=1e-5)


def test_balanced_weights_are_equal_over_the_classes_seen():
    weights = ClassWeights("balanced")
    assert weights.update(LOSS, LABEL, 6).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3, 0])
    assert weights.update(torch.tensor([9.0]), torch.tensor([5]), 6).tolist() == pytest.approx(
        [1 / 4, 0, 1 / 4, 0, 1 / 4, 1 / 4])


def test_the_weight_of_an_image_is_corrected_cut_and_logged(batch):
    labels = (2, 5, 5, 5, 5, 5, 5, 5)
    losses, drawn = torch.rand(8, requires_grad=True), replace(batch, labels=labels)
    tame = ClassWeights("balanced", cap=3.0)
    assert tame.of_images(losses, drawn).tolist() == pytest.approx(
        [3.0] + [8 / 14] * 7)  # 1/2 of 1/8 is 4: cut
    plain = ClassWeights("balanced", correct=False).of_images(losses, drawn)
    assert plain.tolist() == pytest.approx(
        [3.0] * 8) and not plain.requires_grad  # p = 1/2, r = 1/6 candidates
    assert [row["weight"] for row in tame.table()] == pytest.approx([0, 0, 3, 0, 0, 3])
    assert [row["class"] for row in tame.table()] == list(batch.classes)


def test_the_identity_of_kl_regularised_dro():
    """max_p Σ p F − λ Σ p log(C p) = λ log mean exp(F / λ), at p."""
    F, strength = torch.tensor([0.3, 1.2, 0.9], dtype=torch.float64), 0.4
    p = ClassWeights("kl", strength=strength).update(F.float(), torch.arange(3), 3).double()
    value = (p * F).sum() - strength * (p * (3 * p).log()).sum()
    closed = strength * math.log(sum(math.exp(f / strength) for f in F.tolist()) / 3)
    assert value.item() == pytest.approx(closed, rel=1e-5)


@pytest.mark.parametrize(("share", "expected"), [
    (1.0, [0.2, 0.2, 0.2, 0.2, 0.2]), (0.4, [0.5, 0, 0, 0.5, 0]), (0.5, [0.4, 0, 0.2, 0.4, 0]), (0.1, [1, 0, 0, 0, 0])])
def test_cvar_is_the_mean_over_the_worst_share(share, expected):
    loss = torch.tensor([9.0, 1.0, 3.0, 5.0, 2.0])
    assert cvar(loss, share).tolist() == pytest.approx(expected)
    with_unseen = torch.tensor([math.nan, *loss.tolist()])
    assert cvar(with_unseen, share).tolist() == pytest.approx([0, *expected])


def test_exponentiated_gradient_multiplies_the_weights_of_the_classes_drawn():
    weights = ClassWeights("eg", rate=0.5)
    weights.update(LOSS, LABEL, 5)
    p = weights.update(torch.tensor([4.0]), torch.tensor([2]), 5)
    q = [math.exp(0.5 * 2), math.exp(0.5 * 0.5) * math.exp(0.5 * 4), math.exp(0.5 * 2)]
    assert p.tolist() == pytest.approx([q[0] / sum(q), 0, q[1] / sum(q), 0, q[2] / sum(q)])


@pytest.mark.parametrize(("options", "said"), [
    ({"form": "max"}, "form='max' is unknown. Choices: balanced, cvar, eg, kl"),
    ({"strength": 0}, "strength=0: must be above 0"),
    ({"share": 1.5}, "share=1.5: must be above 0 and at most 1"), ({"beta": 0}, "beta=0")])
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ClassWeights(**options)


# ---- the method


def each(clip, batch):
    image, text = METHODS["gcl"]().contrast.losses(clip.encode(batch), batch)
    return (image + text).detach()


def test_without_strength_it_is_the_mean_over_classes(clip, batch):
    """λ → ∞ and corrected for the draw: the class-balanced mean, however unbalanced the batch."""
    found = METHODS["gdro"](strength=1e9).loss(clip, batch)["robust"].item()
    losses = each(clip, batch)
    classes = sorted(set(batch.labels))
    means = [losses[[i for i, y in enumerate(batch.labels) if y == c]].mean() for c in classes]
    assert found == pytest.approx(float(sum(means)) / len(classes), rel=1e-4)


def test_at_no_strength_it_is_the_worst_class(clip, batch):
    losses = each(clip, batch)
    worst = max(
        float(losses[[i for i, y in enumerate(batch.labels) if y == c]].mean())
        for c in set(batch.labels))
    assert METHODS["gdro"](strength=1e-6, cap=1e3).loss(clip,
                                                        batch)["robust"].item() == pytest.approx(
                                                            worst, rel=1e-4)


def test_uncorrected_and_uniform_it_is_gcl(clip, batch):
    present = batch.among((0, 5, 2))
    gcl = METHODS["gcl"]()
    expected = sum(gcl.loss(clip, present).values()).item()
    found = METHODS["gdro"](strength=1e9, correct=False).loss(clip, present)["robust"].item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_weight_is_cut(clip, batch):
    rare = replace(batch, labels=(5, 5, 5, 5, 5, 5, 5, 0))
    wild, tame = (METHODS["gdro"](strength=1e9, cap=cap).loss(clip, rare)["robust"].item()
                  for cap in (100.0, 2.0))
    losses = each(clip, rare)
    assert wild == pytest.approx(float(losses[:7].mean() + losses[7]) / 2, rel=1e-4)
    assert tame == pytest.approx(
        float((0.5 * 8 / 7 * losses[:7]).sum() + 2 * losses[7]) / 8, rel=1e-4)


def test_the_weights_of_a_run_are_kept_class_by_class(tiny, tmp_path):
    run = load_or_train(tiny.replace(method="gdro", method_args={"size": 12}), runs=tmp_path)
    table = run.probe("method")
    assert list(table.columns) == ["stage", "step", "class", "weight"]
    means = table.groupby("step").weight.mean()
    assert means.tolist() == pytest.approx([1.0] * 8, rel=1e-5)
    assert set(table["class"]) == set(range(6)) and set(table.stage) == {1, 2}
    assert not (tmp_path / run.id / "gradients.parquet").exists()


@pytest.mark.parametrize("robust", ["kl", "cvar", "eg"])
def test_every_form_runs_and_differs(tiny, robust):
    from small_runs import train

    rows = {
        form: [
            row["value"]
            for row in train(tiny.replace(method="gdro", method_args={"robust": form}))[1]
        ] for form in {"kl", robust}
    }
    assert robust == "kl" or rows["kl"] != rows[robust]
