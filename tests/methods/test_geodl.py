"""GeoDL: the flow kernel against an integral taken another way, the loss by hand, and the method's
limits."""
import math
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import train
from torch.nn import functional as F

from clstudy.losses.functional import flow_kernel, geodesic, match
from clstudy.methods import METHODS


def basis(dim: int, rank: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    drawn = torch.randn(dim, rank, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0].to(dtype)


def near(start: torch.Tensor, far: float, seed: int = 9) -> torch.Tensor:
    """An orthonormal basis of a subspace in the neighbourhood."""
    drawn = torch.randn(start.shape, dtype=start.dtype,
                        generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(start + far * drawn)[0]


def integrated(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """∫ Φ(t) Φ(t)ᵀ dt by Gauss's rule; Φ through the tangent at the start that leads to the end
    (the log and exp maps of the Grassmannian), and not through cosines of angles."""
    towards = end @ torch.linalg.inv(
        start.T @ end) - start  # orthogonal to start; its singular values are tan θ
    out, tangent, within = torch.linalg.svd(towards, full_matrices=False)
    total = torch.zeros(len(start), len(start), dtype=start.dtype)
    for x, weight in zip(*np.polynomial.legendre.leggauss(40), strict=True):
        angle = (x + 1) / 2 * tangent.atan()
        flow = start @ within.T * angle.cos() + out * angle.sin()
        total += weight / 2 * flow @ flow.T
    return total


def features(rows: int, dim: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator),
                       dim=-1).to(dtype)


# ---- the kernel


@pytest.mark.parametrize(("dim", "rank"), [(9, 1), (9, 3), (9, 4), (9, 7), (30, 12)])
@pytest.mark.parametrize("far", [None, 0.3, 0.02, 1e-3, 1e-6])
def test_the_kernel_is_the_integral_over_the_geodesic(dim, rank, far):
    """In float64, angles from 1e-6 to nearly π/2; in float32 to its digits."""
    start = basis(dim, rank, 0)
    end = basis(dim, rank, 1) if far is None else near(start, far)
    expected = integrated(start, end)
    assert torch.allclose(flow_kernel(start, end), expected, atol=1e-11, rtol=0)
    assert torch.allclose(
        flow_kernel(start.float(), end.float()).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.029, 0.031, 0.5, 1.2, math.pi / 2])
def test_the_kernel_of_two_lines_by_hand(angle):
    """G = ∫ [cos², cos sin; cos sin, sin²](tθ) dt in the plane of the two."""
    start, end = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    start[0], end[0], end[1] = 1, math.cos(angle), math.sin(angle)
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * angle  # midpoints
    cos, sin = t.cos(), t.sin()
    expected = torch.tensor([[(cos * cos).mean(),
                              (cos * sin).mean(), 0], [(cos * sin).mean(),
                                                       (sin * sin).mean(), 0], [0, 0, 0]],
                            dtype=torch.float64)
    assert torch.allclose(flow_kernel(start, end), expected, atol=1e-9, rtol=0)


def test_the_series_meets_the_closed_form():
    """On both sides of the angle where one takes over, against the blocks as the papers write
    them."""
    for angle in (0.0299, 0.0301):
        start, end = torch.eye(2, 1, dtype=torch.float64), torch.eye(2, 1, dtype=torch.float64)
        end[0], end[1], a = math.cos(angle), math.sin(angle), angle
        one, two = 0.5 * (1 + math.sin(2 * a) / (2 * a)), 0.5 * (1 - math.cos(2 * a)) / (2 * a)
        expected = torch.tensor([[one, two], [two, 1 - one]], dtype=torch.float64)
        assert torch.allclose(flow_kernel(start, end), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_of_equal_subspaces_it_is_their_projector(dtype):
    """In whichever basis each is given."""
    start = basis(8, 3, 0, dtype)
    turned = start @ basis(3, 3, 1, dtype)
    for end in (start, turned):
        assert torch.allclose(flow_kernel(start, end), start @ start.T,
                              atol=1e-12 if dtype.itemsize == 8 else 1e-6)


@pytest.mark.parametrize("far", [None, 0.1, 1e-4])
@pytest.mark.parametrize("rank", [1, 4, 7, 8])
def test_it_is_symmetric_positive_semidefinite_and_the_same_from_both_ends(rank, far):
    start = basis(8, rank, 2)
    end = basis(8, rank, 3) if far is None else near(start, far)
    kernel = flow_kernel(start, end)
    values = torch.linalg.eigvalsh(kernel)
    assert torch.allclose(kernel, kernel.T,
                          atol=1e-14) and values.min() > -1e-12 and values.max() < 1 + 1e-12
    assert kernel.trace().item() == pytest.approx(rank)  # every Φ(t) has as many columns
    assert torch.allclose(kernel, flow_kernel(end, start), atol=1e-10)
    if rank == 8:
        assert torch.allclose(kernel, torch.eye(8, dtype=torch.float64), atol=1e-12)


# ---- the loss


def own_mean(f: torch.Tensor) -> torch.Tensor:
    return f - f.mean(1, keepdim=True)


@pytest.mark.parametrize(("rows", "dim"), [(3, 8), (6, 8), (9, 8), (8, 30)])
def test_the_loss_by_hand(rows, dim):
    """Subspaces from the eigenvectors of the second moments; the kernel from the integral; a loop
    over rows."""
    new, old = features(rows, dim, 0), features(rows, dim, 1)
    start, end = (torch.linalg.eigh(own_mean(f).T @ own_mean(f)).eigenvectors[:, -(rows - 2):]
                  for f in (new, old))
    kernel, total = integrated(start, end), 0.0
    for a, b in zip(new, old, strict=True):
        total += float((a - b) @ kernel @ (a - b)) / rows
    assert geodesic(new, old).item() == pytest.approx(total, rel=1e-8) and total > 1e-3


def test_the_gradient_does_not_pass_the_kernel():
    new, old = features(6, 8, 0).requires_grad_(), features(6, 8, 1)
    found = torch.autograd.grad(geodesic(new, old), new)[0]
    with torch.no_grad():
        start, end = (torch.linalg.svd(own_mean(f))[2][:4].T for f in (new, old))
        kernel = integrated(start, end)
        expected = 2 / 6 * (new - old) @ kernel
    assert torch.allclose(found, expected, atol=1e-10) and found.abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_than_three_rows_span_nothing(rows):
    new = features(rows, 8, 0).requires_grad_()
    loss = geodesic(new, features(rows, 8, 1))
    assert loss.item() == 0 and not torch.autograd.grad(loss, new)[0].any()


@pytest.mark.parametrize("rows", [7, 12])
def test_as_many_rows_as_dimensions_span_everything(rows):
    """Then it is the mean squared distance. One row less leaves a direction out."""
    new, old = features(rows, 5, 0), features(rows, 5, 1)
    assert geodesic(new, old).item() == pytest.approx(float((new - old).square().sum(1).mean()))
    assert geodesic(new[:6], old[:6]).item() < 0.999 * float((new - old)[:6].square().sum(1).mean())


@pytest.mark.parametrize("rows", [2, 5, 20])
def test_features_that_did_not_move_cost_nothing(rows):
    new = features(rows, 8, 0, torch.float32).requires_grad_()
    loss = geodesic(new, new.detach().clone())
    assert loss.item() == 0 and not torch.autograd.grad(loss, new)[0].any()


def test_a_move_outside_both_subspaces_is_free_and_one_inside_costs_its_square():
    """Rows in the first four of eight coordinates, with mean zero each; moved by 0.1 along one
    coordinate."""
    rows = own_mean(features(5, 4, 0))
    old = F.pad(rows, (0, 4))
    span = torch.linalg.svd(old, full_matrices=False)[2][:3]
    away, along = torch.zeros(8, dtype=torch.float64), span[0]
    away[5], away[6] = 0.5**0.5, -(0.5**0.5)
    pulled = torch.linalg.svd(own_mean(old + 0.1 * away), full_matrices=False)[2][:3].T
    kernel = integrated(pulled, span.T)
    assert geodesic(old + 0.1 * away, old).item() == pytest.approx(
        0.01 * float(away @ kernel @ away), rel=1e-6)
    inside = old + 0.1 * torch.randn(5, 3, dtype=torch.float64,
                                     generator=torch.Generator().manual_seed(1)) @ span
    assert geodesic(inside, old).item() <= float((inside - old).square().sum(1).mean()) + 1e-12
    still = old + 0.1 * torch.outer(torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64), along)
    assert geodesic(still, old).item() > 0.9 * 0.01 / 5


@pytest.mark.parametrize("kind", ["raised", "nan"])
def test_a_failed_decomposition_drops_the_term(monkeypatch, kind):
    """Whether torch says so or returns numbers that are none."""
    svd, Found = torch.linalg.svd, namedtuple("Found", ("U", "S", "Vh"))

    def failing(*given, **options):
        if kind == "raised":
            raise torch.linalg.LinAlgError("did not converge")
        return Found(*(part * math.nan for part in svd(*given, **options)))

    new, old = features(6, 8, 0).requires_grad_(), features(6, 8, 1)
    assert geodesic(new, old).item() > 0
    monkeypatch.setattr(torch.linalg, "svd", failing)
    loss = geodesic(new, old)
    assert loss.item() == 0 and not torch.autograd.grad(loss, new)[0].any()


@pytest.mark.parametrize("change", ["twice", "all one"])
def test_rows_that_are_alike_leave_it_finite(change):
    new, old = features(6, 20, 0, torch.float32), features(6, 20, 1, torch.float32)
    if change == "twice":
        new[3:], old[3:] = new[:3], old[:3]
    else:
        new[:], old[:] = new[0], old[0]
    loss = geodesic(new.requires_grad_(), old)
    assert 0 <= loss.item() <= (new - old).square().sum(1).mean().item() * 1.001
    assert torch.autograd.grad(loss, new)[0].isfinite().all()


# ---- the method


def shaken(clip):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in clip.parameters():
            if p.ndim > 1:
                p.add_(0.1 * p.std() * torch.randn(p.shape, generator=generator))
    return clip


def test_both_terms_compare_the_models_own_features(clip, batch):
    """Text: all classes seen, whatever competes in the task. Both towers learn from their term."""
    method = METHODS["geodl"](weight=0.3, candidates="phase")
    method.before_stage(clip, batch.stage)
    old = clip.encode_image(batch.image).detach(), clip.encode_text(batch.text).detach()
    shaken(clip)
    new = clip.encode_image(batch.image), clip.encode_text(batch.text)
    terms = method.loss(clip, batch)
    assert list(terms) == ["task", "geo_image", "geo_text"]
    phase = batch.phase()
    expected = match(new[0], clip.encode_text(phase.text), clip.scale(), phase.target)
    assert torch.allclose(terms["task"], expected) and len(phase.classes) < len(batch.classes)
    for name, one, other in zip(("geo_image", "geo_text"), new, old, strict=True):
        assert terms[name].item() == pytest.approx(0.3 * geodesic(one, other).item(), rel=1e-5)
        assert terms[name].item() > 1e-5
    for name, moved in (("geo_image", clip.model.visual.proj), ("geo_text",
                                                                clip.model.text_projection)):
        grads = torch.autograd.grad(
            terms[name], [clip.model.visual.proj, clip.model.text_projection], retain_graph=True,
            allow_unused=True)
        assert [g is not None for g in grads] == [moved is p for p in (clip.model.visual.proj,
                                                                       clip.model.text_projection)]


def test_a_model_that_is_its_teacher_has_no_geodesic_terms(clip, batch):
    method = METHODS["geodl"]()
    method.before_stage(clip, batch.stage)
    terms = method.loss(clip.train(), batch)
    assert terms["geo_image"].item() == terms["geo_text"].item() == 0 < terms["task"].item()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_has_no_term(tiny, tower):
    _, steps = train(tiny.replace(method="geodl", tower=tower))
    values = {
        name: [row["value"] for row in steps if row["term"] == f"geo_{name}"]
        for name in ("image", "text")
    }
    assert max(values[tower]) > 1e-6 and not any(values["text" if tower == "image" else "image"])


def test_terms_start_at_zero_in_each_stage(tiny):
    _, steps = train(tiny.replace(method="geodl"))
    for stage in (1, 2):
        for term in ("geo_image", "geo_text"):
            rows = [row["value"] for row in steps if row["stage"] == stage and row["term"] == term]
            assert abs(rows[0]) < 1e-6 < 1e-5 < max(rows)


def test_the_teacher_is_a_frozen_copy_that_sees_the_same_images(clip, batch):
    method = METHODS["geodl"]()
    method.before_stage(clip.train(), batch.stage)
    expected = clip.encode_image(batch.image).detach(), clip.encode_text(batch.text).detach()
    shaken(clip)
    assert all(map(torch.equal, method.taught(batch), expected))
    text = method.texts[batch.classes]
    assert method.taught(batch)[1] is text  # encoded once
    few = batch.among((2, 5, 0))
    assert torch.equal(method.taught(few)[1], method.teacher.encode_text(few.text))
    assert list(method.texts) == [(2, 5, 0)]
    assert not any(p.requires_grad
                   for p in method.teacher.parameters()) and not method.teacher.training


def test_a_larger_weight_keeps_features_nearer(tiny, toy, clip):
    """To those of the pretrained model, on images and class texts of the stream."""
    config = tiny.replace(method="geodl", stream_args={"tasks": 1}, tuner="full", lr=1e-3,
                          steps_per_batch=3)
    test = toy().load().test
    images, text = test.images, clip.class_text(list(test.class_names), test.template)
    kept, moved = {}, {}
    for weight in (0.0, 50.0):
        train(config.replace(method_args={"weight": weight}),
              keep=lambda model, weight=weight: kept.update({weight: model.eval()}))
    with torch.no_grad():
        for weight, model in kept.items():
            moved[weight] = (float((model.encode_image(images) - clip.encode_image(images)).norm()),
                             float((model.encode_text(text) - clip.encode_text(text)).norm()))
    assert all(
        held < 0.8 * loose for held, loose in zip(moved[50.0], moved[0.0], strict=True)), moved


def test_small_batches_train_without_it(tiny, batch, clip):
    method = METHODS["geodl"]()
    method.before_stage(clip, batch.stage)
    shaken(clip)
    two = replace(batch, image=batch.image[:2], labels=batch.labels[:2], index=(0, 1)).among((2, 5))
    terms = method.loss(clip, two)
    assert terms["geo_image"].item() == terms["geo_text"].item() == 0 < terms["task"].item()
    _, steps = train(tiny.replace(method="geodl", batch_size=2))
    assert np.isfinite([row["value"] for row in steps]).all()
