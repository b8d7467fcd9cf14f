"""A few tokens through all blocks of a decoder-only model at once, where the device has a kernel for it."""

import dataclasses
from collections.abc import Sequence

from msllm.layers import attention
from msllm.layers.basic import LayerNorm, Linear, RMSNorm
from msllm.layers.cache import KVCache


@dataclasses.dataclass
class BlockParts:
    """What a pre-norm block consists of: x + output(attention(qkv(norm(x)))), then x + down(activation(up(norm(x)))).

    Attributes:
        qkv: one projection to queries, keys and values, (3, H, C) or, where ``interleaved``, (H, 3, C); or three.
        gate: of a gated feed-forward layer, silu(gate(x)) * up(x); None where ``gelu_kind`` names the activation.
        heads, kv_heads, head_width, scale: as in layers.attend.
    """

    attention_norm: LayerNorm | RMSNorm
    mlp_norm: LayerNorm | RMSNorm
    qkv: tuple[Linear, ...]
    output: Linear
    up: Linear
    down: Linear
    heads: int
    kv_heads: int
    head_width: int
    scale: float
    gate: Linear | None = None
    gelu_kind: str = "none"
    interleaved: bool = False

    def is_plain(self) -> bool:
        """Whether all are plain linear layers and norms: adapters and the like compute in their own way."""
        cells = (*self.qkv, self.output, self.up, self.down, *((self.gate,) if self.gate else ()))
        norms = (self.attention_norm, self.mlp_norm)
        return all(type(cell) is Linear for cell in cells) and all(type(n) in (LayerNorm, RMSNorm) for n in norms)


def run_blocks(blocks: Sequence, x_BTD, key_mask, row_start, cache: KVCache | None, rotary=None, slopes=None):
    """Runs x through all blocks; returns the two terms (x, update) of the residual stream, update may be None.

    Args:
        blocks: cells that are called as block(x, update, [cos, sin or slopes,] key_mask, row_start, cache), and whose
            method ``parts`` returns their BlockParts, or None.
        key_mask, row_start, slopes: as in layers.attend.
        rotary: (cos, sin) of the new tokens.

    Raises:
        UserError: a cache where workers share the tokens (use_core).
    """
    # The decoder calls no attend, which refuses a cache where workers share the tokens: there, the blocks do it.
    if cache is not None and row_start is None and not blocks[0].training and attention.is_plain():
        decoder = cache.decoder(blocks)
        if decoder is not None and decoder.takes(x_BTD.shape):
            return decoder(x_BTD, cache.keys, cache.values, cache.length, key_mask, rotary, slopes), None
    update_BTD = None
    rest = () if rotary is None and slopes is None else (slopes,) if rotary is None else rotary
    for block in blocks:
        x_BTD, update_BTD = block(x_BTD, update_BTD, *rest, key_mask, row_start, cache)
    return x_BTD, update_BTD
