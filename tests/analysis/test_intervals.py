"""Confidence intervals against numbers by hand and the analysis of variance, and how often they cover
on simulated tests with known components."""
import itertools

import numpy as np
import pytest
from small_studies import B, simulated, weights

from clstudy.analysis.intervals import Parts, interval, paired_interval, two_way


def test_interval():
    """t_{0.975, 4} = 2.776445, t_{0.95, 4} = 2.131847; 1 … 5 has s² = 2.5."""
    mean, half_width = interval([1, 2, 3, 4, 5])
    assert mean == 3 and half_width == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert interval([1, 2, 3, 4, 5], level=.9).half_width == pytest.approx(
        2.131847 * np.sqrt(.5), rel=1e-6)
    assert interval([.7]).mean == .7 and np.isnan(interval([.7]).half_width)
    assert np.isnan(interval([.7, np.nan, .8]).mean)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [interval(rng.normal(3, 2, 4)) for _ in range(1000)]
    assert np.mean([abs(i.mean - 3) <= i.half_width for i in intervals]) == pytest.approx(
        .95, abs=.025)


def test_paired_interval_is_the_interval_of_differences():
    a, b = [.5, .9, .7], [.4, .85, .5]
    assert paired_interval(a, b) == interval(np.subtract(a, b))
    assert paired_interval(a, b).half_width < interval(a).half_width


def test_two_ways_by_hand():
    """Seeds 1 and 3: a = 2 / 2. Both draws move both seeds alike, by ±1: b = 1, r = 0."""
    found = two_way([1, 3], np.array([[0., 2], [2, 4]]))
    assert found.difference == 2 and found.se == pytest.approx(2**.5) and found.n == 2
    assert found.df == pytest.approx(2)  # half the variance has one, the other half many
    assert found.high - 2 == pytest.approx(4.302653 * 2**.5, rel=1e-6)  # t_{0.975, 2}
    assert found.high_seeds - 2 == pytest.approx(12.706205, rel=1e-6)  # t_{0.975, 1}
    assert found.p == pytest.approx(.2929, abs=1e-4)  # t = √2
    assert (found.se_seeds, found.se_concepts, found.interval) == (1, 1, "seeds × concepts")
    six = two_way([1, 3], np.array([[0., 2], [2, 4]]), concepts=6)
    assert six.se_concepts == pytest.approx(1.2**.5)  # 6 drawn from 6 vary too little, by 5 / 6
    assert six.df == pytest.approx(2.2 / (1 + 1.2 / 5)) and six.concepts == 6


def test_two_ways_are_the_mean_squares_of_an_analysis_of_variance():
    """All 5⁵ equally likely draws of five concepts, in place of random ones."""
    S, C = 4, 5
    y = np.random.default_rng(3).normal(size=(S, C)) + 3 * np.arange(C)
    drawn = np.array([y[:, list(draw)].mean(axis=1)
                      for draw in itertools.product(range(C), repeat=C)])
    found = two_way(y.mean(axis=1), drawn, C)
    rows, columns = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    ms_seeds = C * rows.var(ddof=1)
    ms_concepts = S * columns.var(ddof=1)
    ms_error = ((y - rows - columns + y.mean())**2).sum() / ((S - 1) * (C - 1))
    assert found.se**2 == pytest.approx((ms_seeds + ms_concepts - ms_error) / (S * C))
    assert found.se_seeds**2 == pytest.approx(ms_seeds / (S * C))


def test_where_one_cause_is_missing_the_interval_is_that_of_the_other():
    per_seed = np.array([1., 2, 4])
    alone = two_way(per_seed)
    assert alone.interval == "seeds" and np.isnan(alone.concepts)
    mean, half = interval(per_seed)
    both = two_way(per_seed, np.tile(per_seed, (B, 1)), 100)  # each draw gives the same
    for found in (alone[1:3], alone[6:8], both[1:3]):
        assert found == pytest.approx((mean - half, mean + half))
    assert alone.df == both.df == 2
    drawn = np.random.default_rng(0).normal(5, 1, (B, 1)) * np.ones(3)
    equal = two_way([5., 5, 5], drawn, 100)
    assert equal.df == pytest.approx(99) and equal.se == pytest.approx(
        np.sqrt(drawn[:, 0].var() * 100 / 99))
    assert two_way([5., 5, 5]).p == 0 and two_way([0., 0, 0]).p == 1


def test_one_seed_has_an_interval_over_concepts_alone():
    found = two_way([5.], np.array([[4.], [6.]]), 50)
    assert found.interval == "concepts" and found.df == 49 and found.se**2 == pytest.approx(50 / 49)
    assert np.isnan([found.p, found.low_seeds, found.high_seeds]).all() and found.low < 5
    assert two_way([5.]).interval == "none" and np.isnan(two_way([5.]).low)


def test_draws_that_say_nothing_are_left_out():
    drawn = np.array([[0., 2], [np.nan, 1], [2, 4]])
    assert two_way([1, 3], drawn) == two_way([1, 3], drawn[[0, 2]])
    assert two_way([1, 3], drawn[:2]).interval == "seeds"  # half of them
    assert np.isnan(two_way([1, np.nan], drawn).low)


COMPONENTS = {"noise": {}, "seeds": {"seeds": .05}, "concepts": {"concepts": .2},
              "all": {"seeds": .04, "concepts": .15, "interaction": .1},
              "interaction": {"seeds": .02, "concepts": .05, "interaction": .2}}


@pytest.mark.parametrize(("N", "S", "C", "which"), [
    (1000, 5, 150, "noise"), (1000, 5, 150, "all"), (1000, 8, 150, "seeds"),
    (1000, 8, 150, "concepts"), (1000, 8, 150, "interaction"), (600, 16, 150, "all"),
    (400, 5, 850, "concepts"), (300, 8, 850, "all")])
def test_the_interval_over_seeds_and_concepts_covers(N, S, C, which):
    found = [two_way(*study, C) for study in zip(
        *simulated(N, S, C, **COMPONENTS[which]), strict=True)]
    assert .93 <= np.mean([each.low <= 3 <= each.high for each in found]) <= .97
    if which == "concepts":  # seeds alone do not see that the test concepts could be others
        assert np.mean([each.low_seeds <= 3 <= each.high_seeds for each in found]) < .93


def test_it_covers_a_forgetting_which_is_no_mean():
    """Of two methods, one that loses a quarter in four stages and one that loses little: the
    maximum over stages minus the last. The truth is the mean over all studies."""
    N, S, C, stages = 400, 6, 150, 4
    rng = np.random.default_rng(1)
    at_end = np.array([.25, .03])[:, None] * np.linspace(0, 1, stages)  # (2, stages)
    concept = rng.uniform(-.3, .3, (N, 1, 1, C, 1)) * np.array([1, .3])[:, None, None]
    seed = rng.uniform(-.05, .05, (N, S, 2, 1, stages))
    chance = .65 - at_end[:, None] * (1 + concept) + concept / 2 + seed
    right = (rng.random(chance.shape, np.float32) < chance).astype(np.float32)
    right = np.moveaxis(right, 3, 4)  # (N, S, 2, stages, C)

    def forgetting(of_concepts):
        accuracy = 100 * right @ of_concepts.T / of_concepts.sum(axis=1)
        lost = accuracy.max(axis=3) - accuracy[:, :, :, -1]
        return np.moveaxis(lost[:, :, 0] - lost[:, :, 1], 1, 2)  # (N, B, S)

    per_seed, drawn = forgetting(np.ones((1, C), np.float32))[:, 0], forgetting(weights(C))
    found = [two_way(*study, C) for study in zip(per_seed, drawn, strict=True)]
    assert 15 < per_seed.mean() < 25
    assert .93 <= np.mean([each.low <= per_seed.mean() <= each.high for each in found]) <= .97


def test_parts_tell_the_interval_with_other_numbers_of_seeds():
    found = two_way([1, 3], np.array([[0., 2], [2, 4]]), concepts=6)
    assert found.parts == pytest.approx(Parts(2, 1.2, 6))
    assert found.parts.half_width(2) == pytest.approx(found.high - found.difference)
    assert Parts(2.).at(8) == (.5, 7) and Parts(0.).at(8) == (0, 7)
    assert Parts(2, 1, 31).half_width(10**9) == pytest.approx(2.0423, abs=1e-3)  # t_{0.975, 30}


@pytest.mark.parametrize(("call", "words"), [
    (lambda: interval([]), ["values", "(0,)"]),
    (lambda: interval([1., 2.], level=95), ["level=95", "0 and 1"]),
    (lambda: paired_interval([1., 2.], [1.]), ["b:", "1", "2"]),
    (lambda: two_way([1., 2.], np.zeros((9, 3))), ["resampled", "(9, 3)", "2 seeds"]),
])
def test_errors_name_field_value_and_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
