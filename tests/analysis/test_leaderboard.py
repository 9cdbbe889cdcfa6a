"""The leaderboard: what is one row and what are two, what validation chooses, and how far a row is
behind the first when they are paired."""
import pandas as pd
import pytest
from small_runs import evaluations, make
from small_runs import row as evaluation

from clstudy import plots
from clstudy.analysis import leaderboard
from clstudy.runs.run import Run, finished
from clstudy.training.config import RunConfig
from clstudy.utils import paths
from tests.notebooks.test_notebooks_toy import run


def write(folder, last: float = .4, seed: int = 0, name: str | None = None,
          result: dict | None = None, validation: float | None = None, **settings) -> Run:
    """A finished run of these settings, written by hand: its last accuracy is `last`, its accuracy
    on validation images `validation`."""
    config = RunConfig.model_construct(**{"seed": seed, **settings})
    name = name or f"{abs(hash((last, seed, str(settings)))):x}"
    rows = evaluations(last)
    if validation is not None:
        rows += [evaluation(stage, "validation", "own", validation) for stage in (0, 3)]
    run = make(folder / name, rows, seed, **(result or {}))
    (run.folder / "config.json").write_text(config.model_dump_json())
    return Run(config, run.folder)


def three(folder, lasts, **settings) -> list[Run]:
    return [write(folder, last, seed, **settings) for seed, last in enumerate(lasts)]


def entries(table) -> list[tuple]:
    return list(table[leaderboard.ENTRY].drop_duplicates().itertuples(index=False, name=None))


def ranked(runs, metrics=("A_last",), seeds: int = 2, tried=leaderboard.TRIED):
    rows = leaderboard.settled(leaderboard.gather(runs, tried))
    found, each = leaderboard.behind(rows, runs, metrics, seeds)
    return rows, found, each


# ---- one row or two


def test_seeds_are_one_row_and_settings_are_two(tmp_path):
    runs = three(tmp_path, (.5, .6, .7), method="lwf", method_args={"weight": 1})
    runs += three(tmp_path, (.3, .2), method="lwf", method_args={"weight": 8.5})
    runs += three(tmp_path, (.3,), method="sit")
    table = leaderboard.gather(runs)
    assert entries(table) == [("emoji, disjoint", "lwf", "lora", "weight 1"),
                              ("emoji, disjoint", "lwf", "lora", "weight 8.5"),
                              ("emoji, disjoint", "sit", "lora", "")]
    assert table.groupby("settings").size().to_dict() == {"weight 1": 3, "weight 8.5": 2, "": 1}


def test_rates_and_strengths_that_are_tried_make_no_other_row(tmp_path):
    runs = [write(tmp_path, method="lwf", lr=lr, method_args={"weight": weight})
            for lr, weight in ((.1, 1), (.2, 1), (.1, 4))]
    table = leaderboard.gather(runs, leaderboard.TRIED)
    assert entries(table) == [("emoji, disjoint", "lwf", "lora", "")]
    assert table.tried.tolist() == ["lr 0.1, weight 1", "lr 0.2, weight 1", "lr 0.1, weight 4"]


def test_what_a_run_measures_and_rates_that_train_nothing_make_no_other_row(tmp_path):
    runs = [write(tmp_path, seed=0, method="frozen", tuner="none", lr=.1, held_out_every=5),
            write(tmp_path, seed=1, method="frozen", tuner="none", lr=.2, eval_every=10,
                  benchmark_args={"held_out": ["validation"]})]
    table = leaderboard.gather(runs)
    assert entries(table) == [("emoji, disjoint", "frozen", "none", "")] and len(table) == 2


def test_a_rate_counts_where_a_method_trains_without_a_tuner(tmp_path):
    found = {}
    for learn in (False, True):
        runs = [write(tmp_path, method="text_cache", tuner="none", lr=lr,
                      method_args={"learn": learn}) for lr in (.1, .2)]
        found[learn] = leaderboard.gather(runs, leaderboard.TRIED)
    assert found[False].tried.tolist() == [""]  # one run, made twice
    assert found[True].tried.tolist() == ["lr 0.1", "lr 0.2"]


def test_an_option_at_its_default_is_not_written(tmp_path):
    runs = [write(tmp_path, method="compose", method_args=args) for args in (
        {"class_weights": "uniform"}, {"class_weights": "kl", "candidates": "batch"})]
    assert [key[3] for key in entries(leaderboard.gather(runs))] == ["", "class_weights kl"]


def test_settings_are_shown_only_where_rows_of_one_method_and_tuner_differ(tmp_path):
    runs = [write(tmp_path, method="sit", lr=.1), write(tmp_path, method="finetune", lr=.2),
            write(tmp_path, method="sit", tuner="full", lr=.3, tower="text"),
            write(tmp_path, method="sit", tuner="full", lr=.3, tower="both", epochs=2)]
    assert [key[3] for key in entries(leaderboard.gather(runs))] == ["", "", "tower text, epochs 1",
                                                                     "tower both, epochs 2"]


def test_another_stream_or_model_is_another_board(tmp_path):
    runs = [
        write(tmp_path, stream_args={"tasks": 5}),
        write(tmp_path, stream_args={"tasks": 9}),
        write(tmp_path, stream="joint"),
        write(tmp_path, stream_args={"tasks": 5}, benchmark_args={"split": "validation"})
    ]
    assert leaderboard.gather(runs).board.tolist() == [
        "emoji, disjoint (tasks 5)", "emoji, disjoint (tasks 9)", "emoji, joint",
        "emoji, disjoint (tasks 5, split validation)"
    ]


def test_long_values_are_cut_and_stay_different(tmp_path):
    lists = [[list(range(30))], [list(range(31))]]
    runs = [write(tmp_path, stream_args={"tasks": tasks}) for tasks in lists]
    boards = leaderboard.gather(runs).board
    assert boards.nunique() == 2 and boards.str.contains(r"\(tasks list of 1 #[0-9a-f]{4}\)$").all()
    assert leaderboard.brief(["noto", "twemoji"
                              ]) == "noto + twemoji" and leaderboard.brief(None) == "none"
    long = [leaderboard.brief("a" * 40 + end) for end in "bc"]
    assert long[0] != long[1] and all(len(text) < 30 for text in long)


def test_options_of_one_name_are_told_apart(tmp_path):
    runs = [write(tmp_path, method_args={"size": 5}), write(tmp_path, tuner_args={"size": 5})]
    assert sorted(key[3] for key in entries(leaderboard.gather(runs))) == [
        "method_args.size 5", "tuner_args.size 5"
    ]


def test_of_equal_runs_the_last_made_counts(tmp_path):
    runs = [write(tmp_path, last, name=name, result={"finished": when})
            for name, last, when in (("a", .2, 10.), ("b", .7, 30.), ("c", .5, 20.))]
    table = leaderboard.gather(runs)
    assert table.index.tolist() == ["b"] and table.A_last.tolist() == pytest.approx([70])


def test_a_balanced_draw_has_a_look_of_its_own(tmp_path):
    runs = [write(tmp_path, method="er", method_args=args) for args in ({}, {"draw": "balanced"})]
    assert leaderboard.gather(runs)["look"].tolist() == ["er", "er_balanced"]
    assert {"er", "er_balanced"} <= set(plots.LOOKS)


def test_zero_shot_is_the_mean_of_the_held_out_sets_that_choose_nothing(tmp_path):
    table = leaderboard.gather([write(tmp_path, validation=.9), write(tmp_path, seed=1)])
    assert table["zero-shot"].tolist() == pytest.approx([60, 60])  # concepts and pets
    assert table.choosing.iloc[0] == pytest.approx(90) and table.choosing.isna().iloc[1]


def test_runs_of_another_version_are_no_runs_of_this_one(tmp_path):
    own = RunConfig(method="sit")
    runs = [
        write(tmp_path, name=own.run_id, method="sit"),
        write(tmp_path, name="old", method="sit"),
        write(tmp_path, name="gone", benchmark="folder")
    ]  # without its path
    (runs[0].folder / "config.json").write_text(own.model_dump_json())
    assert [run.id for run in leaderboard.current(finished(tmp_path))] == [own.run_id]


def test_runs_are_selected_by_their_settings(tmp_path):
    runs = [write(tmp_path, method=method, stream=stream) for method in ("sit", "er")
            for stream in ("joint", "disjoint")]
    found = leaderboard.select(runs, method=["er"], stream=[])
    assert [(run.config.method, run.config.stream) for run in found] == [("er", "joint"),
                                                                         ("er", "disjoint")]
    with pytest.raises(ValueError, match="Choices: er, sit"):
        leaderboard.select(runs, method=["sti"])
    assert leaderboard.select([], method=["sti"]) == []


def test_without_runs_it_is_said_how_to_make_some():
    with pytest.raises(ValueError, match="No finished runs. Make some with `clstudy study`"):
        leaderboard.gather([])


def test_runs_on_other_files_stand_on_another_board(tmp_path):
    """Seed 0 was made again after the data had changed: it is not averaged with seed 1 of
    before."""
    runs = [
        Run(RunConfig.model_construct(seed=seed),
            make(tmp_path / f"{seed}-{data}", fingerprints=[data]).folder)
        for seed, data in ((0, "old"), (1, "old"), (0, "new"))
    ]
    table = leaderboard.gather(runs)
    assert len(table) == 3 and table.board.nunique() == 2
    assert table.board["0-old"] == table.board["1-old"] != table.board["0-new"]


# ---- what validation chooses


def rates(folder, *found, **settings) -> list[Run]:
    """Runs at several rates: (rate, accuracies on validation images by seed, last accuracies)."""
    return [write(folder, last, seed, lr=lr, validation=valid, **settings)
            for lr, valids, lasts in found
            for seed, (valid, last) in enumerate(zip(valids, lasts, strict=True))]


def test_validation_chooses_the_rate_and_not_the_test_images(tmp_path):
    runs = rates(tmp_path, (.1, (.5, .5), (.9, .9)), (.2, (.6, .6, .1), (.2, .3, .4)))
    rows = leaderboard.settled(leaderboard.gather(runs, leaderboard.TRIED))
    assert rows.tried.unique().tolist() == ["lr 0.2"] and len(rows) == 3  # seed 2 chose nothing
    assert (rows.tries == 2).all() and (rows.chosen == "validation").all()


def test_of_equal_rates_the_smaller_is_taken(tmp_path):
    runs = rates(tmp_path, (.3, (.6, .7), (.9, .9)), (.2, (.7, .6), (.2, .3)),
                 (.1, (.1, .1), (.5, .5)))
    rows = leaderboard.settled(leaderboard.gather(runs, leaderboard.TRIED))
    assert rows.tried.unique().tolist() == ["lr 0.2"] and (rows.tries == 3).all()


@pytest.mark.parametrize("valid", [None, .5])
def test_where_validation_cannot_choose_every_rate_is_a_row(valid, tmp_path):
    runs = rates(tmp_path, (.1, (valid,) * 2, (.4, .5)), (.2, (valid,) * 2, (.2, .3)), epochs=2)
    rows, found, _ = ranked(runs)
    assert rows.settings.unique().tolist() == ["lr 0.1", "lr 0.2"]
    assert (rows.chosen == "not chosen").all() and len(found) == 1
    one = leaderboard.settled(leaderboard.gather(runs[:2], leaderboard.TRIED))
    assert one.chosen.tolist() == ["only one"] * 2 and one.tried.tolist() == ["lr 0.1"] * 2


# ---- ranking


@pytest.fixture
def runs(tmp_path):
    """SIT leads; ER is behind on some seeds; fine-tuning is clearly behind; LwF has one seed."""
    found = three(tmp_path, (.60, .62, .61), method="sit", method_args={"size": 9})
    found += three(tmp_path, (.50, .62, .56), method="er")
    found += three(tmp_path, (.40, .41, .42), method="finetune")
    return found + three(tmp_path, (.9,), method="lwf")


def test_rows_are_ranked_by_paired_differences_to_the_first(runs):
    _, found, each = ranked(runs)
    sit, er, asymmetric = (plots.METHODS[name][0] for name in ("sit", "er", "finetune"))
    assert found.label.tolist() == [f"{er}, lora", f"{asymmetric}, lora"]  # LwF: one seed
    assert found.base.unique().tolist() == [f"{sit}, lora"] and (found.n == 3).all()
    assert found.difference.tolist() == pytest.approx([-5, -20])
    assert each.difference[:3].tolist() == pytest.approx([-10, 0, -5])
    assert found.verdict.tolist() == ["inconclusive", "lower"]
    assert found.comparisons.tolist() == [2, 2]


def test_p_is_corrected_within_each_board_alone(runs, tmp_path):
    more = [write(tmp_path / "joint", last, seed, method=method, stream="joint")
            for method, lasts in (("sit", (.6, .7)), ("er", (.5, .61)))
            for seed, last in enumerate(lasts)]
    _, found, _ = ranked(runs + more)
    assert found.board.tolist() == ["emoji, disjoint"] * 2 + ["emoji, joint"]
    assert found.comparisons.tolist() == [2, 2, 1]


def test_overlap_decides_nothing_and_no_row_is_ahead_of_the_first(tmp_path):
    """SIT is always a little ahead of ER, though the seeds are far apart; LwF has the highest mean,
    but only because it lacks the hard seed."""
    runs = three(tmp_path, (.9, .5, .1), method="sit")
    runs += three(tmp_path, (.88, .481, .079), method="er")
    runs += three(tmp_path, (.85, .46), method="lwf")
    _, found, _ = ranked(runs)
    assert [name.split(",")[0] for name in found.label] == ["ER", "LwF"]
    assert found.difference.tolist() == pytest.approx([-2, -4.5]) and found.n.tolist() == [3, 2]
    assert found.verdict[0] == "lower"


def test_in_a_circle_the_row_with_the_smallest_gap_is_first(tmp_path):
    """Each has one ahead of it on the seeds that both have: ER is by 1 behind LwF, SIT by 4 behind
    ER, LwF by 9 behind SIT."""
    runs = [write(tmp_path, last, seed, method=method) for method, lasts in (
        ("sit", {0: .50, 1: .50, 2: .59, 3: .59}), ("er", {0: .54, 1: .54, 4: .50, 5: .50}),
        ("lwf", {2: .50, 3: .50, 4: .51, 5: .51})) for seed, last in lasts.items()]
    _, found, _ = ranked(runs)
    assert found.base[0].startswith("ER") and found.difference.tolist() == pytest.approx([1, -4])


def test_where_less_is_better_the_least_is_first(runs, monkeypatch):
    monkeypatch.setattr(leaderboard, "LOWER", ["A_last"])
    _, found, _ = ranked(runs)
    assert found.base[0].startswith(plots.METHODS["finetune"][0])
    assert found.difference.tolist() == pytest.approx([15, 20])
    assert leaderboard.summary(found).endswith("; 2 of 2 other rows are higher.")


def test_only_seeds_that_both_rows_have_are_paired(tmp_path):
    runs = [write(tmp_path, last, seed, method=method) for method, lasts in (
        ("sit", {0: .6, 1: .7, 5: .1}), ("er", {0: .5, 1: .5, 2: .9}))
        for seed, last in lasts.items()]
    runs += [write(tmp_path, .3, 0, method="sit", stream_seed=4)]  # crossed: pairs with none
    _, found, _ = ranked(runs)
    assert found.pairs.tolist() == [2] and found.difference.abs().tolist() == pytest.approx([15])


def test_a_board_is_ranked_by_the_first_metric_that_it_has(runs):
    assert set(ranked(runs, ["A-Acc", "A_last"])[1].metric) == {"A_last"}
    with pytest.raises(ValueError, match="seeds=4: no board has two rows with so many in A_last"):
        ranked(runs, seeds=4)


def test_a_board_is_told_in_a_line_and_its_rows_in_a_table(runs):
    rows, found, _ = ranked(runs)
    sit, er = (plots.METHODS[name][0] for name in ("sit", "er"))
    assert leaderboard.summary(found) == (
        f"emoji, disjoint: {sit}, lora has the best A_last; 1 of 2 other rows is lower, not shown "
        f"to be: {er}, lora (inconclusive).")
    many = pd.concat([found[:1]] * 7)
    assert leaderboard.summary(many).endswith("0 of 7 other rows are lower, not shown to be: "
                                              + f"{er}, lora (inconclusive); " * 5 + "and 2 more.")
    table = leaderboard.shown(rows, found)
    assert table.index.names == ["board", "row"] and len(table) == 3
    first = table.iloc[0]
    assert list(first[["mean", "minus the first", "verdict", "n"]]) == ["61.0", "–", "first", 3]
    assert table["minus the first"].iloc[1].startswith("-5.0 (-")
    assert table["zero-shot"].iloc[1] == "60.0"
    assert table["chosen by"].unique().tolist() == ["only one"] and first.shown == "lr 0.0005"


def test_a_figure_calls_rows_in_two_lines_and_boards_with_their_first():
    long = ["a b" * 50 + end for end in "xy"]
    found = pd.DataFrame({"board": "emoji, joint", "label": ["SIT, lora", *long], "base": "ER",
                          "metric": "A_last"})
    called = leaderboard.labels(found)
    assert called["SIT, lora"] == "SIT, lora" and called[long[0]] != called[long[1]]
    lines = called[long[0]].splitlines()
    assert len(lines) == 2 and all(len(line) <= leaderboard.LINE for line in lines)
    assert called["emoji, joint"] == "emoji, joint: A_last, against ER"


# ---- the notebook


@pytest.mark.parametrize("some", [False, True])
def test_the_notebook_runs_without_runs_and_with_some(some, tmp_path, monkeypatch, capsys):
    for name in ("RUNS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name)
        (tmp_path / name).mkdir()
    if some:
        for method, more in (("sit", .1), ("er", .05), ("frozen", 0)):
            for seed in range(2):
                write(tmp_path / "RUNS", .5 + seed / 10 + more, seed, method=method)
    run("12_leaderboard", {"stale": True})
    said, drawn = capsys.readouterr().out, {path.name for path in (tmp_path / "FIGURES").glob("*")}
    if some:
        assert {"12_boards.pdf", "12_boards.csv", "12_leaderboard.tex"} <= drawn
        assert f"{plots.METHODS['sit'][0]}, lora has the best A_last" in said
    else:
        assert "No finished runs" in said and not drawn
