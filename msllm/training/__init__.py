"""The one training loop: what changes between tasks is the loss function and the data."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__, {"Trainer": "trainer", "TrainingArguments": "arguments", "causal_lm_loss": "losses"}
)
