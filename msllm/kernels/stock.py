"""The kernels composed of MindSpore operators: any device, PyNative and ms.jit.

Shapes: B batch, T tokens (S keys), D width, H heads, K key-value heads, C head width, R = C/2, V vocabulary.
These functions are the reference of the table: ``cpu`` and ``ascend`` have the same names and signatures.
"""

import contextlib
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm.kernels import random_state
from msllm.kernels.device import DEVICE

# The table: what every implementation has.
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

# ops.dense and mint's linear are 5 to 200 times slower on the CPU than these three.
_matmul_nt = ops.MatMul(transpose_b=True)
_batch_matmul_nt = ops.BatchMatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_bias_add = ops.BiasAdd()
_max = ops.ReduceMax(keep_dims=True)
_ONE_MORE_CALL = Tensor(np.array([0, 1], np.int32))
_HIDDEN = -3.0e38  # finite, so that a row without any visible key gives no NaN


def linear(x, weight, bias=None):
    """Returns x @ weight.T + bias: x (..., I), weight (O, I), bias (O,) or None -> (..., O)."""
    y = _matmul_nt(ops.reshape(x, (-1, x.shape[-1])), weight)
    if bias is not None:
        y = _bias_add(y, bias)
    return ops.reshape(y, (*x.shape[:-1], weight.shape[0]))


def embedding(ids, weight):
    """Returns rows of weight: ids int32 (...), weight (V, D) -> (..., D)."""
    return ops.gather(weight, ids, 0)


def tied(weight):
    """Returns a context in which an embedding and a later linear map by one weight belong to one forward pass."""
    return contextlib.nullcontext()


def embedding_sum(ids, weights):
    """Returns the sum of rows of several tables: ids int32 (...), weights (V_i, D) -> (..., D).

    The first ids give the shape; the others may have 1 where it has B, and then serve every batch row.
    """
    total = embedding(ids[0], weights[0])
    for more, weight in zip(ids[1:], weights[1:]):
        total = total + embedding(more, weight)
    return total


def add(x, y):
    """Returns x + y: x (B, ...), y the same or (1, ...)."""
    return x + y


def linear_gelu(x, weight, bias, approximate="none"):
    """Returns GELU(x @ weight.T + bias): x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    return gelu(linear(x, weight, bias), approximate)


def gelu(x, approximate="none"):
    """Returns GELU of x: "none" uses erf, "tanh" its tanh approximation (Hendrycks and Gimpel 2016, section 2)."""
    if approximate == "none":
        return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        # 0.5 (1 + tanh(u)) is sigmoid(2u), and ops.tanh on the CPU is only good to 1e-4.
        return x * ops.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))
    raise ValueError("gelu: approximate must be 'none' or 'tanh'")


def swiglu(gate, up):
    """Returns silu(gate) * up for two tensors of one shape (Shazeer 2020, "GLU Variants", section 2)."""
    return gate * ops.sigmoid(gate) * up


def layer_norm(x, weight, bias, eps):
    """Returns LayerNorm over the last axis: x (..., D), weight (D,), bias (D,) (Ba et al. 2016, section 3)."""
    centred = x - ops.mean(x, -1, True)
    variance = ops.mean(centred * centred, -1, True)
    return centred * ops.rsqrt(variance + eps) * weight + bias


def rms_norm(x, weight, eps):
    """Returns x / rms(x) * weight over the last axis: x (..., D), weight (D,) (Zhang and Sennrich 2019, eq. 4)."""
    return x * ops.rsqrt(ops.mean(x * x, -1, True) + eps) * weight


def add_layer_norm(x, add, weight, bias, eps):
    """Returns x + add and its LayerNorm over the last axis: x and add (..., D), weight (D,), bias (D,)."""
    total = x + add
    return total, layer_norm(total, weight, bias, eps)


def add_rms_norm(x, add, weight, eps):
    """Returns x + add and its RMSNorm over the last axis: x and add (..., D), weight (D,)."""
    total = x + add
    return total, rms_norm(total, weight, eps)


def rotary(x_BTHC, cos_NTR, sin_NTR):
    """Returns x with each pair (c, c + C/2) turned by its angle: cos and sin (N, T, C/2), N is 1 or B.

    Source: Su et al. 2021, "RoFormer", section 3.4.2, with Hugging Face's pairing of halves.
    """
    half = x_BTHC.shape[-1] // 2
    cos = ops.expand_dims(cos_NTR, 2)
    sin = ops.expand_dims(sin_NTR, 2)
    low, high = x_BTHC[..., :half], x_BTHC[..., half:]
    return ops.concat((low * cos - high * sin, high * cos + low * sin), -1)


def rotary_angles(position_ids, frequency):
    """Returns cos and sin (N, T, R) of position * frequency: position_ids int32 (N, T), frequency (R,)."""
    angle = ops.expand_dims(ops.cast(position_ids, ms.float32), -1) * frequency
    return ops.cos(angle), ops.sin(angle)


def attention(
    q_BTHC, k_BSKC, v_BSKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None, dropout=0.0
):
    """Returns softmax(scale * q k^T + ALiBi) v under the masks: (B, T, H, C) (Vaswani et al. 2017, section 3.2.1).

    Query head h uses key-value head h // (H // K). With L = length (default S) valid keys, query t sits at
    position L - T + t.

    Args:
        q_BTHC, k_BSKC, v_BSKC: float32; K divides H; S >= L.
        scale: float factor of the scores.
        causal: query t sees only keys s <= L - T + t.
        key_mask: int32 (B, L), 1 = may be seen.
        row_start: int32 (B, T): query t sees only keys s >= row_start (packed documents).
        slopes: float32 (H,): adds slopes[h] * (s - position) to the scores (Press et al. 2021, "ALiBi", section 3).
        length: int, number of valid keys.
        dropout: probability of dropping an attention weight; the kept ones are scaled by 1 / (1 - dropout).

    A query that sees no key gives zeros, and zero gradients.
    """
    B, T, H, C = q_BTHC.shape
    K = k_BSKC.shape[2]
    L = k_BSKC.shape[1] if length is None else length
    k_BKLC = ops.transpose(k_BSKC[:, :L], (0, 2, 1, 3))
    v_BKLC = ops.transpose(v_BSKC[:, :L], (0, 2, 1, 3))
    # The heads of a group are more rows of one product: keys and values are not repeated.
    q = ops.reshape(ops.transpose(q_BTHC, (0, 2, 1, 3)), (B, K, H // K * T, C))
    scores = ops.reshape(_batch_matmul_nt(q, k_BKLC), (B, H, T, L)) * scale
    if slopes is not None:
        scores = scores + ops.reshape(slopes, (1, H, 1, 1)) * Tensor(_distance(T, L))
    visible = visible_keys(T, L, causal, key_mask, row_start)
    if visible is None:
        weights = _softmax(scores)
    else:
        scores = ops.select(ops.broadcast_to(visible, scores.shape), scores, ops.full_like(scores, _HIDDEN))
        weights = _softmax(scores) * ops.cast(visible, ms.float32)
    if dropout > 0.0:
        weights = _drop(weights, dropout)
    out = _batch_matmul(ops.reshape(weights, (B, K, H // K * T, L)), v_BKLC)
    return ops.transpose(ops.reshape(out, (B, H, T, C)), (0, 2, 1, 3))


def packed_attention(
    qkv_BTP, heads, interleaved, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
):
    """Returns attention of queries, keys and values that one projection made: (B, T, 3 H C) -> (B, T, H C).

    Args:
        qkv_BTP: float32; the last axis is (3, H, C), or (H, 3, C) where ``interleaved``.
        heads: H.
        The others as in ``attention``.
    """
    parts = split_packed(qkv_BTP, heads, interleaved)
    out = attention(*parts, scale, causal, key_mask, row_start, slopes, None, dropout)
    return ops.reshape(out, (*qkv_BTP.shape[:2], -1))


def split_packed(qkv_BTP, heads, interleaved):
    """Returns the three parts (B, T, H, C) of a packed projection; see packed_attention."""
    B, T, P = qkv_BTP.shape
    if interleaved:
        return ops.split(ops.reshape(qkv_BTP, (B, T, heads, P // heads)), P // heads // 3, axis=3)
    # mint.split has a wrong gradient in MindSpore 2.9.0.
    return ops.split(ops.reshape(qkv_BTP, (B, T, 3 * heads, P // heads // 3)), heads, axis=2)


def _softmax(scores):
    # MindSpore 2.9's gradient of softmax on the CPU is wrong for the whole process once it ran over an axis of one.
    if scores.shape[-1] == 1:
        return scores * 0.0 + 1.0
    return ops.softmax(scores, -1)


def _distance(T, L):
    """Returns key position minus query position, float32 (T, L)."""
    return np.arange(L, dtype=np.float32)[None] - np.arange(L - T, L, dtype=np.float32)[:, None]


def visible_keys(T, L, causal, key_mask, row_start):
    """Returns bool (1 or B, 1, T or 1, L), True where a query sees a key; None when all see all."""
    visible = None
    if causal:
        visible = Tensor(_distance(T, L)[None, None] <= 0)
    if key_mask is not None:
        seen = ops.cast(ops.reshape(key_mask, (-1, 1, 1, L)), ms.bool_)
        visible = seen if visible is None else ops.logical_and(visible, seen)
    if row_start is not None:
        keys = Tensor(np.arange(L, dtype=np.int32).reshape(1, 1, 1, L))
        seen = ops.greater_equal(keys, ops.reshape(row_start, (-1, 1, T, 1)))
        visible = seen if visible is None else ops.logical_and(visible, seen)
    return visible


def cross_entropy(logits_NV, labels_N, ignore_index=-100, smoothing=0.0):
    """Returns -log softmax(logits)[label] per row, (N,), 0 where the label is ignore_index.

    Args:
        logits_NV: float32.
        labels_N: int32.
        smoothing: share of the target that is spread evenly over all V classes (Szegedy et al. 2016, section 7).
    """
    kept = ops.not_equal(labels_N, ignore_index)
    labels = ops.select(kept, labels_N, ops.zeros_like(labels_N))
    # Not ops.log_softmax: on the CPU it hides a NaN.
    shifted = logits_NV - ops.stop_gradient(_max(logits_NV, 1))
    picked = ops.reshape(ops.gather_d(shifted, 1, ops.expand_dims(labels, 1)), (-1,))
    if smoothing > 0.0:
        picked = (1.0 - smoothing) * picked + smoothing * ops.mean(shifted, 1)
    loss = ops.log(ops.reduce_sum(ops.exp(shifted), 1)) - picked
    return ops.select(kept, loss, ops.zeros_like(loss))


def dropout(x, p):
    """Returns x with each element zeroed with probability p, the rest scaled by 1 / (1 - p)."""
    if p == 0.0:
        return x
    return _drop(x, p)


def _drop(x, p):
    return x * ops.cast(_keep(x.shape, p), x.dtype) * (1.0 / (1.0 - p))


def _keep(shape, p):
    """Returns the next mask, bool of ``shape``: the same bits as cpu/random_bits.hpp, from 32-bit integer operators."""
    columns = shape[-1]
    rows = math.prod(shape[:-1])
    seed_and_calls = ops.assign_add(random_state.state, _ONE_MORE_CALL)
    key = _mix(seed_and_calls[0:1] ^ _mix(seed_and_calls[1:2] - 1))
    row_key = _mix(key ^ _mix(Tensor(np.arange(rows, dtype=np.int32))))
    bits = _mix(ops.expand_dims(row_key, 1) ^ Tensor(np.arange(columns, dtype=np.int32)[None]))
    # The upper 24 bits against p in the same unit.
    threshold = int(p * 16777216.0)
    return ops.reshape(_shift_right(bits, 8) >= threshold, shape)


def _mix(h):
    """Returns murmur3's finaliser of int32 h: every input bit moves every output bit."""
    h = (h ^ _shift_right(h, 16)) * -2048144789
    h = (h ^ _shift_right(h, 13)) * -1028477387
    return h ^ _shift_right(h, 16)


def _shift_right(h, n):
    """Returns int32 h shifted right by n with zeros coming in."""
    return ops.bitwise_and(ops.bitwise_right_shift(h, Tensor(n, ms.int32)), Tensor((1 << (32 - n)) - 1, ms.int32))


def adamw(params, grads, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """Updates params, exp_avg and exp_avg_sq in place by one step of AdamW (Loshchilov and Hutter 2019, algorithm 2).

    Args:
        params, grads, exp_avg, exp_avg_sq: lists of tensors of equal shapes.
        weight_decay: list of floats, one per parameter, decoupled.
        step: number of this step, from 1.
        grad_scale: factor of the gradients, for clipping by the global norm.
    """
    correction1 = 1.0 - beta1**step
    correction2 = (1.0 - beta2**step) ** 0.5
    for i in range(len(params)):
        grad = grads[i] * grad_scale
        mean = exp_avg[i] * beta1 + grad * (1.0 - beta1)
        square = exp_avg_sq[i] * beta2 + grad * grad * (1.0 - beta2)
        ops.assign(exp_avg[i], mean)
        ops.assign(exp_avg_sq[i], square)
        update = mean / (ops.sqrt(square) / correction2 + eps)
        ops.assign(params[i], params[i] * (1.0 - lr * weight_decay[i]) - update * (lr / correction1))


def sum_squares(tensors):
    """Returns the sum of the squares of all elements as a float, for the global norm (outside ms.jit)."""
    if DEVICE == "CPU":
        return float(sum(np.sum(np.square(t.asnumpy(), dtype=np.float64)) for t in tensors))
    sums = ops.stack([ops.reduce_sum(ops.square(t)) for t in tensors])  # one copy to the host, not one per tensor
    return float(np.sum(sums.asnumpy(), dtype=np.float64))


def cache_write(cache_BSKC, new_BTKC, start):
    """Writes new at cache[:, start:start + T] in place and returns the cache: new (B, T, K, C), start an int."""
    # Assigning a view reads the wrong numbers in MindSpore 2.9.0 (keys and values are slices of one projection).
    cache_BSKC[:, start : start + new_BTKC.shape[1]] = new_BTKC.contiguous()
    return cache_BSKC


def make_decoder(blocks):
    """Returns a function that runs a few tokens through whole decoder blocks, or None where the device has none.

    Args:
        blocks: a layers.BlockParts for each.

    What is returned has ``takes(shape)``, whether x of that shape (B, T, D) is few enough tokens, and is called as
    f(x_BTD, keys, values, start, key_mask, rotary, slopes): keys and values are the caches (B, S, K, C) of each block,
    which take in the new tokens at ``start``; key_mask int32 (B, start + T); rotary (cos, sin), each (1 or B, T, C/2);
    slopes (H,); each of the last three may be None. It returns x after all blocks, (B, T, D), without a gradient.
    """
    return None
