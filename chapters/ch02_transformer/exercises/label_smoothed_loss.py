"""The loss of a translator in numpy: cross-entropy with label smoothing, shifted by one token, without padding.

Shapes: B sentences, T tokens, V words of the vocabulary. Source of the smoothing: Szegedy et al. 2016, "Rethinking the
Inception Architecture", section 7; of its use here: Vaswani et al. 2017, section 5.4.
"""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Computes the logarithm of softmax over the last axis.

    Args:
        logits: float32 (..., V); values of 1000 and more must not overflow.

    Returns:
        float32 (..., V).

    Hint: log(exp(x) / sum(exp(x))) = x - log(sum(exp(x))); and taking the same number away from all x of a row, such
    as their maximum, changes nothing but what exp has to bear.
    """
    ...


def label_smoothed_loss(logits: np.ndarray, ids: np.ndarray, smoothing: float, padding_id: int) -> float:
    """Computes the mean loss of a decoder that has read ``ids`` and predicts each next token.

    The logits at position t are for the token at t + 1; the last position predicts nothing. With smoothing e the
    target gives 1 - e to the right token, and e / V to each of the V words besides, the right one included:
    the loss of a token is (1 - e) * (-log p[right]) + e * mean over V of (-log p).

    Args:
        logits: float32 (B, T, V).
        ids: int32 (B, T), the target sentences from <s> on, padded on the right with ``padding_id``.
        smoothing: e, between 0 and 1.
        padding_id: the id of padding, which is not to be predicted.

    Returns:
        The mean over the tokens to predict, all sentences together, as one float.

    Hint: np.take_along_axis picks the right token's value.
    """
    ...
