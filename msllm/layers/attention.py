"""The one way from queries, keys and values to an attention output."""

from msllm import kernels


def attend(
    q_BTHC,
    k_BTKC,
    v_BTKC,
    scale,
    causal=True,
    key_mask=None,
    row_start=None,
    slopes=None,
    dropout=0.0,
    cache=None,
    layer=0,
):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1), over the cached keys too.

    Args:
        q_BTHC: queries; k_BTKC, v_BTKC: keys and values of the same tokens; K divides H.
        scale: what q k^T is multiplied by.
        key_mask: int32 (B, S), 1 = a real token; S counts cached tokens too.
        row_start: int32 (B, T), the first key that a query may see (packed documents).
        slopes: (H,) ALiBi slopes.
        cache, layer: a KVCache and the index of this layer in it.

    Returns:
        (B, T, H * C).
    """
    B, T, H, C = q_BTHC.shape
    if cache is None:
        out = kernels.attention(q_BTHC, k_BTKC, v_BTKC, scale, causal, key_mask, row_start, slopes, None, dropout)
    else:
        k, v, length = cache.update(layer, k_BTKC, v_BTKC)
        out = kernels.attention(q_BTHC, k, v, scale, causal, key_mask, row_start, slopes, length, dropout)
    return out.reshape(B, T, H * C)


def attend_packed(
    qkv_BTP,
    heads,
    interleaved,
    scale,
    causal=True,
    key_mask=None,
    row_start=None,
    slopes=None,
    dropout=0.0,
    cache=None,
    layer=0,
):
    """The same for queries, keys and values that one projection made.

    Args:
        qkv_BTP: (B, T, 3 * H * C); the last axis is (3, H, C), or (H, 3, C) where ``interleaved``.
        heads: H; the others as for attend.

    Returns:
        (B, T, H * C).
    """
    if cache is None:
        return kernels.packed_attention(
            qkv_BTP, heads, interleaved, scale, causal, key_mask, row_start, slopes, dropout
        )
    parts = kernels.split_packed(qkv_BTP, heads, interleaved)
    return attend(*parts, scale, causal, key_mask, row_start, slopes, dropout, cache, layer)
