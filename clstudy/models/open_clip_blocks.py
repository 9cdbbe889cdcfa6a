"""What changes in the blocks of an open_clip model when it is loaded; every output stays the same.

`clip.py` imports this module when it builds a model, for open_clip costs seconds to import."""
import open_clip
from jaxtyping import Float, Int
from torch import Tensor, nn

from clstudy.models.attention import Attention, one_token, read_at


class LastBlock(open_clip.transformer.ResidualAttentionBlock):
    """The last block of an image tower whose feature is read at the first token: gives that token
    alone."""

    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):
        return read_at(self, q_x, 0, attn_mask)


def split_attention(model: nn.Module) -> nn.Module:
    """Convert the self-attention of every block of an open_clip model, in place.

    What attends to something else (heads that pool, the cross-attention of CoCa's decoder) stays as
    it is. The last block of an image tower becomes a `LastBlock` where only its first token is
    read."""
    for block in list(model.modules()):
        if isinstance(block, open_clip.transformer.ResidualAttentionBlock) and not hasattr(
                block, "ln_1_kv"):
            if isinstance(block.attn, nn.MultiheadAttention):
                block.attn = Attention(block.attn)
    visual = model.visual
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        last = visual.transformer.resblocks[-1]
        alone = visual.pool_type == "tok" and visual.attn_pool is None and not visual.output_tokens
        if alone and type(last) is open_clip.transformer.ResidualAttentionBlock and isinstance(
                last.attn, Attention):
            last.__class__ = LastBlock
    return model


def through(transformer: nn.Module, x: Tensor, mask: Tensor,
            end: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 _"]:
    """A text transformer's output at the end tokens."""
    last = transformer.resblocks[-1]
    plain = type(transformer) is open_clip.transformer.Transformer and isinstance(
        last.attn, Attention)
    if not plain or type(
            last
    ) is not open_clip.transformer.ResidualAttentionBlock or transformer.grad_checkpointing:
        return one_token(transformer(x, attn_mask=mask), end)
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return read_at(last, x, end, mask)
