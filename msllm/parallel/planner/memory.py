"""How many bytes a worker of a layout needs, and for what.

Of explicit mode the memory is that of MindSpore's pool at its fullest, tensor by tensor (``pool`` measures it, and a
test compares). A step has a few moments that can be the fullest: the loss, where all activations live; the first block
of the backward pass that is run last, where all gradients do; and the sums of gradients. Of auto mode, which compiles
for Ascend cards, the same pieces are added up, in bfloat16: an estimate that nothing here has measured.
"""

import dataclasses
import itertools
import math

from msllm.parallel.comm import BUCKET_BYTES
from msllm.parallel.config import ParallelConfig
from msllm.parallel.planner.blocks import BFLOAT16, FLOAT32, Numbers, Pieces
from msllm.parallel.planner.sizes import Held, ModelSizes

MOMENTS = 2  # of AdamW, each as large as the parameters
# A reduce-scatter needs its tensors three times: the row of all of them; of the others' shares a copy to send, and what
# they send; and of the own share two sums, the old one and the new.
_SCATTER_COPIES = 3


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


def worker_memory(held: Held, rows: int, length: int) -> Memory:
    """Returns the memory of one worker.

    Args:
        held: what it holds.
        rows, length: examples of a micro-batch on one data-parallel worker, and their tokens.
    """
    pieces = Pieces(held, rows, length, numbers_of(held.parallel))
    return _explicit(pieces) if held.parallel.mode == "explicit" else _auto(pieces)


def parameter_bytes(config, parallel: ParallelConfig, stage: int = 0) -> int:
    """Returns the bytes of the parameters that the first worker of a stage keeps between steps, without moments.

    Args:
        config: of the model.
        parallel: the layout, ``data`` filled in.
        stage: of the pipeline.
    """
    rank = stage * parallel.data * parallel.sequence * parallel.tensor
    held = Held(ModelSizes(config), parallel, rank)
    return (_explicit_static if parallel.mode == "explicit" else _auto_static)(held)[0]


# What passes take.


class Passes:
    """Forward and backward pass of one micro-batch through a chunk of a worker's layers."""

    def __init__(self, pieces: Pieces, chunk: int):
        held = pieces.held
        start, stop = held.pieces[chunk]
        self.pieces, self.held, self.layers = pieces, held, stop - start
        part = held.part(chunk)
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
            scatter = (2 + _SCATTER_COPIES) * weights
            found.append(("the gradients", outside + own + scatter))
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
    whole, shared = 0, 0
    for numbers, group in _optimised(held):
        if held.parallel.optimizer:
            shared += sum(-(-sum(bucket) // group) for bucket in buckets(numbers))
        whole += sum(numbers)
    blocks = -(-sum(held.of(owned_blocks=True)) // held.samples)
    level = held.parallel.optimizer
    if level == 0:
        return 4 * whole, 4 * MOMENTS * whole
    parameters = (whole if level < 3 else 0) + shared + blocks
    return 4 * parameters, 4 * MOMENTS * (shared + blocks)


def _optimised(held: Held) -> list[tuple[list[int], int]]:
    """Returns numbers of parameters and in how many shares they are, of those that are whole while blocks run."""
    return [
        (held.of(expert=False, owned_blocks=False), held.samples),
        (held.of(expert=True, owned_blocks=False), held.expert_samples),
    ]


def buckets(numbers: list[int]) -> list[list[int]]:
    """Puts parameters together as comm.buckets_of does with their tensors."""
    found: list[list[int]] = [[]]
    size = 0
    for count in numbers:
        if found[-1] and size + 4 * count > BUCKET_BYTES:
            found.append([])
            size = 0
        found[-1].append(count)
        size += 4 * count
    return [bucket for bucket in found if bucket]


def _explicit(pieces: Pieces) -> Memory:
    held = pieces.held
    parallel = held.parallel
    parameters, moments = _explicit_static(held)
    during = parameters
    if parallel.optimizer == 3:  # what is of no block is whole during a step
        during += 4 * sum(sum(numbers) for numbers, _ in _optimised(held))
    several = parallel.micro_batches > 1
    passes = [Passes(pieces, chunk) for chunk in range(len(held.pieces))]
    gradients = sum(p.gradients for p in passes)
    if held.tied_across and held.is_first and held.is_last:
        gradients -= 4 * held.tied_across
    kept = gradients
    if parallel.optimizer >= 2:
        kept = sum(4 * -(-sum(numbers) // group) for numbers, group in _optimised(held))
        kept += 4 * -(-sum(held.of(owned_blocks=True)) // held.samples)
    before = kept if several else 0
    messages = _messages(pieces)
    found = [
        Memory(m.moment, during, moments, before + m.gradients, m.activations, messages)
        for m in itertools.chain.from_iterable(p.moments() for p in passes)
    ]
    made = gradients + (before if parallel.optimizer >= 2 else 0)
    if several:
        largest = 4 * max(held.numbers.values())
        found.append(Memory("adding gradients up", during, moments, before + gradients, largest, 0))
    found.append(Memory("summing gradients over workers", during, moments, made, 0, _sum_buffers(held)))
    return max(found, key=lambda memory: memory.total)


def _messages(pieces: Pieces) -> int:
    """What has come or gone between stages: inputs that are kept, messages on their way, the gradient that came in."""
    held, parallel = pieces.held, pieces.parallel
    if parallel.pipeline == 1:
        return 0
    parts = [held.part(chunk) for chunk in range(len(held.pieces))]
    inputs = _in_flight(parallel, held.stage) * sum(part > 0 for part in parts) / len(parts) - (not held.is_first)
    sends = parallel.micro_batches * sum((part < held.parts - 1) + (part > 0) for part in parts)
    waiting = min(sends - 1, 4 * held.parts)  # as Pipeline._send lets them go
    return round(inputs + waiting + (min(parts) < held.parts - 1)) * pieces.stream


def _sum_buffers(held: Held) -> int:
    """The most that a sum of gradients over workers takes beside them."""
    done = most = 0
    partial = held.partial
    if partial:
        most, done = 2 * 4 * partial, 4 * partial
    if held.tied_across:
        done += 4 * held.tied_across
        most = max(most, done)
    for numbers, group in _optimised(held):
        if group == 1 and not held.parallel.optimizer:
            continue
        for bucket in buckets(numbers):
            size = 4 * sum(bucket)
            if held.parallel.optimizer:
                most = max(most, done + (_SCATTER_COPIES if group > 1 else 1) * size)
                done += size // group
            else:
                most = max(most, done + 2 * size)
                done += size
    return most


# Auto mode.


def _auto_static(held: Held) -> tuple[int, int]:
    """Returns the bytes of parameters and moments, both float32; what MindSpore shares out is shared between steps."""
    numbers = sum(_auto_numbers(held))
    return 4 * numbers, 4 * MOMENTS * numbers


def _auto_numbers(held: Held, places: set[int] | None = None) -> list[int]:
    """Returns how many numbers of each parameter a card keeps.

    With optimizer 1 to 3 MindSpore cuts the first axis of what a tensor-parallel worker has, where the data-parallel
    workers divide it, and leaves the parameter whole where they do not.
    """
    shares = held.data_shares if held.parallel.optimizer else 1
    return [
        math.prod(shape) // (shares if shape[0] % shares == 0 else 1)
        for shape in (held.shapes[p.name] for p in held.here if places is None or p.place in places)
    ]


def _auto(pieces: Pieces) -> Memory:
    held, parallel = pieces.held, pieces.parallel
    parameters, moments = _auto_static(held)
    level, several = parallel.optimizer, parallel.micro_batches > 1
    passes = [Passes(pieces, chunk) for chunk in range(len(held.pieces))]
    whole, own = sum(held.numbers.values()), sum(_auto_numbers(held))
    gradients = 4 * (own if level >= 2 or (level == 1 and not several) else whole)
    # Products use copies in bfloat16, put together from all shares; they live until the backward pass, but where it
    # makes them again.
    of_blocks = sum(held.numbers[p.name] for p in held.here if p.place >= 0)
    one = of_blocks // held.layers
    again = parallel.recompute or level == 3
    copies = pieces.numbers.compute * (whole - of_blocks + (one if again else of_blocks))
    waiting = (_in_flight(parallel, held.stage) - 1) * sum(p.kept for p in passes) // len(passes)
    found = []
    for moment in itertools.chain.from_iterable(p.moments() for p in passes):
        found.append(Memory(moment.moment, parameters, moments, gradients, waiting + copies + moment.activations, 0))
    return max(found, key=lambda memory: memory.total)
