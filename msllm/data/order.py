"""Random orders that are a function of their seed alone."""

import numpy as np


def random_order(count: int, *seed: int) -> np.ndarray:
    """Returns a permutation of range(count), the same on every machine for the same seed (one or more numbers >= 0).

    It is the argsort of plain uniforms: NumPy may change the stream of Generator.permutation between versions.
    """
    return np.random.Generator(np.random.PCG64(seed)).random(count).argsort(kind="stable")
