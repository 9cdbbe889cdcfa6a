"""A guess: kept before, judged after, and never in the way."""
import pandas as pd
import pytest

from clstudy.analysis.intervals import Interval
from clstudy.notebooks.prediction import guess

CHOICES = ["above", "below", "no difference"]


@pytest.mark.parametrize("mine", ["below", 2])
def test_a_guess_is_a_choice_or_its_number(mine, capsys) -> None:
    made = guess("Where?", CHOICES, mine)
    assert made.mine == "below" and "Your guess: below." in capsys.readouterr().out
    assert made.turned_out("below") is True
    assert capsys.readouterr().out == "Where? Your guess: below. It turned out: below.\n"
    assert made.turned_out("above") is False
    assert "It turned out: above. What did you expect" in capsys.readouterr().out


def test_without_a_guess_nothing_is_told(capsys) -> None:
    made = guess("Where?", CHOICES)
    assert capsys.readouterr().out == ("Where?\n1 above · 2 below · 3 no difference\n"
                                       "To guess, write mine=1 or another number into the call.\n")
    assert made.turned_out("above") is None
    assert "above." not in capsys.readouterr().out


@pytest.mark.parametrize(("found", "answer"), [
    (Interval(2.0, 1.0), "above"), (Interval(-2.0, 1.0), "below"), (Interval(0.5, 1.0), "no difference"),
    (Interval(2.0, float("nan")), "no difference"),
    (pd.DataFrame({"verdict": ["higher, by less than 2 points"]}), "above"),
    (pd.DataFrame({"verdict": ["lower"]}), "below"), (pd.DataFrame({"verdict": ["inconclusive"]}), "no difference")])
def test_an_interval_tells_a_side_only_where_it_is_clear_of_zero(found, answer, capsys) -> None:
    assert [choice for choice in CHOICES
            if guess("?", CHOICES, choice).turned_out(found)] == [answer]


@pytest.mark.parametrize(("mine", "said"), [(0, "from 1 to 3"), (4, "from 1 to 3"), ("abov", "Did you mean above")])
def test_a_guess_that_is_no_choice_is_refused(mine, said) -> None:
    with pytest.raises(ValueError, match=said):
        guess("?", CHOICES, mine)


def test_an_answer_must_be_a_choice_and_an_interval_needs_three() -> None:
    with pytest.raises(ValueError, match="found='left'"):
        guess("?", CHOICES, 1).turned_out("left")
    with pytest.raises(ValueError, match="an interval needs three"):
        guess("?", ["yes", "no"], 1).turned_out(Interval(1.0, 0.5))
