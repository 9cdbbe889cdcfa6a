"""Pure loss terms: tensors in, a scalar out. A method adds them up under names; nothing here knows a method."""
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def match(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"], scale: Float[Tensor, ""],
          target: Int[Tensor, " batch"], weight: Float[Tensor, " batch"] | None = None) -> Float[Tensor, ""]:
    """Cross-entropy of matching each image to its text among the candidates offered (SIT, arXiv 2405.15155; CLIP
    zero-shot).

        L = −(1/B) Σ_i w_i log p_{i,y_i},   p_ik = exp(s f_i·t_k) / Σ_m exp(s f_i·t_m)

    image, text: unit-norm features; scale: s = 1/τ; target: the row of `text` that belongs to each image; weight:
    w_i, mean 1 (uniform if None)."""
    loss = F.cross_entropy(scale * image @ text.T, target, reduction="none")
    return (loss if weight is None else loss * weight).mean()


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
