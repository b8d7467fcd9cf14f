"""Slices of a larger tensor give what copies of them give: projections hand out views."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from msllm import kernels

C = 6


def view_and_copy(seed, last=C):
    """A (2, 3, 4, last) slice from the middle of a larger tensor, and the same numbers on their own."""
    whole = Tensor(np.random.default_rng(seed).normal(size=(2, 3, 12, last)).astype(np.float32))
    view = ops.split(whole, 4, axis=2)[1]
    assert not view.is_contiguous()
    return view, Tensor(view.asnumpy())


def vector(seed, size=C):
    return Tensor(np.random.default_rng(seed).normal(size=size).astype(np.float32))


angles = Tensor(np.random.default_rng(7).normal(size=(1, 3, C // 2)).astype(np.float32))
CALLS = {
    "linear": lambda x, y: kernels.linear(x, Tensor(np.ones((5, C), np.float32)), vector(1, 5)),
    "gelu": lambda x, y: kernels.gelu(x, "tanh"),
    "swiglu": lambda x, y: kernels.swiglu(x, y),
    "linear_gelu": lambda x, y: kernels.linear_gelu(x, Tensor(np.ones((5, C), np.float32)), vector(1, 5)),
    "add_layer_norm": lambda x, y: ops.concat(kernels.add_layer_norm(x, y, vector(1), vector(2), 1e-5)),
    "add_rms_norm": lambda x, y: ops.concat(kernels.add_rms_norm(x, y, vector(1), 1e-5)),
    "packed_attention": lambda x, y: kernels.packed_attention(x[0], 2, False, 0.4),
    "layer_norm": lambda x, y: kernels.layer_norm(x, vector(1), vector(2), 1e-5),
    "rms_norm": lambda x, y: kernels.rms_norm(x, vector(1), 1e-5),
    "rotary": lambda x, y: kernels.rotary(x, ops.cos(angles), ops.sin(angles)),
    "attention": lambda x, y: kernels.attention(x, y, x, 0.4),
    "cross_entropy": lambda x, y: kernels.cross_entropy(x.reshape(24, C), Tensor(np.arange(24) % C, ms.int32)),
}


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_of_views_are_those_of_copies(name, table):
    (x, x_copy), (y, y_copy) = view_and_copy(0), view_and_copy(1)

    def run(x, y):
        out = CALLS[name](x, y)
        return (out * ops.arange(out.size).reshape(out.shape).astype(ms.float32)).sum()

    assert np.array_equal(CALLS[name](x, y).asnumpy(), CALLS[name](x_copy, y_copy).asnumpy())
    for mine, other in zip(ms.grad(run, (0, 1))(x, y), ms.grad(run, (0, 1))(x_copy, y_copy)):
        assert np.array_equal(mine.asnumpy(), other.asnumpy())


def test_a_gradient_that_arrives_as_a_view(table):
    """The transpose behind each function hands its gradient back as a view."""
    weight = Tensor(np.random.default_rng(3).normal(size=(2, 4, 3, C)).astype(np.float32))
    for name in ("gelu", "swiglu", "layer_norm", "rms_norm", "rotary", "attention"):
        x, y = view_and_copy(0)[1], view_and_copy(1)[1]
        turned = ms.grad(lambda x: (CALLS[name](x, y).transpose(0, 2, 1, 3) * weight).sum())(x)  # noqa: B023
        straight = ms.grad(lambda x: (CALLS[name](x, y) * weight.transpose(0, 2, 1, 3)).sum())(x)  # noqa: B023
        assert np.abs(turned.asnumpy() - straight.asnumpy()).max() <= 1e-6 * np.abs(straight.asnumpy()).max(), name


def test_the_cache_takes_views(table):
    view, copy = view_and_copy(0)
    cache = kernels.cache_write(ops.zeros((2, 5, 4, C)), view, 1).asnumpy()
    assert np.array_equal(cache[:, 1:4], copy.asnumpy()) and not cache[:, [0, 4]].any()
