"""Matrix products: few rows and many, on the library that MindSpore brings and without it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 65])
@pytest.mark.parametrize("shape", [(5, 1), (1, 3), (64, 16), (100, 37), (129, 300)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_for_every_number_of_rows(cpp, rng, assert_same, rows, shape, biased):
    width, outputs = shape
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((rows, width), (outputs, width), (outputs,)))
    want = x.astype(np.float64) @ w.T.astype(np.float64) + (b if biased else 0)
    assert_same(cpp.linear(Tensor(x), Tensor(w), Tensor(b) if biased else None).asnumpy(), want)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_of_transposes(cpp, rng, assert_same, transpose_a, transpose_b):
    a = rng.normal(size=(11, 37) if not transpose_a else (37, 11)).astype(np.float32)
    b = rng.normal(size=(37, 20) if not transpose_b else (20, 37)).astype(np.float32)
    want = (a.T if transpose_a else a).astype(np.float64) @ (b.T if transpose_b else b).astype(np.float64)
    assert_same(cpp._matmul(Tensor(a), Tensor(b), transpose_a, transpose_b).asnumpy(), want)


def test_mindspores_matmul_serves_where_the_library_is_missing(cpp, rng, assert_same, monkeypatch):
    x, w, b = (Tensor(rng.normal(size=s).astype(np.float32)) for s in ((9, 6), (4, 6), (4,)))

    def run(x, w, b):
        return (cpp.linear(x, w, b) ** 2).sum()

    mine = ms.value_and_grad(run, (0, 1, 2))(x, w, b)
    monkeypatch.setattr(cpp, "_GEMM", False)
    other = ms.value_and_grad(run, (0, 1, 2))(x, w, b)
    for a, c in zip((mine[0], *mine[1]), (other[0], *other[1]), strict=True):
        assert_same(a.asnumpy(), c.asnumpy())


def test_a_library_without_the_product_is_said_to_be_missing(cpp):
    assert not cpp._cpp.load_gemm("/nowhere/libnothing.so")
    assert cpp._cpp.load_gemm(cpp._LIBRARY) == cpp._GEMM
