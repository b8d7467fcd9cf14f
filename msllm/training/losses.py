"""The loss of next-token prediction: from a model and a batch to the sum over the targets, and their number."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

IGNORE_INDEX = -100


def causal_lm_loss(model, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the summed cross-entropy of the next token, float32 scalar.

    Args:
        model: a CausalLM.
        batch: input_ids (B, T); ``targets`` (B * T,), the labels moved one to the left; where present
            attention_mask, position_ids and row_start, all int32.
    """
    logits = model(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids"), batch.get("row_start"))
    losses = model.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["targets"], IGNORE_INDEX)
    return ops.ReduceSum()(losses)


def to_device(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], int]:
    """Turns a numpy batch into tensors for causal_lm_loss; returns them and the number of targets.

    The labels are shifted here, on the host, so that the logits need no copy.
    """
    labels = np.full_like(batch["labels"], IGNORE_INDEX)
    labels[:, :-1] = batch["labels"][:, 1:]
    tensors = {k: Tensor(np.ascontiguousarray(v, np.int32)) for k, v in batch.items() if k != "labels"}
    if batch["attention_mask"].all():
        del tensors["attention_mask"]  # nothing is padded: kernels skip the mask
    tensors["targets"] = Tensor(labels.reshape(-1), ms.int32)
    return tensors, int((labels != IGNORE_INDEX).sum())
