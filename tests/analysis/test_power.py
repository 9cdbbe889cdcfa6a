"""Power and numbers of seeds against tables, and against simulated studies."""
import numpy as np
import pytest

from clstudy.analysis.intervals import Parts, two_way
from clstudy.analysis.power import power, seeds_for_power, seeds_for_width


def test_power_is_that_of_the_t_test():
    from statsmodels.stats.power import TTestPower

    for effect, seeds in ((.5, 20), (1., 8), (3.26, 3)):
        assert power(effect, Parts(1.), seeds) == pytest.approx(
            TTestPower().power(effect, seeds, .05), abs=1e-6)
    assert power(0, Parts(1.), 8) == pytest.approx(.05) and power(-1, Parts(1.), 8) == power(
        1, Parts(1.), 8)
    assert power(1, Parts(1.), 8, level=.99) < power(1, Parts(1.), 8) < power(1, Parts(1.), 9)
    assert power(1, Parts(1., 1.), 10**6) < .2  # the test concepts are too few
    assert power(1, Parts(0.), 2) == 1 and power(0, Parts(0.), 2) == 0


def test_numbers_of_seeds():
    assert seeds_for_power(1., Parts(1.)) == 10 and seeds_for_power(3.3, Parts(1.)) == 3
    assert power(1., Parts(1.), 9) < .8 <= power(1., Parts(1.), 10)
    assert seeds_for_width(1., Parts(1.)) == 7  # t_{0.975, 6} / √7 = 0.92, t_{0.975, 5} / √6 = 1.05
    assert seeds_for_width(30., Parts(1.)) == 2
    assert seeds_for_width(2.0, Parts(1., 1.)) == 27  # t_{0.975, 28 · 26} · √(1 + 1 / 27)
    assert seeds_for_width(1.9, Parts(1., 1.)) == seeds_for_power(1., Parts(1., 1.)) == np.inf


@pytest.mark.parametrize(("seeds", "concepts", "effect"), [(5, 0., 1.5), (8, .6, 2.), (12, 1., 3.)])
def test_studies_find_an_effect_as_often_as_computed(seeds, concepts, effect):
    """Normal components: a seed has sd 1, the mean over test concepts has sd `concepts`; draws of
    the concepts are normal, too."""
    rng, count = np.random.default_rng(seeds), 200
    found = []
    for _ in range(1500):
        per_seed = effect + rng.normal(size=seeds) + concepts * rng.normal()
        size = concepts * np.sqrt(rng.chisquare(count - 1) / count)
        found.append(two_way(per_seed, size * rng.normal(size=(200, 1)) + per_seed, count).p < .05)
    expected = power(effect, Parts(1., concepts**2, count), seeds)
    assert np.mean(found) == pytest.approx(expected, abs=.035) and .5 < expected < .95
