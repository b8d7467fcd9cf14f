"""What does not fit into memory, in files: mapped to memory, read ahead of its use and written back behind it.

The states of Adam are two numbers a parameter, of which an optimiser step needs a few at a time (Rajbhandari et al.
2021, "ZeRO-Infinity", section 5). Pages of a mapped file are the system's to take away: a process needs room for what
it works on, and for what is next.
"""

import dataclasses
import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mindspore import Tensor

from msllm import kernels
from msllm.errors import UserError
from msllm.parallel.comm import buckets_of
from msllm.training.optimizer import Optimizer

_ALIGNED = 64  # bytes, a line of the cache


class MappedArrays(Sequence):
    """Arrays of float32 zeros in a file without a name, which is gone with the process, however that ends.

    Args:
        folder: on whose disk the file is.
        shapes: of the arrays.

    Raises:
        UserError: the disk has not as much space.
    """

    def __init__(self, folder: str | Path, shapes: Sequence[tuple[int, ...]]):
        sizes = [-(-4 * int(np.prod(shape)) // _ALIGNED) * _ALIGNED for shape in shapes]
        size = max(sum(sizes), mmap.PAGESIZE)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file, size, folder)
            self._map = mmap.mmap(file.fileno(), size)
        self._ends = np.cumsum([0, *sizes]).tolist()
        self._arrays = [
            np.frombuffer(self._map, np.float32, int(np.prod(shape)), start).reshape(shape)
            for shape, start in zip(shapes, self._ends)
        ]

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, i) -> np.ndarray:
        return self._arrays[i]

    def forget(self, first: int = 0, last: int = -1) -> None:
        """Takes the pages of arrays ``first`` to ``last`` out of this process' memory: they are the file's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self._ends[first] // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, self._ends[last % len(self) + 1] - start)


@dataclasses.dataclass(frozen=True)
class Home:
    """Where a parameter and its gradient are while they are not in memory: the numbers of two arrays of a file."""

    file: MappedArrays
    place: int
    gradient_place: int

    @property
    def values(self) -> np.ndarray:
        return self.file[self.place]

    @property
    def gradient(self) -> np.ndarray:
        return self.file[self.gradient_place]

    def forget(self) -> None:
        """See MappedArrays."""
        for place in (self.place, self.gradient_place):
            self.file.forget(place, place)


class MappedTensors(Sequence):
    """MappedArrays as the moments of an Optimizer: tensors that share the memory; to set one writes it."""

    def __init__(self, arrays: MappedArrays):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> Tensor:
        return Tensor.from_numpy(self.arrays[i])

    def __setitem__(self, i: int, value: Tensor) -> None:
        self.arrays[i][...] = value.asnumpy()


class MappedAdamW(Optimizer):
    """AdamW whose moments are in files; a parameter with an attribute ``home``, a Home, is there with its gradient.

    While a bucket of parameters is updated, another thread reads what the next one needs, and writes back what the last
    one has changed: three buckets are in memory at most. The numbers are those of AdamW, bit for bit.

    Args:
        folder: on whose disk the files are.
        parameters, betas, epsilon, weight_decay: see Optimizer.
    """

    def __init__(self, folder: str | Path, parameters, betas, epsilon: float, weight_decay: float):
        self._folder = folder
        super().__init__(parameters, betas, epsilon, weight_decay)
        places = {id(p): i for i, p in enumerate(self.parameters)}
        self._buckets = [[places[id(p)] for p in bucket] for bucket in buckets_of(self.parameters)]
        self._thread = ThreadPoolExecutor(1, "mapped-states")

    def zeros(self):
        """See Optimizer."""
        return MappedTensors(MappedArrays(self._folder, [p.shape for p in self.parameters]))

    def update(self, grads, learning_rate, grad_scale):
        """See Optimizer."""
        needed = [self._needed(bucket) for bucket in self._buckets]
        written: list[Future] = []
        for k, (arrays, bucket) in enumerate(zip(self._ahead(needed), self._buckets, strict=True)):
            tensors = [Tensor.from_numpy(array) for array in arrays]
            changed = self._update(bucket, tensors, grads, learning_rate, grad_scale)
            written.append(self._thread.submit(self._write, bucket, [t.asnumpy() for t in changed], needed[k]))
        for future in written:
            future.result()

    def _ahead(self, needed: list[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Yields copies of arrays, while the next ones are being read."""
        future = self._thread.submit(_copies, needed[0])
        for following in [*needed[1:], None]:
            arrays = future.result()
            if following is not None:
                future = self._thread.submit(_copies, following)
            yield arrays

    def _homes(self, bucket: list[int]) -> dict[int, Home]:
        found = {i: getattr(self.parameters[i], "home", None) for i in bucket}
        return {i: home for i, home in found.items() if home is not None}

    def _needed(self, bucket: list[int]) -> list[np.ndarray]:
        """The arrays in files that a bucket needs: both moments, then values, then gradients of what has a home."""
        moments = [moments.arrays[i] for moments in (self.exp_avg, self.exp_avg_sq) for i in bucket]
        homes = self._homes(bucket).values()
        return [*moments, *(home.values for home in homes), *(home.gradient for home in homes)]

    def _update(self, bucket: list[int], tensors: list[Tensor], grads, learning_rate, grad_scale) -> list[Tensor]:
        """Changes copies of what is needed, and the parameters that have no home; returns the former."""
        homes, count = list(self._homes(bucket)), len(bucket)
        first, second, rest = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        values, gradients = dict(zip(homes, rest[: len(homes)])), dict(zip(homes, rest[len(homes) :]))
        targets = [values.get(i, self.parameters[i]) for i in bucket]
        grads = [gradients.get(i, grads[i]) for i in bucket]
        decay = [self.decay[i] for i in bucket]
        options = (learning_rate, *self.betas, self.epsilon, decay, self.step_count, grad_scale)
        kernels.adamw(targets, grads, first, second, *options)
        return [*first, *second, *values.values()]

    def _write(self, bucket: list[int], sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> None:
        for source, target in zip(sources, targets):  # the last targets, gradients, have not changed
            np.copyto(target, source)
        for moments in (self.exp_avg, self.exp_avg_sq):
            moments.arrays.forget(bucket[0], bucket[-1])
        for home in self._homes(bucket).values():
            home.forget()


def _reserve(file, size: int, folder: str | Path) -> None:
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk shows now, rather than as a signal at some later write
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{folder} has {shutil.disk_usage(folder).free / 2**30:.1f} GiB free, and a file of states takes "
            f"{size / 2**30:.1f}; use --offload.folder on a larger disk"
        ) from None


def _copies(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array.copy() for array in arrays]
