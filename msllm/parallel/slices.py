"""Which part of a model's parameter a worker holds."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of one parameter.

    First, ranges of rows or columns are taken out and put together along ``axis``; then, where ``flat`` is set, a range
    of what that is when read row by row: the share of a worker that holds a part of the optimiser.

    Attributes:
        name: of the parameter in the whole model.
        shape: of the whole parameter.
        axis: along which ``ranges`` are taken.
        ranges: (start, stop) pairs in order; several where one matrix holds queries, keys and values.
        flat: (start, stop) in the flattened rest; None for all of it, in its shape.
    """

    name: str
    shape: tuple[int, ...]
    axis: int = 0
    ranges: tuple[tuple[int, int], ...] | None = None
    flat: tuple[int, int] | None = None

    @property
    def box(self) -> tuple[int, ...]:
        """The shape after ``ranges`` are taken."""
        if self.ranges is None:
            return self.shape
        size = sum(stop - start for start, stop in self.ranges)
        return (*self.shape[: self.axis], size, *self.shape[self.axis + 1 :])

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of what the worker holds."""
        return self.box if self.flat is None else (self.flat[1] - self.flat[0],)

    @property
    def size(self) -> int:
        return math.prod(self.local_shape)

    def of(self, whole: np.ndarray) -> np.ndarray:
        """Returns this part of the whole parameter."""
        part = whole
        if self.ranges is not None:
            pieces = [whole[(slice(None),) * self.axis + (slice(a, b),)] for a, b in self.ranges]
            part = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, self.axis)
        return part if self.flat is None else part.reshape(-1)[self.flat[0] : self.flat[1]]
