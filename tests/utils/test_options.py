"""Options: a field is checked against its annotation, and errors say field, value and choices."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from clstudy.utils.options import Option, Options, annotation, described, in_words, make


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


@dataclass
class Cake(Options):
    """With sugar."""

    title: ClassVar[str] = "Cake"

    eggs: Annotated[int, Ge(1)] = 4  # how many
    sugar: Annotated[float, Gt(0)] = 1.0
    rest: Annotated[float, Ge(0), Lt(1)] = 0.5  # share of an hour
    share: Annotated[float, Ge(0), Le(100)] = 50
    form: Literal["round", "square"] = "round"
    toppings: Sequence[Literal["nuts", "lemon"]] = ()
    guests: Annotated[int, AfterValidator(even)] | None = None
    warm: bool = False
    made: dict[str, Any] = field(default_factory=dict, init=False)  # state: not an option

    def check(self) -> None:
        if self.form == "square" and self.eggs > 6:
            raise ValueError(f"eggs={self.eggs!r} does not go with form='square'")


@dataclass
class Bread(Options):
    flour: str  # which


SHOP = {"cake": Cake, "bread": Bread}


@pytest.mark.parametrize(("name", "value", "said"), [
    ("eggs", 0, "eggs=0: must be at least 1"),
    ("eggs", 2.5, "eggs=2.5: must be a whole number, at least 1"),
    ("eggs", True, "eggs=True: must be a whole number, at least 1"),
    ("eggs", None, "eggs=None: must be a whole number, at least 1"),
    ("sugar", 0, "sugar=0: must be above 0"), ("sugar", float("nan"), "sugar=nan: must be above 0"),
    ("sugar", "much", "sugar='much': must be a number, above 0"),
    ("sugar", True, "sugar=True: must be a number, above 0"),
    ("rest", 1, "rest=1: must be from 0 to below 1"),
    ("share", 101, "share=101: must be from 0 to 100"),
    ("form", "sqare", "form='sqare' is unknown. Did you mean square? Choices: round, square"),
    ("toppings", ["nuts", "lemmon"],
     "toppings='lemmon' is unknown. Did you mean lemon? Choices: lemon, nuts"),
    ("toppings", "nuts", "toppings='nuts': must be a list of 'nuts' or 'lemon', such as ['nuts']"),
    ("guests", 3, "guests=3: must be even"),
    ("guests", 1.5, "guests=1.5: must be a whole number or None"),
    ("warm", 1, "warm=1: must be True or False"),
], ids=str)
def test_a_value_that_does_not_fit_is_refused_in_one_sentence(name, value, said):
    for kind in (lambda: Cake(**{name: value}), lambda: make("dish", "cake", SHOP, {name: value})):
        with pytest.raises(ValueError) as error:
            kind()
        assert str(error.value).removeprefix("dish_args: ") == said


def test_values_that_fit_stay_as_they_were_given():
    cake = make("dish", "cake", SHOP, {"sugar": 2, "toppings": ["nuts"], "guests": None})
    assert (cake.sugar, cake.toppings, cake.guests) == (2, ["nuts"], None)
    assert type(cake.sugar) is int and type(cake.toppings) is list
    assert Cake(toppings=("lemon",)).toppings == ("lemon",) and Cake(sugar=float("inf"))


def test_combinations_are_checked_after_the_fields():
    with pytest.raises(ValueError, match="eggs=8 does not go with form='square'"):
        Cake(eggs=8, form="square")
    with pytest.raises(ValueError, match="^dish_args: eggs=8 does not go with form='square'"):
        make("dish", "cake", SHOP, {"eggs": 8, "form": "square"})


@pytest.mark.parametrize(("name", "given", "said"), [
    ("cack", {}, "dish='cack' is unknown. Did you mean cake? Choices: bread, cake"),
    ("cake", {"egs": 1}, "dish_args: 'egs' is unknown. Did you mean eggs? Choices: eggs=4, sugar=1.0"),
    ("cake", {"made": {}}, "dish_args: 'made' is unknown"), ("cake", {"title": ""}, "'title' is unknown"),
    ("bread", {}, "dish_args: 'flour' is needed by Bread"),
])
def test_unknown_names_and_options_and_missing_ones_are_refused(name, given, said):
    with pytest.raises(ValueError) as error:
        make("dish", name, SHOP, given)
    assert said in str(error.value)


def test_options_are_described_with_default_range_and_the_comment_behind_them():
    rows = {row.name: row for row in described(Cake)}
    assert list(rows) == "eggs sugar rest share form toppings guests warm".split()
    assert rows["eggs"] == Option("eggs", "4", "a whole number, at least 1", "how many")
    assert rows["rest"] == Option("rest", "0.5", "a number, from 0 to below 1", "share of an hour")
    assert described(Bread) == [Option("flour", "", "a text", "which")]


def test_an_option_of_a_parent_is_described_too():
    @dataclass
    class Tart(Cake):
        jam: bool = True  # apricot

    assert [row.help for row in described(Tart)][::8] == ["how many", "apricot"]


def test_annotations_are_said_in_words():
    assert in_words(Annotated[int, Ge(1)] | None) == "a whole number, at least 1, or None"
    assert in_words(int | Literal["groups"] | Sequence[Sequence[int]]) == (
        "a whole number, 'groups' or a list of lists of whole numbers")
    assert in_words(Sequence[Annotated[int, Ge(0)]]) == "a list of whole numbers, at least 0"
    assert annotation(Cake, "eggs") == Annotated[int, Ge(1)] and annotation(Cake, "made") is None
