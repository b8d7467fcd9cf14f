"""Tasks as sequences for a GPT: start, delimiter and extract tokens (Radford et al. 2018, section 3.3, figure 1).

classification   start text extract
entailment       start premise delimiter hypothesis extract
similarity       start a delimiter b extract, and start b delimiter a extract
multiple choice  start context delimiter choice extract, for each choice

Records of choices (.jsonl; ``question`` is optional, ``label`` is the number of the right choice, from 0)::

    {"context": "Tom was tired.", "question": "What did he do?", "choices": ["He slept.", "He flew."], "label": 0}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from msllm.data.encoding import IGNORED
from msllm.data.loading import json_lines
from msllm.data.tasks import LabelledText, TaskReport, label_number
from msllm.errors import UserError
from msllm.files import read_text
from msllm.tokenization import Tokenizer
from msllm.tokenization.tokenizer import share

# The names that the tokens have in the published code; a tokenizer's own bos, sep or cls token does as well.
TASK_TOKENS = {"bos_token": "_start_", "sep_token": "_delimiter_", "cls_token": "_classify_"}


@dataclass(frozen=True)
class Choices:
    """A context, what may follow it, and the number of what does; ``source`` is its file and line, for messages."""

    context: str
    choices: tuple[str, ...]
    label: str | None = None
    source: str = "record"


def read_choices(path: str | Path, limit: int | None = None) -> list[Choices]:
    """Reads records of choices, the first ``limit`` of them; the format stands at the top of this module.

    Raises:
        UserError: a missing or empty file, no JSON, fewer than two choices, a label that is none of their numbers.
    """
    path = Path(path)
    text = read_text(path)
    records = [_choices(row, f"{path}, line {line}") for line, row in islice(json_lines(path, text), limit)]
    if not records:
        raise UserError(f"{path} is empty; expected records such as those at the top of msllm/data/task_inputs.py")
    return records


def _choices(row: dict[str, Any], source: str) -> Choices:
    context, choices, label = row.get("context"), row.get("choices"), row.get("label")
    if not _is_text(context):
        raise UserError(f"{source}: context is {context!r}, expected a text; mend or remove the record")
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(_is_text, choices)):
        raise UserError(f"{source}: choices is {str(choices)[:60]}, expected a list of two or more texts; mend it")
    if "question" in row:
        if not _is_text(row["question"]):
            raise UserError(f"{source}: question is {row['question']!r}, expected a text; mend it or leave it out")
        context = f"{context} {row['question']}"
    if label is not None and (type(label) is not int or label not in range(len(choices))):
        raise UserError(
            f"{source}: label is {label!r}, expected the number of the right choice, 0 to {len(choices) - 1}; mend it"
        )
    return Choices(context, tuple(choices), None if label is None else str(label), source)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def with_task_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer that knows a start, a delimiter and an extract token: its own, or new ones at its end."""
    missing = {name: token for name, token in TASK_TOKENS.items() if getattr(tokenizer, name) is None}
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(list(missing.values()))
    return Tokenizer(backend, {**tokenizer.config, **missing}, tokenizer.chat_template)


def encode_sequences(
    records: Iterable[LabelledText | Choices],
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    max_length: int,
    both_orders: bool = False,
) -> tuple[list[dict], TaskReport]:
    """Encodes records as the sequences of figure 1.

    Args:
        tokenizer: with task tokens; see with_task_tokens.
        labels: the names of the classes; choices go without.
        max_length: most ids of a sequence; of two texts the longer is cut first.
        both_orders: of two texts, which are then compared.

    Returns:
        Examples with ``input_ids``, all sequences of a record one after the other; ``lengths``, of each; and
        ``labels``, the number of the class or choice, -100 where the record has none. And what was cut.

    Raises:
        UserError: a label that is not in ``labels``, a pair that is none, ``max_length`` without room.
    """
    examples, report = [], TaskReport("records", max_length)
    if max_length < 5:
        raise UserError(f"max_length {max_length} leaves no room for two texts and three tokens; use at least 5")
    for record in records:
        sequences = _sequences(record, both_orders)
        encoded = [_sequence(parts, tokenizer, max_length) for parts in sequences]
        if record.label is None:
            label = IGNORED
        else:
            label = int(record.label) if labels is None else label_number(record.label, labels, record.source)
        ids = [i for sequence, _ in encoded for i in sequence]
        examples.append({"input_ids": ids, "lengths": [len(sequence) for sequence, _ in encoded], "labels": label})
        report.tokens += len(ids)
        report.truncated += any(cut for _, cut in encoded)
    report.records = report.examples = len(examples)
    return examples, report


def _sequences(record: LabelledText | Choices, both_orders: bool) -> list[tuple[str, ...]]:
    if isinstance(record, Choices):
        return [(record.context, choice) for choice in record.choices]
    if record.pair is None:
        if both_orders:
            raise UserError(f"{record.source} has one text, similarity compares two; add the second (--text_pair)")
        return [(record.text,)]
    pair = (record.text, record.pair)
    return [pair, pair[::-1]] if both_orders else [pair]


def _sequence(parts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[list[int], bool]:
    """Returns the ids of a sequence, and whether something was cut."""
    texts = [tokenizer.encode(part, add_special_tokens=False) for part in parts]
    room = max_length - len(texts) - 1
    first, second = len(texts[0]), sum(map(len, texts[1:]))
    cut, lengths = first + second > room, share(room, first, second)
    ids = [tokenizer.bos_token_id, *texts[0][: lengths[0]]]
    for text, length in zip(texts[1:], lengths[1:]):
        ids += [tokenizer.sep_token_id, *text[:length]]
    return [*ids, tokenizer.cls_token_id], cut
