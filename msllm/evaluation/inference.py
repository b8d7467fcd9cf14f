"""What a fine-tuned model says about texts: classes, choices, words in the place of [MASK]."""

import sys
from collections.abc import Sequence

from msllm.data.questions import MAX_QUERY_LENGTH
from msllm.data.tasks import LabelledText
from msllm.errors import UserError
from msllm.evaluation.predictions import predict_batches
from msllm.evaluation.sequence_tasks import SEQUENCE_TASKS
from msllm.evaluation.tasks import TextClassification, evaluate
from msllm.generation.sampling import softmax
from msllm.models.causal_lm import SequenceClassifier
from msllm.training.task_objectives import TOKEN_CLASSIFICATION


def input_limit(network, tokenizer) -> int:
    """Returns the most tokens of an input: the model's positions, or what its tokenizer cuts texts to."""
    config = network.config
    positions = config.n_positions if hasattr(config, "n_positions") else config.max_position_embeddings
    return min(positions, int(tokenizer.config.get("model_max_length") or 10**9))


def predictions(job, network, tokenizer, records: Sequence, batch_size: int) -> list[dict]:
    """Returns a task's predictions for records; says what had to be cut.

    Args:
        job: of msllm.evaluation.tasks or sequence_tasks.
        records: what the task's ``read`` returns, without labels.
        batch_size: see predict_batches.
    """
    examples, report = job.encode(records, tokenizer)
    if getattr(report, "truncated", 0):
        print(f"{report.truncated} inputs are longer than {job.max_length} tokens and were cut", file=sys.stderr)
    if getattr(report, "cut_questions", 0):
        print(
            f"{report.cut_questions} questions are longer than {MAX_QUERY_LENGTH} tokens and were cut", file=sys.stderr
        )
    return evaluate(job, network, records, examples, tokenizer.pad_token_id, batch_size)[0]


def classify(network, tokenizer, records: Sequence, limit: int, batch_size: int = 32) -> list[dict]:
    """Returns the predictions of a model that classifies texts, pairs of texts or choices.

    Args:
        network: a BertForSequenceClassification, or a GPT's as msllm finetune-task made it: its config.json says for
            what.
        records: LabelledTexts, or Choices where the model was made for them.
        limit: most tokens of an input.

    Returns:
        What the ``predictions`` of TextClassification or MultipleChoice return.
    """
    job_class = TextClassification
    if isinstance(network, SequenceClassifier):
        kind = network.config.extra.get("msllm_task", "classification")
        job_class = next((job for job in SEQUENCE_TASKS.values() if job.kind == kind), None)
        if job_class is None:
            raise UserError(
                f"config.json: msllm_task is {kind!r}, expected one of "
                f"{', '.join(job.kind for job in SEQUENCE_TASKS.values())}; correct it"
            )
    return predictions(job_class(limit, network.config.labels), network, tokenizer, records, batch_size)


def masked_words(
    network, tokenizer, texts: Sequence[LabelledText], limit: int, batch_size: int = 32, top_k: int = 5
) -> list[tuple[list[int], list[tuple[int, list[tuple[int, float]]]]]]:
    """Returns for each text its ids, and for each [MASK] in it its place and the likeliest (id, probability).

    Args:
        network: a BertForMaskedLM or BertForPreTraining.
        limit: most tokens of a text.
        top_k: words for each [MASK].

    Raises:
        UserError: a text that is too long, or without a [MASK].
    """
    examples = []
    for text in texts:
        ids, types = tokenizer.encode_pair(text.text, text.pair)
        if len(ids) > limit:
            raise UserError(f"{text.source} has {len(ids)} tokens, the model takes {limit}; give a shorter text")
        if tokenizer.mask_token_id not in ids:
            raise UserError(f"{text.source} has no {tokenizer.mask_token or '[MASK]'}, and nothing to fill in; add one")
        examples.append({"input_ids": ids, "token_type_ids": types, "labels": []})
    outputs = predict_batches(network, examples, TOKEN_CLASSIFICATION, tokenizer.pad_token_id, batch_size)
    found = []
    for example, output in zip(examples, outputs):
        ids, masks = example["input_ids"], []
        for place in [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]:
            scores = softmax(output[0][place])
            masks.append((place, [(int(i), float(scores[i])) for i in scores.argsort()[::-1][:top_k]]))
        found.append((ids, masks))
    return found


def word_places(tokenizer, text: str) -> list[tuple[int, int]]:
    """Returns first character and end of each word of a text."""
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    places: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(encoded.word_ids, encoded.offsets):
        places[word] = (min(begin, places.get(word, (begin,))[0]), end)
    return list(places.values())
