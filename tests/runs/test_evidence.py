"""Stored evidence: runs in one file are those that were packed, to the byte, or the file is
refused."""
import json

import numpy as np
import pandas as pd
import pytest
import small_runs

from clstudy import load_or_train, train_all
from clstudy.analysis.scores import metrics_of, scores
from clstudy.runs import evidence
from clstudy.runs.evidence import NotStored, load, pack, take
from clstudy.runs.run import Damaged, Runs, kept_name
from clstudy.utils import paths


@pytest.fixture
def file(tmp_path):
    return tmp_path / "figures" / "runs.parquet"


@pytest.fixture
def small(tmp_path) -> Runs:
    """Three runs written by hand, the second with a table of a probe."""
    drift = pd.DataFrame({"step": [0, 1], "class": ["a", "b"], "image": [.1, np.nan]})
    steps = [{"stage": 1, "images_seen": 0, "step": 0, "term": "task", "value": .1 + .2}]
    return Runs(small_runs.make(tmp_path / f"{seed:012x}", seed=seed, steps=steps * (seed > 0),
                                probes={"drift": drift} if seed == 1 else {},
                                rows=small_runs.evaluations(last=.4 + seed / 30))
                for seed in range(3))


def test_a_stored_run_is_the_run(tiny, runs, file):
    run = load_or_train(tiny.replace(eval_every=24), runs, probes=["drift"])
    (stored,) = load(pack([run], file, tables={run.id: ["drift"]}))
    for name in ("evals", "steps", "bits", "tests"):
        pd.testing.assert_frame_equal(getattr(stored, name), getattr(run, name), check_exact=True)
    pd.testing.assert_frame_equal(stored.probe("drift"), run.probe("drift"), check_exact=True)
    assert (stored.id, stored.fingerprints, stored.environment) == (
        run.id, run.fingerprints, run.environment)
    assert stored.config.model_dump() == run.config.model_dump()
    assert np.array_equal(stored.correct("shades", "own"), run.correct("shades", "own"))
    assert np.array_equal(stored.matrix(), run.matrix(), equal_nan=True)
    assert stored.has_tests() and run.has_tests()
    assert stored.classes("all").equals(run.classes("all"))
    assert stored.curve().equals(run.curve())
    pd.testing.assert_series_equal(pd.Series(metrics_of(stored)), pd.Series(metrics_of(run)))


def test_the_same_runs_give_the_same_bytes_in_any_order_and_packed_again(small, file):
    once = pack(small, file).read_bytes()
    assert pack(small[:1], file).read_bytes() == once  # beside the others, in the place of itself
    assert pack(load(file), file).read_bytes() == once
    file.unlink()
    assert pack(list(small)[::-1], file).read_bytes() == once


def test_packing_replaces_by_id_keeps_the_others_and_drops_what_is_not_wanted(small, file,
                                                                              tmp_path):
    pack(small[:2], file, tables={small[1].id: ["drift"]})
    again = small_runs.make(tmp_path / "again" / small[0].id, small_runs.evaluations(last=.9))
    stored = load(pack([again, small[2]], file))
    assert [run.id for run in stored] == [run.id for run in small]
    assert [run.final("seen classes") for run in stored] == [.9, .4 + 1 / 30, .4 + 2 / 30]
    assert stored[1].tables() == ["drift"] and stored[0].tables() == []
    with pytest.raises(NotStored, match=rf"{small[0].id} .* no table 'drift' \(stored: none\)"):
        stored[0].probe("drift")
    left = load(pack([], file, only={small[1].id}))
    assert [run.id for run in left] == [small[1].id]
    assert left[0].probe("drift").image.isna().tolist() == [False, True]
    assert left[0].tests.equals(stored[1].tests)  # another run held them before


def test_a_table_computed_from_weights_is_kept_packed_and_not_made_again(small, file):
    made, name = pd.DataFrame({"share": [0., 1.]}), kept_name("path", None, [0, 1])
    assert name != kept_name("path", None, [0, 2])
    small[0].kept(name, lambda: made)
    (small[0].folder / f"{name}.parquet").write_bytes(b"PAR1")  # damaged: made again
    assert small[0].kept(name, lambda: made).equals(made)
    stored = load(pack(small, file, tables={run.id: [name, "never made"] for run in small}))
    assert stored[0].kept(name, lambda: 1 / 0).equals(made) and stored[0].tables() == [name]
    with pytest.raises(NotStored, match=f"{small[1].id} .* no table '{name}'"):
        stored[1].kept(name, lambda: made)


def test_runs_of_one_world_share_their_tests(small, file):
    first, *others = load(pack(small, file))
    assert all(run.tests is first.tests for run in others) and len(first.tests) == 10


def test_stored_runs_are_a_sequence_like_others(small, file):
    stored = load(pack(small, file))
    assert load(file) is stored and len(stored.where(seed=[0, 2]) + stored[:1]) == 2
    pd.testing.assert_frame_equal(scores(stored, ["A_last"]), scores(small, ["A_last"]))


def test_a_damaged_file_is_named_wherever_the_damage_is(small, file):
    whole = pack(small, file).read_bytes()
    right = [run.evals for run in load(file)]
    rng, refused = np.random.default_rng(0), 0
    spots = {*rng.integers(0, len(whole), 60), *range(len(whole) - 12, len(whole))}
    for number, spot in enumerate(sorted(spots)):
        damaged = bytearray(whole)
        damaged[spot] ^= 0xff
        file.with_name(f"{number}.parquet").write_bytes(damaged)
        try:
            found = load(file.with_name(f"{number}.parquet"))
        except Damaged as error:
            refused += 1
            assert f"{number}.parquet is damaged" in str(error)
        else:  # a byte that says nothing, such as the number of the writer's version
            assert all(run.evals.equals(evals) for run, evals in zip(found, right, strict=True))
    assert refused > 0.8 * len(spots)
    file.write_bytes(whole[:-100])
    with pytest.raises(Damaged, match="runs.parquet is damaged"):
        load(file)
    pd.DataFrame({"id": ["a"]}).to_parquet(file)
    with pytest.raises(Damaged, match="other columns"):
        load(file)


def test_train_all_takes_stored_runs_and_trains_nothing(tiny, runs, file, monkeypatch, no_training):
    pack([load_or_train(tiny, runs)], file)
    monkeypatch.setenv(paths.STORED, str(file))
    no_training()
    taken = train_all([tiny, tiny], runs=runs / "elsewhere")
    assert [run.id for run in taken] == 2 * [tiny.run_id] and taken[0] is load(file)[0]
    assert list(evidence.known()) == list(load(file)) and not (runs / "elsewhere").exists()


def test_runs_that_are_not_stored_are_named_with_the_reason(tiny, runs, file, tmp_path,
                                                             monkeypatch):
    monkeypatch.setattr(paths, "EVIDENCE", file)
    with pytest.raises(NotStored, match=r"no stored evidence: .*runs.parquet.*`make all` makes it"):
        take([tiny])
    run = load_or_train(tiny, runs)
    pack([run], file)
    wanted = [tiny, *(tiny.replace(seed=seed) for seed in range(1, 8))]
    with pytest.raises(NotStored) as error:
        take(wanted)
    said = str(error.value)
    assert "runs.parquet lacks 7 of 8 runs; `make all` makes them" in said
    assert f"{wanted[1].run_id} method=sit tuner=lora seed=1" in said and "and 2 more" in said
    other = tmp_path / "model" / "open_clip_model.safetensors"  # other weights, the same settings
    monkeypatch.setattr(type(tiny), "fingerprints", lambda self: ["other", other.name])
    with pytest.raises(NotStored, match=f"stored as {run.id}, made from other data or weights"):
        take([tiny])


def test_what_was_asked_for_is_listed(tiny, runs, tmp_path, monkeypatch):
    monkeypatch.setenv(paths.ASKED, str(tmp_path / "asked"))
    monkeypatch.setattr("clstudy.runs.workers.local", lambda *_: (one for one in ()))
    load_or_train(tiny, runs, probes=["drift"])
    (run,) = train_all([tiny], runs=runs)
    run.probe("drift")
    assert evidence.asked(tmp_path / "asked") == {run.id: {"drift"}}


def test_shared_runs_are_equal_or_so_far_apart(small, file, tmp_path):
    stored = load(pack(small[:2], file))
    assert evidence.shared(small, stored).equal.tolist() == [True, True]
    moved = small_runs.make(tmp_path / "again" / small[0].id, small_runs.evaluations(last=.43))
    (moved.folder / "env.json").write_text(json.dumps({"torch": "0"}))
    (row,) = evidence.shared([moved], stored).to_dict("records")
    assert not row["equal"] and row["apart"] == pytest.approx(3) and not row["same machine"]
    assert evidence.shared(small[2:], stored).empty
