"""Drift of features against a plain loop, and when it is measured."""
import numpy as np
import pandas as pd
import pytest
import torch

from clstudy.probes import Drift


@pytest.fixture
def followed(clip, toy):
    """Images, labels, tokens and classes of three colours."""
    test = toy().load().test
    rows = np.flatnonzero(np.isin(test.labels, (0, 3, 4)))[[0, 1, 2, 3, 4, 6, 7]]
    tokens = clip.class_text(list(test.class_names), test.template)[[4, 0, 3]]
    return test.images[torch.from_numpy(rows)], test.labels[rows].tolist(), tokens, [4, 0, 3]


def shake(model, size: float = 0.1, only: str = "") -> None:
    with torch.no_grad():
        for number, (name, p) in enumerate(model.named_parameters()):
            if name.startswith(only) and "logit" not in name:
                p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))


def test_drift_against_a_plain_loop(clip, followed):
    images, labels, tokens, classes = followed

    def features():
        with torch.no_grad():
            return clip.encode_image(images).double(), clip.encode_text(tokens).double()

    start = features()
    with Drift(clip, *followed, every=1) as probe:
        shake(clip)
        now = features()
        probe.look({}, stage=2, images_seen=5)
        assert len(probe.rows) == 3  # no step was counted: nothing can have been trained
        probe.look({"task": torch.tensor(1.0)})
        probe.look({}, stage=2, images_seen=5)
    rows = probe.table()
    assert rows.step.tolist() == [0] * 3 + [1] * 3 and rows.stage.tolist() == [0] * 3 + [2] * 3
    assert rows.images_seen.tolist() == [0] * 3 + [5] * 3 and rows["class"].tolist() == classes * 2
    assert np.abs(rows[rows.step == 0][["text", "image"]]).max(axis=None) < 1e-6
    assert np.allclose(rows[rows.step == 0].match, rows[rows.step == 0]["frozen match"])
    gap = {}
    for step, (f, t) in ((0, start), (1, now)):
        means = []
        for k, name in enumerate(classes):
            mine = [i for i, label in enumerate(labels) if label == name]
            mean, mean0 = sum(f[i] for i in mine) / len(mine), sum(start[0][i]
                                                                   for i in mine) / len(mine)
            row = rows[(rows.step == step) & (rows["class"] == name)].iloc[0]
            assert row.text == pytest.approx(1 - float(t[k] @ start[1][k]), abs=1e-5)
            moved = [1 - float(f[i] @ start[0][i]) for i in mine]
            assert row.image == pytest.approx(sum(moved) / len(mine), abs=1e-5)
            assert row.match == pytest.approx(float(t[k] @ mean / mean.norm()), abs=1e-5)
            assert row["frozen match"] == pytest.approx(float(t[k] @ mean0 / mean0.norm()),
                                                        abs=1e-5)
            means.append(mean / mean.norm())
        gap[step] = float((sum(means) / 3 - sum(t) / 3).norm())
        assert np.allclose(rows[rows.step == step].gap, gap[step], atol=1e-5)
    last = rows[rows.step == 1]
    assert (last.text > 0.01).all() and (last.image > 0.01).all() and abs(gap[0] - gap[1]) > 1e-3
    assert (last.match - last["frozen match"]).abs().max() > 1e-3


@pytest.mark.parametrize(("moving", "still"), [("model.visual.", "text"), ("model.t", "image")])
def test_what_does_not_move_has_no_drift(clip, followed, moving, still):
    with Drift(clip, *followed, every=1) as probe:
        shake(clip, only=moving)
        probe.look({"task": torch.tensor(0.0)})
    last = probe.table().iloc[-3:]
    assert last[still].abs().max() < 1e-6
    assert (last["image" if still == "text" else "text"] > 0.01).all() and (last.step == 1).all()


def test_when_drift_is_measured(clip, followed):
    with Drift(clip, *followed, every=3) as probe:
        for stage, steps in ((1, 5), (2, 0), (3, 4)):
            for step in range(steps):
                probe.look({"task": torch.tensor(0.0)}, stage, images_seen=10 * stage + step)
            probe.look({}, stage, images_seen=100 * stage)
            probe.look({}, stage, images_seen=100 * stage + 1)
        probe.look({"task": torch.tensor(0.0)}, 4,
                   images_seen=400)  # step 9, as it stood at the end of stage 3
        probe.look({"task": torch.tensor(0.0)}, 4, images_seen=410)
    heads = probe.table()[["step", "stage", "images_seen"]].drop_duplicates()
    assert heads.to_numpy().tolist() == [[0, 0, 0], [3, 1, 13], [5, 1, 100], [6, 3, 31],
                                         [9, 3, 300], [11, 4, 410]]
    assert len(probe.table()) == 3 * 6


def test_an_error_inside_is_not_measured(clip, followed):
    with pytest.raises(KeyError), Drift(clip, *followed, every=100) as probe:
        probe.look({"task": torch.tensor(0.0)})
        raise KeyError
    assert set(probe.table().step) == {0}


def test_drift_refuses_what_does_not_fit(clip, followed):
    images, labels, tokens, classes = followed
    with pytest.raises(ValueError, match="labels=6.*7 images"):
        Drift(clip, images, labels[1:], tokens, classes)
    with pytest.raises(ValueError, match="classes=2.*3 rows"):
        Drift(clip, images, labels, tokens, classes[1:])
    with pytest.raises(ValueError, match="classes: 9 has no image"):
        Drift(clip, images, labels, tokens, [4, 0, 9])


def test_drift_takes_labels_as_tensors(clip, followed):
    images, labels, tokens, classes = followed
    tables = []
    for kind in (list, torch.tensor, np.array):
        with Drift(clip, images, kind(labels), tokens, kind(classes)) as probe:
            pass
        tables.append(probe.table())
    assert tables[0]["class"].tolist() == classes and tables[0]["class"].dtype == np.int64
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_modes_come_back_where_the_model_fails(clip, followed):
    images, labels, tokens, classes = followed
    clip.train().model.visual.eval()
    before = [m.training for m in clip.modules()]
    with pytest.raises(IndexError), Drift(clip, images, labels, tokens + 10**6, classes):
        pass  # tokens that are in no vocabulary
    assert [m.training for m in clip.modules()] == before
