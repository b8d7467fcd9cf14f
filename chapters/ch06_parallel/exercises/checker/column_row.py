"""Checks column_row.py against the slices that msllm.parallel.tensor takes; the variants are wrong on purpose."""

from collections.abc import Callable

import numpy as np

from msllm.lessons.checking import Task, Wrong, against


def column_cases():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 8)).astype(np.float32)
    bias = rng.standard_normal((12, 1)).astype(np.float32)
    return [
        (weight, 2, 0),
        (weight, 2, 1),
        (weight, 4, 2),
        (bias, 4, 1),
        (weight, 2, 1, 3),
        (weight, 4, 3, 3),
        (weight, 1, 0),
    ]


def row_cases():
    weight = np.random.default_rng(1).standard_normal((8, 12)).astype(np.float32)
    return [(weight, 2, 0), (weight, 2, 1), (weight, 4, 2), (weight, 1, 0)]


def _member(size, index):
    from msllm.parallel.comm import Group, Traffic

    return Group("tensor", range(size), index, Traffic())


def _parameter(weight):
    from mindspore import Parameter, Tensor

    return Parameter(Tensor(weight), name="weight")


def cut_columns(weight, size, index, matrices=1):
    from msllm.parallel.tensor import column_slice

    return column_slice(_parameter(weight), _member(size, index), matrices).of(weight)


def cut_rows(weight, size, index):
    from msllm.parallel.tensor import row_slice

    return row_slice(_parameter(weight), _member(size, index)).of(weight)


def _columns(weight, size, index, matrices=1, axis=0, every=False, backwards=False):
    if every:
        return np.take(weight, range(index, weight.shape[axis], size), axis)
    return np.array_split(weight, size, axis)[size - 1 - index if backwards else index]


def _one_matrix(weight, size, index, matrices=1):
    rows = weight.shape[0] // matrices
    return weight[index % matrices * rows : (index % matrices + 1) * rows]


def _wrong(**how):
    return lambda *args: _columns(*args, **how)


OTHER_WAY = "the wrong axis: weights lie as (outputs, inputs)"
COLUMN_MISTAKES = [
    (
        "queries, keys and values are cut as one matrix: worker 0 has queries only; cut each of the matrices",
        lambda *args: _columns(*args),
    ),
    (f"{OTHER_WAY}; a column-parallel worker has some of the rows", _wrong(axis=1)),
    ("every N-th row; a worker's rows lie together", _wrong(every=True)),
    ("the workers are counted backwards", _wrong(backwards=True)),
    ("a worker gets one of the matrices; it has its part of each", _one_matrix),
]
ROW_MISTAKES = [
    (f"{OTHER_WAY}; a row-parallel worker has some of the columns", _wrong()),
    ("every N-th column; a worker's columns lie together", _wrong(axis=1, every=True)),
    ("the workers are counted backwards", _wrong(axis=1, backwards=True)),
]


def mlp_cases():
    rng = np.random.default_rng(2)
    M, D, F = 5, 8, 12
    shapes = ((M, D), (F, D), (F,), (D, F), (D,))
    return [(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes), size) for size in (1, 2, 4)]


def mlp(x, w1, b1, w2, b2, size):
    from mindspore import Tensor

    from msllm import kernels

    x, w1, b1, w2, b2 = map(Tensor, (x, w1, b1, w2, b2))
    return kernels.linear(kernels.linear_gelu(x, w1, b1, "tanh"), w2, b2).asnumpy()


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _mlp(x, w1, b1, w2, b2, size, first=1.0, last=1.0, active=True, total=None):
    """The layer, with ways to get it wrong; ``total`` takes the workers' outputs in place of their sum."""
    parts = zip(np.split(w1, size), np.split(b1, size), np.split(w2, size, 1))
    outs = [(_gelu(x @ w.T + first * b) if active else x @ w.T + first * b) @ v.T for w, b, v in parts]
    return ((sum(outs) if total is None else total(outs)) + last * b2).astype(np.float32)


def _wrong_mlp(**how):
    return lambda *args: _mlp(*args, **how)


MLP_MISTAKES = [
    (
        "every worker adds b2, so that the sum has it N times; add it once, after the sum",
        lambda *a: _mlp(*a, last=a[-1]),
    ),
    ("b2 is missing", _wrong_mlp(last=0.0)),
    ("b1 is missing", _wrong_mlp(first=0.0)),
    ("gelu is missing", _wrong_mlp(active=False)),
    (
        "the mean of the workers' outputs; each has a part of the sum",
        _wrong_mlp(total=lambda outs: sum(outs) / len(outs)),
    ),
    ("the output of the first worker only", _wrong_mlp(total=lambda outs: outs[0])),
]


def check_mlp(function: Callable) -> None:
    """The values, then the messages: one, of a tensor (M, D) from each worker."""
    calls: list[list] = []

    def run(x, w1, b1, w2, b2, size):
        calls.append([])

        def all_reduce(parts):
            if not isinstance(parts, (list, tuple)) or len(parts) != size:
                found = f"{len(parts)} of them" if isinstance(parts, (list, tuple)) else type(parts).__name__
                raise ValueError(f"all_reduce takes a list of {size} arrays, one from each worker, not {found}")
            calls[-1].append(parts[0].shape)
            return np.sum(parts, 0, dtype=np.float32)

        return function(x, w1, b1, w2, b2, size, all_reduce)

    against(mlp, mlp_cases, MLP_MISTAKES)(run)
    for (x, *_, size), shapes in zip(mlp_cases(), calls):
        if shapes == [x.shape]:
            continue
        lines = [
            f"with {size} workers all_reduce is called {len(shapes)} times, with {shapes}; right is once, {x.shape}"
        ]
        if len(shapes) > 1:
            lines.append(
                "likely mistake: a sum between the matrices too; GELU acts on each of F alone, so none is needed"
            )
        elif not shapes:
            lines.append("likely mistake: the whole matrices are used; a worker has its part of them only")
        else:
            lines.append("likely mistake: what is summed is (M, D), after the second matrix; there F is summed over")
        raise Wrong(*lines)


TASKS = (
    Task("cut_columns", against(cut_columns, column_cases, COLUMN_MISTAKES)),
    Task("cut_rows", against(cut_rows, row_cases, ROW_MISTAKES)),
    Task("mlp", check_mlp),
)
