"""What a GPT is fine-tuned for: classes, choices, and, beside them, the next word (Radford et al. 2018, section 3.2).

Shapes: B records, C sequences of each, R = B * C rows, T tokens, L classes.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Tensor, ops

from msllm import data, kernels
from msllm.data import IGNORED
from msllm.errors import UserError
from msllm.training.objective import Objective

_FAR = np.float32(-1e9)  # the logit of a choice that a record does not have
KINDS = ("classification", "similarity", "multiple-choice")


def collate_sequences(
    examples: Sequence[Mapping], pad_token_id: int | None = None, pad_to_multiple_of: int | None = None
) -> dict:
    """Pads the sequences of msllm.data.task_inputs.encode_sequences.

    Returns:
        input_ids, attention_mask and words (R, T), where words are the ids that follow, -100 behind each sequence;
        ``ends`` (R,), each sequence's last token in the flat batch; ``missing`` (B, C), 1 where a record has no such
        sequence; labels (B,).
    """
    count = max(max((len(e.get("lengths", ())) for e in examples), default=1), 1)
    rows = []
    for example in examples:
        bounds = np.cumsum([0, *example.get("lengths", ())])
        found = [{"input_ids": example["input_ids"][a:b]} for a, b in itertools.pairwise(bounds)]
        rows += found + [{"input_ids": []}] * (count - len(found))
    batch = data.collate(rows, pad_token_id, pad_to_multiple_of)
    lengths = batch["attention_mask"].sum(1)
    batch["words"] = np.full_like(batch["labels"], IGNORED)
    following = batch["attention_mask"][:, 1:] == 1
    batch["words"][:, :-1][following] = batch["input_ids"][:, 1:][following]
    T = batch["input_ids"].shape[1]
    batch["ends"] = (np.arange(len(rows)) * T + np.maximum(lengths, 1) - 1).astype(np.int32)
    batch["missing"] = (lengths == 0).astype(np.int32).reshape(len(examples), count)
    batch["labels"] = np.array([e["labels"] if e["input_ids"] else IGNORED for e in examples], np.int32)
    return batch


def longest_sequence(example: Mapping) -> int:
    """The tokens of a record's longest sequence: what its rows are padded to."""
    return max(example["lengths"])


def to_device(batch: Mapping[str, np.ndarray], words: bool = False) -> tuple[dict[str, Tensor], int | list[int]]:
    """Turns a batch into tensors; returns them and the numbers of targets: records and, with ``words``, next words."""
    tensors = {k: Tensor(np.ascontiguousarray(v, np.int32)) for k, v in batch.items() if k not in ("missing", "words")}
    if batch["attention_mask"].all():
        del tensors["attention_mask"]  # nothing is padded: kernels skip the mask
    tensors["far"] = Tensor(batch["missing"].astype(np.float32) * _FAR)
    records = int((batch["labels"] != IGNORED).sum())
    if not words:
        return tensors, records
    tensors["words"] = Tensor(np.ascontiguousarray(batch["words"].reshape(-1), np.int32))
    return tensors, [records, int((batch["words"] != IGNORED).sum())]


def record_logits(model, tensors: Mapping[str, Tensor], kind: str, words: bool = False) -> tuple[Tensor, ...]:
    """Returns each record's logits, (B, L) or (B, C) of choices, and with ``words`` the next words' (R, T, V).

    The two orders of a pair are added (section 3.3); as the map onto classes is linear, so may be their logits.
    """
    outputs = model(tensors["input_ids"], tensors.get("attention_mask"), tensors["ends"], words)
    B, C = tensors["far"].shape
    if kind == "multiple-choice":
        logits = outputs[0].reshape(B, C) + tensors["far"]
    else:
        logits = outputs[0].reshape(B, C, -1)
        logits = logits[:, 0] + logits[:, 1] if kind == "similarity" else logits[:, 0]
    return (logits, *outputs[1:])


def sequence_loss(model, tensors: Mapping[str, Tensor], kind: str, words: bool = False) -> Tensor:
    """Returns the summed cross-entropy of the records and, with ``words``, of their next words: a scalar or (2,)."""
    outputs = record_logits(model, tensors, kind, words)
    loss = ops.ReduceSum()(kernels.cross_entropy(outputs[0], tensors["labels"], IGNORED))
    if not words:
        return loss
    logits = outputs[1]
    next_words = kernels.cross_entropy(logits.reshape(-1, logits.shape[-1]), tensors["words"], IGNORED)
    return ops.stack([loss, ops.ReduceSum()(next_words)])


def sequence_objective(kind: str, lm_weight: float = 0.0) -> Objective:
    """Returns L2 + lambda L1 (equation 5): the mean loss of the records, and ``lm_weight`` times that of the words.

    Args:
        kind: of KINDS.
        lm_weight: lambda; the paper's is 0.5; 0 leaves the words out.
    """
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}; known are {', '.join(KINDS)}")
    if not lm_weight >= 0:
        raise UserError(f"lm_weight is {lm_weight}, expected 0 or more; change it")
    words = lm_weight > 0
    return Objective(
        functools.partial(sequence_loss, kind=kind, words=words),
        functools.partial(to_device, words=words),
        collate_sequences,
        terms=("task_loss", "lm_loss") if words else ("loss",),
        weights=(1.0, lm_weight) if words else (1.0,),
        length=longest_sequence,
        outputs=functools.partial(record_logits, kind=kind),
    )
