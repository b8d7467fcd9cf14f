"""Attention of some queries over some of their keys, and how two such parts become one: what a ring is made of.

A block is the attention of one run of queries over one run of keys. Beside the output it gives the log-sum-exp of each
query's scores: ``merge`` weighs outputs by it, and that over all keys lets each block have its gradients by itself.
PyNative, float32; by the C++ kernels where they are active, else by stock operators.

Shapes: B batch, T queries, S keys, H heads, K key-value heads, C head width.
"""

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import kernels
from msllm.kernels import stock

_BLIND = -1.0e30  # the log-sum-exp of a query that sees no key: finite, so that differences are no NaN
# MindSpore's float32 exp and log are only good to 1e-5 on the CPU, and other devices have no float64.
_FINE = ms.float64 if kernels.DEVICE == "CPU" else ms.float32

_batch_matmul = ops.BatchMatMul()
_batch_matmul_nt = ops.BatchMatMul(transpose_b=True)
_batch_matmul_tn = ops.BatchMatMul(transpose_a=True)


@dataclasses.dataclass(frozen=True)
class Block:
    """How one run of queries sees one run of keys; the masks are those of kernels.attention on the two alone.

    Attributes:
        shift: what is missing from the distance that the kernel's ALiBi gives a query and a key.
    """

    scale: float
    causal: bool
    key_mask: Tensor | None
    row_start: Tensor | None
    slopes: Tensor | None
    shift: int

    def alibi_shift(self):
        """Returns what is missing from all scores of a head, (1, H, 1), or 0."""
        return 0.0 if self.slopes is None else ops.cast(self.slopes, _FINE).reshape(1, -1, 1) * float(self.shift)


def block_forward(q_BTHC, k_BSKC, v_BSKC, block: Block) -> tuple[Tensor, Tensor]:
    """Returns the attention of one block and its log-sum-exp: (B, T, H, C), and (B, H, T) in float64 where there is."""
    if kernels.active() == "cpu":
        cpp, rest = _compiled(q_BTHC, k_BSKC, v_BSKC, block)
        out, lse = cpp.attention(q_BTHC, k_BSKC, v_BSKC, *rest)
        lse = ops.select(lse < -_BLIND, lse, ops.full_like(lse, _BLIND))  # infinite where nothing is seen
        return out, ops.cast(lse, _FINE) + block.alibi_shift()
    scores, visible = _scores(q_BTHC, k_BSKC, block)
    if visible is not None:
        scores = ops.select(visible, scores, ops.full_like(scores, _BLIND))
    top = scores.max(-1, keepdims=True)
    weights = ops.exp(scores - top)
    if visible is not None:
        weights = weights * ops.cast(visible, _FINE)
    # The sum is 1 or more (the largest score is in it), but for a row that sees nothing.
    total = ops.maximum(weights.sum(-1, keepdims=True), ops.ones_like(top))
    lse = ops.reshape(top + ops.log(total), top.shape[:3])
    weights = _grouped(ops.cast(weights / total, ms.float32), k_BSKC.shape[2])
    out = _tokens_first(_batch_matmul(weights, _heads_first(v_BSKC)), q_BTHC.shape)
    return out, lse + block.alibi_shift()


def block_backward(q_BTHC, k_BSKC, v_BSKC, block: Block, out_BTHC, lse_BHT, dout_BTHC) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what one block adds to the gradients of its queries, keys and values.

    The weights of all keys are exp(score - lse), so those of this block need nothing but the output and the log-sum-exp
    over all blocks (Dao et al. 2022, "FlashAttention", algorithm 4).
    """
    lse_BHT = lse_BHT - block.alibi_shift()
    if kernels.active() == "cpu":
        cpp, rest = _compiled(q_BTHC, k_BSKC, v_BSKC, block)
        lse = ops.cast(lse_BHT, ms.float32)
        lse = ops.select(lse > 0.5 * _BLIND, lse, ops.full_like(lse, np.inf))  # whose weights are then 0
        return tuple(cpp.attention_grad(q_BTHC, k_BSKC, v_BSKC, *rest, out_BTHC.contiguous(), lse, dout_BTHC))
    B, T, H, _ = q_BTHC.shape
    K = k_BSKC.shape[2]
    scores, visible = _scores(q_BTHC, k_BSKC, block)
    scores = scores - ops.expand_dims(lse_BHT, -1)
    if visible is not None:
        scores = ops.select(visible, scores, ops.full_like(scores, _BLIND))
    weights = ops.cast(ops.exp(scores), ms.float32)
    q, dout = (_heads_first(x, K) for x in (q_BTHC, dout_BTHC))
    k, v = _heads_first(k_BSKC), _heads_first(v_BSKC)
    dweights = ops.reshape(_batch_matmul_nt(dout, v), weights.shape)
    delta = ops.transpose((dout_BTHC * out_BTHC).sum(-1), (0, 2, 1)).reshape(B, H, T, 1)
    dscores = _grouped(weights * (dweights - delta) * block.scale, K)
    dq = _tokens_first(_batch_matmul(dscores, k), q_BTHC.shape)
    dk = _tokens_first(_batch_matmul_tn(dscores, q), k_BSKC.shape)
    return dq, dk, _tokens_first(_batch_matmul_tn(_grouped(weights, K), dout), v_BSKC.shape)


def nothing_seen(q_BTHC) -> tuple[Tensor, Tensor]:
    """Returns output and log-sum-exp, as of ``block_forward``, where nothing is seen; ``merge`` gives it no weight."""
    B, T, H, _ = q_BTHC.shape
    return ops.zeros_like(q_BTHC), ops.full((B, H, T), _BLIND, dtype=_FINE)


def merge(out_BTHC, lse_BHT, more_BTHC, more_lse_BHT) -> tuple[Tensor, Tensor]:
    """Returns attention over the keys of two blocks from that over each (Milakov and Gimelshein 2018, section 3.1)."""
    top = ops.maximum(lse_BHT, more_lse_BHT)
    weight, more_weight = ops.exp(lse_BHT - top), ops.exp(more_lse_BHT - top)
    total = weight + more_weight

    def share(part):
        return ops.expand_dims(ops.transpose(ops.cast(part / total, ms.float32), (0, 2, 1)), -1)

    return out_BTHC * share(weight) + more_BTHC * share(more_weight), top + ops.log(total)


def _compiled(q, k, v, block: Block):
    """Returns the C++ kernels, and a block as their attention takes it."""
    from msllm.kernels import compiled

    compiled.check_dtype("attention", ms.float32, q, k, v)
    options = compiled.cpp.AttentionOptions(block.scale, 0.0, block.causal, k.shape[1], 0, 0)
    return compiled.cpp, (block.key_mask, block.row_start, block.slopes, options)


def _scores(q_BTHC, k_BSKC, block: Block):
    """Returns the scores of a block (B, H, T, S) and which of them are visible, None for all."""
    (B, T, H, _), (_, S, K, _) = q_BTHC.shape, k_BSKC.shape
    scores = ops.reshape(_batch_matmul_nt(_heads_first(q_BTHC, K), _heads_first(k_BSKC)), (B, H, T, S)) * block.scale
    if block.slopes is not None:
        distance = np.arange(S, dtype=np.float32)[None] - np.arange(S - T, S, dtype=np.float32)[:, None]
        scores = scores + ops.reshape(block.slopes, (1, H, 1, 1)) * Tensor(distance)
    visible = stock.visible_keys(T, S, block.causal, block.key_mask, block.row_start)
    return ops.cast(scores, _FINE), None if visible is None else ops.broadcast_to(visible, scores.shape)


def _heads_first(x_BTHC, groups: int | None = None):
    """Returns (B, groups, H / groups * T, C): the heads that share keys are more rows of one product."""
    B, T, H, C = x_BTHC.shape
    groups = groups or H
    return ops.reshape(ops.transpose(x_BTHC, (0, 2, 1, 3)), (B, groups, H // groups * T, C))


def _grouped(scores_BHTS, groups: int):
    B, H, T, S = scores_BHTS.shape
    return ops.reshape(scores_BHTS, (B, groups, H // groups * T, S))


def _tokens_first(x, shape):
    """The inverse of ``_heads_first``, to (B, T, H, C)."""
    B, T, H, C = shape
    return ops.transpose(ops.reshape(x, (B, H, T, C)), (0, 2, 1, 3))
