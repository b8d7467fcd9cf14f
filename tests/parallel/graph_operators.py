"""MindSpore's operators in numpy, as the graphs of auto-parallel's training steps use them.

Each takes an operator's inputs, and is found by its name in OPERATORS. Results get the dtype that the graph says.
"""

import numpy as np


def _transposed(x, flag):
    return x.swapaxes(-1, -2) if flag else x


def _matmul(x, y, transpose_x, transpose_y):
    return _transposed(x, transpose_x) @ _transposed(y, transpose_y)


def _axes(axis):
    """MindSpore's empty tuple stands for all axes."""
    return axis if axis not in ((), "None") else None


def _reduce(function):
    return lambda x, axis, keep_dims, *skip: function(x, axis=_axes(axis), keepdims=keep_dims)


def _sum_ext(x, axis, keep_dims, dtype):
    return np.sum(x, axis=_axes(axis), keepdims=keep_dims)


def _softmax(x, axis):
    (axis,) = axis
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _softmax_backward(d_out, out, axis):
    return out * (d_out - (d_out * out).sum(axis, keepdims=True))


def _layer_norm(x, weight, bias, norm_axis, parameter_axis, epsilon):
    assert norm_axis == parameter_axis == -1
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + np.float32(epsilon)) * weight + bias, mean, variance


def _layer_norm_grad(x, d_out, variance, mean, weight, norm_axis, parameter_axis, *, epsilon):
    assert norm_axis == parameter_axis == -1
    root = 1 / np.sqrt(variance + np.float32(epsilon))
    normed, d = (x - mean) * root, d_out * weight
    dx = root * (d - d.mean(-1, keepdims=True) - normed * (d * normed).mean(-1, keepdims=True))
    rest = tuple(range(x.ndim - 1))
    return dx, (d_out * normed).sum(rest), d_out.sum(rest)


def _rms_norm(x, weight, epsilon):
    root = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon))
    return x * root * weight, root


def _rms_norm_grad(d_out, x, root, weight):
    normed, d = x * root, d_out * weight
    dx = root * (d - normed * (d * normed).mean(-1, keepdims=True))
    return dx, (d_out * normed).sum(tuple(range(x.ndim - 1)))


def _turned(x, cos, sin, mode):
    assert mode == 0  # pairs of halves
    low, high = np.split(x, 2, -1)
    return x * cos + np.concatenate((-high, low), -1) * sin


def _turned_grad(dy, cos, sin, x, mode):
    return _turned(dy, cos, -sin, mode), np.zeros_like(cos), np.zeros_like(sin)  # angles are no parameters


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu_grad(dy, x):
    return dy * _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))


def _gelu(x):
    return x * _sigmoid(_GELU * (x + 0.044715 * x**3))


def _gelu_grad(dy, x, y):
    s = _sigmoid(_GELU * (x + 0.044715 * x**3))
    return dy * (s + x * s * (1 - s) * _GELU * (1 + 3 * 0.044715 * x**2))


def _gather(table, ids, axis, batch_dims):
    assert axis == batch_dims == 0
    return table[ids]


def _segment_sum(x, ids, segments):
    total = np.zeros((segments, *x.shape[ids.ndim :]), x.dtype)
    np.add.at(total, ids, x)
    return total


def _one_hot(ids, depth, on, off, axis):
    assert axis == -1
    return np.where(ids[..., None] == np.arange(depth), on, off)


def _slices(begin, end, strides):
    return tuple(slice(*values) for values in zip(begin, end, strides, strict=True))


def _strided_slice(x, begin, end, strides, *masks):
    assert not any(masks)
    return x[_slices(begin, end, strides)]


def _strided_slice_grad(dy, shape, begin, end, strides, **masks):
    assert not any(value for name, value in masks.items() if name.endswith("_mask"))
    dx = np.zeros(shape, dy.dtype)
    dx[_slices(begin, end, strides)] = dy
    return dx


_GELU = np.float32(2 * np.sqrt(2 / np.pi))  # of its tanh form
_SAME = "Add Cos Equal Exp Log Minimum Reciprocal Sin Sqrt Square"
OPERATORS = {
    **{name: getattr(np, name.lower()) for name in _SAME.split()},
    **dict.fromkeys(("Div", "RealDiv"), np.true_divide),
    **dict.fromkeys(("Mul", "Muls"), np.multiply),
    **dict.fromkeys(("Pow", "PowTensorScalar"), np.power),
    **dict.fromkeys(("MatMul", "BatchMatMul"), _matmul),
    "AddN": sum,
    "Cast": lambda x, dtype: x,
    "Concat": np.concatenate,
    "ExpandDims": np.expand_dims,
    "FloorDiv": np.floor_divide,
    "Gather": _gather,
    "GeLU": _gelu,
    "GeLUGrad": _gelu_grad,
    "LayerNorm": _layer_norm,
    "LayerNormGrad": _layer_norm_grad,
    "Neg": np.negative,
    "NotEqual": np.not_equal,
    "OneHot": _one_hot,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "Reshape": np.reshape,
    "RmsNorm": _rms_norm,
    "RmsNormGrad": _rms_norm_grad,
    "RotaryPositionEmbedding": _turned,
    "RotaryPositionEmbeddingGrad": _turned_grad,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "RsqrtGrad": lambda y, dy: dy * y**3 / -2,
    "SiLU": lambda x: x * _sigmoid(x),
    "SiLUGrad": _silu_grad,
    "Sigmoid": _sigmoid,
    "SigmoidGrad": lambda y, dy: dy * y * (1 - y),
    "Softmax": _softmax,
    "SoftmaxBackward": _softmax_backward,
    "Split": lambda x, axis, pieces: tuple(np.split(x, pieces, axis)),
    "SplitWithSize": lambda x, sizes, axis: tuple(np.split(x, np.cumsum(sizes)[:-1], axis)),
    "StridedSlice": _strided_slice,
    "StridedSliceGrad": _strided_slice_grad,
    "Sub": np.subtract,
    "SumExt": _sum_ext,
    "TensorMove": np.copy,
    "Tile": np.tile,
    "Transpose": np.transpose,
    "UnsortedSegmentSum": _segment_sum,
}
"""Operators by name, that need nothing but their inputs."""

ATTRIBUTES = {"LayerNormGrad": ("epsilon",), "StridedSliceGrad": ("begin_mask", "end_mask", "shrink_axis_mask")}
"""Attributes that such an operator is given by name."""
