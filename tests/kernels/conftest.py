"""Fixtures of the kernel tests: the tables, and a comparison of values and gradients with PyTorch in float64."""

import contextlib

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops

from msllm import kernels
from msllm.kernels import cached

TOLERANCE = 1e-5  # of the largest value of each tensor
NOISE = 1e-7  # where the true value is zero everywhere: what is left when terms of order 1 cancel
PATHS = ("plain", "avx2", "avx512", "amx")


def has_cpp() -> bool:
    try:
        cached.check(cached.folder())
    except cached.NotBuilt:
        return False
    return True


@pytest.fixture(params=["stock", *PATHS])
def table(request):
    """The kernels package with one table in use, the C++ one on each of its paths."""
    before = kernels.active()
    if request.param == "stock":
        kernels.use("stock")
        yield kernels
    else:
        with on_path(request.param):
            yield kernels
    kernels.use(before)


@pytest.fixture(params=PATHS)
def path(request):
    """The C++ table on each of its paths."""
    with on_path(request.param) as cpu:
        yield cpu


@contextlib.contextmanager
def on_path(name):
    """The C++ table on one path; a skip where the build or this processor has no such path."""
    if not has_cpp():
        pytest.skip("the C++ kernels are not built here")
    from msllm.kernels import cpu

    if name not in cpu.path_names():
        pytest.skip(f"this processor has {', '.join(cpu.path_names())}, not {name}")
    active, before = kernels.active(), cpu.path_in_use()
    kernels.use("cpu")
    cpu.use_path(name)
    yield cpu
    cpu.use_path(before)
    kernels.use(active)


@pytest.fixture
def cpp():
    """The C++ table."""
    if not has_cpp():
        pytest.skip("the C++ kernels are not built here")
    from msllm.kernels import cpu

    return cpu


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def assert_same():
    return _assert_same


@pytest.fixture
def check():
    return _check


def _assert_same(got, want, tolerance=TOLERANCE, what="value"):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    limit = tolerance * np.abs(want).max(initial=0.0) if want.any() else NOISE
    worst = np.abs(got - want).max(initial=0.0)
    assert worst <= limit, f"{what}: off by {worst:.3g}, allowed {limit:.3g}"


def _check(function, reference, *arrays, tolerance=TOLERANCE):
    """Compares function(*tensors) and its gradients with reference(*float64 torch tensors)."""
    wants = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    want = reference(*wants)
    weight = np.random.default_rng(1).standard_normal(want.shape).astype(np.float32)
    (want * torch.tensor(weight, dtype=torch.float64)).sum().backward()
    tensors = [Tensor(a) for a in arrays]
    _assert_same(function(*tensors).asnumpy(), want.detach().numpy(), tolerance)

    def loss(*inputs):
        return ops.reduce_sum(function(*inputs) * Tensor(weight))

    grads = ms.grad(loss, tuple(range(len(tensors))))(*tensors)
    grads = grads if isinstance(grads, tuple) else (grads,)
    for i, (grad, reference_input) in enumerate(zip(grads, wants)):
        _assert_same(grad.asnumpy(), reference_input.grad.numpy(), tolerance, f"gradient {i}")
