"""From GPT-1 to GPT-2 in numpy: the norm moves to the front, one more comes at the end, and weights start smaller.

Shapes: T tokens, D width. Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
section 2.3; the block of GPT-1: Radford et al. 2018, section 3.1, which takes it from Vaswani et al. 2017.
"""

from collections.abc import Callable, Sequence

import numpy as np

Layer = Callable[[np.ndarray], np.ndarray]  # from (T, D) to (T, D)


def gpt1_block(x: np.ndarray, attention: Layer, norm_1: Layer, mlp: Layer, norm_2: Layer) -> np.ndarray:
    """A block of GPT-1, which is post-norm: each sum is normalised. Given, to start from."""
    x = norm_1(x + attention(x))
    return norm_2(x + mlp(x))


def gpt1_body(x: np.ndarray, blocks: Sequence[tuple[Layer, Layer, Layer, Layer]]) -> np.ndarray:
    """The blocks of GPT-1, one after the other. Given, to start from."""
    for block in blocks:
        x = gpt1_block(x, *block)
    return x


def gpt2_block(x: np.ndarray, attention: Layer, norm_1: Layer, mlp: Layer, norm_2: Layer) -> np.ndarray:
    """A block of GPT-2, which is pre-norm: what a layer reads is normalised, and what it finds is added to x as it is.

    Args:
        x: float32 (T, D), the residual stream.
        attention, norm_1, mlp, norm_2: functions from (T, D) to (T, D).

    Returns:
        float32 (T, D).

    Hint: no norm stands on the way from x to the result, so that a gradient reaches the first block undiminished.
    """
    ...


def gpt2_body(x: np.ndarray, blocks: Sequence[tuple[Layer, Layer, Layer, Layer]], final_norm: Layer) -> np.ndarray:
    """The blocks of GPT-2, and what comes after the last.

    Args:
        x: float32 (T, D), embeddings of tokens and positions.
        blocks: for each block (attention, norm_1, mlp, norm_2), as gpt2_block takes them.
        final_norm: as the norms of the blocks.

    Returns:
        float32 (T, D), what the head reads.
    """
    ...


def initial_std(name: str, n_layer: int) -> float:
    """The standard deviation with which a weight of GPT-2 is drawn at the start of training.

    It is 0.02, but for the weights that write into the residual stream: these start smaller by a factor of
    1 / sqrt(N), where N is the number of residual layers, of which each block has two.

    Args:
        name: of a weight: "wte.weight", "wpe.weight", or in block i "h.i.attn.c_attn.weight", "h.i.attn.c_proj.weight",
            "h.i.mlp.c_fc.weight" or "h.i.mlp.c_proj.weight".
        n_layer: blocks of the model.

    Hint: which of them make what is added to x, attention(...) and mlp(...)? The last matrix of each.
    """
    ...
