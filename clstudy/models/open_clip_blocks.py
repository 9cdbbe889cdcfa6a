"""Changes in the blocks of an open_clip model when it is loaded; every output stays the same.

`clip.py` imports this module when it builds a model: open_clip takes seconds to import."""
from jaxtyping import Float, Int
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from clstudy.models.attention import Attention, one_token, read_at


class LastBlock(ResidualAttentionBlock):
    """The last block of an image tower whose feature is read at the first token: only that one."""

    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):
        return read_at(self, q_x, 0, attn_mask)


def split_attention(model: nn.Module) -> nn.Module:
    """Convert the self-attention of every block of an open_clip model, in place.

    Attention to something else (heads that pool, the cross-attention of CoCa's decoder) stays as it
    is. The last block of an image tower becomes a `LastBlock` where only its first token is
    read."""
    for block in list(model.modules()):
        alone = isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv")
        if alone and isinstance(block.attn, nn.MultiheadAttention):
            block.attn = Attention(block.attn)
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        last = visual.transformer.resblocks[-1]
        one = visual.pool_type == "tok" and visual.attn_pool is None and not visual.output_tokens
        if one and is_plain(last):
            last.__class__ = LastBlock
    return model


def is_plain(block: nn.Module) -> bool:
    """Return whether this is open_clip's block, with our attention."""
    return type(block) is ResidualAttentionBlock and isinstance(block.attn, Attention)


def through(transformer: nn.Module, x: Tensor, mask: Tensor,
            end: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 _"]:
    """Return the output of a text transformer at the end tokens."""
    last = transformer.resblocks[-1]
    plain = type(transformer) is Transformer and is_plain(last)
    if not plain or transformer.grad_checkpointing:
        return one_token(transformer(x, attn_mask=mask), end)
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return read_at(last, x, end, mask)
