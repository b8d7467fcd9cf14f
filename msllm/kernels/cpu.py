"""The kernels in C++ for the CPU: PyNative, float32. Sources in ``cpu/``, compiled by ``build``.

Every function is deterministic: its bits do not depend on the number of threads (MSLLM_THREADS; default: the cores
this process may use). Shapes as in ``stock``, whose docstrings hold here too.
"""

import contextlib
from pathlib import Path

import mindspore as ms
from mindspore import ops
from mindspore.common._grad_function import _Function

from msllm.kernels import cached, random_state

try:
    _cpp = cached.load()
except cached.NotBuilt as e:
    raise ImportError(str(e)) from e

# MindSpore's MatMul keeps threads of its own busy, which then fight for the cores with those of the other kernels;
# the library behind it takes ours. Where the wheel does not bring that library, MatMul it is.
_LIBRARY = str(Path(ms.__file__).parent / "lib" / "libdnnl.so.3")
_GEMM = _cpp.load_gemm(_LIBRARY)
if _GEMM:
    with contextlib.suppress(RuntimeError):  # the user has chosen a number already
        # MindSpore's few remaining operators are small, and its idle threads spin on the cores that ours need.
        ms.device_context.cpu.op_tuning.threads_num(1)
_MATMUL = {(a, b): ops.MatMul(transpose_a=a, transpose_b=b) for a in (False, True) for b in (False, True)}


def _matmul(a, b, transpose_a=False, transpose_b=False):
    if _GEMM:
        return _cpp.matmul(a, b, transpose_a, transpose_b)
    return _MATMUL[transpose_a, transpose_b](a, b)


def _check(condition, name, message, *tensors):
    """Raises ValueError unless condition holds; the message ends with the shapes."""
    if not condition:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"{name}: {message}, got {shapes}")


def _check_dtype(name, dtype, *tensors):
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: the C++ kernels need {dtype}, got {tensor.dtype}; cast it, or use stock kernels")


class _Linear(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        if _GEMM:
            return _cpp.linear(x, weight, bias)
        y = _matmul(x, weight, transpose_b=True)
        if bias is not None:
            _cpp.add_bias(y, bias)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        return (
            _matmul(dy, weight) if need[0] else None,
            _matmul(dy, x, transpose_a=True) if need[1] else None,
            _cpp.column_sum(dy) if need[2] else None,
        )


def linear(x, weight, bias=None):
    """Returns x @ weight.T + bias: x (..., I), weight (O, I), bias (O,) or None -> (..., O)."""
    _check_dtype("linear", ms.float32, x, weight, *(() if bias is None else (bias,)))
    _check(
        weight.ndim == 2 and x.shape[-1] == weight.shape[1],
        "linear",
        "expected x (..., I) and weight (O, I)",
        x,
        weight,
    )
    _check(
        bias is None or bias.shape == weight.shape[:1],
        "linear",
        "expected bias (O,) and weight (O, I)",
        *(() if bias is None else (bias, weight)),
    )
    if x.ndim == 2:
        return _Linear.apply(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).reshape(x.shape[:-1] + weight.shape[:1])


class _Embedding(_Function):
    @staticmethod
    def forward(ctx, ids, weight):
        ctx.save_for_backward(ids)
        ctx.rows = weight.shape[0]
        return _cpp.embedding(ids, weight)

    @staticmethod
    def backward(ctx, dy):
        return None, _cpp.embedding_grad(ctx.saved_tensors[0], dy, ctx.rows)


def embedding(ids, weight):
    """Returns rows of weight: ids int32 (...), weight (V, D) -> (..., D); ids outside [0, V) raise."""
    _check_dtype("embedding", ms.int32, ids)
    _check_dtype("embedding", ms.float32, weight)
    _check(weight.ndim == 2, "embedding", "expected weight (V, D)", weight)
    return _Embedding.apply(ids, weight)


class _Gelu(_Function):
    @staticmethod
    def forward(ctx, x, tanh_form):
        ctx.save_for_backward(x)
        ctx.tanh_form = tanh_form
        return _cpp.gelu(x, tanh_form)

    @staticmethod
    def backward(ctx, dy):
        return _cpp.gelu_grad(ctx.saved_tensors[0], dy, ctx.tanh_form), None


def gelu(x, approximate="none"):
    """Returns GELU of x: "none" uses erf, "tanh" its tanh approximation."""
    _check_dtype("gelu", ms.float32, x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _Gelu.apply(x, approximate == "tanh")


class _Swiglu(_Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _cpp.swiglu(gate, up)

    @staticmethod
    def backward(ctx, dy):
        return tuple(_cpp.swiglu_grad(*ctx.saved_tensors, dy))


def swiglu(gate, up):
    """Returns silu(gate) * up for two tensors of one shape."""
    _check_dtype("swiglu", ms.float32, gate, up)
    _check(gate.shape == up.shape, "swiglu", "expected two equal shapes", gate, up)
    return _Swiglu.apply(gate, up)


class _LayerNorm(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, mean, scale = _cpp.layer_norm(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*_cpp.layer_norm_grad(*ctx.saved_tensors, dy), None)


def layer_norm(x, weight, bias, eps):
    """Returns LayerNorm over the last axis: x (..., D), weight (D,), bias (D,)."""
    _check_dtype("layer_norm", ms.float32, x, weight, bias)
    _check(
        weight.shape == bias.shape == x.shape[-1:],
        "layer_norm",
        "expected x (..., D), weight (D,), bias (D,)",
        x,
        weight,
        bias,
    )
    return _LayerNorm.apply(x, weight, bias, eps)


class _RmsNorm(_Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = _cpp.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*_cpp.rms_norm_grad(*ctx.saved_tensors, dy), None)


def rms_norm(x, weight, eps):
    """Returns x / rms(x) * weight over the last axis: x (..., D), weight (D,)."""
    _check_dtype("rms_norm", ms.float32, x, weight)
    _check(weight.shape == x.shape[-1:], "rms_norm", "expected x (..., D) and weight (D,)", x, weight)
    return _RmsNorm.apply(x, weight, eps)


class _Rotary(_Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _cpp.rotary(x, cos, sin, False)

    @staticmethod
    def backward(ctx, dy):
        return _cpp.rotary(dy, *ctx.saved_tensors, True), None, None


def rotary(x_BTHC, cos_NTR, sin_NTR):
    """Returns x with each pair (c, c + C/2) turned by its angle: cos and sin (N, T, C/2), N is 1 or B."""
    _check_dtype("rotary", ms.float32, x_BTHC, cos_NTR, sin_NTR)
    _check(
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


class _Attention(_Function):
    @staticmethod
    def forward(ctx, q, k, v, key_mask, row_start, slopes, options):
        out, logsumexp = _cpp.attention(q, k, v, key_mask, row_start, slopes, options)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.rest = (key_mask, row_start, slopes, options)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, logsumexp = ctx.saved_tensors
        return (*_cpp.attention_grad(q, k, v, *ctx.rest, out, logsumexp, dout), None, None, None, None)


def attention(
    q_BTHC, k_BSKC, v_BSKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None, dropout=0.0
):
    """Returns softmax(scale * q k^T + ALiBi) v under the masks: (B, T, H, C); ``stock.attention`` has the details.

    Memory is O(T) (Dao et al. 2022, "FlashAttention"): the backward pass computes the weights again. Queries, keys
    and values may be slices of one packed projection: only the last axis has to be contiguous.
    """
    _check_dtype("attention", ms.float32, q_BTHC, k_BSKC, v_BSKC)
    q, k = q_BTHC.shape, k_BSKC.shape
    _check(
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
    for name, mask, shape in (("key_mask", key_mask, (q[0], length)), ("row_start", row_start, (q[0], q[1]))):
        if mask is not None:
            _check_dtype(f"attention: {name}", ms.int32, mask)
            _check(mask.shape == shape, "attention", f"expected {name} {shape}", mask)
    if slopes is not None:
        _check_dtype("attention: slopes", ms.float32, slopes)
        _check(slopes.shape == (q[2],), "attention", f"expected slopes ({q[2]},)", slopes)
    seed, call = _next_mask("attention", dropout)
    options = _cpp.AttentionOptions(scale, dropout, causal, length, seed, call)
    return _Attention.apply(q_BTHC, k_BSKC, v_BSKC, key_mask, row_start, slopes, options)


class _CrossEntropy(_Function):
    @staticmethod
    def forward(ctx, logits, labels, ignore_index):
        loss, logsumexp = _cpp.cross_entropy(logits, labels, ignore_index)
        ctx.save_for_backward(logits, labels, logsumexp)
        ctx.ignore_index = ignore_index
        return loss

    @staticmethod
    def backward(ctx, dloss):
        return _cpp.cross_entropy_grad(*ctx.saved_tensors, dloss, ctx.ignore_index), None, None


def cross_entropy(logits_NV, labels_N, ignore_index=-100):
    """Returns -log softmax(logits)[label] per row, (N,), 0 where the label is ignore_index: labels int32 (N,)."""
    _check_dtype("cross_entropy", ms.float32, logits_NV)
    _check_dtype("cross_entropy", ms.int32, labels_N)
    _check(
        logits_NV.ndim == 2 and labels_N.shape == logits_NV.shape[:1],
        "cross_entropy",
        "expected logits (N, V) and labels (N,)",
        logits_NV,
        labels_N,
    )
    return _CrossEntropy.apply(logits_NV, labels_N, ignore_index)


class _Dropout(_Function):
    @staticmethod
    def forward(ctx, x, seed, call, p):
        ctx.mask = (seed, call, p)
        return _cpp.dropout(x, *ctx.mask)

    @staticmethod
    def backward(ctx, dy):
        return _cpp.dropout(dy, *ctx.mask), None, None, None


def _next_mask(name, p):
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}: dropout probability must be in [0, 1), got {p}")
    return random_state.next_call() if p > 0.0 else (0, 0)


def dropout(x, p):
    """Returns x with each element zeroed with probability p, the rest scaled by 1 / (1 - p)."""
    _check_dtype("dropout", ms.float32, x)
    seed, call = _next_mask("dropout", p)
    return x if p == 0.0 else _Dropout.apply(x, seed, call, p)


def adamw(params, grads, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """Updates params, exp_avg and exp_avg_sq in place by one step of AdamW, all tensors in one call."""
    lists = [list(params), list(grads), list(exp_avg), list(exp_avg_sq), [float(x) for x in weight_decay]]
    if len({len(x) for x in lists}) != 1:
        raise ValueError(f"adamw: lists of different lengths {[len(x) for x in lists]}")
    for tensors in zip(*lists[:4]):
        _check_dtype("adamw", ms.float32, *tensors)
        _check(all(t.shape == tensors[0].shape for t in tensors), "adamw", "expected four equal shapes", *tensors)
    _cpp.adamw(*lists, float(lr), beta1, beta2, eps, int(step), float(grad_scale))


def sum_squares(tensors):
    """Returns the sum of the squares of all elements as a float, added up in float64 in a fixed order."""
    tensors = list(tensors)
    _check_dtype("sum_squares", ms.float32, *tensors)
    return float(_cpp.sum_squares(tensors).asnumpy()[0])


def cache_write(cache_BSKC, new_BTKC, start):
    """Writes new at cache[:, start:start + T] in place and returns the cache: new (B, T, K, C), start an int."""
    _check_dtype("cache_write", ms.float32, cache_BSKC, new_BTKC)
    cache, new = cache_BSKC.shape, new_BTKC.shape
    _check(
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
    _cpp.cache_write(cache_BSKC, new_BTKC, start)
    return cache_BSKC
