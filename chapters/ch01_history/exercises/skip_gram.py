"""The parts of skip-gram with negative sampling: which words to keep, which to draw as noise, the loss, its gradient.

Source: Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality", sections
2.2 and 2.3. Numpy only. Shapes: V words of the vocabulary, D width of a vector, K noise words.
"""

import numpy as np


def keep_probabilities(counts: np.ndarray, t: float) -> np.ndarray:
    """Computes with which probability an occurrence of each word stays in the text.

    P(w) = sqrt(t / f(w)), where f(w) is the word's share of all occurrences; at most 1.

    Args:
        counts: int (V,), how often the text holds each word.
        t: the frequency up to which a word always stays.

    Returns:
        float64 (V,).
    """
    ...


def noise_distribution(counts: np.ndarray) -> np.ndarray:
    """Computes with which probability each word is drawn as noise: in proportion to its count to the power 3/4.

    Args:
        counts: int (V,).

    Returns:
        float64 (V,), which sums to 1.
    """
    ...


def negative_sampling_loss(v: np.ndarray, u: np.ndarray) -> float:
    """Computes the loss of one pair of neighbours and its noise words.

    -ln s(u_0 . v) - sum over k = 1 to K of ln s(-u_k . v),  where s(x) = 1 / (1 + exp(-x))

    Args:
        v: float64 (D,), the vector of the word in the middle.
        u: float64 (1 + K, D), row 0 that of its neighbour, the other rows those of the noise words.

    Returns:
        float. It is finite also for products u . v of a few hundred.

    Hint: -ln s(x) = ln(1 + exp(-x)), which is np.logaddexp(0, -x).
    """
    ...


def gradient_of_v(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Computes the gradient of this loss with respect to v.

    The derivative of -ln s(x) is s(x) - 1, that of -ln s(-x) is s(x): each row of u counts by how wrong it is.

    Args:
        v, u: as above.

    Returns:
        float64 (D,).
    """
    ...
