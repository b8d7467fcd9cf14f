"""The one way from queries, keys and values to an attention output."""

import contextlib
from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.kernels import stock

_scores, _mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
_max, _sum = ops.ReduceMax(keep_dims=True), ops.ReduceSum(keep_dims=True)
_FAR = 1e30  # leaves no trace of a score, and no infinity
_TINY = Tensor(np.array(np.finfo(np.float32).tiny))
_record: list[np.ndarray] | None = None
_core: Callable | None = None


@contextlib.contextmanager
def record_attention() -> Iterator[list[np.ndarray]]:
    """While open, every attention appends its weights (B, H, T, S) to the list, in the order of the calls; PyNative.

    The weights are worked out beside the kernel, which never holds them all, in float64 and without dropout.
    """
    global _record
    _record, before = [], _record
    try:
        yield _record
    finally:
        _record = before


def is_plain() -> bool:
    """Whether nothing but the device's kernel takes part: no other core, and no record of the weights."""
    return _core is None and _record is None


def use_core(core: Callable | None) -> None:
    """Sets what computes attention in place of the kernel, where workers share the tokens; None sets the kernel back.

    Args:
        core: called as core(q_BTHC, k_BTKC, v_BTKC, scale, causal, key_mask, row_start, slopes, dropout), returns
            (B, T, H, C); row_start holds places in the whole example. See msllm.parallel.context.
    """
    global _core
    _core = core


def attention_weights(q_BTHC, k_BSKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None):
    """Returns softmax(scale q k^T + ALiBi) under the masks, float64 numpy (B, H, T, L); arguments as kernels.attention.

    The row of a query that sees no key is zero.
    """
    q, k = (np.asarray(x.asnumpy(), np.float64) for x in (q_BTHC, k_BSKC))
    T, H, L = q.shape[1], q.shape[2], k.shape[1] if length is None else length
    k = np.repeat(k[:, :L], H // k.shape[2], axis=2)
    scores = scale * np.einsum("bthc,bshc->bhts", q, k)
    if slopes is not None:
        distance = np.arange(L)[None] - np.arange(L - T, L)[:, None]
        scores += slopes.asnumpy().astype(np.float64)[:, None, None] * distance
    visible = stock.visible_keys(T, L, causal, key_mask, row_start)
    seen = True if visible is None else visible.asnumpy()
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    return weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


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

    Raises:
        UserError: a cache, or weights to record, where workers share the tokens (use_core).
    """
    B, T, H, C = q_BTHC.shape
    if _core is not None:
        return _shared(q_BTHC, k_BTKC, v_BTKC, scale, causal, key_mask, row_start, slopes, dropout, cache)
    k, v, length = (k_BTKC, v_BTKC, None) if cache is None else cache.update(layer, k_BTKC, v_BTKC)
    out = kernels.attention(q_BTHC, k, v, scale, causal, key_mask, row_start, slopes, length, dropout)
    if _record is not None:
        _record.append(attention_weights(q_BTHC, k, scale, causal, key_mask, row_start, slopes, length))
    return out.reshape(B, T, H * C)


def _shared(q_BTHC, k_BTKC, v_BTKC, scale, causal, key_mask, row_start, slopes, dropout, cache):
    for what, wanted in (("a key-value cache", cache), ("recording attention weights", _record)):
        if wanted is not None:
            _refuse(what)
    out = _core(q_BTHC, k_BTKC, v_BTKC, scale, causal, key_mask, row_start, slopes, dropout)
    return out.reshape(*q_BTHC.shape[:2], -1)


def _refuse(what: str) -> None:
    raise UserError(f"{what} cannot be used where workers share the tokens; use --parallel.sequence 1 for it")


def _heads_first(x):
    """(B, T, H, C) <-> (B, H, T, C)."""
    return ops.transpose(x, (0, 2, 1, 3))


def attend_masked(q_BTHC, k_BSHC, v_BSHC, scale, mask_BTS=None, dropout=0.0):
    """The same, each query under a mask of its own: from MindSpore's operators, as kernels know masks of keys only.

    Args:
        mask_BTS: (B, T, S), any number: other than 0 where a query may see a key; None where all see all.

    Returns:
        (B, T, H * C); of a query that sees no key, zeros.

    Raises:
        UserError: where workers share the tokens (use_core).
    """
    if mask_BTS is None:
        return attend(q_BTHC, k_BSHC, v_BSHC, scale, causal=False, dropout=dropout)
    if _core is not None:
        _refuse("a mask for each query")
    B, T, H, C = q_BTHC.shape
    q_BHTC, k_BHSC, v_BHSC = _heads_first(q_BTHC), _heads_first(k_BSHC), _heads_first(v_BSHC)
    seen = ops.cast(mask_BTS != 0, ms.float32).reshape(B, 1, T, -1)
    scores = _scores(q_BHTC, k_BHSC) * scale + (seen - 1.0) * _FAR
    powers = ops.exp(scores - ops.stop_gradient(_max(scores, -1))) * seen
    weights = powers / ops.maximum(_sum(powers, -1), _TINY)
    if _record is not None:
        _record.append(weights.asnumpy().astype(np.float64))
    if dropout > 0.0:
        weights = kernels.dropout(weights, dropout)
    return _heads_first(_mix(weights, v_BHSC)).reshape(B, T, H * C)


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
    if cache is None and is_plain():
        return kernels.packed_attention(
            qkv_BTP, heads, interleaved, scale, causal, key_mask, row_start, slopes, dropout
        )
    parts = kernels.split_packed(qkv_BTP, heads, interleaved)
    return attend(*parts, scale, causal, key_mask, row_start, slopes, dropout, cache, layer)
