"""Spans of a context by the probabilities of their first and last token, as transformers' pipeline finds them."""

from collections.abc import Mapping, Sequence

import numpy as np

from msllm.generation.sampling import softmax

_HIDDEN = -10000.0


def best_spans(
    context: str,
    windows: Sequence[tuple[Mapping, tuple[np.ndarray, np.ndarray]]],
    cls_token_id: int,
    words: Sequence[tuple[int, int]] | None,
    top_k: int,
    max_length: int,
) -> list[dict]:
    """Returns the ``top_k`` answers {"score", "start", "end", "answer"}, the likeliest first.

    A span's score is p(first) p(last), each a softmax over the window's part of the context and [CLS]; those of equal
    text add up, also over windows.

    Args:
        context: the text.
        windows: examples of encode_questions with the (start, end) logits of each.
        cls_token_id: the token that stands for no answer.
        words: (first character, end) of the context's words, to which answers are widened; None: they are not.
        top_k, max_length: number of answers, and most tokens of one.
    """
    answers: dict[str, dict] = {}
    # Widened to words, some candidates become one.
    wanted = top_k if words is None else 2 * top_k + 10
    for example, logits in windows:
        begin, offsets = example["context"], example["offsets"]
        for first, last, score in _candidates(example, logits, cls_token_id, wanted, max_length):
            start, end = offsets[first - begin][0], offsets[last - begin][1]
            if words is not None:
                start, end = _word(words, start)[0], _word(words, end - 1)[1]
            text = context[start:end]
            found = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
            found["score"] += score
    return sorted(answers.values(), key=lambda answer: -answer["score"])[:top_k]


def _candidates(example: Mapping, logits, cls_token_id: int, wanted: int, max_length: int):
    """Yields (first, last, score) of a window's best spans, positions in the example."""
    ids = np.array(example["input_ids"])
    begin, end = example["context"], example["context"] + len(example["offsets"])
    inside = np.zeros(len(ids), bool)
    inside[begin:end] = True
    known = inside | (ids == cls_token_id)
    start_T, end_T = (np.where(inside, softmax(np.where(known, x[: len(ids)], _HIDDEN)), 0.0) for x in logits)
    scores = np.tril(np.triu(np.outer(start_T, end_T)), max_length - 1).reshape(-1)
    for place in np.argsort(-scores, kind="stable")[:wanted]:
        if scores[place] > 0:
            first, last = divmod(int(place), len(ids))
            yield first, last, float(scores[place])


def _word(words: Sequence[tuple[int, int]], place: int) -> tuple[int, int]:
    """Returns the word that a character is in."""
    return next(word for word in words if word[0] <= place < word[1])
