"""Matrix products on every path: few rows and many, on the library that MindSpore brings and without it."""

import numpy as np
import pytest
import torch
from mindspore import Tensor, ops

from msllm.kernels import compiled

# M, N, K that the tile unit takes: edges that fill no tile, one depth block and several, either operand the larger
TILED = [(270, 300, 231), (33, 2100, 260), (1030, 65, 257), (66, 130, 2100)]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 65])
@pytest.mark.parametrize("shape", [(5, 1), (1, 3), (64, 16), (100, 37), (129, 300)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_for_every_number_of_rows(path, rng, assert_same, rows, shape, biased):
    width, outputs = shape
    x, w, b = normal(rng, rows, width), normal(rng, outputs, width), normal(rng, outputs)
    want = x.astype(np.float64) @ w.T.astype(np.float64) + (b if biased else 0)
    assert_same(path.linear(Tensor(x), Tensor(w), Tensor(b) if biased else None).asnumpy(), want)


def test_a_row_has_the_same_bits_alone_and_among_few(path, rng):
    x, w = Tensor(normal(rng, 8, 100)), Tensor(normal(rng, 37, 100))
    together = path.linear(x, w).asnumpy()
    for rows in range(1, 8):
        np.testing.assert_array_equal(path.linear(x[:rows], w).asnumpy(), together[:rows])


@pytest.mark.parametrize("M, N, K", TILED)
def test_large_products_are_as_exact_as_torch(path, rng, M, N, K):
    x, w, dy = normal(rng, M, K) + 0.3, normal(rng, N, K), normal(rng, M, N)
    products = (  # each of the three that a linear layer needs: x w^T, dy w, dy^T x
        (compiled.cpp.linear(Tensor(x), Tensor(w), Tensor(np.zeros(N, np.float32))), x, w.T),
        (compiled.cpp.linear_grad_input(Tensor(dy), Tensor(w)), dy, w),
        (compiled.cpp.linear_grad_weight(Tensor(dy), Tensor(x)), dy.T, x),
    )
    for got, a, b in products:
        want = a.astype(np.float64) @ b.astype(np.float64)
        torch_error = np.abs((torch.tensor(a) @ torch.tensor(b)).numpy() - want).max()
        error = np.abs(got.asnumpy() - want).max()
        assert error <= 1e-6 * np.abs(want).max() and error <= 3 * torch_error


@pytest.mark.parametrize("M, N, K", TILED)
def test_large_products_take_the_bias_with_them(path, rng, assert_same, M, N, K):
    x, w, b = normal(rng, M, K), normal(rng, N, K), 50 * normal(rng, N)
    want = x.astype(np.float64) @ w.T.astype(np.float64) + b
    assert_same(path.linear(Tensor(x), Tensor(w), Tensor(b)).asnumpy(), want, 1e-6)


def test_nan_and_infinity_are_seen_in_large_products(path, rng):
    x, w = normal(rng, 300, 256), normal(rng, 300, 256)
    x[7, 200], x[290, 0] = np.nan, np.inf
    finite = np.isfinite(path.linear(Tensor(x), Tensor(w)).asnumpy()).all(1)
    assert np.flatnonzero(~finite).tolist() == [7, 290]


def test_numbers_of_any_size(path, rng, assert_same):
    x, w = normal(rng, 300, 256) * 10.0 ** rng.integers(-12, 12, (300, 1)), normal(rng, 300, 256) * 1e-6
    x = x.astype(np.float32)
    got, want = path.linear(Tensor(x), Tensor(w)).asnumpy(), x.astype(np.float64) @ w.T.astype(np.float64)
    for row in range(300):
        assert_same(got[row], want[row], 1e-6)


def test_the_kernels_multiply_by_themselves_where_the_library_is_missing(path, rng, assert_same):
    arrays = normal(rng, 30, 300), normal(rng, 70, 300), normal(rng, 30, 70)
    x, w, dy = map(Tensor, arrays)
    assert not compiled.cpp.load_gemm("/nowhere/libnothing.so")
    try:
        got = (
            compiled.cpp.linear(x, w, None),
            compiled.cpp.linear_grad_input(dy, w),
            compiled.cpp.linear_grad_weight(dy, x),
        )
        a, b, d = (array.astype(np.float64) for array in arrays)
        for result, want in zip(got, (a @ b.T, d @ b, d.T @ a), strict=True):
            assert_same(result.asnumpy(), want)
    finally:
        assert compiled.cpp.load_gemm(compiled.LIBRARY)


def test_products_without_rows_or_depth(path):
    assert path.linear(ops.zeros((0, 5)), ops.ones((3, 5))).shape == (0, 3)
    assert (compiled.cpp.linear_grad_weight(ops.zeros((0, 3)), ops.zeros((0, 5))).asnumpy() == np.zeros((3, 5))).all()
