"""The kernels with Ascend's fused operators where their conditions hold, else the stock ones.

The choices are plain functions of shapes and types (``supports_...``), tested on any machine. The numbers of the
fused operators are not: no test of this project ran on an Ascend device. Conditions are those of MindSpore 2.9's
documentation of each operator.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm.kernels import stock
from msllm.kernels.stock import (
    add,
    cache_write,
    cross_entropy,
    dropout,
    embedding,
    embedding_sum,
    gelu,
    linear,
    linear_gelu,
    make_decoder,
    rotary_angles,
    split_packed,
    sum_squares,
    tied,
)

__all__ = [
    "adamw",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cache_write",
    "cross_entropy",
    "dropout",
    "embedding",
    "embedding_sum",
    "gelu",
    "layer_norm",
    "linear",
    "linear_gelu",
    "make_decoder",
    "packed_attention",
    "rms_norm",
    "rotary",
    "rotary_angles",
    "split_packed",
    "sum_squares",
    "swiglu",
    "tied",
]

_HALF = (ms.float16, ms.bfloat16)
_FLOAT = (ms.float16, ms.bfloat16, ms.float32)
_ORDINARY_MASK, _RIGHT_DOWN_CAUSAL = 0, 3  # sparse_mode of flash_attention_score
# The one mask that compressed causal attention takes whatever the lengths are: True hides.
_CAUSAL_MASK = Tensor(np.triu(np.ones((2048, 2048), np.bool_), 1))
_adamw = ops.auto_generate.AdamW()
_any = ops.ReduceAny()


def supports_flash(q_shape, k_shape, dtype, slopes=False, dropout=0.0):
    """Returns whether flash_attention_score takes q (B, T, H, C) and k (B, S, K, C) of a type.

    It wants float16 or bfloat16, B <= 2048, H <= 256, and C a multiple of 16 up to 512. ALiBi (``slopes``) would
    need a shift of T x S numbers and dropout a mask of as many bits, which is what it is there to avoid.
    """
    B, T, H, C = q_shape
    fits = B <= 2048 and H <= 256 and C % 16 == 0 and C <= 512 and max(T, k_shape[1]) <= 512 * 1024
    return dtype in _HALF and fits and not slopes and dropout == 0.0


def supports_rotary(x_shape, dtypes):
    """Returns whether rotary_position_embedding takes x (B, T, H, C): even C < 896, B and H < 1000, one type."""
    B, _, H, C = x_shape
    return dtypes[0] in _FLOAT and len(set(dtypes)) == 1 and C % 2 == 0 and C < 896 and B < 1000 and H < 1000


def supports_rms_norm(dtypes, eps):
    """Returns whether rms_norm takes x and weight of these types: equal ones, and eps in (0, 1]."""
    return dtypes[0] in _FLOAT and len(set(dtypes)) == 1 and 0.0 < eps <= 1.0


def supports_adamw(dtypes, lr, step):
    """Returns whether the fused AdamW takes one tensor: (param, grad, exp_avg, exp_avg_sq) types, lr and step.

    Types are equal pairwise, and lr and step are Python numbers, not tensors of a compiled graph.
    """
    param, grad, mean, square = dtypes
    return (
        param in (ms.float16, ms.float32)
        and param == grad
        and mean == square
        and isinstance(lr, float)
        and isinstance(step, int)
    )


def swiglu(gate, up):
    """Returns silu(gate) * up: the fused operator would have to copy both into one tensor first."""
    return ops.silu(gate) * up


def layer_norm(x, weight, bias, eps):
    """Returns LayerNorm over the last axis: x (..., D), weight (D,), bias (D,)."""
    return ops.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x, weight, eps):
    """Returns x / rms(x) * weight over the last axis: x (..., D), weight (D,)."""
    if not supports_rms_norm((x.dtype, weight.dtype), eps):
        return stock.rms_norm(x, weight, eps)
    return ops.rms_norm(x, weight, eps)[0]


def add_layer_norm(x, add, weight, bias, eps):
    """Returns x + add and its LayerNorm over the last axis: x and add (..., D), weight (D,), bias (D,)."""
    total = x + add
    return total, layer_norm(total, weight, bias, eps)


def add_rms_norm(x, add, weight, eps):
    """Returns x + add and its RMSNorm over the last axis: x and add (..., D), weight (D,)."""
    total = x + add
    return total, rms_norm(total, weight, eps)


def rotary(x_BTHC, cos_NTR, sin_NTR):
    """Returns x with each pair (c, c + C/2) turned by its angle: cos and sin (N, T, C/2), N is 1 or B."""
    if not supports_rotary(x_BTHC.shape, (x_BTHC.dtype, cos_NTR.dtype, sin_NTR.dtype)):
        return stock.rotary(x_BTHC, cos_NTR, sin_NTR)
    cos = ops.expand_dims(ops.concat((cos_NTR, cos_NTR), -1), 2)
    sin = ops.expand_dims(ops.concat((sin_NTR, sin_NTR), -1), 2)
    return ops.rotary_position_embedding(x_BTHC, cos, sin, 0)  # mode 0 pairs halves


def attention(
    q_BTHC, k_BSKC, v_BSKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None, dropout=0.0
):
    """Returns softmax(scale * q k^T + ALiBi) v under the masks: (B, T, H, C); ``stock.attention`` has the details."""
    if not supports_flash(q_BTHC.shape, k_BSKC.shape, q_BTHC.dtype, slopes is not None, dropout):
        return stock.attention(q_BTHC, k_BSKC, v_BSKC, scale, causal, key_mask, row_start, slopes, length, dropout)
    B, T, H, _ = q_BTHC.shape
    L = k_BSKC.shape[1] if length is None else length
    hidden, mode, seen = flash_mask(B, T, L, causal, key_mask, row_start)
    out = ops.flash_attention_score(
        q_BTHC,
        k_BSKC[:, :L],
        v_BSKC[:, :L],
        H,
        attn_mask=hidden,
        scalar_value=scale,
        input_layout="BSND",
        sparse_mode=mode,
    )
    return out if seen is None else out * ops.cast(seen, out.dtype)


def packed_attention(
    qkv_BTP, heads, interleaved, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
):
    """Returns attention of a packed projection: (B, T, 3 H C) -> (B, T, H C); ``stock.packed_attention`` has more."""
    parts = split_packed(qkv_BTP, heads, interleaved)
    out = attention(*parts, scale, causal, key_mask, row_start, slopes, None, dropout)
    return ops.reshape(out, (*qkv_BTP.shape[:2], -1))


def flash_mask(B, T, L, causal, key_mask, row_start):
    """Returns flash_attention_score's mask (True hides) and sparse_mode, and which queries see any key.

    The last is bool (B, T, 1, 1), or None where every query sees one. What the operator gives for a query that
    sees nothing is not documented, so its mask lets such a query see everything, and the caller zeroes its output.
    """
    if key_mask is None and row_start is None and T <= L:
        return (_CAUSAL_MASK, _RIGHT_DOWN_CAUSAL, None) if causal else (None, _ORDINARY_MASK, None)
    visible = stock.visible_keys(T, L, causal, key_mask, row_start)
    if visible is None:
        return None, _ORDINARY_MASK, None
    visible = ops.broadcast_to(visible, (B, 1, T, L))
    seen = ops.reshape(_any(visible, -1), (B, 1, T, 1))
    hidden = ops.logical_and(ops.logical_not(visible), seen)
    return hidden, _ORDINARY_MASK, ops.reshape(seen, (B, T, 1, 1))


def adamw(params, grads, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """Updates params, exp_avg and exp_avg_sq in place by one step of AdamW, one fused operator per tensor."""
    for i in range(len(params)):
        tensors = (params[i], grads[i], exp_avg[i], exp_avg_sq[i])
        if supports_adamw([t.dtype for t in tensors], lr, step):
            grad = grads[i] if grad_scale == 1.0 else grads[i] * grad_scale
            # The operator adds one to the step itself, and looks at the fourth tensor only for AMSGrad.
            before = Tensor([step - 1], ms.float32)
            _adamw(
                params[i],
                exp_avg[i],
                exp_avg_sq[i],
                exp_avg_sq[i],
                grad,
                before,
                lr,
                beta1,
                beta2,
                weight_decay[i],
                eps,
                False,
                False,
            )
        else:
            stock.adamw(*([t] for t in tensors), lr, beta1, beta2, eps, weight_decay[i : i + 1], step, grad_scale)
