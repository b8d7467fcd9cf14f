"""Sinusoidal positions in numpy: what tells a Transformer the order of its tokens.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
"""

import numpy as np


def positional_encoding(length: int, width: int) -> np.ndarray:
    """Computes the table that is added to the embeddings.

    PE[pos, 2i]     = sin(pos / 10000^(2i / D))
    PE[pos, 2i + 1] = cos(pos / 10000^(2i / D))

    Positions count from 0. Sine and cosine take turns along the width: columns 0, 1 are one pair, 2, 3 the next.

    Args:
        length: T, the number of positions.
        width: D, even.

    Returns:
        float32 (T, D).

    Hint: one angle (T, D/2) for each pair; then fill table[:, 0::2] and table[:, 1::2].
    """
    ...
