"""Estimated times: the nearest kind of past run counts, those with as many threads first."""
import json

from clstudy import RunConfig
from clstudy.runs.durations import Seconds, estimate, past, together

BASE = {"benchmark": "emoji", "method": "sit", "tuner": "lora"}


def run(seconds: float, threads: int = 1, **settings) -> dict:
    return {**RunConfig(**{**BASE, **settings}).model_dump(mode="json"), "seconds": seconds, "threads": threads}


def of(known: list, threads: int | None = None, **settings) -> Seconds | None:
    return estimate([RunConfig(**{**BASE, **settings})], known, threads)[0]


def test_the_nearest_kind_of_run_counts():
    known = [run(10, seed=1), run(30, seed=2), run(20, lr=0.1), run(500, method="lwf"), run(7, tuner="full")]
    assert of(known, seed=9) == Seconds(10, 20, 30)  # seeds and rates take no time
    assert of(known, method="lwf") == Seconds(500, 500, 500)
    assert of(known, method="er") == Seconds(10, 30, 500)  # other methods with this tuner
    assert of(known, tuner="adapter").high == 500  # anything of this benchmark and model
    assert of(known, benchmark="emoji_concepts") is None and of(known, epochs=2) is None


def test_runs_with_as_many_threads_come_first():
    known = [run(10, threads=2), run(30, threads=1)]
    assert of(known, 2) == Seconds(10, 10, 10) and of(known, 1) == Seconds(30, 30, 30)
    assert of(known, 8) == Seconds(10, 30, 30)


def test_together_divides_among_the_workers():
    each = [Seconds(10, 20, 30), None, Seconds(20, 40, 60)]
    assert together(each, 1) == Seconds(45, 90, 135)  # the unknown one is the mean of the others
    assert together(each, 3) == Seconds(20, 40, 60)  # no quicker than the longest
    assert together([None], 1) is None and together([], 1) is None


def test_past_runs_are_read_and_damaged_ones_are_left_out(tmp_path):
    for name, result in (("a", '{"seconds": 5}'), ("b", '{"sec'), ("c", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(RunConfig().model_dump_json())
        (tmp_path / name / "env.json").write_text(json.dumps({"threads": 2}))
        (tmp_path / name / "result.json").write_text(result)
    found = past(tmp_path)
    assert [(one["seconds"], one["threads"], one["method"]) for one in found] == [(5.0, 2, "sit")]
