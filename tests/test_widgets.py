"""Widgets: what is chosen is what is shown, headless too."""
import pytest

from clstudy import widgets


@pytest.fixture
def drawn():
    """A chooser over five things, its controls, and what it has drawn."""
    made = []
    groups = {("texts", 10): "a", ("texts", 100): "b", ("texts", 400): "c", ("tokens", 2): "d", ("tokens", 100): "e"}
    box = widgets.chooser(groups, ["vary", "how many"], lambda thing: made.append(thing) or thing)
    return (*box.children[0].children, made)


def test_a_chooser_shows_the_first_and_follows_its_slider(drawn):
    first, second, made = drawn
    assert made[-1] == "a" and list(second.options) == [10, 100, 400] and first.options == ("texts", "tokens")
    second.value = 400
    assert made[-1] == "c"


def test_the_slider_of_a_chooser_has_the_values_of_what_is_chosen(drawn):
    first, second, made = drawn
    second.value = 400
    first.value = "tokens"
    assert list(second.options) == [2, 100] and made[-1] == "d"
    second.value = 100
    assert made[-1] == "e"
    first.value = "texts"
    assert made[-1] == {10: "a", 100: "b"}[second.value]


def test_the_map_is_walked_by_its_four_lists():
    box = widgets.map_walker(candidates="seen", class_weights="kl", denominator="moving")
    lists = [one for row in box.children[:2] for one in row.children]
    shown = box.children[2]
    assert [one.description for one in lists] == ["candidates", "denominator", "class weights", "vocabulary"]
    assert "`gdro`" in shown.value and "no finished run" in shown.value
    lists[2].value = "uniform"
    assert "`gcl`" in shown.value and "`gdro`" not in shown.value
    lists[1].value = "pairs"
    assert "Nothing stands here" in shown.value and "&#x27;pairs&#x27;" in shown.value
    lists[0].value = "batch"
    assert "`clip_loss`" in shown.value
