"""One-hot vectors: a word as a vector of zeros and a single one. NumPy only."""

from collections.abc import Sequence

import numpy as np


def one_hot(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Returns float32 (N, V), row i with a 1 at ids[i]; IndexError for an id that is not below V.

    Times a matrix E of shape (V, D) it gives the rows E[ids]: an embedding is a linear map of one-hot vectors, and
    looking the rows up saves the V multiplications of which V - 1 are by zero.
    """
    vectors = np.zeros((len(ids), vocab_size), np.float32)
    vectors[np.arange(len(ids)), np.asarray(ids, np.int64)] = 1
    return vectors


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Returns the cosine of the angle between every two of N vectors, (N, N).

    Of one-hot vectors it is the identity: a word is like itself and like no other, whatever the words mean.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T
