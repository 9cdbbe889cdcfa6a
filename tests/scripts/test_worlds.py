"""The script that measures the embedded worlds: its runs are possible, and its page has its tables."""
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "worlds.py"


@pytest.fixture(scope="module")
def worlds():
    spec = importlib.util.spec_from_file_location("worlds", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_run_is_possible_and_stands_in_the_page(worlds):
    page = worlds.PAGE.read_text()
    rows = [line for line in page.partition("<!-- tuned -->")[2].splitlines() if "| " in line]
    for name, world in worlds.WORLDS.items():
        configs = world.configs()  # RunConfig refuses what is impossible
        assert len(configs) == sum(line.startswith(f"| {name} |") for line in rows), name


def test_a_table_is_put_between_its_marks(worlds):
    table = worlds.written([{"a": "x", "b": 1.25, "c": None}, {"a": "y", "b": float("nan"), "c": 3}])
    assert table.splitlines() == ["| a | b | c |", "| :-- | --: | --: |", "| x | 1.2 |  |",
                                  "| y |  | 3 |"]
    assert worlds.put("1 <!-- t -->\nold\n<!-- /t --> 2", "t", "new") == \
        "1 <!-- t -->\nnew\n<!-- /t --> 2"
    with pytest.raises(ValueError, match="has no <!-- u -->"):
        worlds.put("nothing", "u", "new")
