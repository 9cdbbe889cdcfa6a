"""What `clean` would remove: never what a figure needs or somebody is making, and nothing without
being asked."""
import fcntl
import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from small_runs import make

from clstudy.runs import cleanup, status


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder with something of every kind; run a is behind a figure."""
    runs = tmp_path / "runs"
    for name in ("aaa", "bbb"):
        (make(runs / name).folder / "model.safetensors").write_bytes(bytes(1000))
    (runs / "ccc.draft").mkdir()
    (runs / "ccc.draft" / "state-1.pt").write_bytes(bytes(5000))
    pd.DataFrame({"run_id": ["aaa", "gone"]}).to_parquet(runs / "some.parquet")
    pd.DataFrame({"x": [1, 2]}, ["gone", "aaa"]).to_parquet(
        runs / "scores.parquet")  # ids as its index
    pd.DataFrame({"run_id": ["gone"]}).to_parquet(runs / "none.parquet")
    (runs / "damaged.parquet").write_bytes(b"PAR1")
    (runs / "notebooks").mkdir()
    for name, age in (("old", 2 * cleanup.YOUNG), ("new", 0)):
        draft = runs / "notebooks" / f"{name}.running-12345678.ipynb"
        draft.touch()
        os.utime(draft, (time.time() - age, time.time() - age))
    return runs


@pytest.fixture
def figures(tmp_path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "01_a.json").write_text(json.dumps({"runs": ["aaa"], "caption": ""}))
    (tmp_path / "figures" / "other.json").write_text("[]")
    return tmp_path / "figures"


def sweep(runs: Path, name: str, ids: list[str], **changes) -> None:
    state = {
        "name": name, "host": status.platform.node(), "pid": os.getpid(), "started": 0,
        "finished": 1.0, "code": 0, "workers": 2, "beat": time.time(), "left": None,
        "tasks": dict.fromkeys(ids, {}), **changes
    }
    (runs / "sweeps" / name).mkdir(parents=True)
    (runs / "sweeps" / name / "state.json").write_text(json.dumps(state))


def found(runs: Path, figures: Path, *kinds: str) -> set[tuple[str, str]]:
    return {(item.kind, item.path.name)
            for item in cleanup.unneeded(runs, figures, kinds or cleanup.USUAL)}


USUAL = {("drafts", "ccc.draft"), ("runs", "bbb"), ("tables", "none.parquet"),
         ("tables", "damaged.parquet"), ("notebooks", "old.running-12345678.ipynb")}


def test_what_no_figure_needs_is_found_and_nothing_is_removed(runs, figures):
    before = sorted(path for path in runs.rglob("*") if path.name not in ("lock", "owner.json"))
    assert found(runs, figures) == USUAL
    assert sorted(
        path for path in runs.rglob("*") if path.name not in ("lock", "owner.json")) == before
    assert found(runs, figures,
                 "weights") == {("weights", "model.safetensors")}  # only if named, of every run
    assert len(cleanup.unneeded(runs, figures, ["weights"])) == 2
    both = cleanup.unneeded(runs, figures, ["runs", "weights"])
    assert [item.path.parent.name for item in both
            if item.kind == "weights"] == ["aaa"]  # the other's go with it


def test_what_is_removed_is_gone_and_what_is_needed_stays(runs, figures):
    items = cleanup.unneeded(runs, figures)
    sizes = {item.kind: item.size for item in items}
    assert sizes["drafts"] == 5000 and sizes["runs"] > 1000
    assert cleanup.remove(items) == sum(item.size for item in items) > 6000
    assert {path.name
            for path in runs.iterdir()} == {"aaa", "some.parquet", "scores.parquet", "notebooks"}
    assert (runs / "aaa" / "result.json").exists() and found(runs, figures) == set()


def test_what_somebody_makes_stays(runs, figures):
    items = cleanup.unneeded(runs, figures)
    with open(runs / "ccc.draft" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(runs, figures) == USUAL - {("drafts", "ccc.draft")}
        cleanup.remove([item for item in items if item.kind == "drafts"])
        assert (runs / "ccc.draft" / "state-1.pt").exists()


def test_the_runs_of_a_living_sweep_stay_and_an_empty_ended_one_goes(runs, figures):
    sweep(runs, "lives", ["bbb"], finished=None)
    sweep(runs, "ended", ["gone"])
    sweep(runs, "useful", ["aaa"])
    assert found(runs, figures) == USUAL - {("runs", "bbb")} | {("sweeps", "ended")}


def test_a_damaged_figure_file_and_an_unknown_kind_stop_everything(runs, figures):
    with pytest.raises(ValueError, match="kind='run' is unknown. Did you mean runs"):
        cleanup.unneeded(runs, figures, ["run"])
    (figures / "02_b.json").write_text('{"runs": ["b')
    with pytest.raises(ValueError, match="02_b.json cannot be read, so nothing is removed"):
        cleanup.unneeded(runs, figures)


def test_the_table_has_kinds_with_sizes(runs, figures):
    said = cleanup.table(cleanup.unneeded(runs, figures))
    assert "drafts: 1, 5.0 kB (runs that were stopped, with their saved states)" in said
    assert "bbb" in said and "in all" in said
    assert cleanup.table([]) == "nothing to do"
