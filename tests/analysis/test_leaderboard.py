"""The leaderboard: what is one row and what are two, who shares the first place, and what is read
again."""
import json
import math
import os

import nbformat
import numpy as np
import pandas as pd
import pytest
from small_runs import evaluations, make

from clstudy import plots
from clstudy.analysis import leaderboard
from clstudy.analysis import scores as scores_module
from clstudy.notebooks import execute
from clstudy.runs.run import Run, finished
from clstudy.training.config import RunConfig
from clstudy.utils import paths

T = 4.302653  # Student's t, 97.5 %, two degrees of freedom
NOTEBOOK = paths.NOTEBOOKS / "12_leaderboard.ipynb"


def write(folder, last: float = .4, seed: int = 0, name: str | None = None,
          result: dict | None = None, **settings) -> Run:
    """A finished run of these settings, written by hand: its last accuracy is `last`."""
    config = RunConfig.model_construct(**{"seed": seed, **settings})
    name = name or f"{abs(hash((last, seed, str(settings)))):x}"
    run = make(folder / name, evaluations(last), seed, **(result or {}))
    (run.folder / "config.json").write_text(config.model_dump_json())
    return Run(config, run.folder)


def three(folder, lasts, **settings) -> list[Run]:
    return [write(folder, last, seed, **settings) for seed, last in enumerate(lasts)]


def entries(table) -> list[tuple]:
    return list(table[leaderboard.ENTRY].drop_duplicates().itertuples(index=False, name=None))


# ---- one row or two


def test_seeds_are_one_row_and_settings_are_two(tmp_path):
    runs = three(tmp_path, (.5, .6, .7), method="lwf", method_args={"weight": 1})
    runs += three(tmp_path, (.3, .2), method="lwf", method_args={"weight": 8.5})
    runs += three(tmp_path, (.3,), method="sit")
    table = leaderboard.gather(runs)
    assert entries(table) == [("emoji, disjoint", "lwf", "lora", "weight 1"),
                              ("emoji, disjoint", "lwf", "lora", "weight 8.5"),
                              ("emoji, disjoint", "sit", "lora", "")]
    assert leaderboard.standings(table, ["A_last"]).set_index("settings").seeds.to_dict() == {
        "weight 1": 3, "weight 8.5": 2, "": 1}


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
        write(tmp_path, stream_args={"tasks": 5}, eval_every=10)
    ]
    assert leaderboard.gather(runs).board.tolist() == [
        "emoji, disjoint (tasks 5, eval_every none)", "emoji, disjoint (tasks 9, eval_every none)",
        "emoji, joint", "emoji, disjoint (tasks 5, eval_every 10)"
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


def test_zero_shot_is_the_mean_of_the_held_out_sets_and_costs_have_units(tmp_path):
    cost = {"parameters": 7, "images_per_second": 50., "peak_memory": 3 * 2**20}
    table = leaderboard.gather([
        write(tmp_path, name="a", result=cost),
        write(tmp_path, name="b", method="frozen", result=cost | {"parameters": 0})
    ])
    assert leaderboard.held_out_sets(table) == ["concepts", "pets"]
    assert table["zero-shot"].tolist() == pytest.approx([60, 60])
    assert table["zero-shot before"].tolist() == pytest.approx([55, 55])
    assert table.loc["a", ["parameters", "images/s", "GPU memory, MB"]].tolist() == [7, 50, 3]
    assert math.isnan(table.loc["b", "images/s"]) and math.isnan(table.loc["a", "memory, MB"])


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


# ---- reading


def test_scores_are_read_once_and_again_when_the_run_was_made_again(tmp_path, monkeypatch):
    runs = three(tmp_path, (.5, .6), method="sit")
    read, scores = [], scores_module.metrics_of
    monkeypatch.setattr(scores_module, "metrics_of", lambda run: read.append(run.id) or scores(run))
    kept = tmp_path / "scores.parquet"
    once = leaderboard.scored(runs, kept)
    assert read == [run.id for run in runs]
    pd.testing.assert_frame_equal(leaderboard.scored(runs, kept), once, check_exact=True)
    assert len(read) == 2
    again = Run(runs[0].config, runs[0].folder)
    (again.folder / "evals.jsonl").write_text("".join(
        json.dumps(row) + "\n" for row in evaluations(.9)))
    os.utime(again.folder / "result.json", ns=(1, 1))
    more = leaderboard.scored([again, runs[1], write(tmp_path, .3, seed=2)], kept)
    assert len(read) == 4 and read[2] == again.id and more.A_last.tolist() == pytest.approx(
        [90, 60, 30])
    assert len(pd.read_parquet(kept)) == 3 and not list(tmp_path.glob("*.new-*"))


def test_scores_that_were_damaged_or_kept_by_other_code_are_not_believed(tmp_path, monkeypatch):
    runs, kept = three(tmp_path, (.5,)), tmp_path / "scores.parquet"
    right = leaderboard.scored(runs, kept)
    whole = pd.read_parquet(kept)
    for damaged in (whole.assign(A_last=1.), whole.rename(columns={"A_last": "B_last"}),
                    whole.reset_index(drop=True)):
        damaged.to_parquet(kept)
        pd.testing.assert_frame_equal(leaderboard.scored(runs, kept), right)
    kept.write_text("no table")
    assert leaderboard.scored(runs, kept).A_last.tolist() == pytest.approx([50])
    monkeypatch.setattr(scores_module, "metrics_of", lambda run: {"A_last": 1.})
    assert leaderboard.scored(runs, kept).A_last.tolist() == pytest.approx([50])  # it is read
    monkeypatch.setattr(leaderboard, "fingerprint", lambda path: "other")
    assert leaderboard.scored(runs, kept).A_last.tolist() == [1]


def test_without_runs_it_is_said_how_to_make_some():
    with pytest.raises(ValueError, match="No finished runs. Make some with `clstudy study`"):
        leaderboard.gather([])


# ---- ranking


@pytest.fixture
def board(tmp_path):
    """SIT leads; ER's interval reaches it; fine-tuning's does not; LwF is above all with one
    seed."""
    runs = three(tmp_path, (.60, .62, .61), method="sit") + three(tmp_path,
                                                                  (.50, .62, .56), method="er")
    runs += three(tmp_path,
                  (.40, .41, .42), method="finetune") + three(tmp_path, (.9, ), method="lwf")
    return leaderboard.gather(runs)


def test_the_first_place_is_shared_by_those_whose_intervals_overlap(board):
    found = leaderboard.standings(board, ["A_last", "A_avg"]).set_index("method")
    assert found.index.tolist() == ["lwf", "sit", "er", "finetune"]
    assert found["A_last"].tolist() == pytest.approx([90, 61, 56, 41])
    assert found["A_last ±"].tolist()[1:] == pytest.approx(
        [T / math.sqrt(3), 6 * T / math.sqrt(3), T / math.sqrt(3)], rel=1e-5)
    assert math.isnan(found["A_last ±"].iloc[0])
    assert found["A_last *"].tolist() == [False, True, True, False]  # one seed has no place


def test_where_less_is_better_the_least_is_first(board):
    table = board.assign(forgetting=board.A_last)
    found = leaderboard.standings(table, ["forgetting"]).set_index("method")
    assert found.index.tolist() == ["finetune", "er", "sit", "lwf"]
    assert found["forgetting *"].tolist() == [True, True, False,
                                              False]  # 41 ± 2.5, 56 ± 14.9, 61 ± 2.5
    assert leaderboard.behind(table, found.reset_index(), "forgetting").tolist() == [
        "-", "+15.0 ± 13.8", "+20.0 ± 2.5", "-"]  # 10, 21 and 14; 20, 21 and 19


def test_boards_are_ranked_apart(tmp_path):
    runs = three(tmp_path,
                 (.60, .62, .61), method="sit") + three(tmp_path,
                                                        (.1, .2, .15), method="sit", stream="joint")
    found = leaderboard.standings(leaderboard.gather(runs), ["A_last"])
    assert found.board.tolist() == ["emoji, disjoint", "emoji, joint"] and found["A_last *"].all()


def test_a_distance_to_the_best_is_paired_by_seed(board):
    found = leaderboard.standings(board, ["A_last"])
    half = T * np.std([-10, 0, -5], ddof=1) / math.sqrt(3)
    assert leaderboard.behind(board, found, "A_last").tolist() == [
        "-", "-", f"-5.0 ± {half:.1f}", "-20.0 ± 2.5"]  # alone, the best, ER, fine-tuning
    two = board[~((board.method == "er") & (board.seed == 2))]
    said = leaderboard.behind(two, leaderboard.standings(two, ["A_last"]), "A_last")
    assert said[2].startswith("-5.0 ± ") and said[2] != f"-5.0 ± {half:.1f}"  # seeds 0 and 1 only


def test_rows_with_few_seeds_are_left_out_when_asked(board):
    assert leaderboard.standings(board, ["A_last"],
                                 seeds=2).method.tolist() == ["sit", "er", "finetune"]
    with pytest.raises(ValueError, match="seeds=4: no row has so many; the most is 3"):
        leaderboard.standings(board, ["A_last"], seeds=4)


def test_it_reads_as_text_with_stars(board):
    board["parameters"] = [12000.] * 9 + [np.nan]
    shown = leaderboard.shown(leaderboard.standings(board, ["A_last"]), ["A_last"])
    assert shown.index.names == leaderboard.ENTRY and shown.columns.tolist() == [
        "seeds", "A_last", "parameters"
    ]
    assert shown.A_last.tolist() == ["90.0", "61.0 ± 2.5 *", "56.0 ± 14.9 *", "41.0 ± 2.5"]
    assert shown.parameters.tolist() == ["-", "12,000", "12,000", "12,000"]
    assert leaderboard.known(board, ["A_last", "memory, MB", "nothing"]) == ["A_last"]


def test_a_board_in_a_row_who_is_first_in_what_and_who_is_fastest(board, tmp_path):
    board["images/s"] = [10.] * 3 + [40.] * 3 + [90.] * 4  # sit, er, finetune and lwf
    board["zero-shot"] = [50., 51, 52] + [50.5, 51.5, 52.5] + [30., 31, 32] + [90.]
    table = pd.concat([board, leaderboard.gather([write(tmp_path / "alone", stream="joint")])])
    found = leaderboard.standings(table, ["A_last", "zero-shot"])
    places = leaderboard.places(table, found, "A_last", "zero-shot")
    assert places.columns.tolist() == ["ranked", "first in A_last", "first in zero-shot",
                                       "first in both", "behind when paired",
                                       "fastest of the first"]
    assert places.loc["emoji, disjoint"].tolist() == [3, 2, 2, 2, 0, "er, lora"]
    assert places.loc["emoji, joint"].tolist() == [0, 0, 0, 0, 0, "-"]  # one seed: nobody is ahead


def test_a_shared_first_place_may_be_lost_when_compared_seed_by_seed(tmp_path):
    runs = three(tmp_path, (.5, .6, .7), method="sit")
    runs += three(tmp_path, (.48, .581, .679), method="er")
    table = leaderboard.gather(runs + three(tmp_path, (.7, .5, .58), method="lwf"))
    found = leaderboard.standings(table, ["A_last"])
    assert found["A_last *"].all()
    places = leaderboard.places(table, found, "A_last", "A_last")
    assert places["behind when paired"].tolist() == [1]  # er


def test_what_to_doubt(tmp_path):
    runs = three(tmp_path, (.5, .6, .7), method="lwf", lr=.1)
    runs += three(tmp_path, (.5, .6), method="lwf", lr=.2)
    runs += three(tmp_path, (.4,), method="sit", lr=.1)
    runs += three(tmp_path, (.4,), method="frozen", tuner="none")
    care = leaderboard.care(leaderboard.gather(runs))
    assert care.loc["emoji, disjoint", "lwf", "lora"].tolist() == [2, "2-3", "0.1, 0.2"]
    assert care.loc["emoji, disjoint", "sit", "lora"].tolist() == [1, "1", "0.1"]
    assert care.loc["emoji, disjoint", "frozen", "none"].tolist() == [1, "1", "-"]


def test_the_runs_behind_a_board(board, tmp_path):
    more = leaderboard.gather([write(tmp_path / "more", stream="joint")])
    runs = [Run(RunConfig.model_construct(), tmp_path / name)
            for name in (board.index[0], "x", more.index[0])]
    found = leaderboard.of_boards(runs, pd.concat([board, more]), board.board)
    assert [run.id for run in found] == [board.index[0]]


# ---- the notebook


def figures(folder) -> set[str]:
    return {path.name for path in folder.glob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("some", [False, True])
def test_the_notebook_runs_without_runs_and_with_some(some, tmp_path, monkeypatch):
    for name in ("runs", "figures"):
        monkeypatch.setenv(f"CLSTUDY_{name.upper()}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    if some:
        for method in ("sit", "er", "frozen"):
            for seed in range(2):
                cost = {"images_per_second": 9., "parameters": 3}
                write(tmp_path / "runs", .5 + seed / 10, seed, method=method, result=cost)
    done = execute.run_notebook(NOTEBOOK, {"stale": True, "rows": 2}, tmp_path, timeout=300,
                                progress=False)
    assert done.ok, done.error
    said = "\n".join(output.text for cell in nbformat.read(done.path, as_version=4).cells
                     for output in cell.get("outputs", []) if output.output_type == "stream")
    if some:
        assert {
            "12_intervals.pdf", "12_zero_shot.png", "12_cost.json", "12_leaderboard.tex",
            "12_side_sets.md", "12_leaderboard.csv"
        } <= figures(tmp_path / "figures")
        assert "share the first place in A_auc" in said
    else:
        assert "No finished runs" in said and not figures(tmp_path / "figures")


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
