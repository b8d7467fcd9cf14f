"""What workers really hold and send in a layout, beside what the planner says: explicit mode, on this machine."""

import dataclasses
import gc

import numpy as np

from msllm.parallel.config import ParallelConfig
from msllm.parallel.formulas import Copies, bytes_per_step, passes
from msllm.parallel.planner.blocks import Pieces
from msllm.parallel.planner.memory import Memory, worker_memory
from msllm.parallel.planner.pool import MemoryPool
from msllm.parallel.planner.sizes import Held, ModelSizes

_STEPS = 2
_LEARNING_RATE, _MAX_NORM = 1e-3, 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in a layout.

    Attributes:
        family: its model_type; ``sizes``: the rest of its config.json.
        layout: the ParallelConfig's values.
        rows, length: examples of a step on all workers together, and tokens of each.
    """

    family: str
    sizes: dict
    layout: dict
    rows: int
    length: int

    @property
    def model_class(self):
        """The class of the model."""
        from msllm.models.pretrained import model_class

        return model_class({"model_type": self.family, "architectures": None})

    @property
    def config(self):
        """The model's configuration."""
        return self.model_class.config_class.from_dict({"model_type": self.family, **self.sizes})


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one worker's steps took, in bytes.

    Attributes:
        resting: of all tensors between steps; ``peak``: at most.
        sent: in a step.
        numbers: parameter name -> how many of its numbers the worker works with.
        moved, rows: see formulas.Copies.
    """

    resting: int
    peak: int
    sent: float
    numbers: dict[str, int]
    moved: float
    rows: float


def measure(workers, pool: MemoryPool, case: Case) -> Measured:
    """Trains for a few steps; all workers call it alike."""
    from mindspore import ops, set_seed

    from msllm.layers import moe_layers
    from msllm.layers.attention import use_core
    from msllm.parallel.strategy import Strategy
    from msllm.training.blocks import BLOCKS
    from msllm.training.moe_objective import moe_objective
    from msllm.training.optimizer import AdamW
    from msllm.training.step import build_step

    gc.collect()
    before = pool.used()
    strategy = Strategy(workers, ParallelConfig(**case.layout))
    use_core(None)
    set_seed(0)
    model = case.model_class(case.config)
    objective = moe_objective(base=BLOCKS) if case.family == "mixtral" else BLOCKS
    trained = strategy.prepare(model, objective, False)
    for parameter in {id(p): p for p in (*model.get_parameters(), *trained)}.values():
        # Initial values lie in memory of numpy's; those that an operator has made lie in the pool.
        parameter.set_data(ops.add(parameter.value(), 0.0))
    step = build_step(strategy, objective, AdamW(trained, (0.9, 0.95), 1e-8, 0.1), _MAX_NORM)
    model.set_train(True)
    step(_batches(strategy, objective, case, 0), _LEARNING_RATE)
    gc.collect()
    exchanges = [layer.exchange for layer in moe_layers(model) if layer.exchange is not None]
    for exchange in exchanges:
        exchange.moved = exchange.rows = 0
    pool.reset()
    workers.traffic.clear()
    resting = pool.used() - before
    for i in range(_STEPS):
        step(_batches(strategy, objective, case, i + 1), _LEARNING_RATE)
    use_core(None)
    each = _STEPS * passes(Held(ModelSizes(case.config), strategy.config, workers.rank))
    return Measured(
        resting=resting,
        peak=pool.peak() - before,
        sent=workers.traffic.sent() / _STEPS,
        numbers=dict(strategy.trained),
        moved=sum(e.moved for e in exchanges) / each,
        rows=sum(e.rows for e in exchanges) / each,
    )


def _batches(strategy, objective, case: Case, step: int) -> list:
    """Returns this worker's share of examples of random ids in micro-batches: bytes are those of real text."""
    rng = np.random.default_rng(step)
    ids = rng.integers(0, case.sizes["vocab_size"], (case.rows, case.length + 1))
    mine = np.array_split(ids, strategy.data_world)[strategy.data_rank]
    pieces = np.array_split(mine, strategy.config.micro_batches)
    return [objective.to_device(objective.collate([{"input_ids": row} for row in piece])) for piece in pieces]


def planned(case: Case, workers: int, rank: int, measured: Measured | None = None) -> tuple[Held, Memory, float]:
    """Returns what the planner says of a worker: what it holds, its memory, and the bytes that it sends in a step.

    Args:
        measured: of the same worker: where its router sent tokens nobody could know.
    """
    parallel = ParallelConfig(**case.layout).for_workers(workers)
    held = Held(ModelSizes(case.config), parallel, rank)
    memory = worker_memory(Pieces(held, case.rows // parallel.data // parallel.micro_batches, case.length))
    copies = None if measured is None else Copies(measured.moved, measured.rows)
    return held, memory, sum(bytes_per_step(held, case.rows, case.length, copies=copies).values())
