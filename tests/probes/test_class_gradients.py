"""The push on classes against closed forms, double loops and finite differences; and on a model."""
import copy
import math
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from clstudy.losses.functional import distillation, match
from clstudy.methods import METHODS
from clstudy.models.tuners import TUNERS
from clstudy.models.tuners.base import TOWERS
from clstudy.probes import Classes, pulls

S = torch.tensor(7.0, dtype=torch.float64)


def unit(count: int, seed: int, dim: int = 6) -> torch.Tensor:
    features = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed),
                           dtype=torch.float64)
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
    """(s/B) p_ik [(q_ik − 1[y_i = k]) − Σ_j (q_ij − 1[y_i = j]) p_ij] with q = softmax(p): released
    code of SIT."""
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
    grads = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target), double_softmax=double),
                           f, t)
    found, unexplained = pulls(f, t, *grads)
    assert found.dtype == torch.float64 and unexplained < 1e-9
    assert close(found, (closed_double if double else closed)(f, t, target))


@pytest.mark.parametrize(("size", "given"), [("few", "image"), ("more images than dimensions", "image"),
                                             ("few", "text"), ("more texts than dimensions", "text")])
def test_one_gradient_is_enough_where_the_other_side_has_fewer_rows_than_dimensions(size, given):
    images, texts = SIZES[size]
    f, t, target = unit(images, 0), unit(texts, 1), [i * i % texts for i in range(images)]
    on_image, on_text = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target)), f, t)
    found, unexplained = pulls(f, t, on_image, None) if given == "image" else pulls(
        f, t, None, on_text)
    assert close(found, closed(f, t, target)) and unexplained < 1e-9


def test_with_more_of_both_than_dimensions_pulls_are_the_smallest_that_explain_the_gradients():
    f, t, target = unit(9, 0), unit(8, 1), [i % 8 for i in range(9)]
    on_image, on_text = both_gradients(lambda f, t: match(f, t, S, torch.tensor(target)), f, t)
    found, unexplained = pulls(f, t, on_image, on_text)
    assert unexplained < 1e-9 and close(found @ t, on_image) and close(found.T @ f, on_text)
    whole = closed(f, t, target)
    none_f = torch.eye(9,
                       dtype=f.dtype) - f @ torch.linalg.pinv(f)  # directions that no feature has
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
    drift = {
        "features": lambda f, t: ((f - start)**2).sum(), "texts": lambda f, t:
        ((t - start[:4])**2).sum(), "along": lambda f, t: (f @ start[0]).sum()
    }
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
MEANS = {name: unit(1, seed)[0]
         for seed, name in enumerate(("cat", "dog", "owl", "fox"), 10)}  # none of bee
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
    assert list(table.index) == list(OFFERED) and (table.term
                                                   == "task").all() and (table.unexplained
                                                                         < 1e-9).all()

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
        for column, part in (("push", pull + push), ("push attraction", pull), ("push repulsion",
                                                                                push)):
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
                sign = "attraction" if c[
                    i, m] < 0 else f"repulsion {'present' if OFFERED[m] in LABELS else 'absent'}"
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
        norms = [
            float(difference(lambda f: matched(f, t), f, i).norm()) for i in range(5)
            if LABELS[i] == name
        ]
        assert table["image gradient"][name] == pytest.approx(np.mean(norms), rel=1e-6)


def test_push_is_what_a_small_step_adds_to_the_similarity_with_the_own_images(f, t):
    table = looked(f, t)
    on_image, on_text = both_gradients(matched, f, t)
    epsilon = 1e-5
    for k, name in enumerate(OFFERED):
        if name in MEANS:  # absent owl as well as present classes
            ends = [
                F.normalize(t[k] - sign * epsilon * (on_text[k] - on_text[k] @ t[k] * t[k]), dim=0)
                for sign in (1, -1)
            ]
            expected = float((ends[0] - ends[1]) @ MEANS[name]) / (2 * epsilon)
            assert table.push[name] == pytest.approx(expected, rel=1e-6)
            assert table.push[name] == pytest.approx(table["push attraction"][name]
                                                     + table["push repulsion"][name])
    for name in ("cat", "dog"):
        steps = []
        for i in [i for i in range(5) if LABELS[i] == name]:
            ends = [F.normalize(f[i] - sign * epsilon * on_image[i], dim=0) for sign in (1, -1)]
            steps.append(float((ends[0] - ends[1]) @ STARTS[name]) / (2 * epsilon))
        assert table["image push"][name] == pytest.approx(np.mean(steps), rel=1e-6)


def test_an_absent_class_is_pushed_away_from_images_like_its_own(f, t, monkeypatch):
    monkeypatch.setitem(MEANS, "owl", F.normalize(f.sum(0),
                                                  dim=0))  # it looks like what is in the batch
    t[1] = F.normalize(t[1] - (t[1] @ MEANS["owl"]) * MEANS["owl"],
                       dim=0)  # and is at a right angle to that
    row = looked(f, t).loc["owl"]
    assert row.push < 0 and row[
        "push repulsion"] == row.push and row.attraction == row["push attraction"] == 0


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
    assert np.allclose(found[columns].astype(float), table[columns].astype(float), rtol=1e-6,
                       equal_nan=True)


def test_a_class_encoded_twice_has_one_row_with_the_sum(f, t):
    """Two prompts of a class, as in an ensemble."""
    names = ("cat", "owl", "dog", "fox", "cat")
    c, f, t = closed(f, t, TARGET), leaf(f), leaf(t)
    probe = Classes()
    probe.look({"task": matched(f, t)}, labels=LABELS, classes=names, image=f, text=t)
    table = probe.table().set_index("class")
    assert list(table.index) == ["cat", "owl", "dog", "fox"]
    assert table.gradient["cat"] == pytest.approx(float(((c[:, 0] + c[:, 4]) @ f.detach()).norm()),
                                                  rel=1e-6)


def test_labels_may_be_tensors_or_arrays(f, t):
    numbers = {name: k for k, name in enumerate(OFFERED)}
    expected = looked(f, t).reset_index(drop=True)
    labels = [numbers[name] for name in LABELS]
    f, t = leaf(f), leaf(t)
    means, starts = ({numbers[name]: x for name, x in given.items()} for given in (MEANS, STARTS))
    for kind in (torch.tensor, np.array, list):
        probe = Classes(image_means=means, text_starts=starts)
        probe.look({"task": matched(f, t)}, labels=kind(labels), classes=kind(range(5)), image=f,
                   text=t)
        found = probe.table()
        assert found["class"].tolist() == [0, 1, 2, 3, 4]
        pd.testing.assert_frame_equal(found.drop(columns="class"), expected)


def test_heads_and_terms_of_a_look(f, t):
    f, t = leaf(f), leaf(t)
    probe, given = Classes(every=2), {"labels": LABELS, "classes": OFFERED, "image": f, "text": t}
    for step in range(4):
        probe.look({"task": matched(f, t), "half": 0.5 * matched(f, t), "fixed": torch.tensor(1.0)},
                   stage=step, images_seen=10 * step, **given)
        probe.look({}, stage=9)
    table = probe.table()
    assert set(table.step) == {0, 2} and set(table.stage) == {0, 2} and set(
        table.images_seen) == {0, 20}
    assert table.groupby(
        ["step", "term"]).size().to_dict() == {(s, n): 5 for s in (0, 2) for n in ("half", "task")}
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
        Classes().look({"task": weight * matched(f, t)}, labels=LABELS, classes=OFFERED, image=f,
                       text=t)


# ---- classes, on a model


def test_under_sit_absent_classes_have_no_row_and_under_finetune_they_are_only_repelled(
        clip, batch):
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
        TUNERS["full"]().apply(clip, chosen)
        with Classes(clip) as probe:
            probe.look(METHODS["finetune"]().loss(clip, batch))
        tables.append(probe.table())
    columns = ["gradient", "attraction", "repulsion", "image gradient", "image repulsion absent"]
    assert np.allclose(tables[0][columns], tables[1][columns], rtol=1e-5, equal_nan=True)


def test_pulls_on_a_model_are_the_gradient_on_the_similarities(clip, batch):
    with Classes(clip) as probe:
        encoded = clip.encode(batch=batch)  # by keyword too
        probe.look({"task": match(encoded.image, encoded.text, encoded.scale, batch.target)})
    f, t = encoded.image.detach(), encoded.text.detach()
    similarity = leaf(f @ t.T)
    c, = torch.autograd.grad(F.cross_entropy(encoded.scale.detach() * similarity, batch.target),
                             similarity)
    table = probe.table()
    assert np.allclose(table.gradient, (c.T @ f).norm(dim=-1), rtol=1e-4)
    assert np.allclose(table.attraction, (c.clamp(max=0).T @ f).norm(dim=-1), rtol=1e-4)


def only(batch, labels: tuple, classes: tuple):
    """The images of some classes, with others offered."""
    rows = [i for i, label in enumerate(batch.labels) if label in labels]
    return replace(batch, image=batch.image[rows], labels=tuple(batch.labels[i] for i in rows),
                   index=tuple(rows), classes=classes)


def test_several_encodings_of_a_step_are_each_terms_own(clip, batch):
    """A memory that is encoded by itself: its classes are not in the stream's batch."""
    first, second = only(batch, (0, 2), (2, 0, 1, 5)), only(batch, (5,), (5, 2))
    loss = METHODS["finetune"]().loss

    def look(*parts):
        with Classes(clip) as probe:
            probe.look({f"term {n}": loss(clip, part)["task"] for n, part in enumerate(parts)})
        return [
            rows.reset_index(drop=True).drop(columns="term")
            for _, rows in probe.table().groupby("term")
        ]

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
    assert np.allclose(
        look(0)["image gradient"],
        probe.table()["image gradient"], rtol=1e-4, equal_nan=True)
    assert (look(0).unexplained < 1e-4).all() and (look(1).unexplained
                                                   > 0.05).all()  # the worst of them


def test_what_is_encoded_beside_the_loss_changes_nothing(clip, batch):
    """Without gradients (a look at a memory), or for something else (the Fisher information of all
    that was seen)."""
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
    assert alone.table().set_index("class").present.to_dict() == {
        0: False, 2: True, 5: False, 1: False
    }


def test_no_graph_is_held_for_what_was_encoded_beside_the_loss(clip, batch):
    """A pass over a whole stage would otherwise keep the activations of all of it."""
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    held = []

    def pack(tensor):
        held.append(weakref.ref(saved := Saved(tensor.detach())))  # an output would hold itself
        return saved

    with Classes(clip) as probe, torch.autograd.graph.saved_tensors_hooks(
            pack, lambda saved: saved.tensor):
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


def test_a_copied_teacher_is_not_seen(clip, batch):
    """Nor one that is copied inside, nor one whose features would have a gradient."""
    tables = {}
    TUNERS["full"]().apply(clip, "both")
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
