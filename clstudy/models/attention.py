"""Attention with plain linear layers, which computes one token where only one is read."""
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with linear layers `qkv` and `out_proj`; its outputs are the source's.

    On the CPU attention is written out as two matrix products: at CLIP's lengths that was 1.4 times
    faster in bf16 (training, 33 tokens) than the fused kernel, whose backward pass is slow."""

    def __init__(self, source: nn.MultiheadAttention):
        super().__init__()
        self.heads, dim = source.num_heads, source.embed_dim
        self.qkv, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.qkv.load_state_dict({"weight": source.in_proj_weight, "bias": source.in_proj_bias})
        self.out_proj.load_state_dict(source.out_proj.state_dict())

    def forward(self, query, key=None, value=None, need_weights=False, attn_mask=None, at=None,
                **_):
        """Return the output at all tokens, or at one. at: its place, one number or one per row."""
        batch, tokens, dim = query.shape
        q, k, v = self.qkv(query).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:  # one mask per text and head (CoCa)
            attn_mask = attn_mask.view(batch, self.heads, tokens, tokens)
        if at is not None:
            q = one_token(q.transpose(1, 2), at).transpose(1, 2)
            attn_mask = None if attn_mask is None else attn_mask[at].view(-1, 1, 1, tokens)
        if query.device.type == "cpu":
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
            out = (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(out.transpose(1, 2).reshape(batch, -1, dim)), None


def one_token(x: Float[Tensor, "batch tokens ..."],
              at: int | Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 ..."]:
    """Return one token of each row. at: its place, one number or one per row."""
    if isinstance(at, int):
        return x[:, at:at + 1]
    return x[torch.arange(len(x), device=x.device), at][:, None]


def read_at(block: nn.Module, x: Float[Tensor, "batch tokens dim"], at: int | Int[Tensor, " batch"],
            attn_mask: Tensor | None = None) -> Float[Tensor, "batch 1 dim"]:
    """Return the output of an open_clip block at one token.

    All tokens are attended to; the MLP, two thirds of the work, and the output projection see
    one."""
    attended = block.attn(block.ln_1(x), attn_mask=attn_mask, at=at)[0]
    x = one_token(x, at) + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))
