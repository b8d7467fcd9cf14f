"""The one training loop: what changes between tasks is the loss function and the data."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {"CAUSAL_LM": "objective", "Objective": "objective", "Trainer": "trainer", "TrainingArguments": "arguments"},
)
