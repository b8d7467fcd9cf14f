"""Masked self-attention in numpy: who may see whom, and scaled dot products.

Shapes: B sentences, T tokens, C width of a head. One head is enough here: several are one more axis.
Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""

import numpy as np


def visible_keys(key_mask: np.ndarray) -> np.ndarray:
    """Says which tokens each token of a decoder may look at.

    Token t (the query) may look at token s (the key) where s is not later than t, and s is not padding.

    Args:
        key_mask: int32 (B, T), 1 for a token, 0 for padding, which may stand anywhere but first.

    Returns:
        bool (B, T, T): at [b, t, s], whether query t of sentence b sees key s.

    Hint: np.tril, or a comparison of np.arange(T)[:, None] with np.arange(T)[None, :]; then broadcasting with
    key_mask[:, None, :].
    """
    ...


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Computes softmax(q k^T / sqrt(C)) v, where a query gives no weight to a key that it does not see.

    Args:
        q, k, v: float32 (B, T, C).
        visible: bool (B, T, T), as visible_keys returns it; every query sees at least one key.

    Returns:
        float32 (B, T, C).

    Steps: the scores (B, T, T), as q @ k.swapaxes(1, 2); their scale; a score of minus infinity where a key is not
    visible; softmax over the keys, the last axis (take away each row's largest score first, or exp overflows);
    the weighted sum of v.
    """
    ...
