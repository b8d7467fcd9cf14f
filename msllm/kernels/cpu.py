"""The kernels in C++ for the CPU: PyNative, float32. Sources in ``cpu/``, compiled by ``build``.

Every function is deterministic: its bits do not depend on the number of threads (MSLLM_THREADS; default: the cores
this process may use). Shapes as in ``stock``, whose docstrings hold here too.
"""

import contextlib
import os

import mindspore as ms
from mindspore.common._grad_function import _Function

from msllm.errors import UserError, nearest
from msllm.kernels.compiled import check, check_dtype, cpp, next_mask
from msllm.kernels.cpu_attention import attention, cache_write, make_decoder, packed_attention, rotary, rotary_angles
from msllm.kernels.stock import add, split_packed  # the same in every table

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
    "path_in_use",
    "path_names",
    "rms_norm",
    "rotary",
    "rotary_angles",
    "split_packed",
    "sum_squares",
    "swiglu",
    "tied",
    "use_path",
]


class _Tie:
    """Carries the head's gradient of a tied weight to the embedding's backward pass, which comes later.

    There the rows of the embedding are added to it; otherwise there would be two dense gradients, and their sum.
    """

    def __init__(self):
        self.embedded, self.grads = False, []


_ties: dict[int, _Tie] = {}  # by the weight's id, while ``tied`` is open


@contextlib.contextmanager
def tied(weight):
    """While open, an embedding of ids by ``weight`` and a later linear map by it belong to one forward pass.

    The linear map's input must depend on that embedding, as the gradient of ``weight`` is finished there.
    """
    outer = _ties.get(id(weight))
    _ties[id(weight)] = _Tie()
    try:
        yield
    finally:
        if outer is None:
            del _ties[id(weight)]
        else:
            _ties[id(weight)] = outer


class _Linear(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, tie):
        ctx.save_for_backward(x, weight)
        ctx.tie = tie
        return cpp.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        dweight = cpp.linear_grad_weight(dy, x) if need_weight else None
        if need_weight and ctx.tie is not None:
            ctx.tie.grads.append(dweight)
            dweight = None
        dx = cpp.linear_grad_input(dy, weight) if need_x else None
        return dx, dweight, cpp.column_sum(dy) if need_bias else None, None


def linear(x, weight, bias=None):
    """Returns x @ weight.T + bias: x (..., I), weight (O, I), bias (O,) or None -> (..., O)."""
    _check_linear("linear", x, weight, *(() if bias is None else (bias,)))
    tie = _ties.get(id(weight))
    return _Linear.apply(x, weight, bias, tie if tie and tie.embedded else None)


def _check_linear(name, x, weight, *bias):
    check_dtype(name, ms.float32, x, weight, *bias)
    fits = weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    check(fits, name, "expected x (..., I) and weight (O, I)", x, weight)
    check(all(b.shape == weight.shape[:1] for b in bias), name, "expected bias (O,) and weight (O, I)", *bias, weight)


class _LinearGelu(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, tanh_form):
        y, product = cpp.linear_gelu(x, weight, bias, tanh_form)
        ctx.save_for_backward(x, weight, bias, product)
        ctx.tanh_form = tanh_form
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, product = ctx.saved_tensors
        dproduct, dbias = cpp.bias_gelu_grad(product, bias, dy, ctx.tanh_form)
        need = ctx.needs_input_grad
        return (
            cpp.linear_grad_input(dproduct, weight) if need[0] else None,
            cpp.linear_grad_weight(dproduct, x) if need[1] else None,
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
        return cpp.embedding(list(ids), list(weights))

    @staticmethod
    def backward(ctx, dy):
        ids, need = ctx.saved_tensors, ctx.needs_input_grad[2 + len(ctx.rows) :]
        grads = [_embedding_grad(*each, dy) if wanted else None for *each, wanted in zip(ids, ctx.rows, ctx.ties, need)]
        return (None, None, *(None for _ in ids), *grads)


def _embedding_grad(ids, rows, tie, dy):
    if tie is None or not tie.grads:
        return cpp.embedding_grad(ids, dy, rows)
    total = tie.grads.pop()
    while tie.grads:  # the head was used more than once
        total = total + tie.grads.pop()
    cpp.embedding_grad_add(ids, dy, total)
    return total


def embedding(ids, weight):
    """Returns rows of weight: ids int32 (...), weight (V, D) -> (..., D); ids outside [0, V) raise."""
    return embedding_sum((ids,), (weight,))


def embedding_sum(ids, weights):
    """Returns the sum of rows of several tables: ids int32 (...), weights (V_i, D) -> (..., D).

    The first ids give the shape; the others may have 1 where it has B, and then serve every batch row.
    """
    check_dtype("embedding", ms.int32, *ids)
    check_dtype("embedding", ms.float32, *weights)
    fits = all(w.ndim == 2 and w.shape[1] == weights[0].shape[1] for w in weights)
    check(fits, "embedding", "expected weights (V, D) of one D", *weights)
    fits = all(i.shape == ids[0].shape or i.shape == (1, *ids[0].shape[1:]) for i in ids)
    check(fits, "embedding", "expected ids of one shape, or with 1 in place of B", *ids)
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
        return cpp.gelu(x, tanh_form)

    @staticmethod
    def backward(ctx, dy):
        return cpp.gelu_grad(ctx.saved_tensors[0], dy, ctx.tanh_form), None


def gelu(x, approximate="none"):
    """Returns GELU of x: "none" uses erf, "tanh" its tanh approximation."""
    check_dtype("gelu", ms.float32, x)
    return _Gelu.apply(x, _is_tanh("gelu", approximate))


def _is_tanh(name, approximate):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{name}: approximate must be 'none' or 'tanh', got {approximate!r}")
    return approximate == "tanh"


class _Swiglu(_Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return cpp.swiglu(gate, up)

    @staticmethod
    def backward(ctx, dy):
        return tuple(cpp.swiglu_grad(*ctx.saved_tensors, dy))


def swiglu(gate, up):
    """Returns silu(gate) * up for two tensors of one shape."""
    check_dtype("swiglu", ms.float32, gate, up)
    check(gate.shape == up.shape, "swiglu", "expected two equal shapes", gate, up)
    return _Swiglu.apply(gate, up)


class _LayerNorm(_Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, mean, scale = cpp.layer_norm(x, None, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*cpp.layer_norm_grad(*ctx.saved_tensors, None, dy), None)


class _AddLayerNorm(_Function):
    @staticmethod
    def forward(ctx, x, add, weight, bias, eps):
        total, y, mean, scale = cpp.add_layer_norm(x, add, weight, bias, eps)
        ctx.save_for_backward(total, weight, mean, scale)
        return total, y

    @staticmethod
    def backward(ctx, dtotal, dy):
        dx, dweight, dbias = cpp.layer_norm_grad(*ctx.saved_tensors, dtotal, dy)
        return dx, dx, dweight, dbias, None


def layer_norm(x, weight, bias, eps):
    """Returns LayerNorm over the last axis: x (..., D), weight (D,), bias (D,)."""
    _check_norm("layer_norm", x, weight, bias)
    return _LayerNorm.apply(x, weight, bias, eps)


def add_layer_norm(x, add, weight, bias, eps):
    """Returns x + add and its LayerNorm over the last axis: x and add (..., D), weight (D,), bias (D,)."""
    _check_norm("add_layer_norm", x, weight, bias)
    check(add.shape == x.shape, "add_layer_norm", "expected two equal shapes", x, add)
    return _AddLayerNorm.apply(x, add, weight, bias, eps)


class _RmsNorm(_Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = cpp.rms_norm(x, None, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*cpp.rms_norm_grad(*ctx.saved_tensors, None, dy), None)


class _AddRmsNorm(_Function):
    @staticmethod
    def forward(ctx, x, add, weight, eps):
        total, y, scale = cpp.add_rms_norm(x, add, weight, eps)
        ctx.save_for_backward(total, weight, scale)
        return total, y

    @staticmethod
    def backward(ctx, dtotal, dy):
        dx, dweight = cpp.rms_norm_grad(*ctx.saved_tensors, dtotal, dy)
        return dx, dx, dweight, None


def rms_norm(x, weight, eps):
    """Returns x / rms(x) * weight over the last axis: x (..., D), weight (D,)."""
    _check_norm("rms_norm", x, weight)
    return _RmsNorm.apply(x, weight, eps)


def add_rms_norm(x, add, weight, eps):
    """Returns x + add and its RMSNorm over the last axis: x and add (..., D), weight (D,)."""
    _check_norm("add_rms_norm", x, weight)
    check(add.shape == x.shape, "add_rms_norm", "expected two equal shapes", x, add)
    return _AddRmsNorm.apply(x, add, weight, eps)


def _check_norm(name, x, *parameters):
    check_dtype(name, ms.float32, x, *parameters)
    fits = all(p.shape == x.shape[-1:] for p in parameters)
    check(fits, name, "expected x (..., D), weight and bias (D,)", x, *parameters)


class _CrossEntropy(_Function):
    @staticmethod
    def forward(ctx, logits, labels, ignore_index, smoothing):
        loss, logsumexp = cpp.cross_entropy(logits, labels, ignore_index, smoothing)
        ctx.save_for_backward(logits, labels, logsumexp)
        ctx.options = (ignore_index, smoothing)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        return cpp.cross_entropy_grad(*ctx.saved_tensors, dloss, *ctx.options), None, None, None


def cross_entropy(logits_NV, labels_N, ignore_index=-100, smoothing=0.0):
    """Returns -log softmax(logits)[label] per row, (N,); ``stock.cross_entropy`` has the details."""
    check_dtype("cross_entropy", ms.float32, logits_NV)
    check_dtype("cross_entropy", ms.int32, labels_N)
    check(
        logits_NV.ndim == 2 and labels_N.shape == logits_NV.shape[:1],
        "cross_entropy",
        "expected logits (N, V) and labels (N,)",
        logits_NV,
        labels_N,
    )
    return _CrossEntropy.apply(logits_NV, labels_N, ignore_index, smoothing)


class _Dropout(_Function):
    @staticmethod
    def forward(ctx, x, seed, call, p):
        ctx.mask = (seed, call, p)
        return cpp.dropout(x, *ctx.mask)

    @staticmethod
    def backward(ctx, dy):
        return cpp.dropout(dy, *ctx.mask), None, None, None


def dropout(x, p):
    """Returns x with each element zeroed with probability p, the rest scaled by 1 / (1 - p)."""
    check_dtype("dropout", ms.float32, x)
    seed, call = next_mask("dropout", p)
    return x if p == 0.0 else _Dropout.apply(x, seed, call, p)


def adamw(params, grads, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """Updates params, exp_avg and exp_avg_sq in place by one step of AdamW, all tensors in one call."""
    lists = [list(params), list(grads), list(exp_avg), list(exp_avg_sq), [float(x) for x in weight_decay]]
    if len({len(x) for x in lists}) != 1:
        raise ValueError(f"adamw: lists of different lengths {[len(x) for x in lists]}")
    for tensors in zip(*lists[:4]):
        check_dtype("adamw", ms.float32, *tensors)
        check(all(t.shape == tensors[0].shape for t in tensors), "adamw", "expected four equal shapes", *tensors)
    cpp.adamw(*lists, float(lr), beta1, beta2, eps, int(step), float(grad_scale))


def sum_squares(tensors):
    """Returns the sum of the squares of all elements as a float, added up in float64 in a fixed order."""
    tensors = list(tensors)
    check_dtype("sum_squares", ms.float32, *tensors)
    return float(cpp.sum_squares(tensors).asnumpy()[0])


def path_names() -> list[str]:
    """Returns the sets of vector instructions that this build and this processor have, the fastest last."""
    return cpp.path_names()


def path_in_use() -> str:
    """Returns the one in use."""
    return cpp.path_in_use()


def use_path(name: str) -> None:
    """Switches to another one; UserError for an unknown name."""
    if not cpp.use_path(name):
        raise UserError(
            f"unknown path {name!r}{nearest(name, path_names())}; this machine has {', '.join(path_names())}; "
            f"set MSLLM_PATH to one of them, or to nothing for the fastest"
        )


if os.environ.get("MSLLM_PATH"):
    use_path(os.environ["MSLLM_PATH"])
