"""Loss terms against naive double loops in float64, values by hand, closed gradients, and finite
differences."""
import math

import pytest
import torch
from torch.nn import functional as F

from clstudy.losses.functional import contrastive, distillation, match, match_sides

B, K, D = 5, 4, 3


def unit(count: int, seed: int) -> torch.Tensor:
    features = torch.randn(count, D, generator=torch.Generator().manual_seed(seed),
                           dtype=torch.float64)
    return F.normalize(features, dim=-1)


@pytest.fixture
def f():
    return unit(B, 0)


@pytest.fixture
def t():
    return unit(K, 1)


S = torch.tensor(7.0, dtype=torch.float64)
TARGET = torch.tensor([0, 2, 2, 1, 0])  # class 3 is absent


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def logits(f, t, s) -> list[list[float]]:
    f, t = f.tolist(), t.tolist()
    return [[float(s) * sum(a * b for a, b in zip(image, text, strict=True)) for text in t]
            for image in f]


# ---- match


@pytest.mark.parametrize("weight", [None, [0.5, 1.5, 2.0, 0.25, 0.75]])
def test_match_is_the_mean_of_minus_log_p(f, t, weight):
    total = 0.0
    for i, row in enumerate(logits(f, t, S)):
        total -= (1.0 if weight is None else weight[i]) * log_softmax(row)[TARGET[i]] / B
    given = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    assert match(f, t, S, TARGET, given).item() == pytest.approx(total, rel=1e-12)


def test_match_by_hand():
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    scale = torch.tensor(math.log(3.0))  # logits log 3 and 0, so p = 3/4 and 1/4
    assert match(image, text, scale, right).item() == pytest.approx(math.log(4 / 3))
    assert match(image, text, scale, wrong).item() == pytest.approx(math.log(4))
    one = torch.tensor([2.0, 0.0])
    assert match(image, text, scale, right, one).item() == pytest.approx(math.log(4 / 3))
    assert match(image, text, torch.tensor(0.0), right).item() == pytest.approx(math.log(2))


def gradients(f, t):
    f, t = f.clone().requires_grad_(), t.clone().requires_grad_()
    match(f, t, S, TARGET).backward()
    p = (S * f @ t.T).softmax(-1).detach()
    return f.grad, t.grad, p


def test_the_gradient_of_match_has_its_closed_form(f, t):
    """∂L/∂t_k = (s/B) Σ_i (p_ik − 1[y_i = k]) f_i and ∂L/∂f_i = (s/B) (Σ_k p_ik t_k − t_{y_i})."""
    df, dt, p = gradients(f, t)
    for k in range(K):
        expected = sum((p[i, k] - (TARGET[i] == k).double()) * f[i] for i in range(B)) * S / B
        assert torch.allclose(dt[k], expected, atol=1e-14)
    for i in range(B):
        expected = (sum(p[i, k] * t[k] for k in range(K)) - t[TARGET[i]]) * S / B
        assert torch.allclose(df[i], expected, atol=1e-14)


def test_an_absent_class_is_only_repelled(f, t):
    _, dt, p = gradients(f, t)
    repulsion = sum(p[i, 3] * f[i] for i in range(B)) * S / B
    assert torch.allclose(dt[3], repulsion, atol=1e-14) and repulsion.norm() > 0


def slope(loss, x: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss at x by central differences."""
    steps = 1e-6 * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([loss(x + step) - loss(x - step) for step in steps]).view_as(x) / 2e-6


def sides(f, t, push: str, competes: bool, texts: int = K):
    """Value and gradients of `match_sides`."""
    f, t = f.detach().clone().requires_grad_(), t[:texts].detach().clone().requires_grad_()
    loss = match_sides(f, t, S, TARGET, push, competes)
    loss.backward()
    return loss.detach(), f.grad, t.grad


@pytest.mark.parametrize("push", ["image", "text", "none"])
def test_absent_texts_compete_and_push_one_side_or_none(f, t, push):
    """Class 3 is absent. Against closed forms, and against differences with the other side held."""
    loss, a, b = sides(f, t, push, True)
    assert torch.equal(loss, match(f, t, S, TARGET))
    df, dt, p = gradients(f, t)
    f, t = f.detach(), t.detach()
    away = S / B * p[:, 3:] * t[3]  # what an absent text does to each image
    assert torch.allclose(a, df if push == "image" else df - away, atol=1e-14)
    assert torch.allclose(b[:3], dt[:3], atol=1e-14)
    expected = dt[3] if push == "text" else torch.zeros_like(dt[3])
    assert torch.allclose(b[3], expected, atol=1e-14)

    def held(f1, t1):
        z, others = S * f1 @ t1.T, (f1 if push == "image" else f, t1 if push == "text" else t)
        z = torch.cat([z[:, :3], S * others[0] @ others[1][3:].T], dim=1)
        return F.cross_entropy(z, TARGET)

    assert torch.allclose(a, slope(lambda x: held(x, t), f), atol=1e-8)
    assert torch.allclose(b, slope(lambda x: held(f, x), t), atol=1e-8)


@pytest.mark.parametrize("push", ["image", "text", "none"])
def test_without_competition_each_side_has_the_gradient_of_one_of_the_two_losses(f, t, push):
    loss, a, b = sides(f, t, push, False)
    sit = [f.detach().clone().requires_grad_(), t[:3].detach().clone().requires_grad_()]
    value = match(*sit, S, TARGET)
    sit_f, sit_t = torch.autograd.grad(value, sit)
    df, dt, _ = gradients(f, t)
    assert (df - sit_f).norm() > 0.01 and (dt[:3] - sit_t).norm() > 0.01
    assert torch.allclose(a, df if push == "image" else sit_f, atol=1e-14)
    sit_t = torch.cat([sit_t, torch.zeros_like(sit_t[:1])])
    assert torch.allclose(b, dt if push == "text" else sit_t, atol=1e-14)
    assert torch.allclose(loss, match(f, t, S, TARGET) if push == "image" else value, atol=1e-14)


def test_where_no_class_is_absent_all_pushes_are_one_loss(f, t):
    found = [sides(f, t, push, competes, 3) for push in ("both", "image", "text", "none")
             for competes in (True, False)]
    assert all(torch.equal(one, other) for values in found[1:]
               for one, other in zip(found[0], values, strict=True))
    whole = sides(f, t, "both", True)
    df, dt, _ = gradients(f, t)
    assert torch.allclose(whole[1], df, atol=1e-14) and torch.allclose(whole[2], dt, atol=1e-14)


def test_gradients_agree_with_finite_differences(f, t):
    f, t, s = f.requires_grad_(), t.requires_grad_(), S.clone().requires_grad_()
    weight = torch.tensor([0.5, 1.5, 2.0, 0.25, 0.75], dtype=torch.float64)
    same = torch.eye(B, dtype=torch.float64)
    same[1, 2] = same[2, 1] = 1
    pairs = unit(B, 3).requires_grad_()
    z = torch.randn(B, K, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, t, s: match(f, t, s, TARGET, weight), (f, t, s))
    assert torch.autograd.gradcheck(lambda f, t, s: contrastive(f, t, s, same), (f, pairs, s))
    assert torch.autograd.gradcheck(lambda a, b: distillation(a, b, 2.0),
                                    (z, z.detach().flip(0).requires_grad_()))


# ---- contrastive


def naive_contrastive(f, t, s, same) -> float:
    z, total, n = logits(f, t, s), 0.0, len(f)
    for i in range(n):
        row = log_softmax(z[i])
        column = log_softmax([z[j][i] for j in range(n)])
        mine = [float(same[i][j]) for j in range(n)]
        theirs = [float(same[j][i]) for j in range(n)]
        total -= sum(m * r for m, r in zip(mine, row, strict=True)) / sum(mine)
        total -= sum(m * c for m, c in zip(theirs, column, strict=True)) / sum(theirs)
    return total / (2 * n)


def test_contrastive_is_the_mean_of_both_directions(f):
    t = unit(B, 2)
    assert contrastive(f, t, S).item() == pytest.approx(naive_contrastive(f, t, S, torch.eye(B)),
                                                        rel=1e-12)


def test_contrastive_takes_shared_positives(f):
    t = unit(B, 2)
    same = torch.eye(B, dtype=torch.float64)
    same[0, 4] = same[4, 0] = same[1, 3] = 1  # not symmetric: rows and columns are normed apart
    assert contrastive(f, t, S, same).item() == pytest.approx(naive_contrastive(f, t, S, same),
                                                              rel=1e-12)
    assert contrastive(f, t, S, torch.eye(B, dtype=torch.float64)).item() == pytest.approx(
        contrastive(f, t, S).item())


def test_contrastive_by_hand():
    pair = torch.eye(2)
    assert contrastive(pair, pair, torch.tensor(math.log(3.0))).item() == pytest.approx(
        math.log(4 / 3))
    # two pairs with one caption, each the positive of both: −½ (log ½ + log ½)
    assert contrastive(pair, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor(0.0),
                       torch.ones(2, 2)).item() == pytest.approx(math.log(2))


def test_a_shared_caption_is_not_a_false_negative(f):
    t = unit(B, 2)
    t[1] = t[0]
    same = torch.eye(B, dtype=torch.float64)
    same[0, 1] = same[1, 0] = 1
    t = t.requires_grad_()
    apart = torch.autograd.grad(contrastive(f, t, S), t)[0]
    shared = torch.autograd.grad(contrastive(f, t, S, same), t)[0]
    assert not torch.allclose(apart, shared)


# ---- distillation


@pytest.mark.parametrize("T", [1.0, 2.0, 0.5])
def test_distillation_is_the_kl_divergence_times_t_squared(T):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
                        for _ in range(2))
    total = 0.0
    for i in range(B):
        q, p = (log_softmax([float(z) / T for z in row]) for row in (student[i], teacher[i]))
        total += sum(math.exp(p[k]) * (p[k] - q[k]) for k in range(K)) / B
    assert distillation(student, teacher, T).item() == pytest.approx(T * T * total, rel=1e-10)


def test_distillation_from_itself_is_zero():
    z = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
    loss = distillation(z, z.detach().clone(), 2.0)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-15
    assert distillation(z,
                        z.detach() + 5.0).item() == pytest.approx(
                            0, abs=1e-12)  # softmax does not see a shift


def test_distillation_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(student, teacher).item() == pytest.approx(expected, rel=1e-6)


# ---- double softmax


def test_double_softmax_by_hand():
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    scale = torch.tensor(math.log(3.0))  # p = 3/4 and 1/4
    for target, p in (([0, 1], 0.75), ([1, 0], 0.25)):
        expected = math.log(math.exp(0.75) + math.exp(0.25)) - p
        found = match(image, text, scale, torch.tensor(target), double_softmax=True)
        assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, [0.5, 1.5, 2.0, 0.25, 0.75]])
def test_double_softmax_is_a_cross_entropy_of_probabilities(f, t, weight):
    total = 0.0
    for i, row in enumerate(logits(f, t, S)):
        p = [math.exp(value) for value in log_softmax(row)]
        total -= (1.0 if weight is None else weight[i]) * log_softmax(p)[TARGET[i]] / B
    given = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    assert match(f, t, S, TARGET, given, double_softmax=True).item() == pytest.approx(
        total, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_double_softmax_stays_within_one_unit(classes):
    """From log(e + C − 1) − 1 for the surely right to log(e + C − 1) for the surely wrong, whatever
    the logits."""
    image, text = torch.eye(classes, dtype=torch.float64), torch.eye(classes, dtype=torch.float64)
    high, target = math.log(math.e + classes - 1), torch.arange(classes)
    sure = torch.tensor(1e4, dtype=torch.float64)
    assert match(image, text, sure, target, double_softmax=True).item() == pytest.approx(
        high - 1, abs=1e-12)
    wrong = match(image, text, sure, target.roll(1), double_softmax=True)
    assert wrong.item() == pytest.approx(high, abs=1e-12)
    assert match(image, text, sure, target.roll(1)).item() > 1e3
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 10.0, 1000.0):
        features = F.normalize(
            torch.randn(classes, classes, generator=generator, dtype=torch.float64), dim=-1)
        value = match(features, text, torch.tensor(scale, dtype=torch.float64), target,
                      double_softmax=True).item()
        assert high - 1 - 1e-12 <= value <= high + 1e-12


def test_the_gradient_of_double_softmax_has_its_closed_form(f, t):
    """∂L/∂z_ik = (1/B) p_ik [ (q_ik − 1[y_i = k]) − Σ_j (q_ij − 1[y_i = j]) p_ij ],   q_i = softmax(p_i)."""
    z = (S * f @ t.T).requires_grad_()
    one = torch.tensor(1.0, dtype=torch.float64)
    eye = torch.eye(K, dtype=torch.float64)  # with f = z and t = identity the logits are z
    found = torch.autograd.grad(match(z, eye, one, TARGET, double_softmax=True), z)[0]
    p = z.detach().softmax(-1)
    q = p.softmax(-1)
    for i in range(B):
        y = [float(TARGET[i] == k) for k in range(K)]
        inner = sum((q[i, j] - y[j]) * p[i, j] for j in range(K))
        for k in range(K):
            assert found[i, k].item() == pytest.approx(
                (p[i, k] * (q[i, k] - y[k] - inner) / B).item(), abs=1e-15)


def test_double_softmax_does_not_learn_from_the_surely_wrong():
    z = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    eye, one, target = torch.eye(3, dtype=torch.float64), torch.tensor(
        1.0, dtype=torch.float64), torch.tensor([1])
    once = torch.autograd.grad(match(z, eye, one, target), z)[0]
    twice = torch.autograd.grad(match(z, eye, one, target, double_softmax=True), z)[0]
    assert once.abs().max() > 0.99 and twice.abs().max() < 1e-8
