"""Pure loss terms: tensors in, a scalar out. A method adds them up under names."""
import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.models.clip import Clip

Push = Literal["both", "image", "text", "none"]  # who feels what the texts of absent classes do


def match(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
          scale: Float[Tensor, ""], target: Int[Tensor, " batch"],
          weight: Float[Tensor, " batch"] | None = None,
          double_softmax: bool = False) -> Float[Tensor, ""]:
    """Return the cross-entropy of matching each image to its text among those offered (SIT, arXiv
    2405.15155; CLIP zero-shot).

        L = −(1/B) Σ_i w_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_m exp(s f_i·t_m)

    image, text: unit-norm features; scale: s = 1/τ; target: the row of `text` that belongs to each
    image; weight: w_i, mean 1 (uniform if None); double_softmax: as in SIT's released code, which
    hands the probabilities p_i to a cross-entropy that takes another softmax of them, so that the
    loss stays within one unit of log C."""
    logits = scale * image @ text.T
    if double_softmax:
        logits = logits.softmax(-1)
    loss = F.cross_entropy(logits, target, reduction="none")
    return (loss if weight is None else loss * weight).mean()


def match_batch(clip: Clip, batch: Batch, double_softmax: bool = False) -> Float[Tensor, ""]:
    """Return `match` (SIT, arXiv 2405.15155) of a batch, whose candidates are the texts offered."""
    encoded = clip.encode(batch)
    return match(encoded.image, encoded.text, encoded.scale, batch.target,
                 double_softmax=double_softmax)


def match_sides(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
                scale: Float[Tensor, ""], target: Int[Tensor, " batch"], push: Push = "both",
                competes: bool = True) -> Float[Tensor, ""]:
    """Return `match` (SIT, arXiv 2405.15155), in which texts that are no image's target push the
    images alone, the texts alone (themselves), or neither.

    push: who gets a gradient from z_ik = s f_i·t_k of such a text k. competes: for a side that gets
    none, z_ik is a constant in the denominator of p; False: it is not there, and that side has
    SIT's gradient. The value is that of the images' side."""
    absent = torch.ones_like(text[:, 0], dtype=torch.bool).index_fill(0, target, False)

    def side(name: str, f: Tensor, t: Tensor, s: Tensor) -> Tensor:
        logits = s * f @ t.T
        if push not in (name, "both"):
            held = logits.detach() if competes else torch.full_like(logits, -torch.inf)
            logits = torch.where(absent, held, logits)
        return F.cross_entropy(logits, target, reduction="none").mean()  # as `match`, to the bit

    texts = side("text", image.detach(), text, scale.detach())
    return side("image", image, text.detach(), scale) + (texts - texts.detach())


def match_text_gradient(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
                        scale: Float[Tensor, ""],
                        target: Int[Tensor, " batch"]) -> Float[Tensor, "texts dim"]:
    """Return ∂L/∂t_k of `match` in closed form (the analysis behind SIT, arXiv 2405.15155).

        ∂L/∂t_k = (s/B) Σ_i (p_ik − 1[y_i = k]) f_i

    A text that is no image's target is repelled by all images and attracted by none."""
    p = (scale * image @ text.T).softmax(-1)
    return scale / len(image) * (p - F.one_hot(target, len(text))).T @ image


def contrastive(image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"],
                scale: Float[Tensor, ""],
                same: Float[Tensor, "batch batch"] | None = None) -> Float[Tensor, ""]:
    """Return CLIP's symmetric loss over a batch of pairs (Radford et al. 2021, arXiv 2103.00020).

        L = ½ [ CE(rows of Z, P) + CE(rows of Zᵀ, P) ],   Z_ij = s f_i·t_j

    same: 1 where image i and text j belong together (the diagonal if None); P is `same` with rows
    that sum to 1, so pairs that carry the same caption are positives of each other and not false
    negatives."""
    logits = scale * image @ text.T
    if same is None:
        same = torch.eye(len(image), device=image.device)
    rows, columns = same / same.sum(1, keepdim=True), same.T / same.T.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, columns))


def distillation(student: Float[Tensor, "batch texts"], teacher: Float[Tensor, "batch texts"],
                 temperature: float = 1.0) -> Float[Tensor, ""]:
    """Return KL(teacher ‖ student) of softmax over the last axis, times T² (LwF, arXiv 1606.09282;
    VR-LwF's code uses T = 1)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean",
                                     log_target=True)


def reversed_distillation(student: Float[Tensor, "rows columns"],
                          teacher: Float[Tensor, "rows columns"],
                          temperature: float = 1.0) -> Float[Tensor, ""]:
    """Return −Σ softmax(student) log softmax(teacher), mean over rows, times T²: the direction of
    WildCLIP (Gabeff et al. 2024, doi 10.1007/s11263-024-02026-6; code) in its form of VR-LwF (arXiv
    2207.09248).

    Its minimum is not the teacher: it is where the student is sure of the teacher's best column."""
    p = F.softmax(student / temperature, dim=-1)
    return -temperature**2 * (p * F.log_softmax(teacher / temperature, dim=-1)).sum(-1).mean()


def geodesic(new: Float[Tensor, "rows dim"], old: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Return how far features moved along the path from their subspace to the old one (GeoDL, Simon
    et al. 2021, arXiv 2104.08572, in the form of VR-LwF's code, arXiv 2207.09248).

        L = (1/B) Σ_i (f_i − f°_i)ᵀ G (f_i − f°_i)

    new, old: unit-norm features f and f° of the same rows. G: `flow_kernel` of the two subspaces, a
    constant to the gradient. A subspace is the span of the first min(rows − 2, dim) right singular
    vectors of the features, less each one's own mean over its dimensions, as in both released codes
    (a PCA takes off the mean of the rows). Fewer than three rows span none, and L is 0; rows − 2 ≥
    dim span everything, and G is the identity. L is also 0, gradient included, where the
    decomposition fails. torch finds that out by itself, for which a GPU is waited for."""
    rank, gap = min(len(new) - 2, new.shape[1]), new - old
    kernel = torch.zeros_like(new[0]).diag() if rank < 1 else torch.ones_like(new[0]).diag()
    if 0 < rank < new.shape[1]:
        with torch.no_grad():
            try:
                centred = [f - f.mean(1, keepdim=True) for f in (new, old)]
                start, end = (torch.linalg.svd(f, full_matrices=False).Vh[:rank].T for f in centred)
                kernel = flow_kernel(start, end)
                kernel = torch.where(kernel.isfinite().all(), kernel, 0)
            except torch.linalg.LinAlgError:
                kernel = torch.zeros_like(kernel)
    return ((gap @ kernel) * gap).sum(1).mean()


def flow_kernel(start: Float[Tensor, "dim rank"],
                end: Float[Tensor, "dim rank"]) -> Float[Tensor, "dim dim"]:
    """Return the geodesic flow kernel of two subspaces (Gong et al. 2012; GeoDL, Simon et al. 2021,
    arXiv 2104.08572).

        G = ∫₀¹ Φ(t) Φ(t)ᵀ dt,   Φ(t) = C cos(tθ) + M sin(tθ) / sin θ
        startᵀ end = U cos θ Vᵀ,   C = start U,   M = end V − C cos θ,   |M_k| = sin θ_k

    start, end: orthonormal columns. Φ(0) spans the first, Φ(1) the second; θ: principal angles. Per
    angle the integrals of the three products are ½ (1 + sin 2θ / 2θ), sin θ / 2θ and ½ (1 − sin 2θ
    / 2θ) / sin² θ, which are finite where θ is 0. M needs no basis of the null space, and θ is read
    from both its sides: arccos alone is blind near 0."""
    left, cosine, right = torch.linalg.svd(start.T @ end)
    along = start @ left
    away = end @ right.T - along * cosine
    angle = torch.atan2(away.norm(dim=0), cosine)
    double = torch.sinc(2 * angle / math.pi)  # sin 2θ / 2θ
    exact = 0.5 * (1 - double) / angle.sin().square().clamp(min=1e-12)
    series = 1 / 3 + 2 / 45 * angle**2  # where the quotient loses digits
    last = torch.where(angle < 0.03, series, exact)
    mixed = (along * (0.5 * torch.sinc(angle / math.pi))) @ away.T
    return (along * (0.5 * (1 + double))) @ along.T + mixed + mixed.T + (away * last) @ away.T
