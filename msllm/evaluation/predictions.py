"""A fine-tuned model's outputs on many examples."""

from collections.abc import Mapping, Sequence

import numpy as np

from msllm import data
from msllm.training.objective import Objective


def predict_batches(
    model, examples: Sequence[Mapping], objective: Objective, pad_token_id: int | None = None, batch_size: int = 32
) -> list[tuple[np.ndarray, ...]]:
    """Returns a model's outputs for each example, in the order of the examples.

    Args:
        model: called in inference mode; it is left in the mode that it was in.
        examples: encoded, each with what the objective's collate asks for.
        objective: how examples become a batch, and a batch outputs.
        pad_token_id: what fills short rows; None pads with 0.
        batch_size: examples a forward pass; those of like length go together.

    Returns:
        For each example a tuple with its row of each output. Rows of (B, T, ...) outputs are as long as the longest
        example of their batch: what stands behind the example's own tokens means nothing.
    """
    was_training = model.training
    model.set_train(False)
    found: list = [None] * len(examples)
    lengths = [data.example_length(example) for example in examples]
    for indices in data.batch_indices(lengths, batch_size, shuffle=False, group_by_length=True):
        batch = objective.collate([examples[i] for i in indices], pad_token_id)
        outputs = [output.asnumpy() for output in objective.outputs(model, objective.to_device(batch)[0])]
        for row, i in enumerate(indices):
            found[i] = tuple(output[row] for output in outputs)
    model.set_train(was_training)
    return found
