"""How long an optimiser step takes: a small model, for comparing layouts.

A micro-batch keeps a stage busy with products (operations over the card's speed), with operators that only read and
write (bytes over the memory's), and with messages (bytes over the link's speed, and a latency each). Nothing overlaps,
so messages count in full: an upper bound where the backward pass hides them. The slowest stage sets the pace, and the
pipeline's bubble comes on top. Nobody has compared these seconds with cards.
"""

import dataclasses
import functools

from msllm.parallel.formulas import bytes_per_step, passes
from msllm.parallel.planner.blocks import Pieces
from msllm.parallel.planner.hardware import Hardware
from msllm.parallel.planner.sizes import Held, ModelSizes
from msllm.parallel.schedule import bubble

_UPDATE = 7 * 4  # bytes that AdamW moves for a number: parameter and moments in and out, the gradient in
_BACKWARD = 2  # a backward pass has two products for each of the forward pass
# Flash attention's backward pass works the scores out again: five products for two (Dao et al. 2022, appendix B).
_ATTENTION_BACKWARD = 2.5
# What is counted by its operations or its bytes on the wire; the time of all other operators is that of the memory.
_ELSEWHERE = {"linear", "linear_gelu", "attention", "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "input"}


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step, and what they consist of.

    Attributes:
        products, memory: of all micro-batches, on the slowest stage.
        messages: by what they are for, see formulas.bytes_per_step.
        update: the optimiser's.
        waiting: in the pipeline's bubble.
        sent: bytes by what they are for.
    """

    products: float
    memory: float
    messages: dict[str, float]
    update: float
    waiting: float
    sent: dict[str, float]

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.memory + sum(self.messages.values()) + self.update + self.waiting


def stage_time(held: Held, pieces: Pieces, hardware: Hardware, batch: int, length: int) -> Time:
    """Returns the time of a step where every stage is as slow as this one.

    Args:
        held, pieces: of the stage.
        hardware: the card.
        batch, length: examples of all workers in a step, and their tokens.
    """
    parallel, m = held.parallel, held.parallel.micro_batches
    runs = passes(held)
    products = m * _operations(held, pieces, runs) / hardware.flops
    memory = m * _moved(held, pieces, runs) / hardware.bandwidth
    sent = bytes_per_step(held, batch, length, pieces.numbers)
    messages = _messages(held, hardware, sent, runs)
    rest = messages["gradients"]
    share = bubble(parallel.pipeline, m, parallel.chunks)
    busy = products + memory + sum(messages.values()) - rest
    update = _UPDATE * held.part.total / (held.samples if parallel.optimizer else 1) / hardware.bandwidth
    return Time(products, memory, messages, update, busy * share / (1 - share), sent)


@functools.lru_cache(maxsize=64)
def model_operations(model: ModelSizes, tokens: int, length: int) -> float:
    """Returns the operations of a step that the model itself needs, nothing computed twice, over all workers."""
    weights = sum(p.numbers for p in model.parameters if p.place >= 0 and p.expert is None and len(p.shape) > 1)
    experts = sum(p.numbers for p in model.parameters if p.expert is not None)
    weights += experts * model.top_k / model.experts if model.experts else 0
    head = model.vocab_size * model.width
    attention = model.layers * _attention(model.heads * model.head_width, length)
    return tokens * ((1 + _BACKWARD) * 2 * (weights + head) + (1 + _BACKWARD) * attention)


def _attention(width: int, length: int) -> float:
    """Operations of a token's two products over the keys before it, half of all on average."""
    return 2 * 2 * width * length / 2


def _operations(held: Held, pieces: Pieces, runs: float) -> float:
    """Of a micro-batch on one worker."""
    model, parallel, tokens = held.model, held.parallel, pieces.tokens
    matrices = _block_matrices(held)
    forward = 2 * tokens * matrices
    attention = tokens * _attention(model.heads * model.head_width // parallel.tensor, pieces.length)
    total = held.layers * (forward * (runs + _BACKWARD) + attention * (runs + _ATTENTION_BACKWARD))
    if held.is_last:
        total += 2 * tokens * model.width * pieces.vocabulary * (1 + _BACKWARD)
    return total


def _block_matrices(held: Held) -> float:
    """Numbers of a block's matrices that a token meets on one worker."""
    model, first = held.model, held.pieces[0][0]
    total = 0.0
    for p in held.part.sizes:
        if p.place == first and len(p.shape) > 1:
            share = 1.0 if p.expert is None else model.top_k * held.parallel.expert / model.experts
            total += held.part.numbers[p.name] * share
    return total


def _moved(held: Held, pieces: Pieces, runs: float) -> float:
    """Bytes that operators other than products move in a micro-batch, backward twice those of forward."""
    total = held.layers * (runs + _BACKWARD) * _streamed(pieces.block().moved)
    if held.is_first:
        total += (1 + _BACKWARD) * _streamed(pieces.embedding().moved)
    if held.is_last:
        total += (1 + _BACKWARD) * _streamed(pieces.head().moved)
    return total


def _streamed(moved: dict[str, int]) -> int:
    return sum(size for name, size in moved.items() if name not in _ELSEWHERE)


def _messages(held: Held, hardware: Hardware, sent: dict[str, float], runs: float) -> dict[str, float]:
    """Seconds by what messages are for: each kind goes over the slowest link of its group."""
    parallel = held.parallel
    inner = parallel.tensor * parallel.sequence
    spans = {
        "tensor": parallel.tensor,
        "sequence": inner,
        "experts": inner * parallel.expert,
        "gradients": inner * parallel.data,
        "pipeline": parallel.world,
    }
    times = parallel.micro_batches * held.layers * (runs + 1)
    calls = {
        "tensor": 2 * times,
        "sequence": 2 * parallel.sequence * times,
        "experts": 2 * times,
        "gradients": 2 * len(held.part.sizes) * (parallel.micro_batches if parallel.optimizer >= 2 else 1),
        "pipeline": 2 * parallel.micro_batches * len(held.pieces),
    }
    return {
        name: size / hardware.link(spans[name]) + calls[name] * hardware.latency if size else 0.0
        for name, size in sent.items()
    }
