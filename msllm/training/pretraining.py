"""BERT's pre-training objective: masked words, and whether the second sentence follows the first."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import data, kernels
from msllm.data.pretraining import collate_pretraining
from msllm.errors import UserError
from msllm.training.losses import IGNORE_INDEX
from msllm.training.objective import Objective


def pretraining_logits(model, tensors):
    """Returns the logits of the masked words (M, V) and of the next sentence (B, 2) of a BertForPreTraining.

    Only the M masked positions go through the vocabulary: six of seven logits would be thrown away.
    """
    x_BTD, pooled_BD = model.bert(tensors["input_ids"], tensors.get("attention_mask"), tensors["token_type_ids"])
    x_MD = kernels.embedding(tensors["positions"], x_BTD.reshape(-1, x_BTD.shape[-1]))
    words = model.cls.predictions(x_MD, model.bert.embeddings.word_embeddings.weight)
    return words, model.cls.seq_relationship(pooled_BD)


def pretraining_loss(model, tensors):
    """Returns the summed cross-entropy of both tasks, (2,) (Devlin et al. 2019, appendix A.2)."""
    words, follows = pretraining_logits(model, tensors)
    losses = (
        kernels.cross_entropy(words, tensors["targets"], IGNORE_INDEX),
        kernels.cross_entropy(follows, tensors["next_sentence_label"], IGNORE_INDEX),
    )
    return ops.stack([ops.ReduceSum()(x) for x in losses])


def to_device(batch: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
    """Turns a batch of collate_pretraining into tensors; returns them and the numbers of targets."""
    labels = batch["labels"].reshape(-1)
    positions = np.flatnonzero(labels != IGNORE_INDEX)
    # A share without a masked word still has a shape, and a compiled step meets few shapes: a twentieth of all each.
    unit = max(1, labels.size // 20)
    spare = np.flatnonzero(labels == IGNORE_INDEX)[: -positions.size % unit if positions.size else 1]
    positions = np.concatenate([positions, spare])
    tensors = {k: Tensor(v) for k, v in batch.items() if k != "labels"}
    if batch["attention_mask"].all():
        del tensors["attention_mask"]  # nothing is padded: kernels skip the mask
    tensors["positions"] = Tensor(positions.astype(np.int32))
    tensors["targets"] = Tensor(labels[positions], ms.int32)
    counts = [int((batch[key] != IGNORE_INDEX).sum()) for key in ("labels", "next_sentence_label")]
    return tensors, counts


PRETRAINING = Objective(
    pretraining_loss, to_device, collate_pretraining, terms=("mlm_loss", "nsp_loss"), weights=(1.0, 1.0)
)


def check_length(model, parts: Sequence) -> int:
    """Returns the most tokens of the examples of msllm.data.mindrecord; UserError where the model takes fewer."""
    longest = max(part.settings["max_length"] for part in parts)
    if longest > model.config.max_position_embeddings:
        raise UserError(
            f"the examples have up to {longest} tokens, the model takes {model.config.max_position_embeddings}; "
            f"build them with a smaller max_length"
        )
    return longest


def pretraining_accuracy(model, examples, pad_token_id: int | None, batch_size: int = 32) -> dict[str, float]:
    """Returns the shares of masked words and of next sentences that a BertForPreTraining gets right."""
    right, count = np.zeros(2), np.zeros(2)
    for batch in data.batches(
        examples, batch_size, shuffle=False, pad_token_id=pad_token_id, collate=collate_pretraining
    ):
        tensors, counts = to_device(batch)
        wanted = (tensors["targets"].asnumpy(), tensors["next_sentence_label"].asnumpy())
        for i, logits in enumerate(pretraining_logits(model, tensors)):
            right[i] += (logits.asnumpy().argmax(-1) == wanted[i]).sum()
        count += counts
    return {"mlm_accuracy": right[0] / count[0], "nsp_accuracy": right[1] / count[1]}
