"""How many bytes a worker of a layout needs, and for what.

Of explicit mode the memory is that of MindSpore's pool at its fullest, tensor by tensor (``pool`` measures it, and a
test compares). A step has a few moments that can be the fullest: the loss, where all activations live; the first block
of the backward pass that is run last, where all gradients do; and the sums of gradients. Of auto mode, which compiles
for Ascend cards, the same pieces are added up, in bfloat16: an estimate that nothing here has measured.
"""

import dataclasses
import functools
import itertools

from msllm.parallel.config import ParallelConfig
from msllm.parallel.planner.blocks import Pieces
from msllm.parallel.planner.sizes import BFLOAT16, FLOAT32, Held, ModelSizes, Numbers, padded
from msllm.parallel.schedule import FORWARD, order

MOMENTS = 2  # of AdamW, each as large as the parameters


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a worker holds when it holds most, in bytes.

    Attributes:
        moment: when that is.
        parameters, moments: between steps too.
        gradients: of this micro-batch and those before it.
        activations: what the backward pass needs, and what it works with.
        buffers: of collectives and messages.
    """

    moment: str
    parameters: int
    moments: int
    gradients: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.moments + self.gradients + self.activations + self.buffers


@dataclasses.dataclass(frozen=True)
class Fullest:
    """A moment of a pass: bytes of gradients that it has made so far, and of all else that it needs."""

    moment: str
    gradients: int
    activations: int


def numbers_of(parallel: ParallelConfig) -> Numbers:
    """Returns how many bytes a number has in the mode of a layout."""
    return FLOAT32 if parallel.mode == "explicit" else BFLOAT16


def worker_memory(pieces: Pieces) -> Memory:
    """Returns the memory of one worker, from its pieces of the model."""
    return _explicit(pieces) if pieces.explicit else _auto(pieces)


def parameter_bytes(config, parallel: ParallelConfig, stage: int = 0) -> int:
    """Returns the bytes of the parameters that the first worker of a stage keeps between steps, without moments.

    Args:
        config: of the model.
        parallel: the layout, ``data`` filled in.
        stage: of the pipeline.
    """
    rank = stage * parallel.data * parallel.sequence * parallel.tensor
    return static_bytes(Held(ModelSizes(config), parallel, rank))[0]


def static_bytes(held: Held) -> tuple[int, int]:
    """Returns the bytes of parameters and of moments that a worker keeps between steps."""
    return (_explicit_static if held.parallel.mode == "explicit" else _auto_static)(held)


# What passes take.


class Passes:
    """Forward and backward pass of one micro-batch through a chunk of a worker's layers."""

    def __init__(self, pieces: Pieces, chunk: int):
        held = pieces.held
        start, stop = held.pieces[chunk]
        self.pieces, self.held, self.layers = pieces, held, stop - start
        part = held.number(chunk)
        self.is_first, self.is_last = part == 0, part == held.parts - 1
        self.first, self.block = pieces.block(first=True), pieces.block()
        self.recomputes = held.recomputes and (self.is_last or not pieces.explicit)
        self.before = pieces.embedding() if self.is_first else None
        self.after = pieces.head() if self.is_last else None
        self.alone = pieces.block(alone=True), pieces.block(first=True, alone=True)

    @property
    def kept(self) -> int:
        """What a forward pass leaves for the backward pass."""
        ends = (self.before.kept if self.before else 0) + (self.after.kept if self.after else 0)
        return ends + self._below(self.layers)

    def _below(self, blocks: int) -> int:
        """What so many blocks leave, and the stream that goes into the first of them."""
        if blocks == 0:
            return 0
        stream = self.pieces.stream
        if self.recomputes:  # the two terms of the stream, of which the first block gets one
            return (2 * blocks - 1) * stream
        return stream + self.first.kept + (blocks - 1) * self.block.kept

    def moments(self) -> list[Fullest]:
        """Returns what can be the fullest of the backward pass."""
        base = self.before.kept if self.before else 0
        after = self.after.gradients if self.after else 0
        found = []
        if not self.recomputes:
            # Beside what the operators need, Python's names hold the update that came in and attention's output.
            size = (self.block if self.layers > 1 else self.first).forward + 2 * self.pieces.stream
            found.append(Fullest("the forward pass", 0, base + self._below(self.layers - 1) + size))
        if self.after:
            found.append(Fullest("the loss", 0, base + self._below(self.layers) + self.after.backward))
        of_block = self._block_gradients()
        for i in {self.layers - 1, min(1, self.layers - 1), 0}:
            made = after + (self.layers - 1 - i) * of_block
            found += [
                Fullest(f"{name} of block {i + 1} of {self.layers}", made, base + self._below(i) + size)
                for name, size in self._in_block(i == 0)
            ]
        if self.before:
            made = after + self.layers * of_block
            found.append(Fullest("the embedding's gradient", made, self.before.backward))
        return found

    def _block_gradients(self) -> int:
        """What the backward pass of a block leaves of gradients."""
        if self.held.parallel.optimizer == 3 and self.pieces.explicit:
            return -(-self.block.gradients // self.held.samples)
        return self.block.gradients

    def _in_block(self, first: bool) -> list[tuple[str, int]]:
        """What a block takes while it runs backward, gradients of its weights included."""
        footprint, stream = self.first if first else self.block, self.pieces.stream
        if not self.recomputes:
            return [("the backward pass", footprint.backward + (stream if first else 0))]
        own = (1 if first else 2) * stream
        outside = own + stream  # the gradient that came in is needed until the block is done
        weights = footprint.gradients if self.held.parallel.optimizer == 3 and self.pieces.explicit else 0
        found = [("the backward pass", outside + weights + self.alone[first].backward)]
        if weights:
            scatter = _scatter_bytes(weights, self.held.samples, self.held.leads[0])
            found.append(("the gradients", outside + own + 2 * weights + scatter))
        return found

    @property
    def gradients(self) -> int:
        """Of all weights that the pass leaves."""
        ends = sum(f.gradients for f in (self.before, self.after) if f)
        return ends + self.layers * self._block_gradients()


def _in_flight(parallel: ParallelConfig, stage: int) -> int:
    """How many passes have gone forward and not yet back at most, those of all chunks, see schedule.order."""
    P, v, m = parallel.pipeline, parallel.chunks, parallel.micro_batches
    if P == 1:
        return 1
    start = {"gpipe": m * v, "1f1b": P - stage - 1, "interleaved": (P - stage - 1) * 2 + (v - 1) * P}
    return min(start[parallel.schedule] + (parallel.schedule != "gpipe"), m * v)


# Explicit mode.


def _explicit_static(held: Held) -> tuple[int, int]:
    """Returns the bytes of parameters and of moments between steps."""
    whole = sum(sum(buckets) for buckets, _ in held.shared)
    level = held.parallel.optimizer
    if level == 0:
        return 4 * whole, 4 * MOMENTS * whole
    owned = _owned(held)  # what the optimiser updates lies beside the whole, which blocks work with
    return 4 * ((whole if level < 3 else 0) + owned), 4 * MOMENTS * owned


def _owned(held: Held) -> int:
    """How many numbers a worker owns, where they are shared out."""
    return sum(padded(buckets, group) // group for buckets, group in held.shared) + held.owned_in_blocks


def _explicit(pieces: Pieces) -> Memory:
    held = pieces.held
    parallel = held.parallel
    parameters, moments = _explicit_static(held)
    during = parameters
    if parallel.optimizer == 3:  # what is of no block is whole during a step
        during += 4 * sum(sum(buckets) for buckets, _ in held.shared)
    several = parallel.micro_batches > 1
    passes = [Passes(pieces, chunk) for chunk in range(len(held.pieces))]
    gradients = sum(p.gradients for p in passes)
    kept = 4 * _owned(held) if parallel.optimizer >= 2 else gradients
    alone = {(0, kept if several else 0): 0}
    in_time = alone if parallel.pipeline == 1 else _in_time(pieces, passes)
    found = [
        Memory(m.moment, during, moments, before + m.gradients, m.activations, messages)
        for (chunk, before), messages in in_time.items()
        for m in passes[chunk].moments()
    ]
    made = gradients + (kept if several and parallel.optimizer >= 2 else 0)
    if several:
        largest = 4 * held.part.largest
        found.append(Memory("adding gradients up", during, moments, kept + gradients, largest, 0))
    found.append(Memory("summing gradients over workers", during, moments, made, 0, _sum_buffers(held)))
    return max(found, key=lambda memory: memory.total)


def _in_time(pieces: Pieces, passes: list[Passes]) -> dict[tuple[int, int], int]:
    """Returns, for each chunk and the bytes of gradients from before, the most bytes of messages that are there when a
    backward pass of the chunk runs."""
    held, parallel = pieces.held, pieces.parallel
    gradients = [p.gradients for p in passes]
    found: dict[tuple[int, int], int] = {}
    for (chunk, done), count in _waiting(
        parallel.schedule, parallel.pipeline, held.stage, parallel.micro_batches, parallel.chunks
    ).items():
        key = chunk, sum(gradients[other] for other in done)
        found[key] = max(found.get(key, 0), count * pieces.stream)
    return found


@functools.lru_cache(maxsize=2**14)
def _waiting(schedule: str, stages: int, stage: int, micro_batches: int, chunks: int) -> dict:
    """Goes through what a stage does, see schedule.order.

    Returns:
        (chunk, the chunks of which gradients are there) -> the most messages that are there when a backward pass of the
        chunk runs: inputs of other passes, what was sent, what came in.
    """
    parts, inputs, sent = stages * chunks, 0, 0
    done: frozenset[int] = frozenset()
    found: dict[tuple[int, frozenset[int]], int] = {}
    for work in order(schedule, stages, stage, micro_batches, chunks):
        part = work.chunk * stages + stage
        has_input, has_next = part > 0, part < parts - 1
        if work.kind == FORWARD:
            inputs, sent = inputs + has_input, sent + has_next
            continue
        waiting = inputs - has_input + min(sent, 4 * parts) + has_next  # as Pipeline._send lets them go
        found[work.chunk, done] = max(found.get((work.chunk, done), 0), waiting)
        inputs, sent = inputs - has_input, sent + has_input
        done = done | {work.chunk}
    return found


def _sum_buffers(held: Held) -> int:
    """The most that a sum of gradients over workers takes beside them."""
    done = most = 0
    partial = held.partial
    if partial:
        most, done = 2 * 4 * partial, 4 * partial
    if held.tied_across:
        done += 4 * held.tied_across
        most = max(most, done)
    for (buckets, group), leads in zip(held.shared, held.leads):
        if group == 1 and not held.parallel.optimizer:
            continue
        for size in (4 * bucket for bucket in buckets):
            if held.parallel.optimizer:
                most = max(most, done + _scatter_bytes(size, group, leads))
                done += size // group
            else:
                most = max(most, done + 2 * size)
                done += size
    return most


def _scatter_bytes(size: int, group: int, leads: bool) -> int:
    """What a reduce-scatter of ``size`` bytes takes beside them.

    They are put in a row; of all shares but the first, which begins where the row does, a copy is sent; what the others
    send comes; and sums of shares are made, the first of a copy where the share lies in the row still.
    """
    share = size // group
    if group == 1:
        return size
    sums = 2 if leads or group > 2 else 1
    return size + (2 * (group - 1) + sums) * share


# Auto mode.


def _auto_static(held: Held) -> tuple[int, int]:
    """Returns the bytes of parameters and moments, float32, which optimizer 1 to 3 share out between steps."""
    numbers = _auto_own(held)
    return 4 * numbers, 4 * MOMENTS * numbers


def _auto_own(held: Held) -> int:
    return held.part.kept_in_shares(held.parallel.data) if held.parallel.optimizer else held.part.total


def _auto(pieces: Pieces) -> Memory:
    held, parallel = pieces.held, pieces.parallel
    parameters, moments = _auto_static(held)
    level, several = parallel.optimizer, parallel.micro_batches > 1
    passes = [Passes(pieces, chunk) for chunk in range(len(held.pieces))]
    whole, own = held.part.total, _auto_own(held)
    gradients = 4 * (own if level >= 2 or (level == 1 and not several) else whole)
    # Products use copies in bfloat16, put together from all shares; they live until the backward pass, but where it
    # makes them again.
    of_blocks = sum(held.part.of(in_blocks=True))
    one = of_blocks // held.layers
    again = parallel.recompute or level == 3
    copies = pieces.numbers.compute * (whole - of_blocks + (one if again else of_blocks))
    waiting = (_in_flight(parallel, held.stage) - 1) * sum(p.kept for p in passes) // len(passes)
    found = []
    for moment in itertools.chain.from_iterable(p.moments() for p in passes):
        found.append(Memory(moment.moment, parameters, moments, gradients, waiting + copies + moment.activations, 0))
    return max(found, key=lambda memory: memory.total)
