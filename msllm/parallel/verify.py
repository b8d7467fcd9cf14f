"""Does a layout compute what one process computes? Small models, a few steps, every strategy."""

import dataclasses
import gc
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from msllm.errors import UserError, nearest
from msllm.layers import moe_layers
from msllm.layers.attention import use_core
from msllm.models.pretrained import model_class
from msllm.parallel import sharded
from msllm.parallel.comm import Workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.formulas import Copies, bytes_per_step, passes
from msllm.parallel.planner.sizes import Held, ModelSizes
from msllm.parallel.strategy import Strategy
from msllm.training.alone import Alone
from msllm.training.blocks import BLOCKS, collate_blocks
from msllm.training.moe_objective import moe_objective
from msllm.training.optimizer import AdamW
from msllm.training.step import build_step

BOUND = 1e-5

STEPS, QUICK_STEPS = 10, 2
BATCH, LENGTH, VOCABULARY, WIDTH, LAYERS, HEADS = 16, 32, 67, 32, 8, 8
# Adam divides a gradient by its own size: where that is rounding alone, such as that of a key's bias, which has no
# effect, the usual 1e-8 would make a whole step of it.
EPSILON, LEARNING_RATE = 1e-5, 1e-3

FAMILIES = {
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": LENGTH,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    },
    "llama": {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "mixtral": {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_local_experts": 8,
    },
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one strategy gave.

    Attributes:
        strategy: its name; ``layout`` in short; ``family`` of the model.
        loss: the largest relative difference of the loss over the steps, and of an evaluation after them.
        parameter: the largest difference of a parameter after them, relative to its largest value.
        sent, formula: bytes that the busiest worker sends per step, counted and worked out.
        memory: by how much a worker's resident memory grew at most, in bytes.
        seconds: of all steps.
    """

    strategy: str
    layout: str
    family: str
    loss: float
    parameter: float
    sent: float
    formula: float
    memory: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the differences are within the bound, and bytes as the formula says."""
        return self.loss <= BOUND and self.parameter <= BOUND and math.isclose(self.sent, self.formula, rel_tol=1e-6)


def strategies(workers: int) -> dict[str, list[tuple[str, ParallelConfig]]]:
    """Returns the strategies that a number of workers can show: name -> (family, layout) pairs."""
    W, half = workers, workers // 2

    def layout(**degrees) -> ParallelConfig:
        return ParallelConfig(**degrees).for_workers(W)

    pipeline = {"pipeline": W, "micro_batches": 8}
    found = {
        "data": [("gpt2", layout()), ("llama", layout()), ("mixtral", layout())],
        "tensor": [(family, layout(tensor=W)) for family in FAMILIES],
        "tensor-norms": [(family, layout(tensor=W, split_norms=True)) for family in FAMILIES],
        "optimizer-1": [("gpt2", layout(optimizer=1)), ("mixtral", layout(optimizer=1))],
        "optimizer-2": [("llama", layout(optimizer=2, micro_batches=2))],
        "optimizer-3": [("gpt2", layout(optimizer=3)), ("mixtral", layout(optimizer=3))],
        "gpipe": [("gpt2", layout(**pipeline, schedule="gpipe"))],
        "1f1b": [(family, layout(**pipeline)) for family in FAMILIES],
        "1f1b-cost": [("gpt2", layout(**pipeline, cut="cost"))],
        "expert": [("mixtral", layout(expert=W))],
        "ring": [("llama", layout(sequence=W)), ("bloom", layout(sequence=W)), ("mixtral", layout(sequence=W))],
        "heads": [("gpt2", layout(sequence=W, attention="heads"))],
        "heads+optimizer": [("llama", layout(sequence=W, attention="heads", optimizer=2))],
        "recompute": [("llama", layout(recompute=True))],
    }
    if W <= LAYERS // 2:
        found["interleaved"] = [("llama", layout(**pipeline, schedule="interleaved", chunks=2))]
    if W >= 4:
        two = {"tensor": 2, "pipeline": 2, "micro_batches": 4}
        found |= {
            "tensor+data": [("gpt2", layout(tensor=2, optimizer=1)), ("bloom", layout(tensor=2, optimizer=3))],
            "tensor+sequence": [("llama", layout(tensor=2, sequence=half))],
            "tensor+pipeline": [("gpt2", layout(**two)), ("llama", layout(**two, split_norms=True))],
            "expert+tensor": [("mixtral", layout(tensor=2, expert=2, optimizer=1 if W > 2 else 0))],
            "expert+pipeline": [("mixtral", layout(pipeline=2, micro_batches=2, expert=2, optimizer=1))],
        }
    if W >= 8:
        all_four = {"tensor": 2, "pipeline": 2, "micro_batches": 2, "optimizer": 1}
        found["data+tensor+pipeline"] = [("gpt2", layout(**all_four)), ("bloom", layout(**all_four))]
        found["data+tensor+pipeline+expert"] = [("mixtral", layout(**all_four, expert=2))]
    return found


def chosen(workers: int, names: list[str] | None, quick: bool = False) -> list[tuple[str, str, ParallelConfig]]:
    """Returns (name, family, layout) of the strategies of these names, or of all; UserError for an unknown name.

    Args:
        quick: takes the first family of each strategy alone.
    """
    known = strategies(workers)
    for name in names or ():
        if name not in known:
            raise UserError(
                f"unknown strategy {name!r}{nearest(name, known)}; {workers} workers can show {', '.join(known)}"
            )
    kept = {name: pairs[: 1 if quick else None] for name, pairs in known.items() if not names or name in names}
    return [(name, *pair) for name, pairs in kept.items() for pair in pairs]


def run_rows(
    workers: Workers,
    layouts: Iterable[tuple[str, str, ParallelConfig]],
    steps: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Runs strategies, and the same steps in one process; returns a row of each, on the first worker.

    Args:
        workers: all of them.
        layouts: of ``chosen``.
        steps: of training, an even number: examples of every second one are padded.
        tell: gets a line about what is about to run.
    """
    rows: list[Row] = []
    references: dict[tuple[str, int], tuple[list[float], dict[str, np.ndarray]]] = {}
    folder = Path(workers.objects(tempfile.mkdtemp() if workers.rank == 0 else None)[0])
    for name, family, config in layouts:
        tell(f"{name}: {config} on {family}")
        key = family, config.micro_batches if family == "mixtral" else 1  # balancing is by micro-batch
        ready = folder / f"{family}-{key[1]}"
        if workers.rank == 0 and key not in references:
            run = _Run(Alone(), family, key[1], steps)
            losses = [*run.train(), run.evaluate()]
            references[key] = losses, {p.name: p.asnumpy().copy() for p in run.model.get_parameters()}
            ready.touch()
        while not ready.exists():  # a collective would not wait for as long as a busy machine takes
            time.sleep(0.05)
        row = _row(workers, name, family, config, steps, references.get(key), folder)
        if workers.rank == 0:
            rows.append(row)
    workers.barrier()
    if workers.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _row(
    workers: Workers, name: str, family: str, config: ParallelConfig, steps: int, reference, folder: Path
) -> Row | None:
    gc.collect()
    before = reset_peak()
    strategy = Strategy(workers, config)
    start = time.perf_counter()
    run = _Run(strategy, family, config.micro_batches, steps)
    workers.traffic.clear()
    losses = run.train()
    seconds, sent = time.perf_counter() - start, workers.traffic.sent() / steps
    formula = _formula(strategy, run.model, steps)
    losses.append(run.evaluate())
    measured = workers.objects((sent, formula, resident("VmHWM") - before))
    strategy.save(folder / "part", None, {})
    if workers.rank:
        return None
    trained = sharded.ShardedCheckpoint(folder / "part")
    expected, parameters = reference
    apart = [np.abs(trained.full("param", n) - p).max() / np.abs(p).max() for n, p in parameters.items()]
    loss = float(np.max([abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]))  # a NaN stays one
    busiest = max(measured, key=lambda m: abs(m[0] - m[1]))  # where count and formula disagree most, if they do
    if math.isclose(busiest[0], busiest[1], rel_tol=1e-6):
        busiest = max(measured)
    memory = max(m[2] for m in measured)
    return Row(name, str(config), family, loss, float(np.max(apart)), busiest[0], busiest[1], memory, seconds)


def _formula(strategy: Strategy, model, steps: int) -> float:
    """The bytes that this worker sends per step, from sizes and layout; where copies of tokens went was counted."""
    stage = None if strategy.pipeline is None else strategy.pipeline.stage
    bounds = None if stage is None else stage.bounds
    held = Held(ModelSizes(model.config), strategy.config, strategy.rank, bounds)
    exchanges = [layer.exchange for layer in moe_layers(model) if layer.exchange is not None]
    each = steps * passes(held)
    copies = Copies(sum(e.moved for e in exchanges) / each, sum(e.rows for e in exchanges) / each)
    return sum(bytes_per_step(held, BATCH, LENGTH, copies=copies, masked=1 / 2).values())


class _Run:
    """A small model that a few steps train, alone or by several workers."""

    def __init__(self, team, family: str, micro_batches: int, steps: int):
        use_core(None)
        self.team, self.micro_batches, self.steps, self.model = team, micro_batches, steps, small_model(family)
        self.objective = moe_objective(base=BLOCKS) if family == "mixtral" else BLOCKS
        optimizer = AdamW(team.prepare(self.model, self.objective, False), (0.9, 0.95), EPSILON, 0.1)
        self.step = build_step(team, self.objective, optimizer, 1.0)

    def train(self) -> list[float]:
        """Returns the loss of each step."""
        self.model.set_train(True)
        return [self.objective.total(self.step(self._batches(i), LEARNING_RATE)[0]) for i in range(self.steps)]

    def evaluate(self) -> float:
        """Returns the loss of other examples, as the Trainer evaluates it."""
        self.model.set_train(False)
        total = counts = 0.0
        for tensors, targets in self._batches(self.steps):
            tensors, targets = self.team.local(tensors, self.objective.counts(targets))
            total, counts = total + self.team.evaluate(tensors), counts + targets
        use_core(None)
        return self.objective.total(self.team.sum_terms(total) / self.team.sum_array(counts))

    def _batches(self, step: int) -> list:
        pieces = _pieces(step, self.micro_batches, self.team.data_rank, self.team.data_world)
        return [self.objective.to_device(piece) for piece in pieces]


def _pieces(step: int, micro_batches: int, data_rank: int, data_world: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields a worker's share of each micro-batch: all workers together see the same ones for any layout.

    In every second step, rows end in padding.
    """
    rng = np.random.default_rng(step)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, BATCH) if step % 2 else np.full(BATCH, LENGTH)
    examples = [{"input_ids": rng.integers(0, VOCABULARY, length + 1)} for length in lengths]
    for piece in np.array_split(np.arange(BATCH), micro_batches):
        mine = np.array_split(piece, data_world)[data_rank]
        yield collate_blocks([examples[i] for i in mine], pad_to_multiple_of=LENGTH)


def small_model(family: str):
    """Returns a small model of a family with random values, the same in every process."""
    values = {"model_type": family, "vocab_size": VOCABULARY, **FAMILIES[family]}
    cls = model_class({**values, "architectures": None})
    ms.set_seed(0)
    model, rng = cls(cls.config_class.from_dict(values)), np.random.default_rng(0)
    for parameter in model.get_parameters():  # biases and norms too: at 0 and 1 they would hide mistakes
        noise = rng.normal(0, 0.05, parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(parameter.asnumpy() + noise))
    return model


def reset_peak() -> int:
    """Lets the peak of resident memory start over from what is in use, which is returned, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(kind: str) -> int:
    """Resident memory in bytes: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(kind)))
