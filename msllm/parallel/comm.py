"""The processes of a run, as msrun starts them, and all that they send each other.

The backend of CPU workers lacks some collectives; here they are composed of what it has, so that the rest of the
library does not see a difference. Every call counts its bytes: ``traffic`` holds them.
"""

import dataclasses
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from msllm import signals
from msllm.errors import UserError
from msllm.layers import moe_layers
from msllm.parallel.launch import started_workers
from msllm.training.alone import Alone

# A collective of other shapes than the partner's may end in wrong numbers without a word: the first calls of a group
# compare what its members are about to do, and a run repeats the same calls.
CHECKED_CALLS = 200
_NAMES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
CONTROL = "control"  # a few numbers, such as counts of targets
# Gradients travel in buckets: one message a parameter costs more than the bytes, one for all needs them twice at once.
BUCKET_BYTES = 25 * 2**20


@dataclasses.dataclass
class Count:
    """What one kind of operation moved.

    Attributes:
        calls: how often it ran.
        payload: bytes of the tensors handed to it, on this worker.
        sent: bytes that this worker sent: exact for send and all-to-all, those of the ring algorithm for the others
            (Patarasuk and Yuan 2009): 2 (p-1)/p of the payload for all-reduce, (p-1)/p of the whole for reduce-scatter
            and all-gather.
    """

    calls: int = 0
    payload: int = 0
    sent: float = 0.0


class Traffic(dict):
    """(operation, group name) -> Count.

    Attributes:
        timer: of all calls, see Alone.watch.
    """

    timer: Callable | None = None

    def add(self, operation: str, group: str, payload: int, sent: float) -> None:
        """Counts one call."""
        count = self.setdefault((operation, group), Count())
        count.calls, count.payload, count.sent = count.calls + 1, count.payload + payload, count.sent + sent

    def sent(self, *groups: str) -> float:
        """Returns the bytes sent in the groups of these names, or in all, without those of a few numbers."""
        return sum(c.sent for (op, group), c in self.items() if op != CONTROL and (not groups or group in groups))


class Group:
    """Some of the workers, seen from one of them; with one member, every collective is the identity.

    Args:
        name: what the group shares, such as "tensor"; in errors and in ``traffic``.
        ranks: the members' numbers among all workers, in the group's order.
        rank: this process among all workers.
        traffic: where bytes are counted.

    Attributes:
        size: number of members.
        index: this process' place in ``ranks``.

    Collectives are called by all members with the same shapes. A failed one ends the job: what comes after it would be
    wrong without a word.
    """

    def __init__(self, name: str, ranks: Sequence[int], rank: int, traffic: Traffic):
        self.name, self.ranks, self.rank, self.traffic = name, tuple(ranks), rank, traffic
        self.size, self.index = len(self.ranks), self.ranks.index(rank)
        self._handle: str | None = None
        self._to_check = CHECKED_CALLS

    def open(self, world: int) -> "Group":
        """Makes the group known to the backend, where it has several members; all workers that are in it call this."""
        from mindspore.communication import GlobalComm, create_group

        if self.ranks == tuple(range(world)):
            self._handle = GlobalComm.WORLD_COMM_GROUP
        elif self.size > 1:
            self._handle = f"{self.name}-{'-'.join(map(str, self.ranks))}"
            self._run("group", (), lambda: create_group(self._handle, list(self.ranks)))
        return self

    def all_reduce(self, tensor: Tensor, op: str = "sum", counted_as: str = "all-reduce") -> Tensor:
        """Returns the elementwise "sum", "mean", "max" or "min" over the members."""
        if self.size == 1:
            return tensor
        self._count(counted_as, tensor, 2 * (self.size - 1) / self.size)
        self._compare("all-reduce", tensor.shape)
        if op in ("sum", "mean"):
            out = self._run("all-reduce", tensor.shape, lambda: ops.AllReduce(group=self._handle)(_dense(tensor)))
            return out / self.size if op == "mean" else out
        return self._run("all-reduce", tensor.shape, lambda: self._reduce_in_place(_dense(tensor).copy(), op))

    def _reduce_in_place(self, tensor: Tensor, op: str) -> Tensor:
        _distributed().all_reduce(tensor, op=op, group=self._handle)
        return tensor

    def all_gather(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Returns the members' tensors side by side along ``axis``."""
        if self.size == 1:
            return tensor
        self._count("all-gather", tensor, self.size - 1)
        self._compare("all-gather", tensor.shape)
        parts = [_buffer(tensor.shape, tensor.dtype) for _ in self.ranks]
        self._run(
            "all-gather",
            tensor.shape,
            lambda: _distributed().all_gather(parts, _dense(tensor), group=self._handle),
        )
        return ops.concat(parts, axis)

    def reduce_scatter(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Returns this member's share along ``axis`` of the sum over the members.

        Raises:
            ValueError: that axis cannot be divided among them.
        """
        if self.size == 1:
            return tensor
        if tensor.shape[axis] % self.size:
            raise ValueError(f"axis {axis} of {tensor.shape} cannot be divided among {self.size} workers")
        shares = [_dense(part) for part in ops.split(tensor, tensor.shape[axis] // self.size, axis)]
        self._count("reduce-scatter", tensor, (self.size - 1) / self.size)
        self._compare("reduce-scatter", tensor.shape)
        parts = self._exchange("reduce-scatter", shares, [share.shape for share in shares])
        total = parts[0]
        for part in parts[1:]:  # in the order of ranks, so that all workers round alike
            total = total + part
        return total

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]] | None = None) -> list[Tensor]:
        """Sends ``parts[i]`` to member i; returns what the members sent here, in their order.

        Args:
            parts: as many as members, of any shapes (empty ones too).
            shapes: of what comes from each; default those of ``parts``.
        """
        if self.size == 1:
            return list(parts)
        away = sum(_bytes(p) for i, p in enumerate(parts) if i != self.index)
        self.traffic.add("all-to-all", self.name, sum(map(_bytes, parts)), away)
        self._compare("all-to-all", ())
        return self._exchange("all-to-all", parts, shapes or [p.shape for p in parts])

    def _exchange(self, operation: str, parts, shapes) -> list[Tensor]:
        """Each sends to the next but k and receives from the last but k, for all k: no member is busy twice at once."""

        def run():
            received: list[Tensor] = [parts[self.index]] * self.size
            for k in range(1, self.size):
                to, source = (self.index + k) % self.size, (self.index - k) % self.size
                received[source] = self._swap(parts[to], to, shapes[source], source)
            return received

        return self._run(operation, tuple(p.shape for p in parts), run)

    def _swap(self, tensor: Tensor, to: int, shape: tuple[int, ...], source: int) -> Tensor:
        dist, handles = _distributed(), []
        out, tensor = _buffer(shape, tensor.dtype), _dense(tensor)  # which lives until it has left
        if tensor.size:
            handles.append(dist.isend(tensor, self.ranks[to]))
        if out.size:
            handles.append(dist.irecv(out, self.ranks[source]))
        for handle in handles:
            handle.wait()
        return out

    def shift(self, tensors: Sequence[Tensor], by: int = 1) -> list[Tensor]:
        """Sends tensors to the member ``by`` places on, in a ring; returns those of the member ``by`` places before."""
        if self.size == 1:
            return list(tensors)
        to, source = (self.index + by) % self.size, (self.index - by) % self.size
        self.traffic.add("send", self.name, sum(map(_bytes, tensors)), sum(map(_bytes, tensors)))
        return self._run(
            "send",
            tuple(t.shape for t in tensors),
            lambda: [self._swap(t, to, t.shape, source) for t in tensors],
        )

    def send(self, tensor: Tensor, to: int) -> None:
        """Sends a tensor to member ``to``, which receives it."""
        self._count("send", tensor, 1)
        way = f"{self.rank}>{self.ranks[to]}"
        self._run("send", tensor.shape, lambda: _distributed().send(_dense(tensor), self.ranks[to]), way)

    def send_soon(self, tensor: Tensor, to: int) -> Callable[[], None]:
        """Starts to send a tensor to member ``to``; returns what waits until it has left, to be called once."""
        self._count("send", tensor, 1)
        tensor, way = _dense(tensor), f"{self.rank}>{self.ranks[to]}"
        handle = self._run("send", tensor.shape, lambda: _distributed().isend(tensor, self.ranks[to]), way)
        return lambda: self._run("delivery", tensor.shape, handle.wait, way)  # which holds the tensor until then

    def receive(self, shape: tuple[int, ...], source: int, dtype=ms.float32) -> Tensor:
        """Returns what member ``source`` sends."""

        def run():
            out = _buffer(shape, dtype)
            _distributed().recv(out, self.ranks[source])
            return out

        return self._run("receive", shape, run, f"{self.ranks[source]}>{self.rank}")

    def sum_tensors(self, tensors: list[Tensor]) -> list[Tensor]:
        """Returns the float32 tensors summed over the members, in few messages."""
        if self.size == 1 or not tensors:
            return list(tensors)
        summed: list[Tensor] = []
        for bucket in buckets_of(tensors):
            flat = self.all_reduce(ops.concat([t.reshape(-1) for t in bucket]))
            ends = np.cumsum([t.size for t in bucket]).tolist()
            summed += [flat[end - t.size : end].reshape(t.shape) for t, end in zip(bucket, ends, strict=True)]
        return summed

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Returns a few numbers (float64, any shape) summed over the members, a little better than float32."""
        values = np.asarray(values, np.float64)
        high = values.astype(np.float32)
        both = np.stack([high, (values - high).astype(np.float32)])
        return self.all_reduce(Tensor(both), counted_as=CONTROL).asnumpy().astype(np.float64).sum(0)

    def objects(self, value) -> list:
        """Returns what every member gave, any Python values that pickle takes, in their order."""
        if self.size == 1:
            return [value]
        raw = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self.all_gather(Tensor(np.array([len(raw)], np.int32))).asnumpy()
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: len(raw)] = raw
        # As int32: the backend moves no bytes.
        rows = self.all_gather(Tensor(padded.astype(np.int32))).asnumpy().reshape(self.size, -1).astype(np.uint8)
        return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]

    def agree(self, settings: Mapping) -> None:
        """Raises UserError, on every member, where one has other settings than the first."""
        first, *others = self.objects(dict(settings))
        for rank, theirs in zip(self.ranks[1:], others):
            key = next((k for k in first if first[k] != theirs.get(k)), None)
            if key is not None:
                raise UserError(
                    f"worker {rank} has {key} = {theirs.get(key)}, worker {self.ranks[0]} {first[key]}; give all "
                    f"workers the same files and options"
                )

    def barrier(self) -> None:
        """Waits until every member is here."""
        self.sum_array(np.zeros(1))

    def any(self, flag: bool) -> bool:
        """Returns whether it is true for any member."""
        return bool(self.sum_array(np.array([float(flag)]))[0])

    def _compare(self, operation: str, shape: tuple[int, ...]) -> None:
        """Raises UserError where a member is about to do something else."""
        if self._to_check == 0:
            return
        self._to_check -= 1
        mine = np.zeros(8, np.int32)
        mine[: 2 + len(shape)] = (_NAMES.index(operation), len(shape), *shape)
        parts = [_buffer((8,), ms.int32) for _ in self.ranks]
        self._run(operation, shape, lambda: _distributed().all_gather(parts, Tensor(mine), group=self._handle))
        for rank, part in zip(self.ranks, parts):
            theirs = part.asnumpy()
            if not np.array_equal(theirs, mine):
                raise UserError(
                    f"collective {operation} of {tuple(shape)} on worker {self.rank} meets {_NAMES[theirs[0]]} of "
                    f"{tuple(theirs[2 : 2 + theirs[1]].tolist())} on worker {rank} in group {self.name} of ranks "
                    f"{list(self.ranks)}: they train with other data or options; give all workers the same"
                )

    def _count(self, operation: str, tensor: Tensor, share: float) -> None:
        self.traffic.add(operation, self.name, _bytes(tensor), share * _bytes(tensor))

    def _run(self, operation: str, shapes, action, channel: str | None = None):
        timer = self.traffic.timer
        try:
            return action() if timer is None else timer(operation, self.name, channel or f"{self.ranks}", action)
        except RuntimeError as e:  # MindSpore's own lines say neither what was sent nor by whom
            raise UserError(
                f"collective {operation} of {shapes} failed on worker {self.rank} in group {self.name} of ranks "
                f"{list(self.ranks)}: {str(e).strip().splitlines()[0]}; see the other workers' logs, then start again "
                f"with --resume auto"
            ) from e


class Workers(Group, Alone):
    """All processes of the run; where they train, each has the whole model and its own examples.

    Attributes:
        rank: this process, from 0.
        world: their number.
    """

    def __init__(self, rank: int, world: int):
        super().__init__("world", range(world), rank, Traffic())
        self.world = self.data_world = world
        self.data_rank = self.random_offset = rank
        self.open(world)

    def prepare(self, model, objective, jit):
        """See Alone; experts are balanced over the tokens of all workers."""
        from msllm.parallel.experts import GlobalShares

        for layer in moe_layers(model):
            layer.shares = GlobalShares(self)
        return super().prepare(model, objective, jit)

    def forward_backward(self, batches, scale):
        """See Alone; summed over the workers."""
        terms, grads = super().forward_backward(batches, scale)
        return self.sum_array(terms), self.sum_tensors(grads)

    def sum_terms(self, terms):
        """See Alone."""
        return self.sum_array(terms)

    def watch(self, timer):
        """See Alone."""
        self.traffic.timer = timer


def start_workers() -> Workers | None:
    """Joins the other processes where msrun, or a rank table, started this one; returns None where none did.

    Raises:
        UserError: the others cannot be reached.
    """
    if started_workers() is None:
        return None
    from mindspore.communication import GlobalComm, get_group_size, get_rank, init

    try:
        with signals.wait():
            init()  # msrun starts a scheduler with the same command: in it, this ends the process with the job
    except (RuntimeError, ValueError) as e:
        raise UserError(
            f"the other workers cannot be reached: {str(e).splitlines()[0]}; is msrun's port free, do all machines "
            f"name the same master, and has a job of a rank table Ascend cards?"
        ) from None
    if ms.get_context("device_target") == "CPU":
        # Sending to one worker looks for Ascend's group otherwise.
        _module().get_cache_group_rank.__defaults__ = (GlobalComm.WORLD_COMM_GROUP,)
        ms.runtime.launch_blocking()  # else the error of a collective comes up in some later call
    print(f"worker {get_rank()} of {get_group_size()} joined", file=sys.stderr, flush=True)
    return Workers(get_rank(), get_group_size())


def _distributed():
    import mindspore.mint.distributed as distributed

    return distributed


def _module():
    import mindspore.mint.distributed  # noqa: F401

    return sys.modules["mindspore.mint.distributed.distributed"]


def _buffer(shape: Sequence[int], dtype) -> Tensor:
    """Room for what comes; a call of ops.zeros leaves a kilobyte behind for good."""
    return mint.empty(tuple(shape), dtype=dtype)


def _dense(tensor: Tensor) -> Tensor:
    """A view's pointer is that of what it looks at; a Parameter is sent by value."""
    return tensor.contiguous() if not isinstance(tensor, ms.Parameter) else tensor.value().contiguous()


def _bytes(tensor: Tensor) -> int:
    return tensor.size * tensor.itemsize


def buckets_of(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Puts float32 tensors into lists of at most BUCKET_BYTES, or of one larger tensor."""
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if buckets[-1] and size + 4 * tensor.size > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += 4 * tensor.size
    return [bucket for bucket in buckets if bucket]
