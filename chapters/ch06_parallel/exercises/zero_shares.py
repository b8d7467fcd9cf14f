"""ZeRO in numpy: which part of the parameters a worker owns, and the whole put together again.

All parameters are read row by row and put one after the other. The row is filled up with zeros until the N workers can
have equally long parts of it, and worker r owns the r-th part: the optimiser's moments of these numbers are with it
alone. Source: Rajbhandari et al. 2020, "ZeRO", section 5.
"""

import numpy as np


def owned_range(numbers: int, workers: int, rank: int) -> tuple[int, int]:
    """Finds the part of the row that a worker owns.

    Args:
        numbers: of all parameters together.
        workers: N.
        rank: of the worker, from 0.

    Returns:
        (start, stop) in the row without what fills it up: stop is at most ``numbers``; start and stop are both
        ``numbers`` for a worker that owns nothing but zeros.
    """
    ...


def owned_parts(sizes: list[int], workers: int, rank: int) -> list[tuple[int, int, int]]:
    """Finds what that is of each parameter.

    Args:
        sizes: how many numbers each parameter has.
        workers, rank: as above.

    Returns:
        (parameter, first, last) of each parameter of which the worker owns something, in their order: its place in
        ``sizes``, and the range [first, last) within it, read row by row.

    Hint: a parameter lies in the row from the sum of the sizes before it; what two ranges share starts at the larger
    start and stops at the smaller stop.
    """
    ...


def merge(shares: list[np.ndarray], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Puts the parameters together from what the workers own, as an all-gather does.

    Args:
        shares: N arrays float32, equally long, with what fills up the row.
        shapes: of the parameters.

    Returns:
        The parameters, float32, in these shapes.
    """
    ...
