"""The processes of a data-parallel run, as msrun starts them, and the sums that they share."""

import os

import numpy as np
from mindspore import Tensor, ops

from msllm import signals
from msllm.errors import UserError

# Gradients travel in buckets: one message a parameter costs more than the bytes, one for all needs them twice at once.
BUCKET_BYTES = 25 * 2**20


class Workers:
    """All processes of the run, seen from this one.

    Attributes:
        rank: this process, from 0.
        world: their number.
    """

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self._all_reduce = ops.AllReduce()

    def sum_tensors(self, tensors: list[Tensor]) -> list[Tensor]:
        """Returns the float32 tensors summed over all workers, which call this with the same shapes."""
        summed: list[Tensor] = []
        for bucket in _buckets(tensors):
            flat = self._reduce(ops.concat([t.reshape(-1) for t in bucket]))
            ends = np.cumsum([t.size for t in bucket]).tolist()
            summed += [flat[end - t.size : end].reshape(t.shape) for t, end in zip(bucket, ends, strict=True)]
        return summed

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Returns a few numbers (float64, any shape) summed over all workers, to the precision of two float32."""
        values = np.asarray(values, np.float64)
        high = values.astype(np.float32)
        both = np.stack([high, (values - high).astype(np.float32)])
        return self._reduce(Tensor(both)).asnumpy().astype(np.float64).sum(0)

    def barrier(self) -> None:
        """Waits until every worker is here."""
        self.sum_array(np.zeros(1))

    def any(self, flag: bool) -> bool:
        """Returns whether it is true for any worker."""
        return bool(self.sum_array(np.array([float(flag)]))[0])

    def _reduce(self, tensor: Tensor) -> Tensor:
        try:
            return self._all_reduce(tensor)
        except RuntimeError as e:  # MindSpore's own lines say neither what was sent nor by whom
            raise UserError(
                f"worker {self.rank} of {self.world}: all-reduce of {tensor.shape} failed: {str(e).splitlines()[0]}; "
                f"see the other workers' logs, then start again with --resume auto"
            ) from e


def start_workers() -> Workers | None:
    """Joins the other processes where msrun started this one; returns None where it did not.

    Raises:
        UserError: the others cannot be reached.
    """
    if "MS_ROLE" not in os.environ:
        return None
    from mindspore.communication import get_group_size, get_rank, init

    try:
        with signals.wait():
            init()  # msrun starts a scheduler with the same command: in it, this ends the process with the job
    except (RuntimeError, ValueError) as e:
        raise UserError(
            f"the other workers cannot be reached: {str(e).splitlines()[0]}; is msrun's port free, and do all "
            f"machines name the same master?"
        ) from None
    return Workers(get_rank(), get_group_size())


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if buckets[-1] and size + 4 * tensor.size > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += 4 * tensor.size
    return buckets
