"""The Trainer of a whole model, or of an adapter on it."""

import dataclasses
import sys
from pathlib import Path

import mindspore as ms

from msllm.training.arguments import TrainingArguments
from msllm.training.objective import Objective
from msllm.training.trainer import Trainer
from msllm.tuning import lora as adapters
from msllm.tuning.config import LoraConfig


def build_trainer(
    network,
    tokenizer,
    base: str | Path,
    examples,
    eval_examples,
    output: str | Path,
    training: TrainingArguments,
    objective: Objective,
    lora: LoraConfig | None = None,
    workers=None,
    **more,
) -> Trainer:
    """Returns the Trainer whose result is a model folder with its tokenizer, or an adapter folder.

    Args:
        network: changed in place by ``lora``.
        base: the folder that ``network`` came from; an adapter names it.
        examples, eval_examples, output, training, objective, workers: see Trainer.
        lora: None trains every weight.
        more: other arguments of Trainer.
    """
    if lora is None:
        return Trainer(
            network,
            training,
            examples,
            output,
            eval_examples,
            tokenizer.pad_token_id,
            objective,
            write_model=lambda folder: network.write_files(folder, tokenizer),
            workers=workers,
            **more,
        )
    ms.set_seed(training.seed)  # all workers draw the same adapters
    changed = adapters.apply(network, lora)
    trained = sum(p.size for p in network.trainable_params())
    total = sum(p.size for p in network.get_parameters())
    print(
        f"LoRA on {len(changed)} layers: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})",
        file=sys.stderr,
    )

    def write_model(folder: Path) -> None:
        adapters.save_adapter(network, lora, folder, str(Path(base).resolve()))
        tokenizer.save_pretrained(folder)

    return Trainer(
        network,
        training,
        examples,
        output,
        eval_examples,
        tokenizer.pad_token_id,
        objective,
        write_model,
        lambda folder: adapters.load_adapter(network, folder),
        workers=workers,
        settings={f"lora.{k}": v for k, v in dataclasses.asdict(lora).items()},
        **more,
    )
