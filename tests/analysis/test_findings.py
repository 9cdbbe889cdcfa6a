"""Titles are made from verdicts alone."""
import pandas as pd
import pytest

from clstudy import compare
from clstudy.analysis.findings import LONGEST, finding
from clstudy.analysis.verdicts import INCONCLUSIVE, UNDECIDED, UNMEASURED, verdict_of

LABELS = {"sit": "SIT", "finetune": "asymmetric tuning"}
HIGHER, LOWER, EQUAL, LESS = (verdict_of(*interval) for interval in (
    (3, 9), (-9, -3), (-1, 1), (.5, 1.5)))


def table(*verdicts, metric="A_last", method="sit", base="finetune") -> pd.DataFrame:
    return pd.DataFrame({"lr": range(len(verdicts)), "method": method, "base": base,
                         "metric": metric, "verdict": verdicts})


@pytest.mark.parametrize(("verdicts", "title"), [
    ([HIGHER], "SIT ends higher than asymmetric tuning"),
    ([EQUAL], "SIT equals asymmetric tuning within ±2"),
    ([UNDECIDED], "SIT against asymmetric tuning is not decided by one seed"),
    ([LOWER] * 2, "SIT ends lower than asymmetric tuning in all 2 settings"),
    ([INCONCLUSIVE, HIGHER, LESS, HIGHER],
     "SIT ends higher than asymmetric tuning in 3 of 4 settings; 1 is inconclusive"),
    ([EQUAL, LOWER, HIGHER],
     "SIT ends higher than asymmetric tuning in 1 of 3 settings; lower in 1; equal in 1"),
    ([INCONCLUSIVE, INCONCLUSIVE, EQUAL],
     "SIT equals asymmetric tuning within ±2 in 1 of 3 settings; 2 are inconclusive"),
    ([LESS, EQUAL], "SIT and asymmetric tuning differ by less than 2 points in all 2 settings"),
    ([INCONCLUSIVE, INCONCLUSIVE], "SIT against asymmetric tuning is inconclusive in all 2 settings"),
])
def test_a_title_says_the_verdicts(verdicts, title):
    assert finding(table(*verdicts), LABELS) == title


def test_another_metric_is_named_where_it_fits():
    found = table(LOWER, LOWER, metric="forgetting")
    assert finding(found, LABELS) == (
        "Forgetting: SIT is lower than asymmetric tuning in all 2 settings")
    mixed = table(LOWER, HIGHER, EQUAL, metric="change on tasks to come")
    assert finding(mixed, {}) == (
        "Sit is higher than finetune in 1 of 3 settings; lower in 1; equal in 1")


def test_what_is_too_long_for_a_sentence_is_counted_and_still_names_both():
    verdicts = [HIGHER, HIGHER, LOWER, INCONCLUSIVE, INCONCLUSIVE]
    found = table(*verdicts, metric="A_last").assign(metric=[*"abcde"])
    assert finding(found, {"sit": "text encoder", "finetune": "image encoder"}) == (
        "Of 5 comparisons of text encoder with image encoder, 2 are higher, 1 lower, 2 inconclusive")


def test_several_on_one_side_are_counted():
    several = table(HIGHER, LOWER, INCONCLUSIVE, method=["er", "sit", "lwf"])
    assert finding(several, LABELS) == (
        "Of 3 comparisons with asymmetric tuning, 1 is higher, 1 lower, 1 inconclusive")
    assert finding(several.assign(base=["a", "b", "c"])) == (
        "Of 3 comparisons, 1 is higher, 1 lower, 1 inconclusive")


def test_no_title_is_too_long():
    found = pd.concat([table(verdict, method=f"a method of a very long name {i}", base="another")
                       for i, verdict in enumerate(
                           [HIGHER, LOWER, EQUAL, INCONCLUSIVE, UNDECIDED, UNMEASURED] * 9)])
    assert len(finding(found)) <= LONGEST
    assert len(finding(found[:9].assign(method="a method of a very long name indeed"))) <= LONGEST


def test_it_takes_what_compare_returns():
    runs = pd.DataFrame([{"method": method, "seed": seed, "A_last": value + (method == "sit") * seed}
                         for method, value in (("finetune", 1.), ("sit", 30.)) for seed in range(4)])
    assert finding(compare(runs, "A_last"), LABELS) == "SIT ends higher than asymmetric tuning"
    with pytest.raises(ValueError, match="finding: column='verdict'.*base, "):
        finding(table(HIGHER).drop(columns="verdict"))
    with pytest.raises(ValueError, match="no row"):
        finding(table())
