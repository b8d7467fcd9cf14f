"""The library's layers with operators that say how they are cut, for MindSpore's auto-parallel.

Each cell has operators of its own: one that is used in two places would get one strategy for both. Shapes: B batch,
T tokens, N = B T, I inputs, O outputs, D width, V vocabulary.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from msllm import kernels
from msllm.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from msllm.parallel.auto.cuts import DATA, LOGITS, ROWS, STREAM, TENSOR, Cuts

WHOLE, COLUMNS, ROWS_OF_MATRIX = "whole", "columns", "rows"


class CutLinear(nn.Cell):
    """y = x W^T + b with the matrix cut by columns (some outputs each), by rows (some inputs each) or whole.

    Args:
        linear: what it stands for; its parameters are taken over.
        kind: WHOLE, COLUMNS or ROWS_OF_MATRIX.
    """

    def __init__(self, linear: Linear, kind: str, cuts: Cuts):
        super().__init__()
        self.weight, self.bias, self.dtype = linear.weight, linear.bias, cuts.dtype
        rows, columns = {WHOLE: (1, 1), COLUMNS: (TENSOR, 1), ROWS_OF_MATRIX: (1, TENSOR)}[kind]
        self.matmul = cuts(ops.MatMul(transpose_b=True), (DATA, columns), (rows, columns), product=True)
        self.add = cuts(ops.Add(), (DATA, rows), (rows,))
        self.cast, self.reshape = ops.Cast(), ops.Reshape()

    def construct(self, x):
        """x (B, T, I) -> (B, T, O)."""
        B, T, width = x.shape
        y = self.matmul(self.reshape(x, (B * T, width)), self.cast(self.weight, self.dtype))
        if self.bias is not None:
            y = self.add(y, self.cast(self.bias, self.dtype))
        return self.reshape(y, (B, T, -1))

    def gelu(self, x, kind: str):
        """x (B, T, I) -> GELU(y) (B, T, O)."""
        return kernels.gelu(self.construct(x), kind)


def by_heads(parameter: Parameter, heads: int) -> None:
    """Puts the rows of a projection to queries, keys and values, (3, H, C), into the order (H, 3, C), in place.

    MindSpore cuts an axis into blocks: one of (3, H, C) would be queries alone, one of (H, 3, C) is some heads. A
    parameter without values yet has no order.
    """
    if not parameter.has_init:
        parameter.set_data(Tensor(np.ascontiguousarray(reordered(parameter.asnumpy(), (3, heads)))))


def reordered(rows: np.ndarray, groups: tuple[int, int]) -> np.ndarray:
    """Returns rows (a, b, C) as rows (b, a, C): of (3, H) as (H, 3), and of (H, 3) as (3, H)."""
    a, b = groups
    return rows.reshape(a, b, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


class CutEmbedding(nn.Cell):
    """Rows of a table; the tensor-parallel workers share its rows where their number divides them.

    Args:
        embedding: what it stands for.
        head: whether the table is the head of the model too.
        positions: whether it is one of positions, which all examples share.
    """

    def __init__(self, embedding: Embedding, cuts: Cuts, head: bool = False, positions: bool = False):
        super().__init__()
        self.weight, self.dtype = embedding.weight, cuts.dtype
        rows = TENSOR if cuts.divides(self.weight.shape[0]) and not positions else 1
        self.gather = cuts(ops.Gather(), (rows, 1), (1 if positions else DATA, 1))
        self.cast = ops.Cast()
        self.out = TiedHead(self.weight, cuts) if head else None

    def construct(self, ids):
        """ids int32 (B, T) -> (B, T, D)."""
        return self.cast(self.gather(self.weight, ids, 0), self.dtype)

    def logits(self, x):
        """x (B, T, D) -> (B, T, V)."""
        return self.out(x)


class TiedHead(nn.Cell):
    """The product with the table of an embedding; a cell, so that it can be on another stage than the embedding."""

    def __init__(self, weight: Parameter, cuts: Cuts):
        super().__init__(auto_prefix=False)
        self.weight, self.dtype = weight, cuts.dtype
        rows = TENSOR if cuts.divides(weight.shape[0]) else 1
        self.matmul = cuts(ops.MatMul(transpose_b=True), ROWS, (rows, 1), product=True)
        self.cast, self.reshape = ops.Cast(), ops.Reshape()

    def construct(self, x):
        """x (B, T, D) -> (B, T, V)."""
        B, T, width = x.shape
        y = self.matmul(self.reshape(x, (B * T, width)), self.cast(self.weight, self.dtype))
        return self.reshape(y, (B, T, -1))


class CutRMSNorm(nn.Cell):
    """See msllm.layers.RMSNorm."""

    def __init__(self, norm: RMSNorm, cuts: Cuts):
        super().__init__()
        self.weight, self.eps, self.dtype, self.fused = norm.weight, norm.eps, cuts.dtype, cuts.fused
        self.norm = cuts(ops.RmsNorm(norm.eps), STREAM, (1,)) if cuts.fused else None
        self.sum = cuts(ops.Add(), STREAM, STREAM)
        self.square, self.mean = cuts(ops.Square(), STREAM), cuts(ops.ReduceMean(keep_dims=True), STREAM)
        self.plus, self.root = cuts(ops.Add(), STREAM, ()), cuts(ops.Rsqrt(), STREAM)
        self.divide, self.scale = cuts(ops.Mul(), STREAM, STREAM), cuts(ops.Mul(), STREAM, (1,))
        self.cast = ops.Cast()

    def construct(self, x):
        """x (B, T, D) -> (B, T, D)."""
        x = self.cast(x, ms.float32)
        if self.fused:
            return self.cast(self.norm(x, self.weight)[0], self.dtype)
        root = self.root(self.plus(self.mean(self.square(x), -1), self.eps))
        return self.cast(self.scale(self.divide(x, root), self.weight), self.dtype)

    def add(self, x, y):
        """x and y (B, T, D) -> x + y and its norm; y may be None."""
        total = x if y is None else self.sum(x, y)
        return total, self.construct(total)


class CutLayerNorm(nn.Cell):
    """See msllm.layers.LayerNorm."""

    def __init__(self, norm: LayerNorm, cuts: Cuts):
        super().__init__()
        self.weight, self.bias, self.dtype = norm.weight, norm.bias, cuts.dtype
        operator = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=norm.eps)
        self.norm, self.sum = cuts(operator, STREAM, (1,), (1,)), cuts(ops.Add(), STREAM, STREAM)
        self.cast = ops.Cast()

    def construct(self, x):
        """x (B, T, D) -> (B, T, D)."""
        return self.cast(self.norm(self.cast(x, ms.float32), self.weight, self.bias)[0], self.dtype)

    def add(self, x, y):
        """x and y (B, T, D) -> x + y and its norm; y may be None."""
        total = x if y is None else self.sum(x, y)
        return total, self.construct(total)


class CutDropout(nn.Cell):
    """See msllm.layers.Dropout; the masks are MindSpore's own."""

    def __init__(self, dropout: Dropout, cuts: Cuts):
        super().__init__()
        self.p = dropout.p
        self.drop = cuts(ops.Dropout(1.0 - dropout.p), STREAM)

    def construct(self, x):
        """x (B, T, D) -> (B, T, D)."""
        if self.training and self.p > 0:
            return self.drop(x)[0]
        return x


class StageEnd(nn.Cell):
    """The last block of a pipeline's stage, which adds up the residual stream: one tensor goes on, not two terms."""

    def __init__(self, block: nn.Cell, cuts: Cuts):
        super().__init__()
        self.block, self.sum = block, cuts(ops.Add(), STREAM, STREAM)

    def construct(self, x_BTD, update_BTD, *rest):
        """As the block; the second output is None."""
        x_BTD, update_BTD = self.block(x_BTD, update_BTD, *rest)
        return self.sum(x_BTD, update_BTD), None


class CutCrossEntropy(nn.Cell):
    """See msllm.layers.CrossEntropy; the workers of a tensor group share the vocabulary.

    Args:
        vocab_size: V.
    """

    def __init__(self, cuts: Cuts, vocab_size: int):
        super().__init__()
        logits = LOGITS if cuts.divides(vocab_size) else ROWS
        self.top, self.minus = cuts(ops.ReduceMax(keep_dims=True), logits), cuts(ops.Sub(), logits, ROWS)
        self.exp, self.sum = cuts(ops.Exp(), logits), cuts(ops.ReduceSum(keep_dims=True), logits)
        self.log, self.one_hot = cuts(ops.Log(), ROWS), cuts(ops.OneHot(), logits, (), ())
        self.pick, self.pick_sum = cuts(ops.Mul(), logits, logits), cuts(ops.ReduceSum(keep_dims=True), logits)
        self.difference, self.differs = cuts(ops.Sub(), ROWS, ROWS), cuts(ops.NotEqual(), (DATA,), ())
        self.hide = cuts(ops.Mul(), (DATA,), (DATA,))
        self.cast, self.reshape = ops.Cast(), ops.Reshape()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits_NV, labels_N, ignore_index=-100):
        """logits (N, V), labels int32 (N,) -> float32 (N,), 0 where the label is ``ignore_index``."""
        z = self.cast(logits_NV, ms.float32)
        z = self.minus(z, ops.stop_gradient(self.top(z, -1)))
        chosen = self.one_hot(labels_N, z.shape[-1], self.on, self.off)  # all zeros for a negative label
        loss = self.difference(self.log(self.sum(self.exp(z), -1)), self.pick_sum(self.pick(chosen, z), -1))
        kept = self.cast(self.differs(labels_N, ignore_index), ms.float32)
        return self.hide(self.reshape(loss, (-1,)), kept)
