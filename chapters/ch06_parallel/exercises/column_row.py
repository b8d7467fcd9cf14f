"""A feed-forward layer that workers share, in numpy: one matrix cut by columns, the next by rows, and a single sum.

Weights lie as in MindSpore and PyTorch, (outputs, inputs): y = x @ w.T + b. The "columns" of Megatron-LM's paper, where
y = x A, are therefore rows of w: a worker's outputs. Shapes: M tokens, D model width, F inner width, N workers; N is a
divisor of D and F. Source: Shoeybi et al. 2019, "Megatron-LM", section 3.
"""

import numpy as np


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU by way of tanh, as in GPT-2; it is given."""
    return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(np.float32)


def cut_columns(weight: np.ndarray, size: int, index: int, matrices: int = 1) -> np.ndarray:
    """Returns a worker's part of a column-parallel weight: some of the outputs, all of the inputs.

    Args:
        weight: float32 (O, I).
        size: N, the workers.
        index: of the worker, from 0; the first one has the first outputs.
        matrices: how many matrices lie in ``weight`` one upon the other, each of O / matrices rows: 3 where it gives
            queries, keys and values. Of each of them the worker has its part.

    Returns:
        float32 (O / N, I).
    """
    ...


def cut_rows(weight: np.ndarray, size: int, index: int) -> np.ndarray:
    """Returns a worker's part of a row-parallel weight: all of the outputs, some of the inputs.

    Args:
        weight: float32 (O, I).
        size, index: as above.

    Returns:
        float32 (O, I / N).
    """
    ...


def mlp(x, w1, b1, w2, b2, size: int, all_reduce) -> np.ndarray:
    """The feed-forward layer gelu(x @ w1.T + b1) @ w2.T + b2 by ``size`` workers; their one message is all_reduce.

    Args:
        x: float32 (M, D), which every worker has.
        w1, b1: float32 (F, D) and (F,), of which each worker uses its part only.
        w2, b2: float32 (D, F) and (D,); of w2 each worker uses its part only.
        size: N.
        all_reduce: takes a list of N arrays, one from each worker, and returns their sum; call it once.

    Returns:
        float32 (M, D).

    Hint: b1 is cut as w1 is; it is b1[:, None] with one column. Think about what is added once, and what N times.
    """
    ...
