"""Next-token prediction over blocks of T + 1 ids: T inputs, and as targets the T ids that follow each of them."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from msllm.training.losses import IGNORE_INDEX, causal_lm_loss
from msllm.training.objective import Objective


def block_length(example: Mapping[str, Sequence[int]]) -> int:
    """The inputs of an example, T."""
    return max(0, len(example["input_ids"]) - 1)


def collate_blocks(
    examples: Sequence[Mapping[str, Sequence[int]]],
    pad_token_id: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> dict[str, np.ndarray]:
    """Stacks blocks into one batch; every id of a block but the first is a target.

    Args:
        examples: each with ``input_ids`` (T + 1,); fewer than two ids stand for nothing.
        pad_token_id: what fills short rows; None pads with 0.
        pad_to_multiple_of: rounds T up.

    Returns:
        input_ids, labels (the ids moved one to the left, -100 at padding) and attention_mask (1 = real token), each
        int32 (B, T).
    """
    lengths = np.array([block_length(example) for example in examples], np.int64)
    multiple = pad_to_multiple_of or 1
    T = -(-max(1, int(lengths.max(initial=0))) // multiple) * multiple
    pad = 0 if pad_token_id is None else pad_token_id
    rows = np.full((len(examples), T + 1), pad, np.int32)
    for row, example in zip(rows, examples, strict=True):
        row[: len(example["input_ids"])] = example["input_ids"]
    real = np.arange(T) < lengths[:, None]
    return {
        "input_ids": np.where(real, rows[:, :-1], np.int32(pad)),
        "labels": np.where(real, rows[:, 1:], np.int32(IGNORE_INDEX)),
        "attention_mask": real.astype(np.int32),
    }


def blocks_to_device(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], int]:
    """Turns a batch of collate_blocks into tensors for causal_lm_loss; returns them and the number of targets."""
    tensors = {"input_ids": Tensor(batch["input_ids"]), "targets": Tensor(batch["labels"].reshape(-1), ms.int32)}
    if not batch["attention_mask"].all():  # where nothing is padded, kernels skip the mask
        tensors["attention_mask"] = Tensor(batch["attention_mask"])
    return tensors, int((batch["labels"] != IGNORE_INDEX).sum())


BLOCKS = Objective(causal_lm_loss, blocks_to_device, collate_blocks, length=block_length)
