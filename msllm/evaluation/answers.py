"""Answers that are parts of a text: the best one by a model's logits, exact match and F1.

English is scored as SQuAD does (Rajpurkar et al. 2016): without case, punctuation and articles, F1 over the words that
both answers have. Chinese is scored as CMRC 2018 does (Cui et al. 2019): without punctuation, a Chinese character is a
word, F1 over the longest run of words that both answers share.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msllm.data.questions import Question

_CHINESE = re.compile(r"[\u4e00-\u9fa5]")
# Those that the script of CMRC 2018 leaves out; it keeps other punctuation, such as the full stop of English.
_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# A stretch that is not Chinese falls into words, numbers such as 364.6 and 1,000, and single marks.
_WORDS = re.compile(r"\w+(?:[.,]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Answer:
    """A stretch of the context, ``start`` to ``end`` in characters.

    Attributes:
        score: its probability among all stretches; one that several windows hold counts once, as the best of them.
    """

    text: str
    start: int
    end: int
    score: float


def best_answers(
    questions: Sequence[Question],
    examples: Sequence[Mapping],
    outputs: Sequence[tuple[np.ndarray, ...]],
    max_answer_length: int = 30,
) -> list[Answer]:
    """Returns the answer to each question: of all windows, the span of the highest start plus end logit.

    Args:
        examples: of encode_questions, with ``outputs``, the (start, end) logits of each.
        max_answer_length: most tokens of an answer.
    """
    windows: list[list[tuple[np.ndarray, ...]]] = [[] for _ in questions]
    for example, (starts, ends) in zip(examples, outputs, strict=True):
        windows[example["question"]].append(_spans(example, starts, ends, max_answer_length))
    answers = []
    for question, found in zip(questions, windows):
        begins, ends, scores = map(np.concatenate, zip(*found))
        order = np.lexsort((scores, ends, begins))
        begins, ends, scores = begins[order], ends[order], scores[order]
        last = np.append((np.diff(begins) != 0) | (np.diff(ends) != 0), True)  # the best of each stretch
        begins, ends, scores = begins[last], ends[last], scores[last]
        best = int(scores.argmax())
        start, end = int(begins[best]), int(ends[best])
        score = 1 / np.exp(scores - scores[best]).sum()
        answers.append(Answer(question.context[start:end], start, end, float(score)))
    return answers


def _spans(example: Mapping, starts: np.ndarray, ends: np.ndarray, max_answer_length: int) -> tuple[np.ndarray, ...]:
    """Returns first character, end and start plus end logit of every span of a window."""
    offsets, first = np.array(example["offsets"]), example["context"]
    T = len(offsets)
    i, length = (x.ravel() for x in np.indices((T, min(T, max_answer_length))))
    j = i + length
    i, j = i[j < T], j[j < T]
    return offsets[i, 0], offsets[j, 1], starts[first + i].astype(np.float64) + ends[first + j]


def is_chinese(questions: Sequence[Question]) -> bool:
    """Whether more than half of the questions hold a Chinese character: a data set is scored in one way."""
    return 2 * sum(_CHINESE.search(q.question) is not None for q in questions) > len(questions)


def answer_metrics(questions: Sequence[Question], predicted: Sequence[str], chinese: bool) -> dict:
    """Returns "exact_match" and "f1", 0 to 1, means over the questions of the best match with one of its answers."""
    matches, overlaps = [], []
    for question, text in zip(questions, predicted, strict=True):
        matches.append(max(exact_match(text, answer, chinese) for answer, _ in question.answers))
        overlaps.append(max(answer_f1(text, answer, chinese) for answer, _ in question.answers))
    return {"exact_match": float(np.mean(matches)), "f1": float(np.mean(overlaps)), "count": len(questions)}


def exact_match(predicted: str, answer: str, chinese: bool) -> bool:
    """Whether two answers are the same but for what the language's script leaves out."""
    normalise = _without_marks if chinese else _english
    return normalise(predicted) == normalise(answer)


def answer_f1(predicted: str, answer: str, chinese: bool) -> float:
    """Returns the F1 of the words of two answers, 0 to 1."""
    if chinese:
        mine, theirs = chinese_words(predicted), chinese_words(answer)
        common = _longest_run(mine, theirs)
    else:
        mine, theirs = _english(predicted).split(), _english(answer).split()
        common = (Counter(mine) & Counter(theirs)).total()
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def chinese_words(text: str) -> list[str]:
    """Returns Chinese characters one by one and other stretches word by word, without CMRC's punctuation."""
    words: list[str] = []
    for part in re.split(f"({_CHINESE.pattern})", _without_marks(text)):
        words += _WORDS.findall(part)
    return words


def _without_marks(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _PUNCTUATION)


def _english(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _longest_run(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """Returns the length of the longest run of words that both have."""
    best, before = 0, [0] * (len(theirs) + 1)
    for word in mine:
        now = [0]
        for j, other in enumerate(theirs):
            now.append(before[j] + 1 if word == other else 0)
        best, before = max(best, *now), now
    return best
