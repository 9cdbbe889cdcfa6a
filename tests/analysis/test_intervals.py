"""Confidence intervals against numbers by hand, and how often they cover."""
import numpy as np
import pytest

from clstudy.analysis.intervals import interval, paired_interval


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


@pytest.mark.parametrize(("call", "words"), [
    (lambda: interval([]), ["values", "(0,)"]),
    (lambda: interval([1., 2.], level=95), ["level=95", "0 and 1"]),
    (lambda: paired_interval([1., 2.], [1.]), ["b:", "1", "2"]),
])
def test_errors_name_field_value_and_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
