"""Run on three workers, two of which train: synchronous, asynchronous, and interrupted; writes what they found."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import mindspore as ms
import numpy as np

from msllm.errors import UserError
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
from msllm.parallel import ParallelConfig, Server, start_workers
from msllm.parallel.server import part
from msllm.training import Trainer, TrainingArguments
from msllm.training.blocks import BLOCKS

VOCABULARY, LENGTH = 31, 12
SIZES = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}


def examples(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, VOCABULARY, count)
    return [{"input_ids": (s + np.arange(LENGTH + 1)) % VOCABULARY} for s in starts]


def interrupted_at(call: int):
    """An objective at whose loss number ``call`` this process gets a SIGTERM."""
    calls = iter(range(1000))

    def loss(model, tensors):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return BLOCKS.loss(model, tensors)

    return dataclasses.replace(BLOCKS, loss=loss)


def trainer(folder: Path, workers, rows: int, steps: int, objective=BLOCKS) -> Trainer:
    """A Trainer of a small GPT-2, the same in every process."""
    ms.set_seed(0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config.from_dict({**SIZES, **drop}))
    args = TrainingArguments(
        learning_rate=1e-2,
        max_steps=steps,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=4,
        save_steps=2,
        adam_epsilon=1e-5,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    return Trainer(model, args, examples(48), folder, examples(8), objective=objective, workers=workers)


def main(folder: Path) -> None:
    workers = start_workers()
    found = {}
    workers.traffic.add("send", "world", 0, 0.0)
    for mode, staleness in (("synchronous", 0), ("asynchronous", 1), ("interrupted", 1)):
        mine = part(workers, ParallelConfig(servers=1, staleness=staleness))
        if isinstance(mine, Server):
            mine.serve()
            found[mode] = {"updates": mine.updates, "parameters": sum(p.size for p in mine.parameters)}
        else:
            objective = interrupted_at(6) if mode == "interrupted" and workers.rank == 1 else BLOCKS
            run = trainer(folder / mode, mine, 2, 6 if mode == "synchronous" else 40, objective)
            before = workers.traffic["send", "world"].sent
            try:
                run.train()
                found[mode] = {"staleness": mine.staleness}
            except UserError as e:
                found[mode] = {"error": str(e), "step": run.state.step}
            found[mode]["sent"] = workers.traffic["send", "world"].sent - before
        workers.barrier()
    (folder / f"found-{workers.rank}.json").write_text(json.dumps(found))
    workers.barrier()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as e:
        sys.exit(f"error: {e}")
