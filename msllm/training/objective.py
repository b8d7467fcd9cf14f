"""What a model is trained for: how examples become a batch, and what its losses are."""

import dataclasses
from collections.abc import Callable

import numpy as np

from msllm import data
from msllm.errors import UserError
from msllm.training.losses import causal_lm_loss, to_device

Counts = int | list[int]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A task as the Trainer sees it.

    Args:
        loss: (model, tensors) -> the sum of the losses over the targets, a scalar, or (K,) for K terms.
        to_device: (numpy batch) -> tensors and the number of targets: an int, or K of them.
        collate: (examples, pad_token_id=, pad_to_multiple_of=) -> numpy batch with attention_mask; an example without
            input_ids stands for nothing.
        terms: a name for each term, in the log.
        weights: what each term counts in the whole: loss = sum over k of weight_k * sum_k / count_k.
        length: example -> its tokens, for batches of like length.
        outputs: (model, tensors) -> a tuple of what the model says of each example, for predictions.
        layer_terms: (model) -> the terms after the first, (K - 1,), where the layers that ran left them behind.
    """

    loss: Callable
    to_device: Callable = to_device
    collate: Callable = data.collate
    terms: tuple[str, ...] = ("loss",)
    weights: tuple[float, ...] = (1.0,)
    length: Callable = data.example_length
    outputs: Callable | None = None
    layer_terms: Callable | None = None

    def __post_init__(self):
        if len(self.terms) != len(self.weights):
            raise UserError(f"an objective has {len(self.terms)} terms and {len(self.weights)} weights; give as many")

    def counts(self, counts: Counts) -> np.ndarray:
        """Returns what to_device counted as float64 (K,)."""
        return np.atleast_1d(np.asarray(counts, np.float64))

    def total(self, means: np.ndarray) -> float:
        """Returns the whole loss of the means (K,) of the terms."""
        return float(np.dot(self.weights, means))


CAUSAL_LM = Objective(causal_lm_loss)
