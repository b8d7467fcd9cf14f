"""Next-token prediction over blocks of T + 1 ids: T inputs, and as targets the T ids that follow each of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from msllm.data.token_file import TRAIN, VALIDATION, RandomCrops, TokenFile, Windows
from msllm.errors import UserError
from msllm.training.arguments import TrainingArguments
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


def open_token_files(
    data: str | Path, eval_data: str | Path | None, tokenizer, name: str
) -> tuple[TokenFile, TokenFile | None]:
    """Returns the token files to train and to evaluate on; None for the second where there is none.

    Args:
        data: folder that msllm data tokenize wrote, or a .bin file of it.
        eval_data: the like; without it, a folder's validation part.
        tokenizer, name: see TokenFile.open.
    """
    data = Path(data)
    train, held_out = (data / TRAIN, data / VALIDATION) if data.is_dir() else (data, None)
    if eval_data is not None:
        held_out = Path(eval_data)
        if held_out.is_dir():
            held_out = next((held_out / n for n in (VALIDATION, TRAIN) if (held_out / n).is_file()), held_out)
    elif held_out is not None and not held_out.is_file():
        held_out = None
    return tuple(None if path is None else TokenFile.open(path, tokenizer, name) for path in (train, held_out))


def block_length_of(model, parts: Sequence[TokenFile], wanted: int | None, default: int) -> int:
    """Returns T, the inputs of an example: ``wanted``, else the longest that a CausalLM takes, else ``default``.

    Raises:
        UserError: the model does not take so many, or has no id of the data.
    """
    size = model.config.vocab_size
    for part in parts:
        if part.largest >= size:
            raise UserError(
                f"{part.path} has the id {part.largest}, and the model knows {size} (vocab_size in config.json); "
                f"tokenize the text with the tokenizer of the model"
            )
    longest = model.max_length
    chosen = (longest or default) if wanted is None else wanted
    if chosen < 1 or (longest is not None and chosen > longest):
        most = "or more" if longest is None else f"to {longest}, the model's positions"
        raise UserError(f"block_size is {chosen}, expected 1 {most}; change it, or take a model of more positions")
    return chosen


def block_examples(
    tokens: TokenFile, length: int, sampling: str, args: TrainingArguments, world: int
) -> tuple[TrainingArguments, Windows | RandomCrops]:
    """Returns the options of training, with the number of steps where crops are drawn, and the examples.

    Args:
        length: T.
        sampling: "sequential" goes through the tokens in windows, "random" draws places, and an epoch is as many
            examples as fit into them.
        args, world: of the run: how many examples it takes.
    """
    if sampling == "sequential":
        return args, Windows(tokens, length)
    rows = args.per_device_train_batch_size * world
    if args.train_batch_tokens:
        rows = max(1, args.train_batch_tokens // length)
    rows *= args.gradient_accumulation_steps
    if args.max_steps < 1:  # all the epochs are one set of crops: each would else repeat those of the first
        crops = args.num_train_epochs * max(1, len(tokens) // length)
        args = dataclasses.replace(args, max_steps=math.ceil(crops / rows))
    return args, RandomCrops(tokens, length, args.max_steps * rows, args.seed)
