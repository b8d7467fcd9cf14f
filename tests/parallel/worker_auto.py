"""Trains a model by the Trainer's ordinary step and by the graph that auto-parallel compiles, here for one card.

python -m tests.parallel.worker_auto FAMILY FOLDER

A process of its own: auto-parallel sets MindSpore's graph mode for good. Writes FOLDER/found.json.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np

from msllm.models.pretrained import from_pretrained, model_class
from msllm.parallel.auto.cuts import Cuts
from msllm.parallel.auto.strategy import AutoStrategy
from msllm.parallel.comm import Workers
from msllm.parallel.config import ParallelConfig
from msllm.training import Trainer, TrainingArguments
from msllm.training.blocks import BLOCKS

V, T = 31, 8
FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": T}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    },
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 4},
}


def random_model(family: str, folder: Path) -> None:
    """Writes a model whose biases and norms are random too."""
    values = {"model_type": family, "vocab_size": V, "initializer_range": 0.2, **FAMILIES[family]}
    cls = model_class(values)
    model, rng = cls(cls.config_class.from_dict(values)), np.random.default_rng(0)
    for p in model.get_parameters():
        p.set_data(ms.Tensor(p.asnumpy() + rng.normal(0, 0.1, p.shape).astype(np.float32)))
    model.save_pretrained(folder)


def main(family: str, folder: Path) -> None:
    ms.set_seed(0)
    random_model(family, folder / "model")
    ids = np.random.default_rng(1).integers(0, V, (32, T + 1)).astype(np.int32)
    ids[::5, 6:] = 0
    examples = [{"input_ids": row[: 6 if i % 5 == 0 else T + 1]} for i, row in enumerate(ids)]
    arguments = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "seed": 1,
        "max_steps": 4,
    }
    # Where a gradient is rounding alone, Adam with the usual epsilon would make a whole step of it.
    arguments |= {"save_steps": 2, "eval_steps": 2, "adam_epsilon": 1e-4, "logging_steps": 1}

    def train(name: str, workers, resume: str | None = None) -> list[dict]:
        model = from_pretrained(folder / "model")
        trainer = Trainer(
            model,
            TrainingArguments(**arguments),
            examples,
            folder / name,
            examples[:8],
            objective=BLOCKS,
            workers=workers,
        )
        trainer.train(resume)
        return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]

    def card() -> AutoStrategy:
        return AutoStrategy(Workers(0, 1), ParallelConfig(mode="auto", micro_batches=2), Cuts())

    found = {"plain": train("plain", None), "auto": train("auto", card())}
    newest = folder / "auto" / "checkpoint-2"
    (folder / "again").mkdir()
    newest.rename(folder / "again" / "checkpoint-2")
    lines = (folder / "auto" / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "again" / "log.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
    found["again"] = train("again", card(), "auto")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
