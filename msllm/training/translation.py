"""The objective of translation: the next target token, given the source and the target so far."""

import functools

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import kernels
from msllm.data.parallel_text import collate_pairs, pair_length
from msllm.errors import UserError
from msllm.training.losses import IGNORE_INDEX
from msllm.training.objective import Objective


def translation(start_id: int, smoothing: float = 0.1) -> Objective:
    """Returns the objective for a TransformerForTranslation.

    Args:
        start_id: what stands before the first target token.
        smoothing: label smoothing while training (Vaswani et al. 2017, section 5.4); evaluation has none, so that
            exp(loss) is the perplexity.

    Raises:
        UserError: ``smoothing`` outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"label_smoothing is {smoothing}, expected at least 0 and below 1, such as 0.1; change it")

    def loss(model, tensors):
        logits = model(tensors["input_ids"], tensors.get("attention_mask"), tensors["decoder_input_ids"])
        logits = logits.reshape(-1, logits.shape[-1])
        share = smoothing if model.training else 0.0
        return ops.ReduceSum()(kernels.cross_entropy(logits, tensors["targets"], IGNORE_INDEX, share))

    return Objective(loss, to_device, functools.partial(collate_pairs, start_id=start_id), length=pair_length)


def to_device(batch: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], int]:
    """Turns a batch of collate_pairs into tensors; returns them and the number of targets."""
    tensors = {k: Tensor(v) for k, v in batch.items() if k != "labels"}
    if batch["attention_mask"].all():
        del tensors["attention_mask"]  # nothing is padded: kernels skip the mask
    tensors["targets"] = Tensor(batch["labels"].reshape(-1), ms.int32)
    return tensors, int((batch["labels"] != IGNORE_INDEX).sum())
