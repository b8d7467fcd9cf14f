"""Questions whose answer is a part of a text: SQuAD's files (Rajpurkar et al. 2016), which CMRC 2018 shares::

    {"data": [{"paragraphs": [{"context": "Ada was born in London.", "qas": [
        {"id": "q1", "question": "Where was Ada born?", "answers": [{"text": "London", "answer_start": 16}]}]}]}]}

A context that is too long for the model is cut in overlapping windows (Devlin et al. 2019's SQuAD runs).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from msllm.errors import UserError
from msllm.files import read_json
from msllm.tokenization import Tokenizer

DOC_STRIDE, MAX_QUERY_LENGTH = 128, 64  # those of Devlin et al. 2019's SQuAD runs


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        answers: (text, first character in the context), as the file has them; empty where it has none.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()

    def place(self) -> tuple[int, int] | None:
        """Returns first character and end of an answer that stands in the context, None without one.

        An answer at its answer_start comes first, then the first place of an answer's text.
        """
        for text, start in self.answers:
            if start >= 0 and self.context.startswith(text, start):
                return start, start + len(text)
        for text, _ in self.answers:
            if (start := self.context.find(text)) >= 0:
                return start, start + len(text)
        return None


@dataclass
class QuestionReport:
    """What became of a file of questions.

    Attributes:
        windows: examples made of them; tokens: their tokens.
        cut_questions: questions that lost their end.
        misplaced: answers whose text does not stand at their answer_start; first: the id of the first.
        lost: ids of questions of which no answer stands in the context, so that nothing can be learned from them.
    """

    questions: int = 0
    windows: int = 0
    tokens: int = 0
    cut_questions: int = 0
    misplaced: int = 0
    first: str = ""
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.questions} questions -> {self.windows} windows, {self.tokens} tokens"
        if self.cut_questions:
            text += f"; {self.cut_questions} questions were cut"
        if self.misplaced:
            text += f"; {self.misplaced} answers do not stand at their answer_start, first in {self.first}"
        if self.lost:
            text += f"; {len(self.lost)} questions have no answer in their context, first {self.lost[0]}"
        return text


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """Reads the questions of a SQuAD 1.1 or CMRC 2018 file, the first ``limit`` of them.

    Raises:
        UserError: another form, named by the place; no question; a question that SQuAD 2.0 marks as impossible.
    """
    if Path(path).suffix != ".json":
        raise UserError(f"{path} is no .json file; questions are read in the form of SQuAD 1.1; convert it")
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), list):
        raise UserError(f'{path} has no list "data"; expected the form of SQuAD 1.1: data, paragraphs, context, qas')
    questions = list(islice(_questions(content["data"], str(path)), limit))
    if not questions:
        raise UserError(f"{path} has no question; add some")
    return questions


def _questions(data: list, source: str) -> Iterator[Question]:
    for i, article in enumerate(data, 1):
        where = f"{source}, article {i}"
        for j, paragraph in enumerate(_value(article, "paragraphs", list, where), 1):
            there = f"{where}, paragraph {j}"
            context = _value(paragraph, "context", str, there)
            for qa in _value(paragraph, "qas", list, there):
                name = str(_value(qa, "id", (str, int), there))
                yield _question(qa, name, context, f"{source}, question {name}")


def _question(qa: Mapping, name: str, context: str, source: str) -> Question:
    if qa.get("is_impossible"):
        raise UserError(
            f"{source} has no answer (is_impossible, SQuAD 2.0); only answers that exist are read; remove it"
        )
    asked = _value(qa, "question", str, source)
    answers = _value(qa, "answers", list, source) if qa.get("answers") is not None else []
    pairs = tuple((_value(a, "text", str, source), _value(a, "answer_start", int, source)) for a in answers)
    if not context.strip() or not asked.strip() or not all(text.strip() for text, _ in pairs):
        raise UserError(f"{source}: question, context or answer is empty; mend or remove it")
    return Question(name, asked, context, pairs)


def _value(row: Any, key: str, kind, source: str) -> Any:
    if not isinstance(row, Mapping) or not isinstance(row.get(key), kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        found = repr(row.get(key))[:40] if isinstance(row, Mapping) else type(row).__name__
        raise UserError(f"{source}: {key} is {found}, expected {wanted} as in SQuAD 1.1; mend it")
    return row[key]


def encode_questions(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_length: int,
    doc_stride: int | None = DOC_STRIDE,
    max_query_length: int = MAX_QUERY_LENGTH,
    training: bool = False,
    overlap: int | None = None,
) -> tuple[list[dict], QuestionReport]:
    """Encodes each question with each window of its context.

    Args:
        max_length: most ids of an example.
        doc_stride: tokens of the context between the beginnings of two windows; None: 128, or half of what there is
            room for in a window beside the question, where that is less.
        max_query_length: tokens of a question that are kept.
        training: leave out questions without an answer in their context.
        overlap: tokens of the context that two windows share, instead of ``doc_stride``.

    Returns:
        Examples, the windows of a question one after another, and a report. An example has ``input_ids`` and
        ``token_type_ids``; ``labels``, the positions of the answer's first and last token, both 0, that of [CLS],
        where the window lacks a part of it; ``question``, its index in ``questions``; ``context``, the position of
        the window's first token; and ``offsets``, (first character, end) of each of the window's tokens.

    Raises:
        UserError: no room for a window, windows with gaps between them, or nothing to train on.
    """
    examples, report = [], QuestionReport(len(questions))
    for index, question in enumerate(questions):
        wrong = sum(not (s >= 0 and question.context.startswith(t, s)) for t, s in question.answers)
        if wrong:
            report.first, report.misplaced = report.first or question.id, report.misplaced + wrong
        place = question.place()
        if place is None and question.answers:
            report.lost.append(question.id)
        if place is None and training:
            continue
        new, cut = _windows(question, place, tokenizer, max_length, doc_stride, max_query_length, overlap)
        examples += [{**example, "question": index} for example in new]
        report.cut_questions += cut
    report.windows, report.tokens = len(examples), sum(len(e["input_ids"]) for e in examples)
    if not examples:
        raise UserError(f"none of {len(questions)} questions has an answer in its context; give other data")
    return examples, report


def _windows(
    question: Question, place, tokenizer, max_length, doc_stride, max_query_length, overlap
) -> tuple[list[dict], bool]:
    backend = tokenizer.backend
    asked = backend.encode(question.question, add_special_tokens=False)
    cut = len(asked) > max_query_length
    asked.truncate(max_query_length)
    context = backend.encode(question.context, add_special_tokens=False)
    ids, offsets = context.ids, context.offsets
    if not ids:
        raise UserError(f"question {question.id}: the context has no token; mend or remove it")
    whole = backend.post_process(asked, context, True)
    begin = whole.sequence_ids.index(1)
    end, types = begin + len(ids), whole.type_ids
    before, after = (whole.ids[:begin], types[:begin]), (whole.ids[end:], types[end:])
    room = max_length - (len(whole) - len(ids))
    if room < 1:
        raise UserError(
            f"question {question.id} and special tokens fill max_length {max_length} and leave no room for the "
            f"context; shorten the question, or tune a model with a larger max_length"
        )
    if overlap is not None:
        if not 0 <= overlap < room:
            raise UserError(
                f"max_length {max_length} leaves {room} tokens of the context of question {question.id} a window, and "
                f"windows share {overlap}; raise max_length or lower what they share"
            )
        doc_stride = room - overlap
    elif doc_stride is None:
        doc_stride = min(DOC_STRIDE, (room + 1) // 2)
    if room < doc_stride and len(ids) > room:
        raise UserError(
            f"max_length {max_length} leaves {room} tokens of the context of question {question.id} a window, and "
            f"windows begin every {doc_stride}; raise max_length or lower doc_stride"
        )
    first, last = _tokens(place, offsets)
    windows, start = [], 0
    while True:
        stop = min(start + room, len(ids))
        inside = start <= first <= last < stop
        windows.append(
            {
                "input_ids": before[0] + ids[start:stop] + after[0],
                "token_type_ids": before[1] + [types[begin]] * (stop - start) + after[1],
                "labels": [begin + first - start, begin + last - start] if inside else [0, 0],
                "context": begin,
                "offsets": offsets[start:stop],
            }
        )
        if stop == len(ids):
            return windows, cut
        start += doc_stride


def _tokens(place: tuple[int, int] | None, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the first and last token that a stretch of characters touches."""
    if place is None:
        return -1, -1
    begins, ends = zip(*offsets)
    return bisect_right(ends, place[0]), bisect_left(begins, place[1]) - 1
