"""The options of a training run; they carry transformers' names."""

import dataclasses

from msllm.errors import UserError
from msllm.training.schedule import SCHEDULES

OPTIMIZER_NAMES = ("adamw", "lamb")


@dataclasses.dataclass(kw_only=True)
class TrainingArguments:
    """Options of a training run.

    Args:
        optim: adamw, or lamb for large batches.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the data; a fraction is allowed.
        max_steps: optimiser steps; above 0 it overrides num_train_epochs.
        per_device_train_batch_size: examples a forward pass.
        train_batch_tokens: above 0, batches hold as many examples of like length as make at most so many tokens,
            padding included, over all workers, and per_device_train_batch_size has no effect.
        per_device_eval_batch_size: examples a forward pass of evaluation.
        gradient_accumulation_steps: forward passes an optimiser step.
        lr_scheduler_type: constant, linear, cosine or inverse_sqrt, each after the warm-up.
        warmup_ratio: share of the steps in which the rate rises from 0.
        warmup_steps: steps in which the rate rises from 0; above 0 it overrides warmup_ratio.
        weight_decay: decoupled decay of every weight except biases and norms.
        adam_beta1: decay of the gradient's mean.
        adam_beta2: decay of the squared gradient's mean.
        adam_epsilon: added to the optimiser's denominator.
        max_grad_norm: gradients are scaled down to this global norm; 0 turns it off.
        logging_steps: steps between two lines in log.jsonl.
        eval_steps: steps between two evaluations; 0 evaluates at the end only.
        save_steps: steps between two checkpoints; 0 saves at the end only.
        save_total_limit: newest checkpoints that are kept, the best one always too.
        load_best_model_at_end: the result is the checkpoint of the lowest evaluation loss, not the last one.
        group_by_length: batches hold examples of like length, so there is less padding.
        seed: seed of data order, dropout and new weights.
        jit: compile the training step with ms.jit and stock kernels, as on Ascend.
        profile: note what the steps after the first three spend their time on; tables and advice come as soon as they
            are over, the same and a Chrome trace go to the folder profile of the output.
        profile_steps: how many steps that are.
    """

    optim: str = "adamw"
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    train_batch_tokens: int = 0
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 1
    eval_steps: int = 0
    save_steps: int = 500
    save_total_limit: int = 2
    load_best_model_at_end: bool = False
    group_by_length: bool = False
    seed: int = 42
    jit: bool = False
    profile: bool = False
    profile_steps: int = 10

    def __post_init__(self):
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_total_limit",
            "profile_steps",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more; change it")
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "eval_steps",
            "save_steps",
            "train_batch_tokens",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more; change it")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise UserError(
                f"num_train_epochs is {self.num_train_epochs} and max_steps {self.max_steps}; give one of them above 0"
            )
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"warmup_ratio is {self.warmup_ratio}, expected 0 to 1; change it")
        if self.optim not in OPTIMIZER_NAMES:
            raise UserError(f"optim is {self.optim!r}; known are {', '.join(OPTIMIZER_NAMES)}")
        if self.jit and self.train_batch_tokens:
            raise UserError(
                f"train_batch_tokens is {self.train_batch_tokens} and jit on: a compiled step takes one shape, and "
                f"batches by tokens have many; turn one of them off"
            )
        if self.lr_scheduler_type not in SCHEDULES:
            raise UserError(f"lr_scheduler_type is {self.lr_scheduler_type!r}; known are {', '.join(SCHEDULES)}")
