"""The runs at the setting that validation prefers."""
import numpy as np
import pandas as pd
import pytest

from clstudy.analysis import choice, scores
from clstudy.analysis.choice import chosen, with_seeds
from clstudy.analysis.comparisons import compare
from clstudy.runs.run import Run, Runs
from clstudy.training.config import RunConfig


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Return runs made of (settings, metrics); nothing is read from disk."""
    def make(*rows: tuple[dict, dict]) -> Runs:
        runs = [Run(RunConfig(**settings), tmp_path / str(number))
                for number, (settings, _) in enumerate(rows)]
        found = {run: metrics for run, (_, metrics) in zip(runs, rows, strict=True)}
        monkeypatch.setattr(scores, "metrics_of", found.__getitem__)
        monkeypatch.setattr(choice, "metrics_of", found.__getitem__)
        return Runs(runs)

    return make


def sweep(means: dict[float, list[float]], **settings) -> list[tuple[dict, dict]]:
    return [({"lr": lr, "seed": seed, **settings}, {"validation": value, "A_last": -value})
            for lr, values in means.items() for seed, value in enumerate(values)]


def test_each_method_has_the_rate_of_its_own_highest_mean(study):
    runs = study(*sweep({1e-4: [50, 60], 3e-4: [90, 30]}, method="sit"),
                 *sweep({1e-4: [10, 20], 3e-4: [20, 30]}, method="finetune"))
    found = chosen(runs, "validation", "lr")
    table = pd.DataFrame([(run.config.method, run.config.lr, run.config.seed) for run in found])
    assert table.drop_duplicates([0, 1])[[0, 1]].values.tolist() == [["sit", 3e-4],
                                                                     ["finetune", 3e-4]]
    assert isinstance(found, Runs) and len(found) == 4 and set(table[2]) == {0, 1}
    assert {run.config.lr for run in chosen(runs, "A_last", "lr")} == {1e-4}


def test_of_two_that_are_equal_the_smaller_wins_in_any_order(study):
    rows = sweep({3e-4: [.1, .2, .3], 1e-4: [.3, .2, .1], 1e-5: [0, 0, 0]}, method="sit")
    for some in (rows, rows[::-1]):
        assert {run.config.lr for run in chosen(study(*some), "validation", "lr")} == {1e-4}


def test_several_metrics_count_by_their_mean_and_several_settings_together(study):
    rows = [({"method": "lwf", "lr": lr, "method_args": {"weight": weight}}, {"a": a, "b": b})
            for lr, weight, a, b in ((1e-4, 1, 90, 0), (1e-4, 2, 50, 50), (3e-4, 1, 0, 80))]
    (found,) = chosen(study(*rows), ["a", "b"], ["lr", "weight"])
    assert (found.config.lr, found.config.method_args["weight"]) == (1e-4, 2)
    assert len(chosen(study(*rows), "a", "weight", by=["lr"])) == 2  # one for each rate


def test_a_method_without_the_setting_stays_whole(study):
    runs = study(*sweep({1e-4: [1, 2]}, method="frozen", tuner="none"),
                 *[({"method": "lwf", "method_args": {"weight": weight}}, {"validation": weight})
                   for weight in (1, 2)])
    assert len(chosen(runs, "validation", "weight")) == 3


def test_an_only_value_needs_no_validation(study):
    assert len(chosen(study(*sweep({1e-4: [np.nan, 1]})), "of the papers' data", "lr")) == 2


def test_each_side_of_a_comparison_may_have_its_own_rate():
    """Without `free` the rate, which varies among the runs of the base, must be the same."""
    table = pd.DataFrame([("full", "finetune", 1e-4, 0, 10.), ("full", "sit", 3e-4, 0, 12.),
                          ("lora", "finetune", 5e-3, 0, 20.), ("lora", "sit", 5e-4, 0, 25.)],
                         columns=["tuner", "method", "lr", "seed", "A_last"])
    with pytest.raises(ValueError, match="no run of base pairs"):
        compare(table, "A_last", by=["tuner"])
    found = compare(table, "A_last", by=["tuner"], free=["lr"])
    assert found.set_index("tuner").difference.to_dict() == {"full": 2, "lora": 5}
    with pytest.raises(ValueError, match="several runs"):
        compare(pd.concat([table, table.assign(lr=1)]), "A_last", by=["tuner"], free=["lr"])


def test_what_cannot_be_compared_is_refused(study):
    with pytest.raises(ValueError, match=r"lr=0\.0003 has 1 run.* lr=0\.0001 has 2"):
        chosen(study(*sweep({1e-4: [1, 2], 3e-4: [3]})), "validation", "lr")
    with pytest.raises(ValueError, match=r"validation is not measured .*lr=0\.0003"):
        chosen(study(*sweep({1e-4: [1], 3e-4: [np.nan]})), "validation", "lr")
    with pytest.raises(ValueError, match="'rate' is unknown"):
        chosen(study(*sweep({1e-4: [1]})), "validation", "rate")


def test_what_was_chosen_is_run_with_more_seeds_each_once(study):
    runs = study(*sweep({1e-4: [50, 60], 3e-4: [90, 30]}, method="sit"))
    more = with_seeds(chosen(runs, "validation", "lr"), range(4))
    assert [(config.lr, config.seed) for config in more] == [(3e-4, seed) for seed in range(4)]
