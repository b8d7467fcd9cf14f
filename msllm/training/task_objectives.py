"""What a BERT is fine-tuned for: classes of texts, tags of tokens, answers in a text.

Shapes: B batch, T tokens. Batches hold input_ids, attention_mask and token_type_ids (B, T), and labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Tensor, ops

from msllm import data, kernels
from msllm.data import IGNORED
from msllm.training.objective import Objective

_FAR = np.float32(-1e9)  # added to the logit of a padded position, which is no answer


def _inputs(examples: Sequence[Mapping], pad_token_id: int | None, pad_to_multiple_of: int | None) -> dict:
    """Pads ids and token types; the labels come out as -100 in all places, for the task to fill in."""
    batch = data.collate([{"input_ids": e["input_ids"]} for e in examples], pad_token_id, pad_to_multiple_of)
    batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    for row, example in enumerate(examples):
        if example["input_ids"]:
            batch["token_type_ids"][row, : len(example["input_ids"])] = example["token_type_ids"]
    return batch


def collate_texts(examples, pad_token_id: int | None = None, pad_to_multiple_of: int | None = None) -> dict:
    """Pads examples whose ``labels`` is the number of a class; labels are (B,)."""
    batch = _inputs(examples, pad_token_id, pad_to_multiple_of)
    batch["labels"] = np.array([e["labels"] if e["input_ids"] else IGNORED for e in examples], np.int32)
    return batch


def collate_tokens(examples, pad_token_id: int | None = None, pad_to_multiple_of: int | None = None) -> dict:
    """Pads examples whose ``labels`` has a class, or -100, for each token; labels are (B, T)."""
    batch = _inputs(examples, pad_token_id, pad_to_multiple_of)
    for row, example in enumerate(examples):
        batch["labels"][row, : len(example["labels"])] = example["labels"]
    return batch


def collate_spans(examples, pad_token_id: int | None = None, pad_to_multiple_of: int | None = None) -> dict:
    """Pads examples whose ``labels`` are an answer's first and last position; ``starts`` and ``ends`` are (B,)."""
    batch = _inputs(examples, pad_token_id, pad_to_multiple_of)
    del batch["labels"]
    pairs = [e["labels"] if e["input_ids"] else (IGNORED, IGNORED) for e in examples]
    batch["starts"], batch["ends"] = np.array(pairs, np.int32).reshape(-1, 2).T
    return batch


def to_device(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], int]:
    """Turns a numpy batch into tensors for classification_loss; returns them and the number of targets."""
    tensors = _tensors(batch)
    tensors["labels"] = tensors["labels"].reshape(-1)
    return tensors, int((batch["labels"] != IGNORED).sum())


def spans_to_device(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], int]:
    """The same for span_loss; an answer's two ends are two targets."""
    tensors = _tensors(batch)
    if "attention_mask" in tensors:
        tensors["padding"] = Tensor(np.where(batch["attention_mask"], np.float32(0), _FAR))
    return tensors, int((batch["starts"] != IGNORED).sum() + (batch["ends"] != IGNORED).sum())


def _tensors(batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    tensors = {k: Tensor(np.ascontiguousarray(v, np.int32)) for k, v in batch.items()}
    if batch["attention_mask"].all():
        del tensors["attention_mask"]  # nothing is padded: kernels skip the mask
    return tensors


def forward(model, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Returns the outputs of a BERT on a batch."""
    return model(tensors["input_ids"], tensors.get("attention_mask"), tensors["token_type_ids"])


def classification_loss(model, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the summed cross-entropy of the classes of texts or tokens, float32 scalar."""
    logits = forward(model, tensors)[0]
    losses = kernels.cross_entropy(logits.reshape(-1, logits.shape[-1]), tensors["labels"], IGNORED)
    return ops.ReduceSum()(losses)


def span_loss(model, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the summed cross-entropy of the answers' first and last positions (Devlin et al. 2019, section 4.2).

    Padding is no choice: an example's loss is the same whatever it is batched with.
    """
    total = 0.0
    for logits_BT, place in zip(forward(model, tensors), (tensors["starts"], tensors["ends"])):
        if "padding" in tensors:
            logits_BT = logits_BT + tensors["padding"]
        total = total + ops.ReduceSum()(kernels.cross_entropy(logits_BT, place, IGNORED))
    return total


SEQUENCE_CLASSIFICATION = Objective(classification_loss, to_device, collate_texts, outputs=forward)
TOKEN_CLASSIFICATION = Objective(classification_loss, to_device, collate_tokens, outputs=forward)
QUESTION_ANSWERING = Objective(span_loss, spans_to_device, collate_spans, outputs=forward)
