"""Layers whose matrices are shared by the workers of a tensor group; they take the place of a model's own.

Shapes: B batch, T tokens, D width, O outputs, V vocabulary; a worker's share of an axis is 1/N of it. With
``split_tokens``, what goes from block to block is shared along the tokens too.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common._grad_function import _Function

from msllm import kernels
from msllm.layers import Embedding, Linear
from msllm.parallel import functional
from msllm.parallel.comm import Group
from msllm.parallel.slices import Slice

TOKENS = 1  # the axis of (B, T, D) along which tokens are split


def cut(parameter: Parameter, piece: Slice) -> Parameter:
    """Returns a parameter of the same name with this worker's part of the values; ``slice`` says which part."""
    values = np.ascontiguousarray(piece.of(parameter.asnumpy()))
    new = Parameter(Tensor(values), name=parameter.name, requires_grad=parameter.requires_grad)
    new.slice = piece
    return new


def share(size: int, group: Group) -> tuple[int, int]:
    """Returns (start, stop) of a member's part of an axis; the first members have one more where it is uneven."""
    small, more = divmod(size, group.size)
    start = group.index * small + min(group.index, more)
    return start, start + small + (group.index < more)


def column_slice(parameter: Parameter, group: Group, matrices: int = 1) -> Slice:
    """Returns this member's rows of a weight (O, I) or bias (O,): its part of each of ``matrices`` that it holds."""
    rows = parameter.shape[0] // matrices
    start, stop = share(rows, group)
    ranges = tuple((i * rows + start, i * rows + stop) for i in range(matrices))
    return Slice(parameter.name, tuple(parameter.shape), 0, ranges)


def row_slice(parameter: Parameter, group: Group) -> Slice:
    """Returns this member's columns of a weight (O, I)."""
    return Slice(parameter.name, tuple(parameter.shape), 1, (share(parameter.shape[1], group),))


class Entry:
    """What all workers of a group need of a block's activations: all their tokens, and the sum of their gradients.

    Layers that take the same input share one: it crosses the wire once.

    Args:
        uses: how many layers share it.
    """

    def __init__(self, group: Group, split_tokens: bool, uses: int = 1):
        self.group, self.split_tokens, self.uses = group, split_tokens, uses
        self._seen = self._entered = None
        self._left = 0

    def __call__(self, x):
        if self._left == 0 or self._seen is not x:
            self._seen, self._left = x, self.uses
            entered = functional.gather(x, self.group, TOKENS) if self.split_tokens else functional.copy(x, self.group)
            self._entered = entered
        entered, self._left = self._entered, self._left - 1
        if self._left == 0:
            self._seen = self._entered = None
        return entered


class ColumnLinear(nn.Cell):
    """A Linear of which each worker has some of the outputs: (B, T, D) -> (B, T, O / N)."""

    def __init__(self, whole: Linear, entry: Entry, matrices: int = 1):
        super().__init__()
        self.entry, group = entry, entry.group
        self.weight = cut(whole.weight, column_slice(whole.weight, group, matrices))
        self.bias = None if whole.bias is None else cut(whole.bias, column_slice(whole.bias, group, matrices))

    def construct(self, x):
        return kernels.linear(self.entry(x), self.weight, self.bias)

    def gelu(self, x, kind: str):
        """GELU of the same."""
        if self.bias is None:
            return kernels.gelu(self.construct(x), kind)
        return kernels.linear_gelu(self.entry(x), self.weight, self.bias, kind)


class RowLinear(nn.Cell):
    """A Linear of which each worker takes some of the inputs: (B, T, I / N) -> (B, T, O), summed."""

    def __init__(self, whole: Linear, group: Group, split_tokens: bool = False):
        super().__init__()
        self.group, self.split_tokens = group, split_tokens
        self.weight = cut(whole.weight, row_slice(whole.weight, group))
        self.bias = whole.bias

    def construct(self, x):
        y = kernels.linear(x, self.weight, None)
        y = leave(y, self.group, self.split_tokens)
        return y if self.bias is None else y + self.bias


def leave(y, group: Group, split_tokens: bool):
    """The sum of the workers' y (B, T, D): all of it, or of this worker's tokens."""
    return functional.sum_scatter(y, group, TOKENS) if split_tokens else functional.sum_over(y, group)


class VocabularyEmbedding(nn.Cell):
    """A table of which each worker has some of the rows: (B, T) -> (B, T, D); also the head that is tied to it."""

    def __init__(self, whole: Embedding, group: Group, split_tokens: bool = False):
        super().__init__()
        self.group, self.split_tokens, self.entry = group, split_tokens, Entry(group, split_tokens)
        self.weight = cut(whole.weight, column_slice(whole.weight, group))
        self.range = share(whole.weight.shape[0], group)

    def construct(self, ids):
        start, stop = self.range
        ids = ids.asnumpy()
        here = (ids >= start) & (ids < stop)
        found = kernels.embedding(Tensor(np.where(here, ids - start, 0).astype(np.int32)), self.weight)
        found = found * Tensor(here[..., None].astype(np.float32))
        return leave(found, self.group, self.split_tokens)

    def logits(self, x):
        """Hidden states (B, T, D) to the logits (B, T, V / N) of this worker's tokens."""
        return kernels.linear(self.entry(x), self.weight)


class SplitTokens(nn.Cell):
    """A table that gives each worker the rows of its tokens: (B, T) -> (B, T / N, D)."""

    def __init__(self, whole: Embedding, group: Group):
        super().__init__()
        self.group, self.weight = group, whole.weight

    def construct(self, ids):
        start, stop = share(ids.shape[1], self.group)
        return kernels.embedding(Tensor(np.ascontiguousarray(ids.asnumpy()[:, start:stop])), self.weight)


class WholeTokens(nn.Cell):
    """Gives a layer all tokens, and each worker its own of what comes out; all workers compute the same."""

    def __init__(self, cell: nn.Cell, group: Group):
        super().__init__()
        self.cell, self.group = cell, group

    def construct(self, x, *rest):
        y = self.cell(functional.gather(x, self.group, TOKENS, summed=False), *rest)
        return functional.split(y, self.group, TOKENS)


class _LogSumExp(_Function):
    """log of the sum of exp(l_i) over the workers' l_i (N,), worked out on the host in float64."""

    @staticmethod
    def forward(ctx, local_N, group):
        parts = group.all_gather(ops.ExpandDims()(local_N, 0)).asnumpy().astype(np.float64)
        top = parts.max(0)
        total = top + np.log(np.exp(parts - top).sum(0))
        ctx.share = np.exp(parts[group.index] - total).astype(np.float32)
        return Tensor(total.astype(np.float32))

    @staticmethod
    def backward(ctx, dy_N):
        return dy_N * Tensor(ctx.share), None


class VocabularyCrossEntropy(nn.Cell):
    """Cross-entropy (N,) of logits (N, V / N) that the workers share: no worker ever holds all (section 3)."""

    def __init__(self, group: Group, vocab_size: int):
        super().__init__()
        self.group, self.range = group, share(vocab_size, group)

    def construct(self, logits_NV, labels_N, ignore_index=-100):
        labels, (start, stop) = labels_N.asnumpy(), self.range
        here, valid = (labels >= start) & (labels < stop), labels != ignore_index
        column = np.where(here, labels - start, 0).astype(np.int32)
        N, V = logits_NV.shape
        places = Tensor(np.arange(N, dtype=np.int32) * V + column)
        at_column = kernels.embedding(places, logits_NV.reshape(-1, 1)).reshape(-1)
        local = kernels.cross_entropy(logits_NV, Tensor(column)) + at_column
        # A row's label is with one worker; the others add nothing.
        label = functional.sum_over(at_column * Tensor(here.astype(np.float32)), self.group)
        return (_LogSumExp.apply(local, self.group) - label) * Tensor(valid.astype(np.float32))
