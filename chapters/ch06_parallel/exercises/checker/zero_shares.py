"""Checks zero_shares.py against msllm.parallel.zero; the variants are wrong on purpose."""

from collections.abc import Callable

import numpy as np

from msllm.lessons.checking import Task, Wrong, against


def _shares(sizes, workers, rank):
    from mindspore import Parameter, Tensor

    from msllm.parallel.comm import Group, Traffic
    from msllm.parallel.zero import Shares

    parameters = [Parameter(Tensor(np.zeros(size, np.float32)), name=f"{i}") for i, size in enumerate(sizes)]
    return Shares(parameters, Group("data", range(workers), rank, Traffic()))


def range_cases():
    """Even and uneven rows, one worker, more workers than numbers."""
    cases = [(12, 4, rank) for rank in range(4)] + [(13, 4, rank) for rank in range(4)]
    return [*cases, (7, 1, 0), *((3, 5, rank) for rank in range(5)), *((9, 8, rank) for rank in (0, 4, 5, 7))]


def owned_range(numbers, workers, rank):
    owned = _shares([numbers], workers, rank).owned
    return owned[0].slice.flat if owned else (numbers, numbers)


def _range(numbers, workers, rank, up=True, most=True, extra_first=False):
    length = -(-numbers // workers) if up else numbers // workers
    if extra_first:
        start = rank * (numbers // workers) + min(rank, numbers % workers)
        return start, start + numbers // workers + (rank < numbers % workers)
    start, stop = rank * length, (rank + 1) * length
    return (min(start, numbers), min(stop, numbers)) if most else (start, stop)


def _wrong_range(**how):
    return lambda *args: _range(*args, **how)


RANGE_MISTAKES = [
    ("the length of a share is rounded down, so that the last numbers have no owner", _wrong_range(up=False)),
    ("the zeros that fill up the row are counted: stop is at most ``numbers``", _wrong_range(most=False)),
    (
        "the first workers have one number more; the shares are equally long, and the last is filled up",
        _wrong_range(extra_first=True),
    ),
    (
        "start is not limited: a worker that owns nothing has (numbers, numbers)",
        lambda n, w, r: (r * -(-n // w), min((r + 1) * -(-n // w), n)),
    ),
    ("(start, length); start and stop are asked for", lambda n, w, r: (_range(n, w, r)[0], -(-n // w))),
    ("ranks count from 0", lambda n, w, r: _range(n, w, r - 1)),
]


def part_cases():
    """A border inside a parameter, on its edge, a parameter over three workers, one without numbers."""
    rows = ([6, 4, 6], 2), ([4, 4, 4], 3), ([2, 9, 1, 3], 4), ([1, 1], 4), ([5], 2), ([3, 0, 4], 2)
    return [(sizes, workers, rank) for sizes, workers in rows for rank in range(workers)]


def owned_parts(sizes, workers, rank):
    return [(int(p.slice.name), *p.slice.flat) for p in _shares(sizes, workers, rank).owned]


def _parts(sizes, workers, rank, within=True, empty=False, row=None):
    start, stop = row or _range(sum(sizes), workers, rank)
    parts, offset = [], 0
    for i, size in enumerate(sizes):
        first, last = max(start, offset), min(stop, offset + size)
        if first < last or (empty and size == 0):
            parts.append((i, first - offset, last - offset) if within else (i, first, last))
        offset += size
    return parts


def _whole(sizes, workers, rank):
    """Parameters dealt out whole, each to the worker in whose part it starts."""
    start, stop = _range(sum(sizes), workers, rank)
    offsets = np.cumsum([0, *sizes])
    return [(i, 0, size) for i, size in enumerate(sizes) if start <= offsets[i] < stop]


PART_MISTAKES = [
    ("ranges in the row; within the parameter they start from 0", lambda *a: _parts(*a, within=False)),
    ("parameters are dealt out whole; a border may lie inside of one", _whole),
    ("(parameter, first, length); first and last are asked for", lambda *a: [(i, f, s - f) for i, f, s in _parts(*a)]),
    (
        "each parameter is divided among all workers; the row is, with all parameters in it",
        lambda sizes, w, r: [
            (i, *_range(n, w, r)) for i, n in enumerate(sizes) if _range(n, w, r)[0] < _range(n, w, r)[1]
        ],
    ),
    (
        "the zeros at the end of the row are given to the last parameter",
        lambda s, w, r: _parts([*s[:-1], 10**6], w, r, row=(r * -(-sum(s) // w), (r + 1) * -(-sum(s) // w))),
    ),
    ("a parameter of which the worker owns nothing is listed", lambda *a: _parts(*a, empty=True)),
]


def merge_cases():
    """Values that count up, so that each place is seen; a scalar parameter; a row that is filled up."""
    cases = []
    for shapes, workers in (([(2, 3), (4,), (2, 3)], 2), ([(3, 3), (2,)], 4), ([(5,), (), (2, 2)], 3), ([(4, 2)], 1)):
        total = sum(int(np.prod(shape)) for shape in shapes)
        row = np.zeros(-(-total // workers) * workers, np.float32)
        row[:total] = np.arange(1, total + 1)
        cases.append((np.split(row, workers), shapes))
    return cases


def merge(shares, shapes):
    from msllm.parallel.zero import pieces

    row = np.concatenate(shares)
    return np.concatenate([np.asarray(piece).reshape(-1) for piece in pieces(row, shapes)])


def _merge(shares, shapes, order="C", skip=0):
    row, parts, start = np.concatenate(shares), [], skip
    for shape in shapes:
        size = int(np.prod(shape))
        parts.append(np.resize(row[start : start + size], size).reshape(shape, order=order))
        start += size
    return np.concatenate([part.reshape(-1) for part in parts])


MERGE_MISTAKES = [
    ("read column by column; the parameters lie row by row", lambda *a: _merge(*a, order="F")),
    (
        "every parameter is taken from the start of the row; they lie one after the other",
        lambda s, shapes: np.concatenate([np.concatenate(s)[: int(np.prod(shape))] for shape in shapes]),
    ),
    ("the shares are in the wrong order: that of worker 0 comes first", lambda s, shapes: _merge(s[::-1], shapes)),
    (
        "the shares are taken in turn, number by number; they lie side by side",
        lambda s, x: _merge([np.stack(s, 1).ravel()], x),
    ),
]


def check_merge(function: Callable) -> None:
    def run(shares, shapes):
        out = function(shares, shapes)
        if not isinstance(out, (list, tuple)):
            return out
        got = [np.shape(part) for part in out]
        if got != shapes:
            raise Wrong(f"the parameters have the shapes {got}, right is {shapes}")
        return np.concatenate([np.asarray(part).reshape(-1) for part in out])

    against(merge, merge_cases, MERGE_MISTAKES)(run)


TASKS = (
    Task("owned_range", against(owned_range, range_cases, RANGE_MISTAKES)),
    Task("owned_parts", against(owned_parts, part_cases, PART_MISTAKES)),
    Task("merge", check_merge),
)
