"""What may be said of a difference: every verdict, the correction for a family, and the sentences."""
import numpy as np
import pandas as pd
import pytest
from small_studies import simulated

from clstudy.analysis.comparisons import compare
from clstudy.analysis.intervals import two_way
from clstudy.analysis.power import seeds_for_width
from clstudy.analysis.verdicts import above_zero, family, judged, tell, verdict_of


@pytest.mark.parametrize(("low", "high", "p", "margin", "said"), [
    (.1, 5, .01, 2, "higher"), (-5, -.1, .01, 2, "lower"), (.1, 1.9, .01, 2, "higher, by less than 2 points"),
    (-.4, -.1, .01, .5, "lower, by less than 0.5 points"), (.1, 5, .2, 2, "inconclusive"),
    (.1, 1.9, .2, 2, "equal within ±2"), (-1.9, 2, 1, 2, "equal within ±2"), (-1.9, 2.1, 1, 2, "inconclusive"),
    (.1, 5, None, 2, "higher"), (-.1, .1, None, 0, "inconclusive"), (0, 0, 1, 0, "equal within ±0"),
    (.1, 5, np.nan, 2, "not decided by one seed"), (np.nan, np.nan, None, 2, "not decided by one seed")])
def test_every_verdict(low, high, p, margin, said):
    assert verdict_of(low, high, p, margin) == said


def rows(*differences, margin=2.0, **more) -> pd.DataFrame:
    """Comparisons of runs with these paired differences."""
    return pd.DataFrame([{"method": f"m{number}", "base": "b", "metric": "A_last", "mean": 0.,
                          "base_mean": 0., **two_way(each)._asdict(), "pairs": len(each),
                          "equal_within": margin, **more} for number, each in enumerate(differences)])


ONE, TWO = np.array([9., 10, 11, 10]), np.array([1.6, 3.5, 5.4, 3.5])  # p = .0003 and .020


def test_holm_by_hand():
    found = judged(rows(ONE, TWO, TWO, [1.]))
    p = found.p.tolist()
    assert found.p_corrected[:3].tolist() == pytest.approx([3 * p[0], 2 * p[1], 2 * p[1]])
    assert np.isnan(found.p_corrected[3]) and found.comparisons.tolist() == [3] * 4
    assert found.verdict.tolist() == ["higher", "higher", "higher", "not decided by one seed"]
    many = judged(rows(ONE, TWO, TWO, TWO))
    assert many.verdict.tolist() == ["higher"] + ["inconclusive"] * 3


def test_a_family_may_be_several_tables():
    first, second = judged(rows(ONE, TWO)), judged(rows(TWO, TWO)).set_axis([7, 8])
    assert first.verdict.tolist() == second.verdict.tolist() == ["higher"] * 2
    one, two = family([first, second])
    joint = judged(pd.concat([first, second], ignore_index=True))
    assert two.index.tolist() == [7, 8] and two.columns.tolist() == second.columns.tolist()
    assert [*one.verdict, *two.verdict] == joint.verdict.tolist() == ["higher"] + ["inconclusive"] * 3
    assert [*one.p_corrected, *two.p_corrected] == joint.p_corrected.tolist()
    assert set(one.comparisons) == {4} and first.comparisons.tolist() == [2, 2]


def test_in_a_family_without_any_difference_few_are_found():
    """Ten comparisons with one base on the same test concepts; all differences are zero."""
    families, S, C = 600, 8, 60
    sides = (each.reshape(families, 11, *each.shape[1:])
             for each in simulated(families * 11, S, C, .03, .1, .05, mean=0., draws=100))
    per_seed, drawn = (each[:, 1:] - each[:, :1] for each in sides)
    p = np.array([[two_way(per_seed[f, k], drawn[f, k], C).p for k in range(10)]
                  for f in range(families)])
    assert (p < .05).mean() == pytest.approx(.05, abs=.01) and (p.min(axis=1) < .05).mean() > .2
    assert (10 * p.min(axis=1) < .05).mean() < .05
    for each in p[np.argsort(p.min(axis=1))[[0, 10, 100]]]:  # Holm finds one where Bonferroni does
        found = judged(rows(*[TWO] * 10).assign(p=each))
        assert (found.p_corrected < .05).any() == (10 * each.min() < .05)


def test_the_seeds_that_would_decide():
    noisy = np.array([-4., 0, 4, 0])  # sd 3.27
    found = judged(rows(noisy + 1.2, noisy + 4, noisy + 1))
    assert found.verdict.tolist() == ["inconclusive"] * 3
    levels = 1 - .05 / np.array([2, 3, 1])  # Holm: the smallest p is in the second row
    parts = two_way(noisy).parts
    assert found.seeds_needed.tolist() == [
        seeds_for_width(1.2, parts, levels[0]), seeds_for_width(4, parts, levels[1]),
        seeds_for_width(1., parts)] == [41, 8, 44]
    assert parts.half_width(8, levels[1]) < 4 < parts.half_width(7, levels[1])
    wide = rows(noisy + 1).assign(se_concepts=2., concepts=100.)
    assert judged(wide).seeds_needed.tolist() == [np.inf]
    assert judged(rows(ONE)).seeds_needed.isna().all()


def test_more_seeds_decide_what_a_smaller_p_holds_up():
    """The third p is raised to the second's, so its level is the second's, too."""
    found = judged(rows(ONE, TWO, TWO * .999, TWO * 1.0001))
    waiting = found[found.verdict == "inconclusive"]
    assert len(waiting) == 3 and (waiting.seeds_needed > waiting.n).all()


def test_sentences():
    found = judged(rows(ONE, TWO, [-4., 0, 4, 0], [.1, .2, .15, .1], [0., 0.1, -0.1, 0]))
    said = tell(found, {"m0": "SIT", "b": "fine-tuning"}).splitlines()
    assert said[0] == ("A_last: SIT is higher than fine-tuning: +10.0 points (95 % interval over "
                       "seeds +8.7 to +11.3, n = 4).")
    assert said[1].startswith("A_last: m1 against fine-tuning is inconclusive: +3.5 points (95 % ")
    assert said[1].endswith("n = 4; p = 0.02, corrected for 5 comparisons 0.061; some 5 seeds would decide).")
    assert said[2].endswith("-5.2 to +5.2, n = 4; some 13 seeds would decide).")
    assert said[3].startswith("A_last: m3 is higher than fine-tuning, by less than 2 points: +0.1")
    assert said[4].startswith("A_last: m4 is equal to fine-tuning within ±2 points: +0.0 points (")
    wide = judged(rows([-4., 0, 4, 0]).assign(se_concepts=2., concepts=9., pairs=12))
    assert tell(wide, unit="", digits=2).endswith(
        "n = 4 class orders, 12 pairs; no number of seeds decides, more test concepts are needed).")
    assert tell(judged(rows([1., 1.]).assign(difference=np.nan))).startswith(
        "A_last: m0 against b is not measured")


def test_numbers_of_runs_are_told_against_zero():
    said = above_zero(pd.DataFrame({"gain": [1.0, 2.0, 3.0], "loss": [-1.0, 1.0, 0.5]}), "",
                      2).splitlines()
    assert said[0] == ("gain against zero is inconclusive: +2.00 (95 % interval over seeds -0.48 to "
                       "+4.48, n = 3; some 5 seeds would decide).")
    assert above_zero({"gain": [2.0, 2.1]}) == (
        "gain is above zero: +2.0 points (95 % interval over seeds +1.4 to +2.7, n = 2).")
    assert above_zero({"loss": [-2.0, -2.1]}).startswith("loss is below zero: -2.0")
    assert above_zero({"one": [1.0]}) == "one against zero is not decided by one seed: +1.0 points."
    small = {"small": [.1, -.1, .05]}
    assert above_zero(small).startswith("small is equal to zero within ±2 points")
    assert "inconclusive" in above_zero(small, "") and "±0.5:" in above_zero(small, "", margin=.5)


def test_the_unit_of_a_table_is_not_known_so_it_has_no_margin():
    table = pd.DataFrame({"method": ["finetune", "sit"] * 3, "seed": [0, 0, 1, 1, 2, 2],
                          "cosine": [.1, .2, .1, .05, .2, .25]})
    assert compare(table, "cosine").verdict.item() == "inconclusive"
    assert compare(table, "cosine", margin=.5).verdict.item() == "equal within ±0.5"
