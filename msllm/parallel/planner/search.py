"""All layouts of a model on some cards: which fit, how fast each is, and why the others were dropped.

Plain enumeration: degrees that divide the cards, micro-batches that divide a batch, optimizer levels, schedules. What a
layout must be like is ParallelConfig.check's to say, which refuses some with a reason; the memory refuses others.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig
from msllm.parallel.planner.blocks import Pieces
from msllm.parallel.planner.cost import Time, model_operations, stage_time
from msllm.parallel.planner.hardware import Hardware
from msllm.parallel.planner.memory import Memory, numbers_of, worker_memory
from msllm.parallel.planner.sizes import Held, ModelSizes
from msllm.parallel.plans import check_splits
from msllm.parallel.schedule import bubble

TERMS = ("parameters", "moments", "gradients", "activations", "buffers")
_CHUNKS = (2, 4, 8)
_MOST_NODES = 4096  # a search for enough cards ends there


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained, and on what.

    Attributes:
        model: sizes of the model.
        hardware: the card.
        cards: their number.
        batch, length: examples of a step on all cards together, and tokens of each.
        mode: of the layouts: explicit or auto.
    """

    model: ModelSizes
    hardware: Hardware
    cards: int
    batch: int
    length: int
    mode: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout and what was found out about it.

    Attributes:
        parallel: the layout.
        rows: examples of a micro-batch on a data-parallel worker.
        memory: of the fullest worker, which is on ``stage``; None where the layout cannot be run.
        time: of a step; None where it does not fit.
        reason: "" for a layout that fits, else why it was dropped; ``kind`` is the reason without its numbers.
        speed: tokens a second of all cards; ``share``: of the cards' operations that the model itself needs.
    """

    parallel: ParallelConfig
    rows: int = 0
    memory: Memory | None = None
    stage: int = 0
    time: Time | None = None
    reason: str = ""
    kind: str = ""
    speed: float = 0.0
    share: float = 0.0

    @property
    def waits(self) -> float:
        """The share of a step in which a stage waits."""
        return bubble(self.parallel.pipeline, self.parallel.micro_batches, self.parallel.chunks)


def search(job: Job) -> list[Candidate]:
    """Returns all layouts, those that fit first, the fastest of them first."""
    found = [evaluate(job, parallel) for parallel in layouts(job)]
    return sorted(found, key=lambda c: (c.time is None, -c.speed, c.memory.total if c.memory else 0))


def layouts(job: Job) -> Iterator[ParallelConfig]:
    """Yields all layouts that are worth a look, whether they can be run or not."""
    model, auto = job.model, job.mode == "auto"
    for tensor, pipeline in itertools.product(_divisors(job.cards), repeat=2):
        if job.cards % (tensor * pipeline):
            continue
        rest = job.cards // (tensor * pipeline)
        for sequence in (1,) if auto else _divisors(rest):
            data = rest // sequence
            base = {"data": data, "tensor": tensor, "pipeline": pipeline, "sequence": sequence, "mode": job.mode}
            ways = _ways(job, tensor, pipeline, sequence)
            experts = [e for e in _divisors(data) if model.experts and model.experts % e == 0] or [1]
            try:  # what no number of micro-batches mends is refused once
                _check(job, ParallelConfig(**base, micro_batches=_most(job, data)))
            except UserError:
                yield ParallelConfig(**base, micro_batches=_most(job, data))
                continue
            for micro_batches, way, expert in itertools.product(_micro_batches(job, data), ways, experts):
                for optimizer, recompute in itertools.product(range(4 if data * sequence > 1 else 1), (False, True)):
                    if not (optimizer == 3 and recompute):  # which recomputes in any case
                        yield ParallelConfig(
                            **base,
                            **way,
                            micro_batches=micro_batches,
                            expert=expert,
                            optimizer=optimizer,
                            recompute=recompute,
                        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _most(job: Job, data: int) -> int:
    """The most micro-batches, of an example each."""
    return max(1, job.batch // data)


def _micro_batches(job: Job, data: int) -> list[int]:
    return _divisors(job.batch // data) if job.batch % data == 0 else [_most(job, data)]


def _ways(job: Job, tensor: int, pipeline: int, sequence: int) -> list[dict]:
    """Other options than degrees: how norms and attention are shared, and the order of passes."""
    if job.mode == "auto":
        return [{}]
    norms = [{}] + ([{"split_norms": True}] if tensor > 1 else [])
    attention = [{}] + ([{"attention": "heads"}] if sequence > 1 else [])
    orders: list[dict] = [{}]
    if pipeline > 1:  # gpipe waits as long as 1f1b, and keeps more
        orders += [{"schedule": "interleaved", "chunks": c} for c in _CHUNKS if pipeline * c <= job.model.layers]
    return [{**a, **b, **c} for a, b, c in itertools.product(norms, attention, orders)]


def _check(job: Job, parallel: ParallelConfig) -> None:
    """Raises UserError where the layout cannot be run."""
    if job.batch % parallel.data:
        raise UserError(f"{parallel.data} data-parallel workers cannot share a batch of {job.batch} examples")
    parallel.check(**job.model.known, length=job.length, batch=job.batch // parallel.data)
    check_splits(job.model.config, parallel)
    if parallel.mode == "auto" and job.model.vocab_size % parallel.tensor:
        raise UserError(
            f"parallel.tensor = {parallel.tensor} does not divide the {job.model.vocab_size} tokens of the vocabulary, "
            f"and auto-parallel cuts equal parts"
        )


def evaluate(job: Job, parallel: ParallelConfig) -> Candidate:
    """Returns what becomes of one layout; ``data`` is filled in."""
    try:
        _check(job, parallel)
    except UserError as e:
        reason = str(e).partition(";")[0]
        return Candidate(parallel, reason=reason, kind=re.sub(r"\d+", "N", reason))
    rows = job.batch // parallel.data // parallel.micro_batches
    last = parallel.pipeline - 1  # stages between the second and the last one are as the second
    stages = [_stage(job, parallel, rows, stage) for stage in sorted({0, min(1, last), last})]
    memory, stage = max(
        ((worker_memory(pieces), held.stage) for held, pieces in stages), key=lambda found: found[0].total
    )
    if memory.total > job.hardware.memory:
        term, over = too_much(memory, job.hardware.memory)
        reason = f"{term} do not fit: {_gib(memory.total)} on a card, {_gib(over)} too much"
        return Candidate(parallel, rows, memory, stage, reason=reason, kind=f"{term} do not fit")
    times = [stage_time(held, pieces, job.hardware, job.batch, job.length) for held, pieces in stages]
    time = max(times, key=lambda t: t.total)
    tokens = job.batch * job.length
    share = model_operations(job.model, tokens, job.length) / (time.total * job.cards * job.hardware.peak)
    return Candidate(parallel, rows, memory, stage, time, speed=tokens / time.total, share=share)


def _stage(job: Job, parallel: ParallelConfig, rows: int, stage: int) -> tuple[Held, Pieces]:
    held = Held(job.model, parallel, stage * (parallel.world // parallel.pipeline))
    return held, Pieces(held, rows, job.length, numbers_of(parallel))


def too_much(memory: Memory, most: int) -> tuple[str, int]:
    """Returns the term that the memory ends in, of parameters, moments, gradients, activations and buffers in this
    order, and by how many bytes all of them are too much."""
    total = 0
    for term in TERMS:
        total += getattr(memory, term)
        if total > most:
            return term, memory.total - most
    raise ValueError("it fits")


def least(found: list[Candidate]) -> Candidate | None:
    """Returns the layout that needs least memory; None where none can be run."""
    return min((c for c in found if c.memory), key=lambda c: c.memory.total, default=None)


def enough_cards(job: Job) -> tuple[int, Candidate] | None:
    """Returns the smallest number of cards on which some layout fits, and that layout; None where no number does.

    Beside numbers below a node's, only whole nodes are looked at.
    """
    node = job.hardware.cards_per_node
    few = [n for n in _divisors(node) if n < node]
    for cards in (*few, *(node * i for i in range(1, _MOST_NODES + 1))):
        if cards > job.cards and cards <= job.batch * job.model.layers * job.model.heads:
            other = dataclasses.replace(job, cards=cards)
            for parallel in layouts(other):
                if parallel.recompute or parallel.optimizer == 3:
                    candidate = evaluate(other, parallel)
                    if candidate.time is not None:
                        return cards, candidate
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
