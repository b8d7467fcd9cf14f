"""Boxes of elements: ranges of indices along every axis, which parts of a parameter are taken apart into."""

import math
from collections.abc import Iterator

import numpy as np

from msllm.parallel.slices import Slice

Box = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def boxes_of(part: Slice) -> list[tuple[Box, int]]:
    """Takes a part into boxes of the whole parameter.

    Returns:
        (box, shift): along ``part.axis``, an index in the whole parameter is that in ``part.box`` plus shift.
    """
    start, stop = part.flat or (0, math.prod(part.box))
    found = []
    for box in _flat_boxes(part.box, start, stop):
        if part.ranges is None:
            found.append((box, 0))
            continue
        offset = 0
        for low, high in part.ranges:
            # where this range lies in part.box
            a, b = max(box[part.axis][0], offset), min(box[part.axis][1], offset + high - low)
            if a < b:
                piece = (*box[: part.axis], (a, b), *box[part.axis + 1 :])
                found.append((moved(piece, part.axis, low - offset), low - offset))
            offset += high - low
    return found


def _flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Yields the boxes that elements start to stop make, of an array read row by row: at most 2 ndim - 1."""
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
    if first == last:
        yield from (((first, first + 1), *rest) for rest in _flat_boxes(shape[1:], head, tail))
        return
    if head:
        yield from (((first, first + 1), *rest) for rest in _flat_boxes(shape[1:], head, row))
        first += 1
    if first < last:
        yield ((first, last), *((0, size) for size in shape[1:]))
    yield from (((last, last + 1), *rest) for rest in _flat_boxes(shape[1:], 0, tail))


def common(a: Box, b: Box) -> Box | None:
    """Returns the box of what lies in both, None where they do not overlap."""
    box = tuple((max(i, k), min(j, m)) for (i, j), (k, m) in zip(a, b))
    return box if all(start < stop for start, stop in box) else None


def without(box: Box, hole: Box) -> list[Box]:
    """Returns boxes that make ``box`` without ``hole``, which lies in it."""
    rest = []
    for axis, (start, stop) in enumerate(hole):
        sides = ((box[axis][0], start), (stop, box[axis][1]))
        rest += [(*box[:axis], side, *box[axis + 1 :]) for side in sides if side[0] < side[1]]
        box = (*box[:axis], (start, stop), *box[axis + 1 :])
    return rest


def moved(box: Box, axis: int, by: int) -> Box:
    """Returns the box ``by`` places further along an axis."""
    return tuple((a + by, b + by) if i == axis else (a, b) for i, (a, b) in enumerate(box))


def span(shape: tuple[int, ...], box: Box) -> tuple[int, int]:
    """Returns (start, stop) of the elements from the first to the last of a box, in an array read row by row."""
    strides = _strides(shape)
    first = sum(start * stride for (start, _), stride in zip(box, strides))
    return first, first + 1 + sum((stop - 1 - start) * stride for (start, stop), stride in zip(box, strides))


def view(flat: np.ndarray, shape: tuple[int, ...], box: Box, first: int) -> np.ndarray:
    """Returns a box of an array of ``shape``, of which ``flat`` holds the elements from ``first`` on, as a view."""
    sizes, width = [stop - start for start, stop in box], flat.itemsize
    offset = span(shape, box)[0] - first
    return np.ndarray(sizes, flat.dtype, flat, offset * width, [stride * width for stride in _strides(shape)])


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]
