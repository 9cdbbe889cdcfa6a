"""Probes against closed forms, double loops and finite differences; and that a look changes nothing."""
import copy
import math
import weakref
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F

from clstudy import probes
from clstudy.clip import Clip
from clstudy.data import Labelled
from clstudy.losses import distillation, match
from clstudy.methods import METHODS
from clstudy.probes import PROBES, Classes, Drift, Gradients, Seen, open_probes, pulls, reachable, where
from clstudy.train import NotFinite, prepare, train
from clstudy.tuners import ONLY, TOWERS, TUNERS

ALL = tuple(PROBES)
S = torch.tensor(7.0, dtype=torch.float64)


def unit(count: int, seed: int, dim: int = 6) -> torch.Tensor:
    features = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(features, dim=-1)


def leaf(features: torch.Tensor) -> torch.Tensor:
    return features.detach().clone().requires_grad_()


def both_gradients(loss, f: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    f, t = leaf(f), leaf(t)
    return torch.autograd.grad(loss(f, t), (f, t), materialize_grads=True, allow_unused=True)


def closed(f: torch.Tensor, t: torch.Tensor, target: list[int]) -> torch.Tensor:
    """(s/B)(p_ik − 1[y_i = k]), number by number."""
    c = torch.zeros(len(f), len(t), dtype=torch.float64)
    for i in range(len(f)):
        e = [math.exp(float(S) * float(f[i] @ t[k])) for k in range(len(t))]
        for k in range(len(t)):
            c[i, k] = float(S) / len(f) * (e[k] / sum(e) - (target[i] == k))
    return c


def closed_double(f: torch.Tensor, t: torch.Tensor, target: list[int]) -> torch.Tensor:
    """(s/B) p_ik [(q_ik − 1[y_i = k]) − Σ_j (q_ij − 1[y_i = j]) p_ij] with q = softmax(p): released code of SIT."""
    c = torch.zeros(len(f), len(t), dtype=torch.float64)
    for i in range(len(f)):
        e = [math.exp(float(S) * float(f[i] @ t[k])) for k in range(len(t))]
        p = [x / sum(e) for x in e]
        q = [math.exp(x) / sum(math.exp(y) for y in p) for x in p]
        for k in range(len(t)):
            mean = sum((q[j] - (target[i] == j)) * p[j] for j in range(len(t)))
            c[i, k] = float(S) / len(f) * p[k] * (q[k] - (target[i] == k) - mean)
    return c


def close(a, b, rel: float = 1e-6) -> bool:
    return float((a - b).norm()) <= rel * float(b.norm())


# ---- pulls


SIZES = {"few": (5, 4), "more images than dimensions": (9, 4), "more texts than dimensions": (5, 9)}


@pytest.mark.parametrize("double", [False, True], ids=["match", "double softmax"])
@pytest.mark.parametrize("size", SIZES)
def test_pulls_of_the_matching_loss_are_its_closed_form(size, double):
    images, texts = SIZES[size]
    f, t, target = unit(images, 0), unit(texts, 1), [i * i % texts for i in range(images)]
    grads = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target), double_softmax=double), f, t)
    found, unexplained = pulls(f, t, *grads)
    assert found.dtype == torch.float64 and unexplained < 1e-9
    assert close(found, (closed_double if double else closed)(f, t, target))


@pytest.mark.parametrize(("size", "given"), [("few", "image"), ("more images than dimensions", "image"),
                                             ("few", "text"), ("more texts than dimensions", "text")])
def test_one_gradient_is_enough_where_the_other_side_has_fewer_rows_than_dimensions(size, given):
    images, texts = SIZES[size]
    f, t, target = unit(images, 0), unit(texts, 1), [i * i % texts for i in range(images)]
    on_image, on_text = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target)), f, t)
    found, unexplained = pulls(f, t, on_image, None) if given == "image" else pulls(f, t, None, on_text)
    assert close(found, closed(f, t, target)) and unexplained < 1e-9


def test_with_more_of_both_than_dimensions_pulls_are_the_smallest_that_explain_the_gradients():
    f, t, target = unit(9, 0), unit(8, 1), [i % 8 for i in range(9)]
    on_image, on_text = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target)), f, t)
    found, unexplained = pulls(f, t, on_image, on_text)
    assert unexplained < 1e-9 and close(found @ t, on_image) and close(found.T @ f, on_text)
    whole = closed(f, t, target)
    none_f = torch.eye(9, dtype=f.dtype) - f @ torch.linalg.pinv(f)  # directions that no feature has
    none_t = torch.eye(8, dtype=f.dtype) - t @ torch.linalg.pinv(t)
    assert close(found, whole - none_f @ whole @ none_t)
    assert not close(found, whole, 1e-2)  # so it is not the closed form there


@pytest.mark.parametrize("twice", ["image", "text", "both"])
def test_pulls_with_the_same_image_or_the_same_text_twice(twice):
    f, t, target = unit(5, 0), unit(4, 1), [0, 0, 1, 2, 2]
    if twice != "text":
        f[1] = f[0]
    if twice != "image":
        t[3] = t[0]
    grads = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target)), f, t)
    found, unexplained = pulls(f, t, *grads)
    assert close(found, closed(f, t, target)) and unexplained < 1e-7


def test_pulls_of_a_distillation_are_its_gradient_on_the_similarities():
    f, t, teacher = unit(5, 0), unit(4, 1), S * unit(5, 2) @ unit(4, 3).T
    grads = both_gradients(lambda f, t: 0.5 * distillation(S * f @ t.T, teacher, 2.0), f, t)
    found, unexplained = pulls(f, t, *grads)
    similarity = leaf(f @ t.T)
    expected, = torch.autograd.grad(0.5 * distillation(S * similarity, teacher, 2.0), similarity)
    assert close(found, expected) and unexplained < 1e-9
    assert (found.sign() != closed(f, t, [0, 1, 2, 3, 0]).sign()).any()  # and no matching loss


def test_what_is_no_function_of_similarities_is_left_unexplained():
    f, t, start, target = unit(5, 0), unit(4, 1), unit(5, 4), torch.tensor([0, 2, 1, 1, 3])
    drift = {"features": lambda f, t: ((f - start)**2).sum(), "texts": lambda f, t: ((t - start[:4])**2).sum(),
             "along": lambda f, t: (f @ start[0]).sum()}
    for other in drift.values():
        assert pulls(f, t, *both_gradients(other, f, t))[1] > 0.3
        mixed = both_gradients(lambda f, t, other=other: match(f, t, S, target) + other(f, t), f, t)
        assert pulls(f, t, *mixed)[1] > 0.05
    assert pulls(f, t, both_gradients(drift["along"], f, t)[0], None)[1] > 0.3


def test_no_gradient_at_all_is_explained():
    found, unexplained = pulls(unit(3, 0), unit(2, 1), torch.zeros(3, 6), torch.zeros(2, 6))
    assert not found.any() and unexplained == 0


# ---- classes, on features


LABELS = ("dog", "cat", "dog", "fox", "cat")
OFFERED = ("cat", "owl", "dog", "fox", "bee")  # owl and bee are absent
TARGET = [2, 0, 2, 3, 0]
MEANS = {name: unit(1, seed)[0] for seed, name in enumerate(("cat", "dog", "owl", "fox"), 10)}  # none of bee
STARTS = {name: unit(1, seed)[0] for seed, name in enumerate(("cat", "dog", "owl"), 20)}


def matched(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return match(f, t, S, torch.tensor(TARGET))


def looked(f: torch.Tensor, t: torch.Tensor, loss=matched, **options) -> pd.DataFrame:
    f, t = leaf(f), leaf(t)
    probe = Classes(image_means=MEANS, text_starts=STARTS)
    probe.look({"task": loss(f, t)}, labels=LABELS, classes=OFFERED, image=f, text=t, **options)
    return probe.table().set_index("class")


@pytest.fixture
def f():
    return unit(5, 0)


@pytest.fixture
def t():
    return unit(5, 1)


def test_every_column_of_classes_against_a_double_loop(f, t):
    table, c = looked(f, t), closed(f, t, TARGET)
    assert list(table.index) == list(OFFERED) and (table.term == "task").all() and (table.unexplained < 1e-9).all()

    def along(g, at):
        return g - float(g @ at) * at

    for k, name in enumerate(OFFERED):
        row, pull, push = table.loc[name], torch.zeros(6).double(), torch.zeros(6).double()
        for i in range(5):
            if c[i, k] < 0:
                pull += c[i, k] * f[i]
            else:
                push += c[i, k] * f[i]
        here = name in LABELS
        assert row.present == here
        assert row.gradient == pytest.approx(float((pull + push).norm()), rel=1e-7)
        assert row.attraction == pytest.approx(float(pull.norm()), rel=1e-7)
        assert row.repulsion == pytest.approx(float(push.norm()), rel=1e-7)
        for column, part in (("push", pull + push), ("push attraction", pull), ("push repulsion", push)):
            expected = -float(along(part, t[k]) @ MEANS[name]) if name in MEANS else float("nan")
            assert row[column] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        mine = [i for i in range(5) if LABELS[i] == name]
        sums = {"image gradient": [], "image attraction": [], "image repulsion present": [],
                "image repulsion absent": []}
        falls = []
        for i in mine:
            parts = {column: torch.zeros(6).double() for column in sums}
            for m in range(5):
                parts["image gradient"] += c[i, m] * t[m]
                sign = "attraction" if c[i, m] < 0 else f"repulsion {'present' if OFFERED[m] in LABELS else 'absent'}"
                parts[f"image {sign}"] += c[i, m] * t[m]
            for column, part in parts.items():
                sums[column].append(float(part.norm()))
            falls.append(-along(parts["image gradient"], f[i]))
        for column, norms in sums.items():
            expected = np.mean(norms) if mine else float("nan")
            assert row[column] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        fall = sum(falls) / len(falls) if mine else torch.full((6,), torch.nan).double()
        expected = float(fall @ STARTS[name]) if name in STARTS else float("nan")
        assert row["image push"] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        expected = float(F.cosine_similarity(-along(pull + push, t[k]), fall, dim=0))
        assert row.meeting == pytest.approx(expected, rel=1e-6, nan_ok=True)


def difference(loss, at: torch.Tensor, row: int, epsilon: float = 1e-6) -> torch.Tensor:
    """Central differences of a loss in one row."""
    found = torch.zeros(at.shape[1], dtype=torch.float64)
    for d in range(at.shape[1]):
        step = torch.zeros_like(at)
        step[row, d] = epsilon
        found[d] = (loss(at + step) - loss(at - step)) / (2 * epsilon)
    return found


def test_gradients_on_texts_and_images_are_the_finite_differences_of_the_loss(f, t):
    table = looked(f, t)
    for k, name in enumerate(OFFERED):
        expected = difference(lambda t: matched(f, t), t, k).norm()
        assert table.gradient[name] == pytest.approx(float(expected), rel=1e-6)
    for name in set(LABELS):
        norms = [float(difference(lambda f: matched(f, t), f, i).norm()) for i in range(5) if LABELS[i] == name]
        assert table["image gradient"][name] == pytest.approx(np.mean(norms), rel=1e-6)


def test_push_is_what_a_small_step_adds_to_the_similarity_with_the_own_images(f, t):
    table = looked(f, t)
    on_image, on_text = both_gradients(matched, f, t)
    epsilon = 1e-5
    for k, name in enumerate(OFFERED):
        if name in MEANS:  # absent owl as well as present classes
            ends = [F.normalize(t[k] - sign * epsilon * (on_text[k] - on_text[k] @ t[k] * t[k]), dim=0)
                    for sign in (1, -1)]
            expected = float((ends[0] - ends[1]) @ MEANS[name]) / (2 * epsilon)
            assert table.push[name] == pytest.approx(expected, rel=1e-6)
            assert table.push[name] == pytest.approx(table["push attraction"][name] + table["push repulsion"][name])
    for name in ("cat", "dog"):
        steps = []
        for i in [i for i in range(5) if LABELS[i] == name]:
            ends = [F.normalize(f[i] - sign * epsilon * on_image[i], dim=0) for sign in (1, -1)]
            steps.append(float((ends[0] - ends[1]) @ STARTS[name]) / (2 * epsilon))
        assert table["image push"][name] == pytest.approx(np.mean(steps), rel=1e-6)


def test_an_absent_class_is_pushed_away_from_images_like_its_own(f, t, monkeypatch):
    monkeypatch.setitem(MEANS, "owl", F.normalize(f.sum(0), dim=0))  # it looks like what is in the batch
    t[1] = F.normalize(t[1] - (t[1] @ MEANS["owl"]) * MEANS["owl"], dim=0)  # and is at a right angle to that
    row = looked(f, t).loc["owl"]
    assert row.push < 0 and row["push repulsion"] == row.push and row.attraction == row["push attraction"] == 0


def test_text_and_images_that_go_opposite_ways_or_together():
    e = torch.eye(6).double()
    near = F.normalize(e[0] + 0.2 * e[1], dim=0)
    for sign, grows in ((-1, True), (1, False)):
        f, t = leaf(near[None]), leaf(e[:1])
        probe = Classes(image_means={"a": near}, text_starts={"a": e[0]})
        probe.look({"alone": sign * (f * t).sum()}, labels="a", classes="a", image=f, text=t)
        row = probe.table().iloc[0]
        assert row.meeting < -0.9 and (row.push > 0) == (row["image push"] > 0) == grows
        assert (row.attraction, row.repulsion) == pytest.approx((1, 0) if grows else (0, 1))
    f, t = leaf(torch.stack([near, e[2]])), leaf(torch.stack([e[0], e[2]]))
    probe = Classes()
    probe.look({"across": -(f[0] @ t[1] + f[1] @ t[0])}, labels="ab", classes="ab", image=f, text=t)
    assert (probe.table().meeting > 0.9).all()  # text and image of a are both drawn to b


def test_a_frozen_side_may_be_given_without_a_gradient(f, t):
    table = looked(f, t)
    moving = leaf(f)
    probe = Classes(image_means=MEANS, text_starts=STARTS)
    probe.look({"task": matched(moving, t)}, labels=LABELS, classes=OFFERED, image=moving, text=t)
    found = probe.table().set_index("class")
    columns = ["gradient", "attraction", "push", "image gradient", "image push", "meeting"]
    assert np.allclose(found[columns].astype(float), table[columns].astype(float), rtol=1e-6, equal_nan=True)


def test_a_class_encoded_twice_has_one_row_with_the_sum(f, t):
    """Two prompts of a class, as in an ensemble."""
    names = ("cat", "owl", "dog", "fox", "cat")
    c, f, t = closed(f, t, TARGET), leaf(f), leaf(t)
    probe = Classes()
    probe.look({"task": matched(f, t)}, labels=LABELS, classes=names, image=f, text=t)
    table = probe.table().set_index("class")
    assert list(table.index) == ["cat", "owl", "dog", "fox"]
    assert table.gradient["cat"] == pytest.approx(float(((c[:, 0] + c[:, 4]) @ f.detach()).norm()), rel=1e-6)


def test_labels_may_be_tensors_or_arrays(f, t):
    numbers = {name: k for k, name in enumerate(OFFERED)}
    expected = looked(f, t).reset_index(drop=True)
    labels = [numbers[name] for name in LABELS]
    f, t = leaf(f), leaf(t)
    means, starts = ({numbers[name]: x for name, x in given.items()} for given in (MEANS, STARTS))
    for kind in (torch.tensor, np.array, list):
        probe = Classes(image_means=means, text_starts=starts)
        probe.look({"task": matched(f, t)}, labels=kind(labels), classes=kind(range(5)), image=f, text=t)
        found = probe.table()
        assert found["class"].tolist() == [0, 1, 2, 3, 4]
        pd.testing.assert_frame_equal(found.drop(columns="class"), expected)


def test_heads_and_terms_of_a_look(f, t):
    f, t = leaf(f), leaf(t)
    probe, given = Classes(every=2), {"labels": LABELS, "classes": OFFERED, "image": f, "text": t}
    for step in range(4):
        probe.look({"task": matched(f, t), "half": 0.5 * matched(f, t), "fixed": torch.tensor(1.0)}, stage=step,
                   images_seen=10 * step, **given)
        probe.look({}, stage=9)
    table = probe.table()
    assert set(table.step) == {0, 2} and set(table.stage) == {0, 2} and set(table.images_seen) == {0, 20}
    assert table.groupby(["step", "term"]).size().to_dict() == {(s, n): 5 for s in (0, 2) for n in ("half", "task")}
    rows = table.set_index(["step", "term", "class"]).gradient
    assert np.allclose(rows[0]["half"], 0.5 * rows[0]["task"])


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": LABELS[:4]}, "labels=4.*5 images"),
    ({"classes": (*OFFERED, "elk")}, "classes=6.*5 texts"),
    ({"labels": (), "classes": ()}, "labels=0, classes=0"),
    ({"image": 2 * unit(5, 0)}, "unit-norm"),
    ({"text": 0.9 * unit(5, 1)}, "unit-norm"),
    ({"text": None}, "text="),
    ({"image": None}, "image="),
])
def test_features_that_do_not_fit_are_refused(f, t, change, message):
    f, t = leaf(f), leaf(t)
    given = {"labels": LABELS, "classes": OFFERED, "image": f, "text": t}
    Classes().look({"task": matched(f, t)}, **given)
    with pytest.raises(ValueError, match=message):
        Classes().look({"task": matched(f, t)}, **(given | change))


def test_features_without_a_gradient_are_refused(f, t):
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="gradient"):
        Classes().look({"task": weight * matched(f, t)}, labels=LABELS, classes=OFFERED, image=f, text=t)


# ---- classes, on a model


def test_under_sit_absent_classes_have_no_row_and_under_finetune_they_are_only_repelled(clip, batch):
    tables = {}
    for name in ("sit", "finetune"):
        with Classes(clip) as probe:
            probe.look(METHODS[name]().loss(clip, batch))
        tables[name] = probe.table().set_index("class")
    sit, plain = tables["sit"], tables["finetune"]
    assert sorted(sit.index) == [0, 2, 5] and sit.present.all() and (sit.attraction > 0).all()
    assert list(plain.index) == list(batch.classes)
    assert plain.present.to_dict() == {k: k in (0, 2, 5) for k in batch.classes}
    absent, present = plain[~plain.present], plain[plain.present]
    assert (absent.attraction == 0).all() and (absent.repulsion == absent.gradient).all()
    assert (absent.gradient > 0).all()
    assert (present.attraction > 0).all() and (present.repulsion > 0).all()
    assert absent["image gradient"].isna().all() and (present["image repulsion absent"] > 0).all()
    assert (sit["image repulsion absent"] == 0).all()
    assert (plain.unexplained < 1e-4).all()


@pytest.mark.parametrize("tower", TOWERS)
def test_a_frozen_tower_does_not_hide_the_pulls(clip, batch, tower):
    """The same features have the same pulls, whatever is trained."""
    tables = []
    for chosen in ("both", tower):
        TUNERS["full"](clip, chosen)
        with Classes(clip) as probe:
            probe.look(METHODS["finetune"]().loss(clip, batch))
        tables.append(probe.table())
    columns = ["gradient", "attraction", "repulsion", "image gradient", "image repulsion absent"]
    assert np.allclose(tables[0][columns], tables[1][columns], rtol=1e-5, equal_nan=True)


def test_pulls_on_a_model_are_the_gradient_on_the_similarities(clip, batch):
    with Classes(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch))
    encoded = clip.encode(batch)
    f, t = encoded.image.detach(), encoded.text.detach()
    similarity = leaf(f @ t.T)
    c, = torch.autograd.grad(F.cross_entropy(encoded.scale.detach() * similarity, batch.target), similarity)
    table = probe.table()
    assert np.allclose(table.gradient, (c.T @ f).norm(dim=-1), rtol=1e-4)
    assert np.allclose(table.attraction, (c.clamp(max=0).T @ f).norm(dim=-1), rtol=1e-4)


def only(batch, labels: tuple, classes: tuple):
    """The images of some classes, with others offered."""
    rows = [i for i, label in enumerate(batch.labels) if label in labels]
    return replace(batch, image=batch.image[rows], labels=tuple(batch.labels[i] for i in rows), index=tuple(rows),
                   classes=classes)


def test_several_encodings_of_a_step_are_each_terms_own(clip, batch):
    """A memory that is encoded by itself: its classes are not in the stream's batch."""
    first, second = only(batch, (0, 2), (2, 0, 1, 5)), only(batch, (5,), (5, 2))
    loss = METHODS["finetune"]().loss

    def look(*parts):
        with Classes(clip) as probe:
            probe.look({f"term {n}": loss(clip, part)["task"] for n, part in enumerate(parts)})
        return [rows.reset_index(drop=True).drop(columns="term") for _, rows in probe.table().groupby("term")]

    apart = [look(first)[0], look(second)[0]]
    for found, expected in zip(look(first, second), apart, strict=True):
        pd.testing.assert_frame_equal(found, expected)
    assert apart[0].set_index("class").present.to_dict() == {2: True, 0: True, 1: False, 5: False}


def test_one_term_of_two_encodings_sums_them(clip, batch):
    def look(weight):
        with Classes(clip) as probe:
            one, two = clip.encode(batch), clip.encode(batch)
            first = match(one.image, one.text, one.scale, batch.target)
            second = match(two.image, two.text, two.scale, batch.target)
            off = weight * (two.image[:, :8] ** 2).sum()  # no function of similarities
            probe.look({"task": first + second + off})
        return probe.table()

    with Classes(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch))
    assert np.allclose(look(0).gradient, 2 * probe.table().gradient, rtol=1e-4)
    assert np.allclose(look(0)["image gradient"], probe.table()["image gradient"], rtol=1e-4, equal_nan=True)
    assert (look(0).unexplained < 1e-4).all() and (look(1).unexplained > 0.05).all()  # the worst of them


def test_what_is_encoded_beside_the_loss_changes_nothing(clip, batch):
    """Without gradients (a look at a memory), or for something else (the Fisher information of all that was seen)."""
    loss, some = METHODS["finetune"]().loss, only(batch, (2,), (0, 2, 5, 1))
    with Classes(clip) as alone:
        alone.look(loss(clip, some))
    with Classes(clip) as beside:
        clip.encode(batch)  # with all its labels
        with torch.no_grad():
            encoded = clip.encode(batch)
        assert not encoded.image.requires_grad and not encoded.text.requires_grad
        terms = loss(clip, some)
        with torch.inference_mode():
            clip.encode(batch)
        beside.look(terms)
    pd.testing.assert_frame_equal(beside.table(), alone.table())
    assert alone.table().set_index("class").present.to_dict() == {0: False, 2: True, 5: False, 1: False}


def test_no_graph_is_held_for_what_was_encoded_beside_the_loss(clip, batch):
    """A pass over a whole stage would otherwise keep the activations of all of it."""
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    held = []

    def pack(tensor):
        held.append(weakref.ref(saved := Saved(tensor.detach())))  # an output would hold itself
        return saved

    with Classes(clip) as probe, torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        for _ in range(3):
            clip.encode(batch)
        assert held and not [ref for ref in held if ref() is not None]
        terms = METHODS["finetune"]().loss(clip, batch)
        assert [ref for ref in held if ref() is not None]
        probe.look(terms)
        del terms
        assert not [ref for ref in held if ref() is not None]


def test_a_loss_without_encode_is_refused_in_words(clip, batch):
    with Classes(clip) as probe, pytest.raises(ValueError, match=r"encode\(batch\)"):
        image, text = clip.encode_image(batch.image), clip.encode_text(batch.text)
        probe.look({"task": match(image, text, clip.scale(), batch.target)})


def test_encode_may_be_called_with_a_keyword(clip, batch):
    with Classes(clip) as probe:
        encoded = clip.encode(batch=batch)
        probe.look({"task": match(encoded.image, encoded.text, encoded.scale, batch.target)})
    assert len(probe.table()) == 6


def test_a_copied_teacher_is_not_seen(clip, batch):
    """Nor one that is copied inside, nor one whose features would have a gradient."""
    tables = {}
    TUNERS["full"](clip, "both")
    before = copy.deepcopy(clip)
    with torch.no_grad():
        for p in clip.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    for case in ("constant", "copied before", "copied inside"):
        with Classes(clip) as probe:
            teacher = copy.deepcopy(clip) if case == "copied inside" else before
            encoded, taught = clip.encode(batch), teacher.encode(batch)
            z, zt = (e.scale * e.image @ e.text.T for e in (encoded, taught))
            probe.look({"distil": distillation(z, zt.detach() if case == "constant" else zt)})
        tables[case] = probe.table()
    pd.testing.assert_frame_equal(tables["constant"], tables["copied before"])
    assert len(tables["copied inside"]) == 6


# ---- what a probe leaves behind


def everything(model) -> list:
    """All that a look must leave as it was."""
    return [[p.detach().clone() for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [b.clone() for b in model.buffers()], [torch.get_rng_state()], [torch.from_numpy(np.random.get_state()[1])],
            [torch.tensor(m.training) for m in model.modules()],
            [torch.tensor(p.requires_grad) for p in model.parameters()]]


def same(one: list, other: list) -> bool:
    return all((a is b) if a is None or b is None else torch.equal(a, b)
               for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_a_look_changes_nothing(toy, clip, batch, name):
    TUNERS["adapter"](clip, "both")  # with dropout
    clip.train().model.visual.transformer.eval()  # and modes that differ
    for number, p in enumerate(clip.parameters()):
        p.grad = torch.full_like(p, number) if number % 2 else None
    prompts = clip.class_text(list(toy().train.class_names), toy().train.template)
    before = everything(clip)
    with open_probes([name], clip, toy(), prompts) as watching:
        assert same(before, everything(clip))
        torch.manual_seed(3)
        terms = METHODS["finetune"]().loss(clip, batch)
        before = everything(clip)
        watching.look({**terms, "more": 2 * terms["task"]}, 1, 0)
        watching.look({}, 1, 8)
        assert same(before, everything(clip))
        sum(terms.values()).backward()  # the graph is still there
        before = everything(clip)
    assert same(before, everything(clip))
    assert len(watching.tables()[name])
    assert not same(before, [[p + 1 for p in before[0]], *before[1:]])


def methods_of(kind: type) -> dict:
    return {name: vars(kind).get(name) for name in ("encode", "encode_image", "encode_text")}


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_nothing_stays_patched(clip, toy_cfg, error):
    class Own(open_clip.model.CLIP):  # inherits what is watched
        pass

    owners = [clip, open_clip.model.CLIP(**toy_cfg), Own(**toy_cfg)]
    before = [methods_of(type(owner)) for owner in owners]
    try:
        with ExitStack() as stack:
            for owner in [*owners, owners[1]]:  # one of them twice
                stack.enter_context(Classes(owner))
            assert [methods_of(type(owner)) for owner in owners] != before
            if error:
                raise error
    except RuntimeError:
        pass
    assert [methods_of(type(owner)) for owner in owners] == before
    assert not any(vars(owner).keys() & {"encode", "encode_image", "encode_text"} for owner in owners)


def test_a_run_that_stops_leaves_nothing_patched(tiny):
    before = methods_of(Clip)
    with pytest.raises(NotFinite):
        train(tiny.but(lr=1e30), probes=ALL)
    assert methods_of(Clip) == before


@pytest.mark.parametrize("tower", [None, *TOWERS])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_same_to_the_bit_with_probes(tiny, name, tower):
    if tower and name != "finetune":
        pytest.skip("towers are tried with finetune")
    tuner = getattr(METHODS[name], "needs", "lora")
    tower = tower or ("both" if "both" in ONLY.get(tuner, (TOWERS, ""))[0] else ONLY[tuner][0][0])
    config = tiny.but(method=name, tuner=tuner, tower=tower, eval_every=16, steps_per_batch=2, batch_size=15)
    runs, notes = [], {}
    for chosen in ((), ALL):
        kept = []
        evals, steps = train(config, keep=kept.append, probes=chosen, notes=notes)
        runs.append((evals, steps, kept[0].state_dict()))
    assert runs[0][:2] == runs[1][:2] and len(runs[0][0])
    assert runs[0][2].keys() == runs[1][2].keys()
    assert not [key for key, weights in runs[0][2].items() if not torch.equal(weights, runs[1][2][key])]
    assert set(notes) == {"cost", *ALL}
    steps = pd.DataFrame(runs[0][1])
    for probe in ("gradients", "classes"):
        if name == "frozen":
            assert len(notes[probe]) == 0
        else:  # every step, under its number
            found = notes[probe][["step", "stage", "images_seen"]].drop_duplicates()
            expected = steps[["step", "stage", "images_seen"]].drop_duplicates()
            assert found.to_dict("list") == expected.to_dict("list")
            assert set(notes[probe].term) - {"total"} <= set(steps.term)
    ends = [0] if name == "frozen" else [0, 4, 8]
    assert notes["drift"].step.drop_duplicates().tolist() == ends and len(notes["drift"]) == 6 * len(ends)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"tuner": "adapter"}, {"tuner": "full", "lr": 1e-3},
                                      {"tuner": "prompts", "optimizer": "sgd", "clip_norm": 1.0}], ids=str)
def test_other_settings_are_the_same_to_the_bit_with_probes(tiny, settings):
    runs = []
    for chosen in ((), ALL):
        kept = []
        evals, steps = train(tiny.but(method="finetune", **settings), keep=kept.append, probes=chosen)
        runs.append((evals, steps, kept[0].state_dict()))
    assert runs[0][:2] == runs[1][:2]
    assert not [key for key, weights in runs[0][2].items() if not torch.equal(weights, runs[1][2][key])]


def test_probes_in_a_run_tell_sit_from_finetune(tiny):
    tables = {}
    for name in ("sit", "finetune"):
        notes = {}
        train(tiny.but(method=name), probes=("classes",), notes=notes)
        tables[name] = notes["classes"]
    assert tables["sit"].present.all()
    absent = tables["finetune"][~tables["finetune"].present]
    assert len(absent) and (absent.attraction == 0).all() and (absent.repulsion > 0).all()
    assert set(tables["sit"]["class"]) == {"red brick", "green leaf", "blue door", "grey stone", "yellow sun",
                                           "black cat"}
    assert tables["sit"].push.notna().all() and tables["sit"]["image push"].notna().all()
    assert (tables["finetune"].unexplained < 1e-2).all()


def test_an_unknown_probe_is_refused_in_a_run(tiny):
    with pytest.raises(ValueError, match="probes='drifts' is unknown. Did you mean drift.*classes, drift, gradients"):
        train(tiny, probes=["drifts"])


# ---- gradients


@pytest.mark.parametrize(("name", "expected"), [
    ("model.visual.transformer.resblocks.11.attn.qkv.lora_A.default.weight", ("image", "11")),
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", ("image", "0")),
    ("visual.trunk.blocks.3.attn.qkv.weight", ("image", "3")),
    ("visual.conv1.weight", ("image", "outside")),
    ("model.transformer.resblocks.2.ln_1.weight", ("text", "2")),
    ("model.token_embedding.weight", ("text", "outside")),
    ("text.transformer.encoder.layer.5.attention.self.query.weight", ("text", "5")),
    ("text_projection", ("text", "outside")),
    ("model.logit_scale", ("temperature", "outside")),
    ("logit_bias", ("temperature", "outside")),
], ids=str)
def test_where_a_parameter_is(name, expected):
    assert where(name) == expected


def two_terms(clip, batch) -> dict[str, torch.Tensor]:
    """A matching loss, and one that pulls image features to a fixed place."""
    encoded = clip.encode(batch)
    place = F.normalize(torch.randn(encoded.image.shape, generator=torch.Generator().manual_seed(5)), dim=-1)
    return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target),
            "drift": 0.3 * ((encoded.image - place)**2).sum() + 0.1 * encoded.text[:, 0].sum()}


def by_hand(clip, loss) -> dict[tuple[str, str], torch.Tensor]:
    """Gradients from a plain backward pass, grouped by the names of the toy model; as one flat vector each."""
    clip.zero_grad()
    if loss.requires_grad:
        loss.backward(retain_graph=True)
    groups = {}
    for name, p in clip.named_parameters():
        if p.requires_grad:
            tower = ("temperature" if name == "model.logit_scale" else
                     "image" if name.startswith("model.visual.") else "text")
            block = name.split(".resblocks.")[1].split(".")[0] if ".resblocks." in name else "outside"
            g = torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for key in ((tower, block), (tower, "all")):
                groups.setdefault(key, []).append(g)
    clip.zero_grad()
    return {key: torch.cat(parts) for key, parts in groups.items()}


def cos(a, b) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=0)) if a.any() and b.any() else float("nan")


@pytest.mark.parametrize("name", TUNERS)
def test_gradients_are_those_of_a_plain_backward_pass(clip, batch, name):
    TUNERS[name](clip, ONLY.get(name, (["both"],))[0][-1])
    terms = two_terms(clip, batch)
    with Gradients(clip) as probe:
        probe.look(terms, stage=3, images_seen=24)
    table = probe.table()
    if name == "none":
        assert len(table) == 0
        return
    assert (table.step == 0).all() and (table.stage == 3).all() and (table.images_seen == 24).all()
    expected = {term: by_hand(clip, value) for term, value in {**terms, "total": sum(terms.values())}.items()}
    rows = table.set_index(["term", "tower", "block"])
    assert set(rows.index) == {(term, *key) for term, groups in expected.items() for key in groups}
    for term, groups in expected.items():
        for key, g in groups.items():
            assert rows.norm[term, *key] == pytest.approx(float(g.norm()), rel=1e-4, abs=1e-7)
            if key[1] == "all":
                for other in expected:
                    value = float("nan") if other == term else cos(g, expected[other][key])
                    assert rows[f"cos {other}"][term, *key] == pytest.approx(value, abs=1e-4, nan_ok=True)
    assert rows.norm.max() > 0 and table.previous.isna().all()
    whole = table[table.block == "all"].set_index(["term", "tower"]).norm
    parts = (table[table.block != "all"].assign(square=lambda r: r.norm**2).groupby(["term", "tower"]).square.sum())
    assert np.allclose(whole.sort_index(), np.sqrt(parts.sort_index()), rtol=1e-5)


def test_terms_that_pull_apart_and_a_tower_without_gradient(clip, batch):
    TUNERS["full"](clip, "both")
    clip.model.logit_scale.requires_grad_(True)
    image = clip.encode_image(batch.image)
    pull = (image[:, 0]).sum()
    with Gradients(clip) as probe:
        probe.look({"a": pull, "b": -0.5 * pull, "fixed": torch.tensor(2.0)})
    rows = probe.table().set_index(["term", "tower", "block"])
    assert set(probe.table().term) == {"a", "b", "total"}  # what has no graph has no gradient
    assert rows["cos b"]["a", "image", "all"] == pytest.approx(-1, abs=1e-5) == rows["cos a"]["b", "image", "all"]
    assert rows["cos a"]["total", "image", "all"] == pytest.approx(1, abs=1e-5)
    assert rows.norm["total", "image", "all"] == pytest.approx(0.5 * rows.norm["a", "image", "all"], rel=1e-5)
    for tower in ("text", "temperature"):
        assert rows.norm["a", tower, "all"] == 0 and math.isnan(rows["cos b"]["a", tower, "all"])
    assert ("a", "temperature", "outside") in rows.index


@pytest.mark.parametrize("every", [1, 2])
def test_previous_and_update_of_steps(clip, batch, every):
    TUNERS["lora"](clip, "both")
    free = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.5, momentum=0.9)
    grads, weights = [], []
    with Gradients(clip, every) as probe:
        for _ in range(5):
            terms = METHODS["finetune"]().loss(clip, batch)
            probe.look(terms)
            probe.look({})  # the end of a stage: no step
            grads.append(by_hand(clip, terms["task"]))
            weights.append({n: p.detach().clone() for n, p in clip.named_parameters() if p.requires_grad})
            terms["task"].backward()
            optimizer.step()
    table = probe.table()
    assert sorted(set(table.step)) == list(range(0, 5, every)) and set(table.term) == {"task"}
    rows = table.set_index(["step", "tower", "block"])
    for tower, visual in (("image", True), ("text", False)):
        for block in ("0", "1", "all"):
            mine = [n for n in weights[0] if n.startswith("model.visual.") == visual
                    and (block == "all" or f"blocks.{block}." in n)]
            moves = [torch.cat([(now[n] - old[n]).flatten() for n in mine])
                     for old, now in zip(weights[::every], weights[every::every], strict=False)]
            for number, move in enumerate(moves, 1):
                assert rows["update"][every * number, tower, block] == pytest.approx(float(move.norm()), rel=1e-4)
            assert math.isnan(rows["update"][0, tower, block])
            if block == "all":
                assert math.isnan(rows["update previous"][every, tower, block])
                for number in range(1, len(moves)):
                    found = rows["update previous"][every * (number + 1), tower, block]
                    assert found == pytest.approx(cos(moves[number], moves[number - 1]), abs=1e-4)
                for step in range(every, 5, every):
                    expected = cos(grads[step][tower, "all"], grads[step - every][tower, "all"])
                    assert rows.previous[step, tower, block] == pytest.approx(expected, abs=1e-4)
            else:
                assert rows.previous[:, tower, block].isna().all()
    assert (rows["update"].dropna() > 0).all() and math.isnan(rows.previous[0, "image", "all"])


def test_the_update_belongs_to_the_total_where_there_are_terms(clip, batch):
    TUNERS["lora"](clip, "both")
    with Gradients(clip) as probe:
        for _ in range(2):
            probe.look(two_terms(clip, batch))
            with torch.no_grad():
                for p in clip.parameters():
                    p.add_(0.01 * p.requires_grad)
    table = probe.table()
    assert set(table[table["update"].notna()].term) == {"total"}
    count = sum(p.numel() for name, p in clip.tower("image") if p.requires_grad)
    row = table[(table.step == 1) & (table.term == "total") & (table.tower == "image") & (table.block == "all")]
    assert row["update"].item() == pytest.approx(0.01 * count**0.5, rel=1e-4)


def test_other_parameters_at_the_next_stage(clip, batch):
    TUNERS["full"](clip, "both")
    with Gradients(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch), stage=1)
        TUNERS["lora"](clip, "image")
        probe.look(METHODS["finetune"]().loss(clip, batch), stage=2)
        TUNERS["none"](clip, "both")
        with Classes(clip) as classes:  # lends the loss a gradient, though nothing is trained
            terms = METHODS["finetune"]().loss(clip, batch)
            probe.look(terms, stage=3)
            classes.look(terms, stage=3)
    table = probe.table()
    assert set(table[table.stage == 2].tower) == {"image"} and set(table.stage) == {1, 2}
    assert "update" not in table and table.previous.isna().all()
    assert len(classes.table()) == 6


def test_nothing_of_a_model_is_kept_behind_a_look(clip, batch):
    TUNERS["lora"](clip, "both")
    with Gradients(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch))
        assert probe.before and probe.weights
    assert not probe.before and not probe.weights and len(probe.table())
    assert probe.table().equals(probe.table())


# ---- drift


@pytest.fixture
def followed(clip, toy):
    """Images, labels, tokens and classes of three colours."""
    test = toy().test
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
            mean, mean0 = sum(f[i] for i in mine) / len(mine), sum(start[0][i] for i in mine) / len(mine)
            row = rows[(rows.step == step) & (rows["class"] == name)].iloc[0]
            assert row.text == pytest.approx(1 - float(t[k] @ start[1][k]), abs=1e-5)
            moved = [1 - float(f[i] @ start[0][i]) for i in mine]
            assert row.image == pytest.approx(sum(moved) / len(mine), abs=1e-5)
            assert row.match == pytest.approx(float(t[k] @ mean / mean.norm()), abs=1e-5)
            assert row["frozen match"] == pytest.approx(float(t[k] @ mean0 / mean0.norm()), abs=1e-5)
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
        probe.look({"task": torch.tensor(0.0)}, 4, images_seen=400)  # step 9, as it stood at the end of stage 3
        probe.look({"task": torch.tensor(0.0)}, 4, images_seen=410)
    heads = probe.table()[["step", "stage", "images_seen"]].drop_duplicates()
    assert heads.to_numpy().tolist() == [[0, 0, 0], [3, 1, 13], [5, 1, 100], [6, 3, 31], [9, 3, 300], [11, 4, 410]]
    assert len(probe.table()) == 3 * 6


def test_drift_without_training_is_measured_once(clip, followed):
    with Drift(clip, *followed) as probe:
        for stage in (1, 2):
            probe.look({}, stage)
    assert len(probe.table()) == 3


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


# ---- by name


def test_the_references_of_a_run_are_its_first_test_images_and_its_prompts(clip, toy, monkeypatch):
    monkeypatch.setattr(probes, "IMAGES_PER_CLASS", 3)
    benchmark = toy()
    few = benchmark.test.labels != 1  # a class without test images
    test = Labelled(benchmark.test.images[torch.from_numpy(few)], benchmark.test.labels[few],
                    benchmark.test.class_names, benchmark.test.template)
    benchmark = type(benchmark)("few", benchmark.train, test, benchmark.captions, benchmark.groups)
    prompts = clip.class_text(list(test.class_names), test.template)
    drift, classes = PROBES["drift"](clip, benchmark, prompts), PROBES["classes"](clip, benchmark, prompts)
    assert drift.classes == [0, 2, 3, 4, 5] == list(classes.image_means) == list(classes.text_starts)
    assert [drift.labels.count(k) for k in drift.classes] == [3] * 5
    with torch.no_grad():
        for k in drift.classes:
            rows = torch.from_numpy(np.flatnonzero(test.labels == k)[:3])
            mean = clip.encode_image(test.images[rows]).mean(0)
            assert torch.allclose(classes.image_means[k], mean / mean.norm(), atol=1e-6)
            assert torch.allclose(classes.text_starts[k], clip.encode_text(prompts[k:k + 1])[0], atol=1e-6)


def test_probes_of_one_run_look_together(tiny, monkeypatch):
    monkeypatch.setattr(probes, "IMAGES_PER_CLASS", 2)
    notes = {}
    train(tiny.but(method="finetune"), probes=ALL, notes=notes)
    assert len(notes["drift"]) == 6 * 3  # the start and two stage ends: ten steps are more than there are
    assert notes["drift"].images_seen.drop_duplicates().tolist() == [0, 30, 60]
    assert notes["drift"].stage.drop_duplicates().tolist() == [0, 1, 2]
    assert set(notes["drift"]["class"]) == set(notes["classes"]["class"])
    assert notes["drift"][notes["drift"].stage == 2].text.max() > 1e-4
    assert set(notes["gradients"].tower) == {"image", "text"}
    only = {}
    train(tiny.but(method="finetune"), probes=("gradients",), notes=only)
    pd.testing.assert_frame_equal(only["gradients"], notes["gradients"])


# ---- a loop of one's own, on open_clip's model


@pytest.fixture
def own(toy_cfg):
    """A plain open_clip model with images, tokens, and the row of each image's text."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**toy_cfg).train()
    tokens = torch.zeros(4, 32, dtype=torch.long)
    tokens[:, 0], tokens[:, 3] = 49406, 49407
    tokens[:, 1:3] = torch.arange(1, 9).view(4, 2)
    return model, torch.randn(6, 3, 64, 64), tokens, torch.tensor([0, 1, 1, 2, 0, 0])


NAMES = ["ant", "bee", "cod", "doe"]


def own_table(model, loss, labels, f, t) -> pd.DataFrame:
    """The table of features that were made without a probe around."""
    probe = Classes()
    probe.look({"task": loss}, labels=labels, classes=NAMES, image=f, text=t)
    return probe.table()


@pytest.mark.parametrize("way", ["encode", "call", "call by keyword"])
def test_classes_on_a_plain_model(own, way):
    model, images, tokens, target = own
    labels = [NAMES[y] for y in target]
    with Classes(model) as probe:
        if way == "encode":
            f, t = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
            s = model.logit_scale.exp()
        else:
            f, t, s = model(images, tokens) if way == "call" else model(image=images, text=tokens)
        loss = match(f, t, s, target)
        probe.look({"task": loss}, labels=labels, classes=NAMES)
        loss.backward()
    table = probe.table().set_index("class")
    assert list(table.index) == NAMES and table.present.tolist() == [True, True, True, False]
    f, t = (model.encode_image(images, normalize=True).detach(), model.encode_text(tokens, normalize=True).detach())
    c = s.item() / 6 * ((s.item() * f @ t.T).softmax(-1) - F.one_hot(target, 4))
    assert np.allclose(table.gradient, (c.T @ f).norm(dim=-1), rtol=1e-4)
    assert np.allclose(table.attraction, (c.clamp(max=0).T @ f).norm(dim=-1), rtol=1e-4, atol=1e-8)
    assert table.attraction["doe"] == 0 and (table.unexplained < 1e-4).all()
    assert all(p.grad is not None for p in model.visual.parameters())


def test_classes_given_features(own):
    model, images, tokens, target = own
    f, t = F.normalize(model.encode_image(images), dim=-1), F.normalize(model.encode_text(tokens), dim=-1)
    loss = match(f, t, model.logit_scale.exp(), target)
    with Classes() as probe:
        probe.look({"task": loss}, labels=target, classes=range(4), image=f, text=t)
    with Classes(model) as other:
        f, t, s = model(images, tokens)
        other.look({"task": match(f, t, s, target)}, labels=target, classes=range(4))
    numbers = probe.table().select_dtypes("number").astype(float)
    assert np.allclose(numbers, other.table()[numbers.columns].astype(float), rtol=1e-3, atol=1e-6, equal_nan=True)


def test_classes_of_a_frozen_tower_of_a_plain_model(own):
    """Its texts are encoded without gradients, as one does with a tower that is not trained."""
    model, images, tokens, target = own
    tables = []
    for frozen in (False, True):
        with Classes(model) as probe:
            with torch.set_grad_enabled(not frozen):
                t = model.encode_text(tokens, normalize=True)
            with torch.inference_mode():
                model.encode_text(tokens, normalize=True)  # an evaluation, which is in no loss
            f = model.encode_image(images, normalize=True)
            probe.look({"task": match(f, t, model.logit_scale.exp(), target)}, labels=target, classes=range(4))
        tables.append(probe.table())
    columns = ["gradient", "attraction", "repulsion", "image gradient"]
    assert np.allclose(tables[0][columns], tables[1][columns], rtol=1e-4, atol=1e-7, equal_nan=True)


def test_classes_on_a_plain_model_says_what_is_missing(own):
    model, images, tokens, target = own
    given = {"labels": target, "classes": range(4)}
    with Classes(model) as probe:
        f, t = model.encode_image(images), model.encode_text(tokens, normalize=True)
        with pytest.raises(ValueError, match="image features are not unit-norm.*normalize=True"):
            probe.look({"task": match(F.normalize(f, dim=-1), t, S.float(), target)}, **given)
        f = model.encode_image(images, normalize=True)
        with pytest.raises(ValueError, match="one encode_image and one encode_text.*encode_image"):
            probe.look({"task": match(f, t, S.float(), target)}, **given)
        f, t, s = model(images, tokens)
        f, t, s = model(images, tokens)
        with pytest.raises(ValueError, match="one encode_image and one encode_text"):
            probe.look({"task": match(f, t, s, target)}, **given)
        f, t, s = model(images, tokens)
        with pytest.raises(ValueError, match="labels=6, classes=3"):
            probe.look({"task": match(f, t, s, target)}, labels=target, classes=range(3))
        f, t, s = model(images, tokens)
        probe.look({"task": match(f, t, s, target)}, **given)  # and works then
    assert len(probe.table()) == 4


def test_all_probes_in_a_loop_of_ones_own(own):
    model, images, tokens, target = own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (Gradients(model) as gradients, Classes(model) as classes,
          Drift(model, images, target, tokens[:3], range(3), every=1) as drift):
        for _ in range(3):
            f, t, s = model(images, tokens)
            loss = match(f, t, s, target)
            optimizer.zero_grad()
            drift.look({"task": loss})  # before the other, which must not take its features for the loss's
            gradients.look({"task": loss})
            classes.look({"task": loss}, labels=target, classes=range(4))
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model(images, tokens)  # an evaluation
    assert len(classes.table()) == 12 and set(gradients.table().step) == {0, 1, 2}
    assert set(drift.table().step) == {0, 1, 2, 3}
    assert set(gradients.table().tower) == {"image", "text", "temperature"}
    assert drift.table().text.iloc[-1] > 0 and (drift.table().text.iloc[:3].abs() < 1e-6).all()
    assert model.training


def test_drift_on_a_plain_model_is_of_directions(own):
    """open_clip's encoders do not normalise unless they are asked to."""
    model, images, tokens, target = own
    with Drift(model, images, target, tokens[:3], range(3), every=1) as probe:
        with torch.no_grad():
            model.text_projection.mul_(3)  # longer, and the same direction
        probe.look({"task": torch.tensor(0.0)})
    assert probe.table().text.abs().max() < 1e-6 and probe.table().gap.max() < 2
    assert len(probe.table()) == 6


def test_gradients_on_a_plain_model(own):
    model, images, tokens, target = own
    f, t, s = model(images, tokens)
    loss = match(f, t, s, target)
    with Gradients(model) as probe:
        probe.look({"task": loss})
    loss.backward()
    rows = probe.table().set_index(["tower", "block"])
    expected = torch.cat([p.grad.flatten() for p in model.visual.transformer.resblocks[1].parameters()]).norm()
    assert rows.norm["image", "1"] == pytest.approx(float(expected), rel=1e-4)
    assert rows.norm["temperature", "all"] == pytest.approx(float(model.logit_scale.grad.abs()), rel=1e-4)


# ---- cost


@pytest.mark.parametrize("tower", TOWERS)
def test_cost_counts_the_free_parameters(tiny, tower):
    notes, config = {}, tiny.but(tower=tower)
    train(config, notes=notes)
    clip, _, _ = prepare(config)
    cost = notes["cost"]
    assert cost["parameters"] == sum(p.numel() for p in clip.parameters() if p.requires_grad) > 0
    assert cost["images_per_second"] > 0 and cost["peak_memory"] is None and set(notes) == {"cost"}


def test_cost_of_the_frozen_model(tiny):
    notes = {}
    train(tiny.but(method="frozen", tuner="none"), notes=notes)
    assert notes["cost"]["parameters"] == 0 and notes["cost"]["images_per_second"] > 0


# ---- on the device


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def there(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def moved(model):
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(there(p), requires_grad=p.requires_grad))
        for name, b in module.named_buffers(recurse=False):
            setattr(module, name, there(b))
    return model


def test_gradients_are_not_waited_for(clip, batch, fake, monkeypatch):
    """Norms and angles stay on the device; the backward pass, which needs a real one, is stood in for."""
    with unset_fake_temporarily():
        TUNERS["lora"](clip, "both")
    clip = moved(clip)
    monkeypatch.setattr(torch.autograd, "grad", lambda value, inputs, **_: [there(p) for p in inputs])
    loss = torch.ones((), device="cuda", requires_grad=True)
    with Gradients(clip) as probe:
        for _ in range(3):
            probe.look({"a": loss, "b": loss})
    numbers = [value for row in probe.rows for value in row.values() if isinstance(value, torch.Tensor)]
    assert numbers and {value.device.type for value in numbers} == {"cuda"}
    assert {"norm", "previous", "cos a", "update", "update previous"} <= {key for row in probe.rows for key in row}


def test_drift_encodes_on_the_device(clip, batch, fake):
    clip = moved(clip)
    images = torch.empty(300, 3, 64, 64, dtype=torch.uint8, device="cuda")
    labels = [i % 6 for i in range(300)]
    drift = Drift(clip, images, labels, there(batch.prompts), range(6))
    image, text = drift._features()
    assert image.device == text.device == images.device and image.shape == (300, 16) and text.shape == (6, 16)
    assert {rows.device for rows in drift.members} == {images.device}
    assert torch.stack([image[rows].mean(0) for rows in drift.members]).device == images.device


def test_watched_features_stay_on_the_device(clip, batch, fake):
    with unset_fake_temporarily():
        TUNERS["full"](clip, "image")
    clip = moved(clip)
    batch = replace(batch, image=there(batch.image), prompts=there(batch.prompts))
    with Classes(clip) as probe:
        encoded = clip.encode(batch)
        loss = match(encoded.image, encoded.text, encoded.scale, batch.target)
        assert len(probe.waiting) == 1 and isinstance(probe.waiting[0], Seen)
    assert encoded.image.device == encoded.text.device == loss.device == batch.image.device
    assert encoded.text.requires_grad  # the frozen tower's
    assert {x.device for x in reachable(there(torch.zeros(2, 3)))} == {batch.image.device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_probes_on_a_gpu_are_near_those_on_the_cpu(tiny):
    tables = {}
    for device in ("cpu", "cuda"):
        tables[device] = {}
        train(tiny.but(device=device, lr=1e-4, method="finetune"), probes=ALL, notes=tables[device])
    assert tables["cuda"]["cost"]["peak_memory"] > 0
    for name, column in (("gradients", "norm"), ("classes", "gradient"), ("drift", "match")):
        assert np.allclose(tables["cpu"][name][column], tables["cuda"][name][column], rtol=1e-2, atol=1e-3)
