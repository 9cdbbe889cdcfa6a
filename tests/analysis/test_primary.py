"""Primary outcomes: stored, computed again from stored runs, beside a smaller study, in a README."""
import numpy as np
import pandas as pd
import pytest
import small_runs

from clstudy.analysis import primary
from clstudy.analysis.comparisons import compare
from clstudy.runs.evidence import NotStored, load, pack
from clstudy.runs.run import Runs
from clstudy.utils import paths
from clstudy.utils.paths import REPOSITORY

ASKED = {"between": "method", "base": "finetune", "by": ["lr"]}
README = "# Study\n\n<!-- table 03 -->\nof before\n<!-- /table 03 -->\nand <!-- told 03 -->\n<!-- /told 03 -->.\n"


def table(seeds: int, more: float = 0.0) -> pd.DataFrame:
    """Two methods at two rates: sit ends some ten points higher, and `more`."""
    return pd.DataFrame([
        {"method": method, "lr": lr, "seed": seed,
         "A_last": 40 + lead + more * (lead > 0) + seed % 3 * (1 + lead / 20)}
        for method, lead in (("finetune", 0), ("sit", 10)) for lr in (5e-4, .01)
        for seed in range(seeds)])


def study(folder, seeds: int, more: float = 0.0) -> Runs:
    """The runs of `table`."""
    found = []
    for row in table(seeds, more).to_dict("records"):
        run = small_runs.make(folder / "-".join(map(str, row.values())),
                              small_runs.evaluations(last=row.pop("A_last") / 100))
        found.append(type(run)(run.config.model_copy(update=row), run.folder))
    return Runs(found)


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def test_an_outcome_is_stored_and_computed_again_from_packed_runs(tmp_path, figures):
    runs = study(tmp_path, 2)
    found = primary.save("03", runs, "A_last", **ASKED)
    pd.testing.assert_frame_equal(found, compare(runs, "A_last", **ASKED))
    stored = load(pack(runs, figures / "runs.parquet"))
    assert primary.names() == ["03"]
    for other in (primary.read("03"), primary.again("03", stored)):
        pd.testing.assert_frame_equal(other, found, check_dtype=False)
    with pytest.raises(NotStored, match=f"needs 1 runs that are not stored: {runs[0].id}"):
        primary.again("03", stored.where(method="sit") + stored[1:])
    with pytest.raises(ValueError, match="primary outcome='04' is unknown"):
        primary.again("04", stored)


def test_labelled_runs_are_stored_with_their_labels(tmp_path, figures):
    runs = study(tmp_path, 2).where(lr=.01)
    groups = {"before": runs.where(method="finetune"), "after": runs.where(method="sit")}
    found = primary.save("08", groups, ["A_last", "forgetting"], between="label", base="before")
    stored = load(pack(runs, figures / "runs.parquet"))
    pd.testing.assert_frame_equal(primary.again("08", stored), found)


def test_a_smaller_study_stands_beside_the_stored_one(tmp_path):
    stored, few, far, alone = (
        compare(table(*of), "A_last", **ASKED) for of in ((6, ), (3, ), (3, 20), (1, 20)))
    stored.to_csv(tmp_path / "stored.csv", index=False)
    both = primary.beside(few, pd.read_csv(tmp_path / "stored.csv"))
    assert both.verdict.tolist() == [primary.INSIDE] * 2 and both.lr.tolist() == ["0.0005", "0.01"]
    assert both["stored n"].tolist() == [6, 6] and both.n.tolist() == [3, 3]
    assert both["stored low"].tolist() == pytest.approx(stored.low.tolist())
    for other in (far, alone):
        assert primary.beside(other, stored).verdict.tolist() == [primary.OUTSIDE] * 2
    near = few.assign(difference=stored.high.max() + .1, high=stored.high.max() + 3)
    assert set(primary.beside(near, stored).verdict) == {primary.OVERLAP}
    assert set(primary.beside(few, alone).verdict) == {primary.NO_INTERVAL}
    assert primary.beside(few, stored[:1]).verdict.tolist() == [primary.INSIDE, primary.NOT_STORED]
    with pytest.raises(ValueError, match="one table has lr, method, base, metric, the stored one "
                                         "method, base, metric"):
        primary.beside(few, stored.drop(columns="lr"))


def test_the_report_says_it_for_each_number(tmp_path, figures, monkeypatch):
    primary.save("03", study(tmp_path / "all", 3), "A_last", **ASKED)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "mine")
    runs = study(tmp_path / "few", 2)
    primary.save("03", runs, "A_last", **ASKED)
    primary.save("05", runs.where(lr=.01), "A_last", between="method", base="finetune")
    lines = primary.report(tmp_path / "mine", figures).splitlines()
    assert lines[0] == "03: 2 of 2 inside the stored interval"
    assert lines[1].startswith("  A_last, lr=0.0005, sit − finetune: +10.2 (n = 2); stored +10.5 (")
    assert lines[1].endswith(" (n = 3): inside the stored interval")
    assert lines[-1] == "05: not in the stored evidence"


def test_tables_and_sentences_of_a_readme_are_those_of_the_stored_outcomes(tmp_path, figures):
    found = primary.save("03", study(tmp_path, 2), "A_last", **ASKED)
    text = primary.filled(README, labels={"sit": "SIT"})
    assert "of before" not in text
    assert text.startswith("# Study\n") and text.endswith("<!-- /told 03 -->.\n")
    low, high = found.low[1], found.high[1]
    assert f"| 0.01 | SIT − finetune | A_last | +10.2 ({low:+.1f} to {high:+.1f}) | 2 |" in text
    assert "\n- 0.01, A_last: SIT is " in text
    assert primary.filled(text, labels={"sit": "SIT"}) == text
    assert primary.filled("nothing to fill") == "nothing to fill"
    other = found.assign(difference=found.difference + .1)
    other.to_csv(figures / "primary" / "03.csv", index=False)
    assert primary.filled(text, labels={"sit": "SIT"}) != text


@pytest.mark.parametrize("name", primary.names(REPOSITORY / "figures"))
def test_the_stored_runs_give_the_stored_outcomes(name):
    figures = REPOSITORY / "figures"
    stored = primary.read(name, figures)
    found = primary.again(name, load(figures / "runs.parquet"), figures)
    pd.testing.assert_frame_equal(found, stored, check_dtype=False, rtol=1e-9)
    assert np.isfinite(stored.difference).all()


def test_the_numbers_of_the_readme_are_those_of_the_stored_outcomes():
    from clstudy import plots

    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    labels = {name: look[0] for name, look in plots.METHODS.items()}
    assert primary.filled(text, REPOSITORY / "figures", labels) == text
