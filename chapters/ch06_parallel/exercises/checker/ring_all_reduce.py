"""Checks ring_all_reduce.py against numpy's sum, and counts what members send; the variants are wrong on purpose."""

from collections.abc import Callable

import numpy as np

from msllm.lessons.checking import Task, Wrong, against


class Ring:
    """Delivers arrays from each member to the next one, and counts their bytes."""

    def __init__(self, size: int):
        self.size, self.sent, self.largest = size, [0] * size, 0
        self._coming: list[list[np.ndarray]] = [[] for _ in range(size)]

    def send(self, member: int, array: np.ndarray) -> None:
        array = np.array(array)  # what the sender does with it afterwards does not travel
        self.sent[member] += array.nbytes
        self.largest = max(self.largest, array.nbytes)
        self._coming[(member + 1) % self.size].append(array)

    def receive(self, member: int) -> np.ndarray:
        if not self._coming[member]:
            raise LookupError(
                f"member {member} receives, and member {(member - 1) % self.size} has sent nothing more; in a round "
                f"all send before the first one receives"
            )
        return self._coming[member].pop(0)

    @property
    def left(self) -> int:
        return sum(map(len, self._coming))


def cases():
    """Two, three and five members, and one, which has nobody to talk to."""
    rng = np.random.default_rng(0)
    return [
        ([rng.standard_normal(p * n).astype(np.float32) for _ in range(p)],)
        for p, n in ((2, 3), (3, 2), (5, 4), (1, 4))
    ]


def _sums(arrays):
    return np.sum(arrays, 0, dtype=np.float64).astype(np.float32)


def _pieces(arrays):
    return np.stack(np.split(_sums(arrays), len(arrays)))


def all_reduce(arrays):
    return np.stack([_sums(arrays)] * len(arrays))


def _gathered(pieces):
    return np.stack([np.concatenate(pieces)] * len(pieces))


def _ring(arrays, add: bool = True, rounds: int | None = None, own_twice: bool = False):
    """The rounds of reduce_scatter, with ways to get them wrong."""
    p = len(arrays)
    pieces = [np.split(a.astype(np.float64), p) for a in arrays]
    moving = [pieces[r][(r - 1) % p] for r in range(p)]
    for k in range(p - 1 if rounds is None else max(0, p - 1 + rounds)):
        came = [moving[(r - 1) % p] for r in range(p)]
        own = [pieces[r][(r - 2 - k) % p] for r in range(p)]
        moving = [c + o * (2 if own_twice else 1) if add else c for c, o in zip(came, own)]
    return np.stack(moving).astype(np.float32)


SCATTER_MISTAKES = [
    (
        "member r ends with piece r + 1; in the first round member r sends piece r - 1",
        lambda a: np.roll(_pieces(a), -1, 0),
    ),
    (
        "member r ends with piece r - 1; in the first round member r sends piece r - 1",
        lambda a: np.roll(_pieces(a), 1, 0),
    ),
    ("what comes is passed on as it is; each member adds its own piece", lambda a: _ring(a, add=False)),
    ("a round is missing: there are p - 1", lambda a: _ring(a, rounds=-1)),
    ("a member's own piece is added twice", lambda a: _ring(a, own_twice=True)),
    ("the mean; the sum is asked for", lambda a: _pieces(a) / len(a)),
]
GATHER_MISTAKES = [
    ("the pieces are in the wrong places: in round k member r receives piece r - 1 - k", lambda a: _turned(a, 1)),
    ("the pieces are in the wrong places: in round k member r receives piece r - 1 - k", lambda a: _turned(a, -1)),
    ("each member has its own piece first; the order is that of the pieces", lambda a: _own_first(a)),
    ("each member has its own piece first, then as they came; the order is that of the pieces", lambda a: _as_came(a)),
    ("a round is missing: there are p - 1", lambda a: _short(a)),
]
SUM_MISTAKES = [
    ("the mean; the sum is asked for", lambda a: all_reduce(a) / len(a)),
    ("the array of the first member, as a broadcast gives it", lambda a: np.stack([a[0]] * len(a))),
    ("the arrays as they were", lambda a: np.stack(a)),
]


def _turned(pieces, by):
    return np.stack([np.concatenate([pieces[(i + by) % len(pieces)] for i in range(len(pieces))])] * len(pieces))


def _own_first(pieces):
    p = len(pieces)
    return np.stack([np.concatenate([pieces[(r + i) % p] for i in range(p)]) for r in range(p)])


def _as_came(pieces):
    p = len(pieces)
    return np.stack([np.concatenate([pieces[(r - i) % p] for i in range(p)]) for r in range(p)])


def _short(pieces):
    p, rows = len(pieces), _gathered(pieces).reshape(len(pieces), len(pieces), -1)
    for r in range(p):
        rows[r, (r + 1) % p] = 0 if p > 1 else rows[r, 0]  # what comes in the last round
    return rows.reshape(p, -1)


def gather_cases():
    return [(list(_pieces(arrays)),) for (arrays,) in cases()]


def checked(reference: Callable, make: Callable, mistakes: list, rounds: int) -> Callable:
    """Returns a check of the values, then of what was sent: ``rounds`` times p - 1 pieces by every member."""

    def check(function: Callable) -> None:
        rings: list[Ring] = []

        def run(arrays):
            rings.append(Ring(len(arrays)))
            before = [a.copy() for a in arrays]
            out = function(arrays, rings[-1])
            if out is not None and any(not np.array_equal(a, b) for a, b in zip(arrays, before)):
                raise Wrong("the members' own arrays are changed; add into copies")
            if not isinstance(out, (list, tuple)) or len(out) != len(arrays):
                return out if out is None else np.asarray(out)
            shapes = {np.shape(one) for one in out}
            if len(shapes) > 1:
                raise Wrong(f"the members' arrays have different shapes: {', '.join(map(str, sorted(shapes)))}")
            return np.stack(out)

        against(reference, make, mistakes)(run)
        for (arrays,), ring in zip(make(), rings):
            piece = arrays[0].nbytes if reference is _gathered else arrays[0].nbytes // ring.size
            _check_traffic(ring, rounds * (ring.size - 1) * piece, piece)

    return check


def _check_traffic(ring: Ring, expected: int, piece: int) -> None:
    if ring.sent != [expected] * ring.size:
        member = next(i for i, sent in enumerate(ring.sent) if sent != expected)
        lines = [f"of {ring.size} members, member {member} sends {ring.sent[member]} bytes, right is {expected}"]
        if not any(ring.sent):
            lines.append("likely mistake: the ring is not used; a member knows its own array and what it has received")
        elif ring.largest > piece:
            lines.append(f"likely mistake: whole arrays are sent, not pieces: a message has {ring.largest} bytes")
        elif ring.sent[member] == expected + piece:
            lines.append("likely mistake: one round too many; there are p - 1")
        raise Wrong(*lines)
    if ring.left:
        raise Wrong(f"{ring.left} messages were sent and never received; each member receives what is sent to it")


TASKS = (
    Task("reduce_scatter", checked(_pieces, cases, SCATTER_MISTAKES, 1)),
    Task("all_gather", checked(_gathered, gather_cases, GATHER_MISTAKES, 1)),
    Task("all_reduce", checked(all_reduce, cases, SUM_MISTAKES, 2)),
)
