"""What data-parallel workers share instead of holding it each (ZeRO; Rajbhandari et al. 2020).

Parameters are put one after the other, and each worker owns an equal part of the row: its optimiser knows that part
alone. Gradients are summed into the owner (reduce-scatter); new values go from the owner to all (all-gather).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, ops

from msllm.parallel.comm import Group, buckets_of
from msllm.parallel.slices import Slice


class Shares:
    """A few parameters, of which each member of a group owns an equal part.

    Args:
        parameters: whole, with the same values on all members.
        group: the members.

    Attributes:
        parameters: the whole ones.
        owned: this member's parts, 1-dimensional Parameters, each of one parameter; ``slice`` says of which part, and
            ``decayed`` whether it is of a matrix.
        apart: that the parts are other Parameters than the whole ones.
    """

    apart = True

    def __init__(self, parameters: Sequence[Parameter], group: Group):
        self.parameters, self.group = list(parameters), group
        self.shapes = [tuple(p.shape) for p in self.parameters]
        sizes = [p.size for p in self.parameters]
        self.length = -(-sum(sizes) // group.size)
        start, stop = group.index * self.length, (group.index + 1) * self.length
        self.owned: list[Parameter] = []
        offset = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            first, last = max(start - offset, 0), min(stop - offset, size)
            if first < last:
                self.owned.append(_part(parameter, first, last))
            offset += size

    def sum_to_owners(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Returns the summed gradients of ``owned``, from this member's gradients of all parameters."""
        flat = self.group.reduce_scatter(self._row(grads, self.length * self.group.size))
        return pieces(flat, [(p.size,) for p in self.owned])

    def whole(self) -> list[Tensor]:
        """Returns all parameters, put together from what the members own."""
        row = self.group.all_gather(self._row([p.value() for p in self.owned], self.length))
        return pieces(row, self.shapes)

    def fetch(self) -> None:
        """Gives the whole parameters their values."""
        for parameter, value in zip(self.parameters, self.whole(), strict=True):
            parameter.set_data(value.copy(), slice_shape=True)

    def let_go(self) -> None:
        """Frees the values of the whole parameters."""
        for parameter in self.parameters:
            parameter.set_data(Tensor(np.zeros(1, np.float32)), slice_shape=True)

    @staticmethod
    def _row(tensors: Sequence[Tensor], length: int) -> Tensor:
        parts = [t.reshape(-1) for t in tensors]
        lacking = length - sum(t.size for t in parts)
        if lacking:
            parts.append(Tensor(np.zeros(lacking, np.float32)))  # ops.zeros leaves a kilobyte behind for good
        return ops.concat(parts)


def shares_of(parameters: Sequence[Parameter], group: Group) -> list[Shares]:
    """Returns the Shares of any number of parameters, as many at once as a message should hold."""
    return [Shares(bucket, group) for bucket in buckets_of(parameters)]


def slice_of(parameter: Parameter) -> Slice:
    """Returns which part of the model's parameter a worker's parameter is."""
    return getattr(parameter, "slice", None) or Slice(parameter.name, tuple(parameter.shape))


def _part(parameter: Parameter, first: int, last: int) -> Parameter:
    values = np.ascontiguousarray(parameter.asnumpy().reshape(-1)[first:last])
    part = Parameter(Tensor(values), name=f"{parameter.name}[{first}:{last}]")
    part.slice = dataclasses.replace(slice_of(parameter), flat=(first, last))
    part.decayed = parameter.ndim > 1
    return part


def pieces(row: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Returns tensors of these shapes, which lie one after the other in ``row`` (1-dimensional)."""
    found, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        found.append(row[start : start + size].reshape(shape))
        start += size
    return found
