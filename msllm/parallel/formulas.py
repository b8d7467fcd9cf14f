"""How many bytes a worker sends per step, worked out from sizes and layout.

With p members, the ring algorithms send (p - 1)/p of the whole for reduce-scatter and all-gather, and twice that for
all-reduce (Patarasuk and Yuan 2009). X stands for the bytes of the residual stream (B, T, D) of a worker's tokens. The
planner asks for layouts that nobody has run, and ``verify`` compares with what a run has counted.
"""

import dataclasses

from msllm.parallel.context import head_bytes, ring_bytes
from msllm.parallel.planner.sizes import FLOAT32, Held, Numbers, padded

_FLOAT = 4  # of what is always float32: losses, tables, attention masks


@dataclasses.dataclass(frozen=True)
class Copies:
    """Token copies in one forward pass of all micro-batches of a step, of all layers of experts of a worker.

    Attributes:
        moved: those that it sends to other workers' experts, or back to where they came from.
        rows: those that its own experts work on.
    """

    moved: float
    rows: float

    @classmethod
    def expected(cls, held: Held, tokens: float) -> "Copies":
        """Where the router sends as many to each expert; ``tokens`` of one worker in a step."""
        copies = held.layers * tokens * held.model.top_k
        away = (held.parallel.expert - 1) / held.parallel.expert
        return cls(2 * copies * away, copies)


def bytes_per_step(
    held: Held,
    batch: int,
    length: int,
    numbers: Numbers = FLOAT32,
    copies: Copies | None = None,
    masked: float = 0.0,
) -> dict[str, float]:
    """Returns the bytes that a worker sends in an optimiser step by what they are for, without those of a few numbers.

    Args:
        held: what the worker holds.
        batch, length: examples of all workers together in a step, and their tokens.
        numbers: bytes of a number.
        copies: as counted; where none are given, as expected.
        masked: the share of the steps whose examples have padding.

    Returns:
        tensor, sequence, pipeline, gradients (and parameters, from their owners), experts.
    """
    parallel = held.parallel
    rows, tokens = batch // parallel.data, length // parallel.sequence
    copies = copies or Copies.expected(held, rows * tokens)
    stream = numbers.compute * rows * tokens * held.model.width
    padded, full = (_sequence(held, rows, tokens, masks, numbers) for masks in (1, 0))
    return {
        "tensor": _tensor(held, stream, rows * tokens, numbers),
        "sequence": masked * padded + (1 - masked) * full,
        "pipeline": _pipeline(held, stream, numbers),
        "gradients": _gradients(held, numbers),
        "experts": _experts(held, copies, numbers),
    }


def passes(held: Held) -> float:
    """How often a step runs a block of this worker forward, on average.

    Blocks whose inputs alone are kept run twice. So do, in explicit mode, all parts of a pipeline but the last.
    """
    parallel = held.parallel
    once = 2 if held.recomputes else 1
    if parallel.mode == "auto" or parallel.pipeline == 1:
        return once
    runs = 0
    for chunk, (start, stop) in enumerate(held.pieces):
        runs += (stop - start) * (once if held.number(chunk) == held.parts - 1 else 2)
    return runs / held.layers


def _share(size: int) -> float:
    return (size - 1) / size


def _tensor(held: Held, X: float, tokens: int, numbers: Numbers) -> float:
    """Two sums a block and direction, of attention and feed-forward layer, or the gather and scatter they consist of
    (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, section 4.2.2); see _experts for theirs."""
    size, split = held.parallel.tensor, held.parallel.split_norms
    if size == 1:
        return 0.0
    half = _share(size)  # half of an all-reduce, per byte
    experts = held.model.experts > 0
    each_way = 2 * half * X * (1 if experts else 2)
    if experts and split:  # all tokens are gathered for the router, and so are their gradients
        each_way += half * X
    total = held.layers * (passes(held) + 1) * each_way
    if held.is_first:
        twice = 2 if held.parallel.pipeline > 1 and held.parallel.mode == "explicit" else 1
        total += (half * X * (1 + twice)) if split else twice * 2 * half * X
    if held.is_last:
        total += 2 * half * X  # the head: its input's gradient, or the input and its gradient
        total += _FLOAT * tokens * ((size - 1) + 2 * half)  # cross-entropy: a sum and a label each
    times = held.parallel.micro_batches if held.parallel.optimizer >= 2 else 1
    return total + times * 2 * half * numbers.gradients * held.partial


def _sequence(held: Held, rows: int, tokens: int, masks: int, numbers: Numbers) -> float:
    size, model = held.parallel.sequence, held.model
    if size == 1:
        return 0.0
    heads, kv_heads = model.heads // held.parallel.tensor, model.kv_heads // held.parallel.tensor
    if held.parallel.attention == "ring":
        forward, backward = ring_bytes(size, rows, tokens, kv_heads, model.head_width, key_mask=bool(masks))
    else:
        forward, backward = head_bytes(size, rows, tokens, heads, kv_heads, model.head_width, masks)
    return held.layers * (passes(held) * forward + backward) * numbers.compute / _FLOAT


def _pipeline(held: Held, X: float, numbers: Numbers) -> float:
    parallel = held.parallel
    if parallel.pipeline == 1:
        return 0.0
    parts = [held.number(chunk) for chunk in range(len(held.pieces))]
    each = X / (parallel.tensor if parallel.split_norms else 1)
    total = each * sum((part < held.parts - 1) + (part > 0) for part in parts)
    return total + 2 * _share(2) * numbers.gradients * held.tied_across


def _gradients(held: Held, numbers: Numbers) -> float:
    """Gradients, and parameters from their owners (Rajbhandari et al. 2020, section 7)."""
    level, times = held.parallel.optimizer, held.parallel.micro_batches
    total = 0.0
    for buckets, group in held.shared:
        size = padded(buckets, group) if level else sum(buckets)
        scatter, gather = numbers.gradients, numbers.compute if level else numbers.gradients
        total += _share(group) * size * (gather + scatter * (times if level >= 2 else 1))
    whole = held.owned_in_blocks * held.samples
    return total + times * _share(held.samples) * whole * (2 * numbers.compute + numbers.gradients)


def _experts(held: Held, copies: Copies, numbers: Numbers) -> float:
    """Token copies to the experts and back, the same of their gradients, and the table of how many go where; what
    tensor-parallel workers sum is what their experts worked on."""
    model, expert, tensor = held.model, held.parallel.expert, held.parallel.tensor
    if not model.experts or expert * tensor == 1:
        return 0.0
    each = numbers.compute * model.width * (passes(held) + 1)
    total = each * (copies.moved + 2 * _share(tensor) * copies.rows)
    calls = passes(held) * held.parallel.micro_batches
    return total + held.layers * calls * (expert - 1) * _FLOAT * model.experts
