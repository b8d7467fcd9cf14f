"""The one training loop: what changes between tasks is the loss function and the data."""

from msllm.training.arguments import TrainingArguments
from msllm.training.losses import causal_lm_loss
from msllm.training.trainer import Trainer

__all__ = ["Trainer", "TrainingArguments", "causal_lm_loss"]
