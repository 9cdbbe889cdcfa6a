"""Pure loss terms: tensors in, a scalar out. A method adds them up under names; nothing here knows a method."""
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def match(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"], scale: Float[Tensor, ""],
          target: Int[Tensor, " batch"], weight: Float[Tensor, " batch"] | None = None,
          double_softmax: bool = False) -> Float[Tensor, ""]:
    """Cross-entropy of matching each image to its text among the candidates offered (SIT, arXiv 2405.15155; CLIP
    zero-shot).

        L = −(1/B) Σ_i w_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_m exp(s f_i·t_m)

    image, text: unit-norm features; scale: s = 1/τ; target: the row of `text` that belongs to each image; weight:
    w_i, mean 1 (uniform if None); double_softmax: as in SIT's released code, which hands the probabilities p_i to a
    cross-entropy that takes another softmax of them, so that the loss stays within one unit of log C."""
    logits = scale * image @ text.T
    loss = F.cross_entropy(logits.softmax(-1) if double_softmax else logits, target, reduction="none")
    return (loss if weight is None else loss * weight).mean()


def match_text_gradient(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"], scale: Float[Tensor, ""],
                        target: Int[Tensor, " batch"]) -> Float[Tensor, "texts dim"]:
    """∂L/∂t_k of `match` in closed form (the analysis behind SIT, arXiv 2405.15155).

        ∂L/∂t_k = (s/B) Σ_i (p_ik − 1[y_i = k]) f_i

    A text that is no image's target is repelled by all images and attracted by none."""
    p = (scale * image @ text.T).softmax(-1)
    return scale / len(image) * (p - F.one_hot(target, len(text))).T @ image


def contrastive(image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], scale: Float[Tensor, ""],
                same: Float[Tensor, "batch batch"] | None = None) -> Float[Tensor, ""]:
    """CLIP's symmetric loss over a batch of pairs (Radford et al. 2021, arXiv 2103.00020), with shared positives.

        L = ½ [ CE(rows of Z, P) + CE(rows of Zᵀ, P) ],   Z_ij = s f_i·t_j

    same: 1 where image i and text j belong together (the diagonal if None); P is `same` with rows that sum to 1, so
    pairs that carry the same caption are positives of each other and not false negatives."""
    logits = scale * image @ text.T
    if same is None:
        same = torch.eye(len(image), device=image.device)
    rows, columns = same / same.sum(1, keepdim=True), same.T / same.T.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, columns))


def distillation(student: Float[Tensor, "batch texts"], teacher: Float[Tensor, "batch texts"],
                 temperature: float = 1.0) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of softmax over the last axis, times T² (LwF, arXiv 1606.09282; VR-LwF's code uses T =
    1)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
