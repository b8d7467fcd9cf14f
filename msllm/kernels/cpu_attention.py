"""Attention, rotary positions, the cache and whole decoder blocks in C++; part of the table in ``cpu``."""

import mindspore as ms
from mindspore.common._grad_function import _Function

from msllm.kernels.compiled import check, check_dtype, cpp, next_mask


class _Rotary(_Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return cpp.rotary(x, cos, sin, False)

    @staticmethod
    def backward(ctx, dy):
        return cpp.rotary(dy, *ctx.saved_tensors, True), None, None


def rotary(x_BTHC, cos_NTR, sin_NTR):
    """Returns x with each pair (c, c + C/2) turned by its angle: cos and sin (N, T, C/2), N is 1 or B."""
    check_dtype("rotary", ms.float32, x_BTHC, cos_NTR, sin_NTR)
    check(
        x_BTHC.ndim == 4
        and cos_NTR.shape == sin_NTR.shape
        and cos_NTR.ndim == 3
        and cos_NTR.shape[0] in (1, x_BTHC.shape[0])
        and cos_NTR.shape[1] == x_BTHC.shape[1]
        and 2 * cos_NTR.shape[2] == x_BTHC.shape[3],
        "rotary",
        "expected x (B, T, H, C), cos and sin (1 or B, T, C/2)",
        x_BTHC,
        cos_NTR,
        sin_NTR,
    )
    return _Rotary.apply(x_BTHC, cos_NTR, sin_NTR)


def rotary_angles(position_ids, frequency):
    """Returns cos and sin (N, T, R) of position * frequency: position_ids int32 (N, T), frequency (R,)."""
    check_dtype("rotary_angles", ms.int32, position_ids)
    check_dtype("rotary_angles", ms.float32, frequency)
    return cpp.rotary_angles(position_ids, frequency)


class _Attention(_Function):
    @staticmethod
    def forward(ctx, q, k, v, key_mask, row_start, slopes, options):
        out, logsumexp = cpp.attention(q, k, v, key_mask, row_start, slopes, options)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.rest = (key_mask, row_start, slopes, options)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, logsumexp = ctx.saved_tensors
        return (*cpp.attention_grad(q, k, v, *ctx.rest, out, logsumexp, dout), None, None, None, None)


def attention(
    q_BTHC, k_BSKC, v_BSKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None, dropout=0.0
):
    """Returns softmax(scale * q k^T + ALiBi) v under the masks: (B, T, H, C); ``stock.attention`` has the details.

    Memory is O(T) (Dao et al. 2022, "FlashAttention"): the backward pass computes the weights again. Queries, keys
    and values may be slices of one packed projection: only the last axis has to be contiguous.
    """
    check_dtype("attention", ms.float32, q_BTHC, k_BSKC, v_BSKC)
    q, k = q_BTHC.shape, k_BSKC.shape
    check(
        len(q) == 4 and len(k) == 4 and k == v_BSKC.shape and q[0] == k[0] and q[3] == k[3] and q[2] % k[2] == 0,
        "attention",
        "expected q (B, T, H, C), k and v (B, S, K, C) with K dividing H",
        q_BTHC,
        k_BSKC,
        v_BSKC,
    )
    if length is None:
        length = k[1]
    if not 1 <= length <= k[1]:
        raise ValueError(f"attention: length {length} is outside [1, {k[1]}]")
    _check_masks("attention", (q[0], q[1], length, q[2]), key_mask, row_start, slopes)
    seed, call = next_mask("attention", dropout)
    options = cpp.AttentionOptions(scale, dropout, causal, length, seed, call)
    return _Attention.apply(q_BTHC, k_BSKC, v_BSKC, key_mask, row_start, slopes, options)


def _check_masks(name, shape, key_mask, row_start, slopes):
    B, T, length, H = shape
    for what, mask, dtype, want in (
        ("key_mask", key_mask, ms.int32, (B, length)),
        ("row_start", row_start, ms.int32, (B, T)),
        ("slopes", slopes, ms.float32, (H,)),
    ):
        if mask is not None:
            check_dtype(f"{name}: {what}", dtype, mask)
            check(mask.shape == want, name, f"expected {what} {want}", mask)


class _PackedAttention(_Function):
    @staticmethod
    def forward(ctx, qkv, heads, interleaved, key_mask, row_start, slopes, options):
        ctx.rest = (heads, interleaved, key_mask, row_start, slopes, options)
        out, logsumexp = cpp.packed_attention(qkv, *ctx.rest)
        ctx.save_for_backward(qkv, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx, dout):
        qkv, out, logsumexp = ctx.saved_tensors
        dqkv = cpp.packed_attention_grad(qkv, *ctx.rest, out, logsumexp, dout)
        return dqkv, None, None, None, None, None, None


def packed_attention(
    qkv_BTP, heads, interleaved, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
):
    """Returns attention of a packed projection: (B, T, 3 H C) -> (B, T, H C); ``stock.packed_attention`` has more."""
    check_dtype("packed_attention", ms.float32, qkv_BTP)
    check(
        qkv_BTP.ndim == 3 and qkv_BTP.shape[2] % (3 * heads) == 0,
        "packed_attention",
        f"expected (B, T, 3 H C) with H = {heads}",
        qkv_BTP,
    )
    B, T, _ = qkv_BTP.shape
    _check_masks("packed_attention", (B, T, T, heads), key_mask, row_start, slopes)
    seed, call = next_mask("packed_attention", dropout)
    options = cpp.AttentionOptions(scale, dropout, causal, T, seed, call)
    return _PackedAttention.apply(qkv_BTP, heads, interleaved, key_mask, row_start, slopes, options)


def cache_write(cache_BSKC, new_BTKC, start):
    """Writes new at cache[:, start:start + T] in place and returns the cache: new (B, T, K, C), start an int."""
    check_dtype("cache_write", ms.float32, cache_BSKC, new_BTKC)
    cache, new = cache_BSKC.shape, new_BTKC.shape
    check(
        len(cache) == 4
        and len(new) == 4
        and cache[0] == new[0]
        and cache[2:] == new[2:]
        and 0 <= start <= cache[1] - new[1],
        "cache_write",
        f"expected cache (B, S, K, C) with room for new (B, T, K, C) at {start}",
        cache_BSKC,
        new_BTKC,
    )
    cpp.cache_write(cache_BSKC, new_BTKC, start)
    return cache_BSKC


class _Decoder:
    """See stock.make_decoder. It keeps the parameters, not their numbers: weights that change are seen."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.layers = cpp.DecoderLayers([_decoder_layer(block) for block in blocks])

    def takes(self, shape):
        return shape[0] * shape[1] <= cpp.FEW_ROWS

    def __call__(self, x_BTD, keys, values, start, key_mask=None, rotary=None, slopes=None):
        block, caches = self.blocks[0], (*keys, *values)
        B, T, D = x_BTD.shape
        S, K, C = keys[0].shape[1], block.kv_heads, block.head_width
        if start + T > S:
            raise ValueError(f"the cache holds {S} tokens, {start + T} were asked for")
        check_dtype("decoder", ms.float32, x_BTD, *caches)
        check(block.output.weight.shape[0] == D, "decoder", f"expected x (B, T, {block.output.weight.shape[0]})", x_BTD)
        fits = len(keys) == len(values) == len(self.blocks) and all(cache.shape == (B, S, K, C) for cache in caches)
        check(fits, "decoder", f"expected {len(self.blocks)} caches {(B, S, K, C)} of keys and of values", *caches)
        cos, sin = rotary or (None, None)
        if rotary:
            fits = cos.shape == sin.shape and cos.shape in ((1, T, C // 2), (B, T, C // 2)) and C % 2 == 0
            check(fits, "decoder", "expected x (B, T, D), cos and sin (1 or B, T, C/2)", x_BTD, cos, sin)
        _check_masks("decoder", (B, T, start + T, block.heads), key_mask, None, slopes)
        return cpp.decode(self.layers, x_BTD, keys, values, start, cos, sin, slopes, key_mask)


def _decoder_layer(block):
    def parameters(cell):
        both = cell.weight, getattr(cell, "bias", None)
        check_dtype("decoder", ms.float32, *(p for p in both if p is not None))
        return both

    def linear(cell):
        return None if cell is None else cpp.Linear(*parameters(cell))

    def norm(cell):
        return cpp.Norm(*parameters(cell), cell.eps)

    return cpp.DecoderLayer(
        norm(block.attention_norm),
        norm(block.mlp_norm),
        [linear(cell) for cell in block.qkv],
        linear(block.output),
        linear(block.gate),
        linear(block.up),
        linear(block.down),
        block.interleaved,
        block.gelu_kind == "tanh",
        block.heads,
        block.kv_heads,
        block.head_width,
        block.scale,
    )


def make_decoder(blocks):
    """Returns a function that runs a few tokens through whole decoder blocks; ``stock.make_decoder`` has more."""
    return _Decoder(blocks)
