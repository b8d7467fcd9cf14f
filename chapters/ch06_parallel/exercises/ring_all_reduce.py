"""The ring all-reduce in numpy: p members, each with an array, and all of them want the sum.

Each member sends to the next one only, and the last one to the first: ``ring.send(member, array)`` sends an array from
``member`` to the next, ``ring.receive(member)`` returns what the one before has sent, first come, first served. The
checker counts the bytes. A member knows its own array and what it has received, nothing else.

An array is cut into p equal pieces. Shapes: p members, N numbers, of which p is a divisor. Source: Patarasuk and Yuan
2009, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", section 3.
"""

import numpy as np


def reduce_scatter(arrays: list[np.ndarray], ring) -> list[np.ndarray]:
    """Leaves each member with one piece of the sum: member r with piece r.

    Args:
        arrays: p arrays float32 (N,), that of each member; they stay as they are.
        ring: see above.

    Returns:
        p arrays float32 (N / p,).

    Steps: p - 1 rounds. In round k = 0, 1, ... member r sends piece (r - 1 - k) mod p, in the first round as it has it,
    later what it has received in the round before with its own piece added. What it receives last, with its own added,
    is piece r. In a round, let all members send before the first one receives.
    """
    ...


def all_gather(pieces: list[np.ndarray], ring) -> list[np.ndarray]:
    """Gives every member all pieces, side by side.

    Args:
        pieces: p arrays float32 (N / p,): member r has piece r.
        ring: see above.

    Returns:
        p arrays float32 (N,), all the same.

    Steps: p - 1 rounds, in each of which a member passes on what it has received last, its own piece first. In round k
    member r receives piece (r - 1 - k) mod p.
    """
    ...


def all_reduce(arrays: list[np.ndarray], ring) -> list[np.ndarray]:
    """Gives every member the sum of all arrays; each member sends 2 (p - 1) / p of the bytes of its array.

    Args:
        arrays: p arrays float32 (N,); they stay as they are.
        ring: see above.

    Returns:
        p arrays float32 (N,), all the same.
    """
    ...
