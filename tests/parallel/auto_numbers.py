"""Whether the graphs that auto-parallel makes compute what one process computes: small models, two steps, each layout.

python -m tests.parallel.auto_numbers ["MODEL LAYOUT" ...]

Compiles the program of every card of a layout with MindSpore's front end, computes the programs in numpy, card beside
card (see graph_interpreter), and compares with the Trainer's ordinary step of the whole batch in one process.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mindspore import Tensor

from msllm.models.pretrained import model_class
from msllm.parallel.auto import simulate
from msllm.parallel.auto.held import held_part
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import coordinates
from msllm.parallel.plans import plan_for
from msllm.training.alone import Alone
from msllm.training.arguments import TrainingArguments
from msllm.training.blocks import BLOCKS
from msllm.training.optimizer import AdamW
from msllm.training.step import build_step
from tests.parallel.graph_interpreter import Card, run_step
from tests.parallel.graph_text import read

BOUND = 1e-5
STEPS, EXAMPLES, LENGTH, RATE = 2, 8, 5, 1e-2  # MindSpore writes out constants of up to 30 numbers: T x T is 25
# Where a gradient is rounding alone, Adam with the usual epsilon would make a whole step of it.
TRAINING = TrainingArguments(weight_decay=0.1, adam_epsilon=1e-4, max_grad_norm=0.5)
FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A layout of a model; ``data`` of the layout is set. ``values`` go into config.json.

    ``fused``: with Ascend's fused operators, but for attention, which it fuses in half precision alone.
    """

    name: str
    family: str
    parallel: ParallelConfig
    values: dict = dataclasses.field(default_factory=dict)
    fused: bool = False

    @property
    def config(self) -> dict:
        return {"model_type": self.family, "vocab_size": 24, **FAMILIES[self.family], **self.values}


def cases() -> list[Case]:
    """Returns what the command compares."""

    def layout(**values) -> ParallelConfig:
        return ParallelConfig(mode="auto", **{"data": 2, "tensor": 2, **values})

    stages = {"pipeline": 2, "micro_batches": 2}
    found = {
        "data, tensor": [(family, layout()) for family in FAMILIES],
        "data, tensor, 25 words": [("gpt2", layout(), {"vocab_size": 25})],
        "data, tensor, fused operators": [(family, layout(), {}, True) for family in FAMILIES],
        "micro-batches": [("gpt2", layout(micro_batches=2)), ("llama", layout(micro_batches=4))],
        "recompute": [("gpt2", layout(recompute=True)), ("llama", layout(recompute=True))],
        "optimizer 1": [(family, layout(optimizer=1)) for family in FAMILIES],
        "optimizer 2": [("llama", layout(optimizer=2))],
        "optimizer 3": [(family, layout(optimizer=3)) for family in FAMILIES],
        "optimizer 3, recompute": [("llama", layout(optimizer=3, recompute=True))],
        "pipeline, tensor": [(family, layout(data=1, **stages)) for family in FAMILIES],
        "pipeline, tensor, tied": [("llama", layout(data=1, **stages), {"tie_word_embeddings": True})],
        "pipeline, data, 4 micro-batches": [("llama", layout(tensor=1, pipeline=2, micro_batches=4))],
        "pipeline, data, optimizer 1": [
            (family, layout(tensor=1, **stages, optimizer=1)) for family in ("gpt2", "llama")
        ],
        "pipeline, data, tensor, optimizer 1": [("gpt2", layout(**stages, optimizer=1))],
        "the same, recompute": [("llama", layout(**stages, optimizer=1, recompute=True))],
    }
    return [Case(name, *values) for name, several in found.items() for values in several]


@dataclasses.dataclass(frozen=True)
class Differences:
    """The largest ones between a layout's cards and one process, each relative.

    Attributes:
        loss, norm: of the gradients before clipping: of any step.
        gradient: of a parameter's first moment after the first step, to its largest value, or to a thousandth of the
            largest of all where that is more.
        parameter: of a parameter after all steps, to its largest value.
    """

    loss: float
    norm: float
    gradient: float
    parameter: float

    @property
    def worst(self) -> float:
        """The largest of them; NaN where one is."""
        return float(np.max(dataclasses.astuple(self)))


def batches(config: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns ids and targets of each step, int32 (EXAMPLES, T); examples have different numbers of targets."""
    rng, found = np.random.default_rng(1), []
    for _ in range(STEPS):
        ids, targets = rng.integers(0, config["vocab_size"], (2, EXAMPLES, LENGTH)).astype(np.int32)
        targets[::3, 3:] = -100
        found.append((ids, targets))
    return found


def random_model(config: dict):
    """Returns a model of random numbers, the same each time; norms are about 1."""
    cls = model_class(config)
    model, rng = cls(cls.config_class.from_dict(config)), np.random.default_rng(0)
    for p in model.get_parameters():
        middle = p.asnumpy() if p.ndim == 1 else 0.0
        p.set_data(Tensor((middle + rng.normal(0, 0.2, p.shape)).astype(np.float32)))
    return model


def in_one_process(model, config: dict) -> list[tuple[float, float, dict, dict]]:
    """Trains a model; returns (loss, norm, first moments, parameters) after each step."""
    workers, t = Alone(), TRAINING
    parameters = workers.prepare(model, BLOCKS, jit=False)
    optimizer = AdamW(parameters, (t.adam_beta1, t.adam_beta2), t.adam_epsilon, t.weight_decay)
    step, found = build_step(workers, BLOCKS, optimizer, t.max_grad_norm), []
    for ids, targets in batches(config):
        tensors = {"input_ids": Tensor(ids), "targets": Tensor(targets.reshape(-1))}
        loss, norm = step([(tensors, int((targets >= 0).sum()))], RATE)
        moments = {p.name: m.asnumpy().copy() for p, m in zip(parameters, optimizer.exp_avg, strict=True)}
        found.append((float(loss[0]), norm, moments, {p.name: p.asnumpy().copy() for p in parameters}))
    return found


def compile_cards(case: Case, folder: Path, processes: int = 2) -> list[Path]:
    """Compiles the program of every card; returns the folders of their graphs."""
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(lambda rank: _compile(case, rank, folder / f"rank-{rank}"), range(case.parallel.world)))


def _compile(case: Case, rank: int, folder: Path) -> Path:
    folder.mkdir(parents=True)
    request = {
        "parallel": dataclasses.asdict(case.parallel),
        "rank": rank,
        "config": case.config,
        "length": LENGTH,
        "rows": EXAMPLES // case.parallel.data,
        "dtype": "float32",
        "fused": case.fused,
        "training": dataclasses.asdict(TRAINING),
        "strategy": str(folder / "strategy.ckpt"),
    }
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "msllm.parallel.auto.simulate", str(folder / "request.json")]
    environment = {**os.environ, **simulate.environment(folder)}
    ended = subprocess.run([*command, str(folder / "result.json")], env=environment, capture_output=True, text=True)
    found = json.loads((folder / "result.json").read_text()) if ended.returncode == 0 else {"error": ended.stderr}
    if "error" in found:
        raise RuntimeError(f"card {rank} of {case.name}: {found['error'][-2000:]} ({ended.returncode})")
    return folder


def compare(case: Case, graphs: Sequence[Path]) -> Differences:
    """Computes the programs of all cards, and compares with one process."""
    model = random_model(case.config)
    whole = {p.name: p.asnumpy().copy() for p in model.get_parameters()}  # training changes them in place
    cards = [Card(read(folder), {}) for folder in graphs]
    parts = [_parts(case, rank, card, model) for rank, card in enumerate(cards)]
    _check_complete(parts, whole)
    for rank, card in enumerate(cards):
        for name, (dtype, shape) in card.graph.parameters.items():
            part = parts[rank].get(name)
            card.state[name] = _other(name, dtype, shape) if part is None else part.of(whole[name]).reshape(shape)
    worst = np.zeros(4)
    for number, (batch, expected) in enumerate(
        zip(batches(case.config), in_one_process(model, case.config), strict=True)
    ):
        results = _step(case, cards, batch)
        loss, norm, moments, values = expected
        assert norm > TRAINING.max_grad_norm  # otherwise nothing is clipped
        last = results[-(case.parallel.world // case.parallel.pipeline) :]  # the last stage has the loss
        worst[0] = np.max([worst[0], *(abs(float(result[0]) - loss) / loss for result in last)])  # max may drop a NaN
        worst[1] = np.max([worst[1], *(abs(float(result[1][0]) - norm) / norm for result in results)])
        if number == 0:
            least = 1e-3 * max(np.abs(value).max() for value in moments.values())
            worst[2] = _largest(cards, parts, moments, "exp_avg.", least)
    worst[3] = _largest(cards, parts, values, "", 0.0)
    return Differences(*map(float, worst))


def _other(name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Returns what is in a graph's parameter that is no part of the model."""
    kind, _, _ = name.partition(".")
    known = {"scale_sense": 1.0, **dict.fromkeys(("exp_avg", "exp_avg_sq", "accu_grads", "optimizer_step"), 0.0)}
    unknown = np.nan if dtype == np.float32 else 0  # inputs come before each step
    return np.full(shape, known.get(kind, unknown), dtype)


def _parts(case: Case, rank: int, card: Card, model) -> dict:
    """Returns which part of each parameter a card has."""
    place, plan, shapes = coordinates(rank, case.parallel), plan_for(case.family), card.graph.parameters
    held = {}
    # The last stage's copy of a tied embedding is never read: each step, the first stage sends its own.
    copy = model.embedding.weight.name if model.tied and place[0] > 0 else None
    for p in model.get_parameters():
        if p.name in shapes and p.name != copy:
            part, _ = held_part(p.name, tuple(p.shape), shapes[p.name][1], place, case.parallel, plan, model)
            held[p.name] = part
    return held


def _check_complete(parts: list[dict], whole: dict) -> None:
    """Every number of every parameter is on some card."""
    for name, value in whole.items():
        numbers = np.arange(value.size).reshape(value.shape)
        held = [card[name].of(numbers).reshape(-1) for card in parts if name in card]
        assert np.unique(np.concatenate(held)).size == value.size, name


def _step(case: Case, cards: list[Card], batch: tuple[np.ndarray, np.ndarray]) -> list[tuple]:
    ids, targets = batch
    rows = EXAMPLES // case.parallel.data
    for rank, card in enumerate(cards):
        _, d, _, _ = coordinates(rank, case.parallel)
        given = {"input_ids": ids[d * rows :][:rows], "targets": targets[d * rows :][:rows]}
        given |= {"scale": np.float32(1 / (targets >= 0).sum()), "learning_rate": np.float32(RATE)}
        card.state |= {name: np.asarray(value) for name, value in given.items() if name in card.graph.parameters}
    return run_step(cards)


def _largest(cards: list[Card], parts: list[dict], expected: dict, prefix: str, least: float) -> float:
    """Returns the largest difference from what is expected of each card, relative as Differences says."""
    differences = []
    for card, held in zip(cards, parts, strict=True):
        for name, part in held.items():
            found, value = card.state[prefix + name], expected[name]
            difference = np.abs(found - part.of(value).reshape(found.shape)).max()
            differences.append(difference / max(np.abs(value).max(), least))
    return np.max(differences)


def main(names: Sequence[str]) -> None:
    print(f"{'model':6} {'layout':36} {'cards':>5} {'loss':>8} {'norm':>8} {'gradient':>8} {'weights':>8}")
    failed = 0
    known = {f"{case.family} {case.name}": case for case in cases()}
    for case in [known[name] for name in names] or known.values():
        with tempfile.TemporaryDirectory() as folder:
            found = compare(case, compile_cards(case, Path(folder)))
        failed += not found.worst < BOUND  # as a NaN is not
        numbers = " ".join(f"{value:8.1e}" for value in dataclasses.astuple(found))
        print(f"{case.family:6} {case.name:36} {case.parallel.world:5} {numbers}", flush=True)
    print(f"{failed} above {BOUND}" if failed else f"all below {BOUND}")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main(sys.argv[1:])
