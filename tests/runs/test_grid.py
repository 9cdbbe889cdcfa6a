"""Grids: which combinations words, files and dicts mean, and that nothing impossible gets as far as
a run."""
import re
from dataclasses import dataclass

import pytest

from clstudy.methods import METHODS
from clstudy.methods.base import Method
from clstudy.runs import grid


def test_words_are_choices_ranges_and_values_of_their_type():
    assert grid.words([
        "method=sit,finetune", "seed=0..3", "lr=1e-3", "pretrained=none", "compile=true",
        "milestones=[3,5]", "method_args={'a': 1, 'b': 2},{}", "model=a=b"
    ]) == {
        "method": ["sit", "finetune"], "seed": [0, 1, 2, 3], "lr": [1e-3], "pretrained": ["none"],
        "compile": [True], "milestones": [[3, 5]], "method_args": [{"a": 1, "b": 2},
                                                                   {}], "model": ["a=b"]
    }


def test_points_are_all_combinations_the_last_name_quickest():
    made = grid.points(
        {"method": ["sit", "er"], "seed": "1..2", "method_args.size": 5, "tuner": "lora"})
    assert [(p["method"], p["seed"]) for p in made] == [("sit", 1), ("sit", 2), ("er", 1),
                                                        ("er", 2)]
    assert all(p["method_args"] == {"size": 5} and p["tuner"] == "lora" for p in made)


@pytest.mark.parametrize(("word", "complaint"), [("sit", "write NAME=VALUE"), ("=3", "write NAME=VALUE"),
                                                 ("seed=4..0", "upwards")])
def test_a_word_of_another_form_is_an_error(word, complaint):
    with pytest.raises(ValueError, match=complaint):
        grid.words([word])


def test_an_empty_choice_and_two_values_in_one_place_are_errors():
    with pytest.raises(ValueError, match="seed: no value"):
        grid.points({"seed": []})
    with pytest.raises(ValueError, match="method_args has a value of its own"):
        grid.points({"method_args": [1], "method_args.size": 5})


def test_a_file_holds_common_settings_grids_and_options(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'benchmark = "toy"\nseed = "0..1"\n[method_args]\nsize = [5, 6]\n[sweep]\nworkers = 2\n'
        '[[grid]]\nmethod = "er"\n[[grid]]\nmethod = ["derpp"]\nseed = 7\nmilestones = [[3, 5]]\n')
    grids, options = grid.read(path)
    assert options == {"workers": 2}
    made = [point for one in grids for point in grid.points(one)]
    assert [(p["method"], p["seed"], p["method_args"]["size"]) for p in made] == [
        ("er", 0, 5), ("er", 0, 6), ("er", 1, 5), ("er", 1, 6), ("derpp", 7, 5), ("derpp", 7, 6)]
    assert made[-1]["milestones"] == [3, 5]


@pytest.mark.parametrize(("text", "complaint"), [("a = ", "mine.toml"), ("[sweep]\nworker = 2", "workers"),
                                                 ("[grid]\nseed = 1", r"\[\[grid\]\] for each")])
def test_a_file_of_another_form_is_an_error(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        grid.read(path)


def test_runs_come_once_each_and_are_called_by_what_differs(tiny):
    given = {
        "benchmark": "toy", "model": tiny.model, "method": ["sit", "finetune"], "seed": [0, 1, 1]
    }
    tasks = grid.run_tasks([given, {**given, "seed": 0}])
    assert [task.label for task in tasks] == [
        "method=sit seed=0", "method=sit seed=1", "method=finetune seed=0", "method=finetune seed=1"
    ]
    assert [task.id for task in tasks] == [task.config.run_id for task in tasks]
    assert grid.from_configs([tiny])[0].label == tiny.run_id


def test_none_is_a_name_where_there_is_one_and_else_no_value(tiny, monkeypatch):
    @dataclass
    class Named(Method):
        """A method with an option of words."""

        word: str = "x"

    monkeypatch.setitem(METHODS, "named", Named)
    point = {
        "benchmark": "toy", "tuner": "none", "method": "frozen", "pretrained": "none",
        "eval_every": "None"
    }
    config = grid.run_tasks([point])[0].config
    assert (config.tuner, config.pretrained, config.eval_every) == ("none", None, None)
    config = grid.run_tasks([{"benchmark": "toy", "method": "clib",
                              "method_args.replay": "none"}])[0].config
    assert config.method_args == {"replay": None}
    config = grid.run_tasks([{"benchmark": "toy", "method": "named",
                              "method_args.word": "none"}])[0].config
    assert config.method_args == {"word": "none"}


def test_all_impossible_settings_are_told_at_once(tiny):
    with pytest.raises(ValueError) as error:
        grid.run_tasks([{
            "benchmark": "toy", "method": ["sit", "sitt"], "tuner": ["lora", "lorra"],
            "lr": [0.1, -1], "sead": 1
        }])
    said = str(error.value)
    assert "in a grid of 8" in said and "lr: Input should be greater than 0" in said
    assert re.search("setting='sead' is unknown. Did you mean seed.* Choices: .*, benchmark, ", said)
    with pytest.raises(ValueError, match="Did you mean sit"):
        grid.run_tasks([{"benchmark": "toy", "method": "sitt"}])


def test_an_unknown_option_is_told_with_a_similar_one_of_the_choices():
    with pytest.raises(ValueError, match="setting='wieght' is unknown. Did you mean weight"):
        grid.grid(benchmark="emoji", method=["finetune", "lwf"], wieght=[1, 8])


def test_missing_data_are_told_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("CLSTUDY_DATA", str(tmp_path))
    with pytest.raises((ValueError, OSError), match="cifar100"):
        grid.run_tasks([{"benchmark": "cifar100", "seed": "0..3"}])
