"""Classes as normal distributions: moments against scipy, draws, the form of
REMIX."""
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from clstudy.losses.class_statistics import ClassStatistics, fit_laplace, laplace, root

FORMS = ("diagonal", "full", "laplace")
EACH = pytest.mark.parametrize("form", FORMS)


def features(count: int, seed: int, dim: int = 6) -> torch.Tensor:
    """Correlated, of length one."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator)
    return F.normalize(torch.randn(count, dim, generator=generator) @ mix * 0.3 + 1, dim=-1)


def known(form: str, **classes: torch.Tensor) -> ClassStatistics:
    found = ClassStatistics(form)
    found.put({int(name[1:]): rows for name, rows in classes.items()})
    return found


def test_moments_are_those_of_scipy():
    rows = features(9, 0)
    mean, covariance = multivariate_normal.fit(rows.numpy())
    full, diagonal = known("full", c4=rows), known("diagonal", c4=rows)
    for found in (full, diagonal):
        assert np.allclose(found.means[0], mean, atol=1e-6) and found.counts == [9]
    assert np.allclose(full.kept[0], covariance, atol=1e-6)
    assert np.allclose(diagonal.kept[0], covariance.diagonal(), atol=1e-6)
    assert torch.allclose(full.roots[0] @ full.roots[0], full.kept[0], atol=1e-6)


@pytest.mark.parametrize("form", ["diagonal", "full"])
def test_a_class_that_comes_again_has_the_moments_of_all_its_images(form):
    parts = [features(count, seed) for seed, count in enumerate((5, 1, 8))]
    found = known(form, c2=parts[0], c7=features(4, 9))
    found.put({3: features(2, 8), 2: parts[1]})
    found.put({2: parts[2]})
    whole = known(form, c2=torch.cat(parts))
    assert found.labels == [2, 7, 3] and found.counts == [14, 4, 2]
    for column in ("means", "kept", "roots"):
        near = 1e-3 if column == "roots" else 1e-6
        assert torch.allclose(getattr(found, column)[0], getattr(whole, column)[0], atol=near)


@EACH
def test_draws_have_the_mean_and_the_covariance(form, monkeypatch):
    """Before they are made unit-norm."""
    found = known(form, c1=features(30, 0))
    monkeypatch.setattr(F, "normalize", lambda x, dim: x)
    torch.manual_seed(0)
    drawn, labels = found.draw(20_000)
    cov = found.spread(0) if form != "diagonal" else found.kept[0].diag()
    assert set(labels) == {1} and drawn.shape == (20_000, 6)
    assert torch.allclose(drawn.mean(0), found.means[0], atol=0.02)
    assert torch.allclose(drawn.T.cov(), cov, atol=0.03 * cov.diagonal().max())


@EACH
def test_draws_are_unit_norm_of_the_seed_and_without_spread_the_means(form):
    found = known(form, c1=features(30, 0), c5=features(9, 1), c0=features(1, 2))
    torch.manual_seed(0)
    drawn, labels = found.draw(300)
    torch.manual_seed(0)
    again, same = found.draw(300)
    assert torch.equal(drawn, again) and labels == same
    assert torch.allclose(drawn.norm(dim=1), torch.ones(300))
    assert all(70 < labels.count(label) < 130 for label in (0, 1, 5))
    still, labels = found.draw(40, spread=0.0)
    for row, label in zip(still, labels, strict=True):
        assert torch.allclose(row, F.normalize(found.means[found.labels.index(label)], dim=0))
    alone = [row for row, label in zip(*found.draw(40), strict=True) if label == 0]
    assert all(torch.allclose(row, features(1, 2)[0], atol=1e-5) for row in alone)  # one image


def test_full_without_correlations_draws_the_same_as_diagonal():
    rows = features(20, 0)
    full, diagonal = known("full", c1=rows), known("diagonal", c1=rows)
    full.kept[0] = full.kept[0].diagonal().diag()
    full.roots[0] = root(full.kept[0])
    drawn = []
    for found in (full, diagonal):
        torch.manual_seed(3)
        drawn.append(found.draw(50)[0])
    assert torch.allclose(*drawn, atol=1e-6)
    torch.manual_seed(3)
    assert (known("full", c1=rows).draw(50)[0] - drawn[0]).abs().max() > 0.01


def test_laplace_by_hand():
    v, w, a = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).double()
    found = laplace(torch.stack([v, w, a]))
    for i in range(5):
        for j in range(5):
            kernel = np.exp(-abs(float(a[i] - a[j])))
            assert found[i, j].item() == pytest.approx(
                float(v[i]) * (i == j) + float(w[i] * w[j]) * kernel)
    assert torch.linalg.eigvalsh(found).min() >= v.min() - 1e-9  # the second part has no negative
    flat = laplace(torch.stack([v, torch.zeros(5), a]))
    assert torch.equal(flat, v.diag())


def test_the_fit_finds_a_covariance_of_its_own_form_and_is_nearer_than_the_diagonal():
    """At any scale, and each class by itself."""
    draw = torch.Generator().manual_seed(0)
    made = laplace(torch.stack([0.2 + torch.rand(6, generator=draw),
                                0.5 + torch.rand(6, generator=draw),
                                torch.linspace(-1.5, 1.5, 6)]))
    other = known("full", c1=features(40, 3)).kept[0]
    found = laplace(fit_laplace(torch.stack([made, 1e-4 * made, other, 0 * made])))
    assert (found[0] - made).norm() < 0.05 * made.norm()
    assert torch.allclose(1e4 * found[1], found[0], atol=1e-3)
    assert torch.allclose(laplace(fit_laplace(other[None]))[0], found[2], atol=1e-5)
    assert (found[2] - other).norm() < 0.9 * (other - other.diagonal().diag()).norm()
    assert not found[3].any()


def test_what_is_kept_grows_as_said():
    sizes = {form: known(form, c1=features(9, 0), c2=features(9, 1)).bytes for form in FORMS}
    assert sizes == {"diagonal": 2 * 4 * 12, "full": 2 * 4 * (6 + 36), "laplace": 2 * 4 * (6 + 18)}


@EACH
def test_draws_are_made_on_the_device_without_waiting(form):
    found = known(form, c1=features(9, 0), c2=features(9, 1))
    with FakeTensorMode():
        for column in (found.means, found.roots):
            column[:] = [torch.empty(one.shape, device="cuda") for one in column]
        noise = torch.empty(3, 6, device="cuda")
        assert found.at([0, 1, 1], noise).device.type == "cuda"
