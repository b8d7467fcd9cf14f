"""A bigram model by hand: Kneser-Ney with one discount, and the perplexity that judges it. Numpy only.

c(h w) counts how often w follows h, c(h) sums it over w, N1+(h *) is the number of different words after h, and
N1+(* w) the number of different words before w. Source: Kneser and Ney 1995, in the interpolated form of Chen and
Goodman 1999. Shapes: N words of text, V words of the vocabulary.
"""

import numpy as np


def continuation_distribution(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Computes how likely each word is after a context that was never seen.

    P(w) = N1+(* w) / sum over all w' of N1+(* w')

    What counts is not how often w stands in the text, but after how many different words.

    Args:
        ids: int (N,), the text; each is below ``vocab_size``.
        vocab_size: V.

    Returns:
        float64 (V,), which sums to 1.

    Hint: np.unique of the pairs (h, w), with axis=0, keeps each pair once; np.bincount counts their second words.
    """
    ...


def bigram_distribution(ids: np.ndarray, vocab_size: int, h: int, discount: float) -> np.ndarray:
    """Computes the distribution of the word after h.

    P(w | h) = max(c(h w) - D, 0) / c(h) + D N1+(h *) / c(h) P(w),  where P(w) is the continuation distribution.

    A word h that nothing follows in the text says nothing: then P(w | h) = P(w).

    Args:
        ids: int (N,), the text.
        vocab_size: V.
        h: the word before.
        discount: D, between 0 and 1.

    Returns:
        float64 (V,), which sums to 1.

    Hint: np.bincount(ids[1:][ids[:-1] == h], minlength=vocab_size) is c(h w) for all w.
    """
    ...


def perplexity(probabilities: np.ndarray) -> float:
    """Computes the perplexity of a text from the probability that a model gave each of its words.

    exp(-(1 / N) sum of ln p): 1 for a model that knew every word, V for one that chooses blindly.

    Args:
        probabilities: float64 (N,), each above 0; N may be large.

    Returns:
        float.
    """
    ...
