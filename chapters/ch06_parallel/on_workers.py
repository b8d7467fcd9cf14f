"""What the workers of this chapter's runs do; run.py starts it with msllm.parallel.run_job.

python on_workers.py TASK '{"option": value}' RESULT.json

Every worker calls the library; the first writes what all of them measured.
"""

import dataclasses
import gc
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MSLLM_THREADS", "1")  # a core for each worker, before the kernels start their threads

import numpy as np

from msllm.errors import UserError
from msllm.files import write_json
from msllm.parallel import ParallelConfig, Strategy, start_workers
from msllm.parallel.verify import reset_peak, resident
from msllm.parallel.zero import slice_of

LEARNING_RATE, MAX_NORM = 1e-3, 1.0


def timeline(workers, sizes: dict, batch: int, micro_batches: int, steps: int, schedules: list[dict]) -> dict:
    """Trains a GPT-2 cut into stages; returns for each schedule the passes of each measured step, by stage."""
    found = []
    for schedule in schedules:
        config = ParallelConfig(pipeline=workers.world, micro_batches=micro_batches, cut="cost", **schedule)
        strategy = Strategy(workers, config)
        step, _, _ = prepared(strategy, sizes)
        measured = []
        for i in range(steps + 2):  # two to warm up
            workers.barrier()
            step(micro_batches_of(strategy, sizes, batch, micro_batches, i), LEARNING_RATE)
            if i >= 2:
                events = strategy.pipeline.events
                passes = [(e.work.kind, e.work.chunk, e.work.micro_batch, e.start, e.stop) for e in events]
                measured.append(workers.objects(passes))
        layers = workers.objects(strategy.pipeline.stage.pieces)
        found.append({**dataclasses.asdict(strategy.config), "layers": layers, "steps": measured})
    return {"schedules": found}


def slices(workers, sizes: dict, layouts: list[dict], folder: str) -> dict:
    """Spreads a GPT-2, trains it for a step and writes a checkpoint; returns the Slices that each worker holds."""
    found = []
    for i, layout in enumerate(layouts):
        strategy = Strategy(workers, ParallelConfig(**layout))
        step, optimizer, model = prepared(strategy, sizes)
        rows = strategy.config.data * strategy.config.micro_batches
        step(micro_batches_of(strategy, sizes, rows, strategy.config.micro_batches, 0), LEARNING_RATE)
        held = [dataclasses.asdict(slice_of(p)) for p in model.get_parameters()]
        checkpoint = f"{folder}/checkpoint-{i}"
        strategy.save(Path(checkpoint), optimizer, {"step": 1})
        found.append({"layout": str(strategy.config), "checkpoint": checkpoint, "held": workers.objects(held)})
    return {"layouts": found}


def memory(workers, sizes: dict, batch: int, level: int) -> dict:
    """Trains a GPT-2 whose workers share as ``optimizer`` = level says; returns the bytes that each of them holds.

    One level a process: memory that a model has let go of stays with the process, and the next would not be seen.
    """
    small = {**sizes, "n_embd": 8 * sizes["n_head"], "vocab_size": 64}
    _held_bytes(workers, small, batch, level)  # makes resident the code and the buffers that any model needs
    return _held_bytes(workers, sizes, batch, level)


def _held_bytes(workers, sizes: dict, batch: int, level: int) -> dict:
    gc.collect()
    before = resident("VmRSS")
    strategy = Watched(workers, ParallelConfig(optimizer=level, micro_batches=2))
    step, optimizer, model = prepared(strategy, sizes)
    step(micro_batches_of(strategy, sizes, batch, 2, 0), LEARNING_RATE)  # now all that stays is there
    gc.collect()
    reset_peak()
    for i in (1, 2):
        step(micro_batches_of(strategy, sizes, batch, 2, i), LEARNING_RATE)
    parameters = {id(p): p for p in (*model.get_parameters(), *strategy.parameters)}
    row = {
        "parameters": nbytes(parameters.values()),
        "gradients": strategy.gradient_bytes,
        "moments": nbytes([*optimizer.exp_avg, *optimizer.exp_avg_sq]),
        "growth": resident("VmHWM") - before,
    }
    count = sum(int(np.prod(shape)) for shape in strategy.whole.values())
    return {"level": level, "numbers": count, "workers": workers.objects(row)}


def servers(
    workers, tokens: str, tokenizer: str, steps: int, rows: int, seed: int, folder: str, stalenesses: list, slow: float
) -> dict:
    """Trains a GPT-2 on letters with the last worker as a parameter server, or in one process; returns its losses.

    Args:
        rows: of a batch of each of two who train; of one process, twice as many.
        stalenesses: bounds, each a training; 0 waits for all.
        slow: seconds that the second of those who train loses in every step.
    """
    from msllm.parallel import Server
    from msllm.parallel.server import part

    if workers is None:
        return {"modes": [letters_run(None, tokens, tokenizer, steps, 2 * rows, seed, Path(folder), 0.0)]}
    modes = []
    for bound in stalenesses:
        before, start = workers.traffic.sent("world"), time.perf_counter()
        mine = part(workers, ParallelConfig(servers=1, staleness=bound))
        if isinstance(mine, Server):
            mine.serve()
            row = {"updates": mine.updates}
        else:
            output = Path(folder) / f"staleness-{bound}"
            lost = slow if workers.rank == 1 else 0.0
            row = letters_run(mine, tokens, tokenizer, steps, rows, seed, output, lost)
            row["staleness"] = mine.staleness
        sent, seconds = workers.traffic.sent("world") - before, time.perf_counter() - start
        everyone = workers.objects({**row, "sent": sent, "seconds": seconds})
        *trained, served = everyone
        modes.append({**trained[0], "bound": bound, "updates": served["updates"]})
        modes[-1]["staleness"] = [one["staleness"] for one in trained]
        modes[-1]["sent"] = [one["sent"] for one in everyone]
    return {"modes": modes}


def letters_run(
    workers, tokens: str, tokenizer: str, steps: int, rows: int, seed: int, folder: Path, lost: float
) -> dict:
    """Trains a small GPT-2; returns its losses and when they came, and the last validation loss."""
    import mindspore as ms

    from msllm.data.token_file import TRAIN, VALIDATION, RandomCrops, TokenFile, Windows
    from msllm.files import read_json_lines
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from msllm.tokenization import load_tokenizer
    from msllm.training import Trainer, TrainingArguments
    from msllm.training.blocks import BLOCKS

    words, block = load_tokenizer(tokenizer), 64
    ms.set_seed(seed)
    sizes = {"vocab_size": len(words), "n_positions": block, "n_embd": 128, "n_layer": 4, "n_head": 4}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config.from_dict({**sizes, **drop}))

    def loss(network, tensors):
        time.sleep(lost)
        return BLOCKS.loss(network, tensors)

    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.1,
        save_steps=0,
        seed=seed,
    )
    train, held_out = (TokenFile.open(f"{tokens}/{name}", words) for name in (TRAIN, VALIDATION))
    crops = RandomCrops(train, block, steps * rows * (1 if workers is None else workers.data_world), seed)
    windows = Windows(held_out, block)
    objective = dataclasses.replace(BLOCKS, loss=loss)
    Trainer(
        model, arguments, crops, folder, [windows[i] for i in range(512)], objective=objective, workers=workers
    ).train(overwrite=True)
    log = read_json_lines(folder / "log.jsonl") if workers is None or workers.rank == 0 else []
    return {
        "losses": [entry["loss"] for entry in log if "loss" in entry],
        "times": [entry["elapsed"] for entry in log if "loss" in entry],
        "validation_loss": next((entry["eval_loss"] for entry in log if "eval_loss" in entry), None),
    }


class Watched(Strategy):
    """Notes the bytes of the gradients that are kept from one micro-batch to the next."""

    def _summed(self, gradients):
        self.gradient_bytes = nbytes(gradients.values())
        return super()._summed(gradients)

    def _to_owners(self, gradients):
        new = super()._to_owners(gradients)
        if self.config.optimizer >= 2:  # after every micro-batch; with less, once at the end
            self.gradient_bytes = nbytes(new.values())
        return new


def prepared(strategy: Strategy, sizes: dict) -> tuple:
    """Returns a step function, its optimiser and the GPT-2 that it trains, spread as the strategy says."""
    import mindspore as ms

    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from msllm.training.blocks import BLOCKS
    from msllm.training.optimizer import AdamW
    from msllm.training.step import build_step

    ms.set_seed(0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config.from_dict({**sizes, **drop}))
    optimizer = AdamW(strategy.prepare(model, BLOCKS, False), (0.9, 0.95), 1e-8, 0.1)
    model.set_train(True)
    return build_step(strategy, BLOCKS, optimizer, MAX_NORM), optimizer, model


def micro_batches_of(strategy: Strategy, sizes: dict, batch: int, count: int, step: int) -> list:
    """Returns this worker's share of ``batch`` examples of random ids, in ``count`` pieces: time and bytes are those
    of real text."""
    from msllm.training.blocks import BLOCKS

    rng = np.random.default_rng(step)
    ids = rng.integers(0, sizes["vocab_size"], (batch, sizes["n_positions"] + 1))
    mine = np.array_split(ids, strategy.data_world)[strategy.data_rank]
    pieces = [[{"input_ids": row} for row in piece] for piece in np.array_split(mine, count)]
    return [BLOCKS.to_device(BLOCKS.collate(piece)) for piece in pieces]


def nbytes(tensors) -> int:
    return sum(tensor.size * tensor.itemsize for tensor in tensors)


def main(task: str, options: str, result: str) -> None:
    workers = start_workers()
    first, world = (True, 1) if workers is None else (workers.rank == 0, workers.world)
    if first:
        print(f"{task} on {world} worker{'s' * (world > 1)}", flush=True)
    start = time.perf_counter()
    found = TASKS[task](workers, **json.loads(options))
    if first:
        write_json(result, {**found, "seconds": time.perf_counter() - start})
    if workers is not None:
        workers.barrier()


TASKS = {"timeline": timeline, "slices": slices, "memory": memory, "servers": servers}

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
