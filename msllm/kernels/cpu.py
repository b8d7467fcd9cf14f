"""The kernels in C++ for the CPU: PyNative, float32. Sources in ``cpu/``, compiled by ``build``.

Every function is deterministic: its bits do not depend on the number of threads (MSLLM_THREADS; default: the cores
this process may use). Shapes as in ``stock``, whose docstrings hold here too.
"""

import contextlib
import functools
import operator
import os
import sys
from pathlib import Path

import mindspore as ms
from mindspore.common._grad_function import _Function

from msllm.errors import UserError, nearest
from msllm.kernels import cached, random_state


def _load():
    """Returns the compiled module; a damaged one is built again, a missing one is not: that is `make setup`'s part."""
    try:
        return cached.load()
    except cached.Damaged:
        from msllm.kernels import build  # needs this package

        print(
            f"the C++ kernels in {cached.folder()} are damaged; building them again (about a minute)...",
            file=sys.stderr,
            flush=True,
        )
        build.build()
        return cached.load()


try:
    _cpp = _load()
except Exception as e:  # no build, or one that fails: the reason goes to whoever chooses the kernels
    raise ImportError(str(e)) from e

# MindSpore's MatMul keeps threads of its own busy, which then fight for the cores with those of the other kernels;
# the library behind it takes ours. Where the wheel does not bring that library, the kernels multiply by themselves.
_LIBRARY = str(Path(ms.__file__).parent / "lib" / "libdnnl.so.3")
_cpp.load_gemm(_LIBRARY)
with contextlib.suppress(RuntimeError):  # the user has chosen a number already
    # MindSpore's few remaining operators are small, and its idle threads spin on the cores that ours need.
    ms.device_context.cpu.op_tuning.threads_num(1)


def _check(condition, name, message, *tensors):
    """Raises ValueError unless condition holds; the message ends with the shapes."""
    if not condition:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"{name}: {message}, got {shapes}")


def _check_dtype(name, dtype, *tensors):
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: the C++ kernels need {dtype}, got {tensor.dtype}; cast it, or use stock kernels")


class _Tie:
    """Carries the head's part of a tied weight's gradient to the embedding's backward pass, which comes later.

    There the two become one dense gradient; otherwise there would be two, and their sum.
    """

    def __init__(self):
        self.embedded, self.head = False, []  # head: pairs (dy, x), whose gradient is the sum of dy^T x


_ties: dict[int, _Tie] = {}  # by the weight's id, while ``tied`` is open


@contextlib.contextmanager
def tied(weight):
    """While open, an embedding of ids by ``weight`` and a later linear map by it belong to one forward pass.

    The linear map's input must depend on that embedding, as the gradient of ``weight`` is finished there.
    """
    _ties[id(weight)] = _Tie()
    try:
        yield
    finally:
        del _ties[id(weight)]


class _Linear(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, tie):
        ctx.save_for_backward(x, weight)
        ctx.tie = tie
        return _cpp.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        if need_weight and ctx.tie is not None:
            ctx.tie.head.append((dy, x))
            need_weight = False
        return (
            _cpp.linear_grad_input(dy, weight) if need_x else None,
            _cpp.linear_grad_weight(dy, x) if need_weight else None,
            _cpp.column_sum(dy) if need_bias else None,
            None,
        )


def linear(x, weight, bias=None):
    """Returns x @ weight.T + bias: x (..., I), weight (O, I), bias (O,) or None -> (..., O)."""
    _check_linear("linear", x, weight, *(() if bias is None else (bias,)))
    tie = _ties.get(id(weight))
    return _Linear.apply(x, weight, bias, tie if tie and tie.embedded else None)


def _check_linear(name, x, weight, *bias):
    _check_dtype(name, ms.float32, x, weight, *bias)
    fits = weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    _check(fits, name, "expected x (..., I) and weight (O, I)", x, weight)
    _check(all(b.shape == weight.shape[:1] for b in bias), name, "expected bias (O,) and weight (O, I)", *bias, weight)


class _LinearGelu(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, tanh_form):
        y, product = _cpp.linear_gelu(x, weight, bias, tanh_form)
        ctx.save_for_backward(x, weight, bias, product)
        ctx.tanh_form = tanh_form
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, product = ctx.saved_tensors
        dproduct, dbias = _cpp.bias_gelu_grad(product, bias, dy, ctx.tanh_form)
        need = ctx.needs_input_grad
        return (
            _cpp.linear_grad_input(dproduct, weight) if need[0] else None,
            _cpp.linear_grad_weight(dproduct, x) if need[1] else None,
            dbias,
            None,
        )


def linear_gelu(x, weight, bias, approximate="none"):
    """Returns GELU(x @ weight.T + bias): x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    _check_linear("linear_gelu", x, weight, bias)
    return _LinearGelu.apply(x, weight, bias, _is_tanh("linear_gelu", approximate))


class _Embedding(_Function):
    @staticmethod
    def forward(ctx, count, ties, *ids_and_weights):
        ids, weights = ids_and_weights[:count], ids_and_weights[count:]
        ctx.save_for_backward(*ids)
        ctx.rows, ctx.ties = [weight.shape[0] for weight in weights], ties
        return _cpp.embedding(list(ids), list(weights))

    @staticmethod
    def backward(ctx, dy):
        ids, need = ctx.saved_tensors, ctx.needs_input_grad[2 + len(ctx.rows) :]
        grads = [_embedding_grad(*each, dy) if wanted else None for *each, wanted in zip(ids, ctx.rows, ctx.ties, need)]
        return (None, None, *(None for _ in ids), *grads)


def _embedding_grad(ids, rows, tie, dy):
    if tie is None or not tie.head:
        return _cpp.embedding_grad(ids, dy, rows)
    parts = [_cpp.linear_grad_weight(*tie.head.pop()) for _ in range(len(tie.head))]
    total = functools.reduce(operator.add, parts)
    _cpp.embedding_grad_add(ids, dy, total)
    return total


def embedding(ids, weight):
    """Returns rows of weight: ids int32 (...), weight (V, D) -> (..., D); ids outside [0, V) raise."""
    return embedding_sum((ids,), (weight,))


def embedding_sum(ids, weights):
    """Returns the sum of rows of several tables: ids int32 (...), weights (V_i, D) -> (..., D).

    The first ids give the shape; the others may have 1 where it has B, and then serve every batch row.
    """
    _check_dtype("embedding", ms.int32, *ids)
    _check_dtype("embedding", ms.float32, *weights)
    fits = all(w.ndim == 2 and w.shape[1] == weights[0].shape[1] for w in weights)
    _check(fits, "embedding", "expected weights (V, D) of one D", *weights)
    fits = all(i.shape == ids[0].shape or i.shape == (1, *ids[0].shape[1:]) for i in ids)
    _check(fits, "embedding", "expected ids of one shape, or with 1 in place of B", *ids)
    ties = [_ties.get(id(weight)) for weight in weights]
    for tie in ties:
        if tie:
            tie.embedded = True
    return _Embedding.apply(len(ids), ties, *ids, *weights)


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
    return _Gelu.apply(x, _is_tanh("gelu", approximate))


def _is_tanh(name, approximate):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{name}: approximate must be 'none' or 'tanh', got {approximate!r}")
    return approximate == "tanh"


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
        y, mean, scale = _cpp.layer_norm(x, None, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*_cpp.layer_norm_grad(*ctx.saved_tensors, None, dy), None)


class _AddLayerNorm(_Function):
    @staticmethod
    def forward(ctx, x, add, weight, bias, eps):
        total, y, mean, scale = _cpp.add_layer_norm(x, add, weight, bias, eps)
        ctx.save_for_backward(total, weight, mean, scale)
        return total, y

    @staticmethod
    def backward(ctx, dtotal, dy):
        dx, dweight, dbias = _cpp.layer_norm_grad(*ctx.saved_tensors, dtotal, dy)
        return dx, dx, dweight, dbias, None


def layer_norm(x, weight, bias, eps):
    """Returns LayerNorm over the last axis: x (..., D), weight (D,), bias (D,)."""
    _check_norm("layer_norm", x, weight, bias)
    return _LayerNorm.apply(x, weight, bias, eps)


def add_layer_norm(x, add, weight, bias, eps):
    """Returns x + add and its LayerNorm over the last axis: x and add (..., D), weight (D,), bias (D,)."""
    _check_norm("add_layer_norm", x, weight, bias)
    _check(add.shape == x.shape, "add_layer_norm", "expected two equal shapes", x, add)
    return _AddLayerNorm.apply(x, add, weight, bias, eps)


class _RmsNorm(_Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = _cpp.rms_norm(x, None, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*_cpp.rms_norm_grad(*ctx.saved_tensors, None, dy), None)


class _AddRmsNorm(_Function):
    @staticmethod
    def forward(ctx, x, add, weight, eps):
        total, y, scale = _cpp.add_rms_norm(x, add, weight, eps)
        ctx.save_for_backward(total, weight, scale)
        return total, y

    @staticmethod
    def backward(ctx, dtotal, dy):
        dx, dweight = _cpp.rms_norm_grad(*ctx.saved_tensors, dtotal, dy)
        return dx, dx, dweight, None


def rms_norm(x, weight, eps):
    """Returns x / rms(x) * weight over the last axis: x (..., D), weight (D,)."""
    _check_norm("rms_norm", x, weight)
    return _RmsNorm.apply(x, weight, eps)


def add_rms_norm(x, add, weight, eps):
    """Returns x + add and its RMSNorm over the last axis: x and add (..., D), weight (D,)."""
    _check_norm("add_rms_norm", x, weight)
    _check(add.shape == x.shape, "add_rms_norm", "expected two equal shapes", x, add)
    return _AddRmsNorm.apply(x, add, weight, eps)


def _check_norm(name, x, *parameters):
    _check_dtype(name, ms.float32, x, *parameters)
    fits = all(p.shape == x.shape[-1:] for p in parameters)
    _check(fits, name, "expected x (..., D), weight and bias (D,)", x, *parameters)


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


def rotary_angles(position_ids, frequency):
    """Returns cos and sin (N, T, R) of position * frequency: position_ids int32 (N, T), frequency (R,)."""
    _check_dtype("rotary_angles", ms.int32, position_ids)
    _check_dtype("rotary_angles", ms.float32, frequency)
    return _cpp.rotary_angles(position_ids, frequency)


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
    _check_masks("attention", (q[0], q[1], length, q[2]), key_mask, row_start, slopes)
    seed, call = _next_mask("attention", dropout)
    options = _cpp.AttentionOptions(scale, dropout, causal, length, seed, call)
    return _Attention.apply(q_BTHC, k_BSKC, v_BSKC, key_mask, row_start, slopes, options)


def _check_masks(name, shape, key_mask, row_start, slopes):
    B, T, length, H = shape
    for what, mask, dtype, want in (
        ("key_mask", key_mask, ms.int32, (B, length)),
        ("row_start", row_start, ms.int32, (B, T)),
        ("slopes", slopes, ms.float32, (H,)),
    ):
        if mask is not None:
            _check_dtype(f"{name}: {what}", dtype, mask)
            _check(mask.shape == want, name, f"expected {what} {want}", mask)


class _PackedAttention(_Function):
    @staticmethod
    def forward(ctx, qkv, heads, interleaved, key_mask, row_start, slopes, options):
        ctx.rest = (heads, interleaved, key_mask, row_start, slopes, options)
        out, logsumexp = _cpp.packed_attention(qkv, *ctx.rest)
        ctx.save_for_backward(qkv, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx, dout):
        qkv, out, logsumexp = ctx.saved_tensors
        dqkv = _cpp.packed_attention_grad(qkv, *ctx.rest, out, logsumexp, dout)
        return dqkv, None, None, None, None, None, None


def packed_attention(
    qkv_BTP, heads, interleaved, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
):
    """Returns attention of a packed projection: (B, T, 3 H C) -> (B, T, H C); ``stock.packed_attention`` has more."""
    _check_dtype("packed_attention", ms.float32, qkv_BTP)
    _check(
        qkv_BTP.ndim == 3 and qkv_BTP.shape[2] % (3 * heads) == 0,
        "packed_attention",
        f"expected (B, T, 3 H C) with H = {heads}",
        qkv_BTP,
    )
    B, T, _ = qkv_BTP.shape
    _check_masks("packed_attention", (B, T, T, heads), key_mask, row_start, slopes)
    seed, call = _next_mask("packed_attention", dropout)
    options = _cpp.AttentionOptions(scale, dropout, causal, T, seed, call)
    return _PackedAttention.apply(qkv_BTP, heads, interleaved, key_mask, row_start, slopes, options)


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


class _Decoder:
    """See stock.make_decoder. It keeps the parameters, not their numbers: weights that change are seen."""

    def __init__(self, blocks):
        self.layers = [_decoder_layer(block) for block in blocks]

    def takes(self, shape):
        return shape[0] * shape[1] <= _cpp.FEW_ROWS

    def __call__(self, x_BTD, keys, values, start, key_mask=None, rotary=None, slopes=None):
        B, T, _ = x_BTD.shape
        S = keys[0].shape[1]
        if start + T > S:
            raise ValueError(f"the cache holds {S} tokens, {start + T} were asked for")
        _check_dtype("decoder", ms.float32, x_BTD, keys[0], values[0])
        _check_masks("decoder", (B, T, start + T, 0 if slopes is None else slopes.shape[0]), key_mask, None, slopes)
        cos, sin = rotary or (None, None)
        return _cpp.decode(self.layers, x_BTD, keys, values, start, cos, sin, slopes, key_mask)


def _decoder_layer(block):
    def linear(cell):
        return None if cell is None else _cpp.Linear(cell.weight, cell.bias)

    def norm(cell):
        return _cpp.Norm(cell.weight, getattr(cell, "bias", None), cell.eps)

    return _cpp.DecoderLayer(
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


def path_names() -> list[str]:
    """Returns the sets of vector instructions that this build and this processor have, the fastest last."""
    return _cpp.path_names()


def path_in_use() -> str:
    """Returns the one in use."""
    return _cpp.path_in_use()


def use_path(name: str) -> None:
    """Switches to another one; UserError for an unknown name."""
    if not _cpp.use_path(name):
        raise UserError(
            f"unknown path {name!r}{nearest(name, path_names())}; this machine has {', '.join(path_names())}; "
            f"set MSLLM_PATH to one of them, or to nothing for the fastest"
        )


if os.environ.get("MSLLM_PATH"):
    use_path(os.environ["MSLLM_PATH"])
