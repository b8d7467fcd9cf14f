"""The cells that own parameters: linear, embedding and the two norms; and dropout."""

import contextlib
import contextvars

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import Normal, initializer

from msllm import kernels

# Hugging Face's activation names -> the ``approximate`` of kernels.gelu.
GELU_KINDS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}


_without_values = contextvars.ContextVar("without_values", default=False)


def parameter(shape: tuple[int, ...], init="zeros") -> Parameter:
    """Returns a float32 Parameter of ``shape``; ``init`` is a standard deviation (normal), "zeros" or "ones"."""
    # What is empty takes no memory until it is written.
    new = Parameter(Tensor.from_numpy(np.empty(shape, np.float32)) if _without_values.get() else _initial(shape, init))
    new.init = init
    return new


def _initial(shape, init) -> Tensor:
    return initializer(Normal(init) if isinstance(init, float) else init, shape, ms.float32)


def drawn(shape: tuple[int, ...], init) -> np.ndarray:
    """Returns initial values, float32; ``init`` as for parameter."""
    return _initial(shape, init).init_data().asnumpy()


@contextlib.contextmanager
def no_initial_values():
    """While open, new parameters hold no values: those of a checkpoint follow, and drawing half a billion is slow."""
    token = _without_values.set(True)
    try:
        yield
    finally:
        _without_values.reset(token)


def initialise(of: Parameter) -> None:
    """Gives a parameter the initial values that it was made for."""
    of.set_data(_initial(of.shape, of.init).init_data())


class Linear(nn.Cell):
    """y = x W^T + b.

    Args:
        in_features, out_features: I and O; ``weight`` has shape (O, I), ``bias`` (O,).
        bias: whether there is a bias; it starts at zero.
        std: standard deviation of the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, std: float = 0.02):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = parameter((out_features, in_features), std)
        self.bias = parameter((out_features,)) if bias else None

    def construct(self, x):
        """x (..., I) -> (..., O)."""
        return kernels.linear(x, self.weight, self.bias)

    def gelu(self, x, kind: str):
        """x (..., I) -> GELU(y) (..., O); ``kind`` as for kernels.gelu."""
        if self.bias is None:
            return kernels.gelu(self.construct(x), kind)
        return kernels.linear_gelu(x, self.weight, self.bias, kind)


class Embedding(nn.Cell):
    """A table of ``vocab_size`` rows of width ``width``; ``weight`` has shape (V, D)."""

    def __init__(self, vocab_size: int, width: int, std: float = 0.02):
        super().__init__()
        self.weight = parameter((vocab_size, width), std)

    def construct(self, ids):
        """ids int32 (...) -> (..., D)."""
        return kernels.embedding(ids, self.weight)

    def logits(self, x):
        """x (..., D) -> (..., V), as a head that shares this table."""
        return kernels.linear(x, self.weight)


def sum_embeddings(ids, tables):
    """Returns the sum of the rows that two Embeddings, or cells in their place, give for their ids (B or 1, T)."""
    if kernels.active() == "cpu" and _are_plain(tables):
        return kernels.embedding_sum(ids, [table.weight for table in tables])
    return kernels.add(tables[0](ids[0]), tables[1](ids[1]))


def _are_plain(tables) -> bool:
    return all(type(table) is Embedding for table in tables)


class CrossEntropy(nn.Cell):
    """The loss of a head: -log softmax(logits)[label] per row."""

    def construct(self, logits_NV, labels_N, ignore_index=-100):
        """logits (N, V), labels int32 (N,) -> (N,), 0 where the label is ``ignore_index``."""
        return kernels.cross_entropy(logits_NV, labels_N, ignore_index)


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = parameter((width,), "ones"), parameter((width,)), eps

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x, y):
        """x and y (..., D) -> x + y, the residual stream, and its norm; y may be None."""
        if y is None:
            return x, self.construct(x)
        return kernels.add_layer_norm(x, y, self.weight, self.bias, self.eps)


class RMSNorm(nn.Cell):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = parameter((width,), "ones"), eps

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        return kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x, y):
        """x and y (..., D) -> x + y, the residual stream, and its norm; y may be None."""
        if y is None:
            return x, self.construct(x)
        return kernels.add_rms_norm(x, y, self.weight, self.eps)


class Dropout(nn.Cell):
    """Zeroes each element with probability ``p`` and scales the rest by 1/(1-p), in training mode only."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def construct(self, x):
        """x (...) -> (...)."""
        if self.training and self.p > 0:
            return kernels.dropout(x, self.p)
        return x
