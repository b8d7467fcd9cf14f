"""What a causal language model makes of a text: how surprising each token is, and where the model looks.

Shapes: N tokens of the text, W of a window, V vocabulary, H heads.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Tensor

from msllm.errors import UserError
from msllm.generation.sampling import log_softmax
from msllm.layers import record_attention

DEFAULT_WINDOW = 1024  # of a model that takes a text of any length
_ROWS = 64  # predictions at a time: in float64, those of a whole window may be half a gigabyte


@dataclasses.dataclass(frozen=True)
class Surprise:
    """How well the tokens of a text were predicted; a row for each token, NaN and -1 where nothing was predicted.

    Attributes:
        ids: int64 (N,).
        bits: float64 (N,), -log2 p(token | the tokens before it).
        entropy: float64 (N,), in bits: the surprise that the model expected.
        rank: int64 (N,): 1 where the token was the most likely one.
        top_ids, top_probabilities: (N, k), the most likely tokens, the likeliest first.
    """

    ids: np.ndarray
    bits: np.ndarray
    entropy: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_probabilities: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool (N,): which tokens were predicted; all but the first of a text without a token in front."""
        return self.rank > 0

    @property
    def total(self) -> float:
        """Bits of the whole text."""
        return float(self.bits[self.scored].sum())

    @property
    def bits_per_token(self) -> float:
        """Mean bits of a predicted token; 2 to the power of it is the perplexity."""
        return self.total / int(self.scored.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean cross-entropy: of how many equally likely tokens the model in effect had to choose one."""
        return float(2.0 ** min(self.bits_per_token, 1023.0))

    def bits_per_character(self, texts: Sequence[str]) -> float:
        """Bits per character; ``texts`` has the text of each token, of which those that were predicted count."""
        return self.total / max(sum(len(t) for t, s in zip(texts, self.scored, strict=True) if s), 1)

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Bits per byte of UTF-8, which compares models of different vocabularies; ``texts`` as above."""
        return self.total / max(sum(len(t.encode()) for t, s in zip(texts, self.scored, strict=True) if s), 1)


def surprise(
    model, ids: Sequence[int], prefix: Sequence[int] = (), top_k: int = 3, stride: int | None = None
) -> Surprise:
    """Scores each token of a text under a causal language model, in float64.

    A text longer than the model's context is read in windows, each token being scored in the first that predicts it:
    after the first window, with at least W - stride tokens of context, which is at least ``stride``.

    Args:
        model: a CausalLM; it is left in the mode that it was in.
        ids: the text; without a prefix the first is not scored.
        prefix: tokens in front of the text that are not scored, such as the bos token.
        top_k: alternatives of each prediction.
        stride: tokens between the beginnings of two windows, at most half a window (the default).

    Raises:
        UserError: nothing to score, an id outside the vocabulary, a stride out of range, logits that are not finite.
    """
    window = model.max_length or DEFAULT_WINDOW
    whole, first = [*prefix, *ids], len(prefix)
    if len(ids) == 0 or len(whole) < 2:
        raise UserError(
            f"the text has {len(ids)} token{'s' * (len(ids) != 1)}, and one is predicted from those before it; "
            f"give a longer text"
        )
    vocabulary = model.config.vocab_size
    bad = next((i for i in whole if not 0 <= i < vocabulary), None)
    if bad is not None:
        raise UserError(f"the id {bad} is not in the model's vocabulary of {vocabulary}; use the model's own tokenizer")
    if top_k < 1:
        raise UserError(f"top_k is {top_k}, expected 1 or more; change it")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= max(1, window // 2):
        raise UserError(
            f"stride is {stride}, expected 1 to {max(1, window // 2)}, half of the model's context of {window} tokens; "
            f"change it"
        )
    found = _empty(len(ids), min(top_k, vocabulary))
    for start, logits in _predictions(model, np.array(whole, np.int32), first, window, stride):
        targets = np.array(whole[start : start + len(logits)])
        rows = slice(start - first, start - first + len(logits))
        for column, values in zip(found, _score(logits, targets, found[-1].shape[1], start - first)):
            column[rows] = values
    return Surprise(np.array(ids, np.int64), *found)


def _empty(N: int, k: int) -> tuple[np.ndarray, ...]:
    nothing = [np.full(N, np.nan), np.full(N, np.nan), np.full(N, -1)]
    return (*nothing, np.full((N, k), -1), np.full((N, k), np.nan))


def _predictions(model, ids_N: np.ndarray, first: int, window: int, stride: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of the first token predicted, logits of a row for each) until every token was predicted once."""
    done, was_training = max(first, 1), model.training  # the next token to be predicted
    model.set_train(False)
    try:
        for begin in windows(len(ids_N) - 1, window, stride):
            end = min(begin + window, len(ids_N) - 1)  # the last token is predicted, never read
            logits_TV = model(Tensor(np.ascontiguousarray(ids_N[None, begin:end]))).asnumpy()[0]
            for start in range(done, end + 1, _ROWS):
                yield start, logits_TV[start - 1 - begin : min(start + _ROWS, end + 1) - 1 - begin]
            done = end + 1
    finally:
        model.set_train(was_training)


def windows(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows over ``length`` tokens begin: every ``stride``, the last one so that it ends the text."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _score(logits_TV: np.ndarray, targets_T: np.ndarray, k: int, place: int) -> tuple[np.ndarray, ...]:
    """Returns bits, entropy, rank, and ids and probabilities of the k likeliest of each prediction."""
    usable = np.isfinite(logits_TV) | (logits_TV == -np.inf)  # -inf is a token that the model rules out
    if not (usable.all() and np.isfinite(logits_TV).any(1).all()):
        raise UserError(
            f"the model's logits are not numbers at token {place} or soon after it; its weights are damaged: "
            f"copy the model again, or train it with a smaller learning rate"
        )
    log_p = log_softmax(logits_TV)
    p = np.exp(log_p)
    rows = np.arange(len(targets_T))
    own = log_p[rows, targets_T]
    entropy = -(p * np.where(p > 0, log_p, 0.0)).sum(1) / math.log(2)
    rank = 1 + (logits_TV > logits_TV[rows, targets_T][:, None]).sum(1)
    best = np.argpartition(-logits_TV, k - 1, axis=1)[:, :k]
    order = np.lexsort((best, -np.take_along_axis(logits_TV, best, 1)), axis=1)  # of equals, the smaller id first
    best = np.take_along_axis(best, order, 1)
    bits = np.where(own < 0, -own, 0.0) / math.log(2)
    return bits, np.maximum(entropy, 0.0), rank, best, np.take_along_axis(p, best, 1)


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token so that they joined are the text.

    A token that is no whole character has "", and the one that completes it has the character.
    """
    stream = tokenizer.stream(skip_special_tokens=False)
    texts = [stream.push(int(i)) for i in ids]
    rest = stream.flush()
    if rest:
        texts[-1] += rest
    return texts


def attention_maps(model, ids: Sequence[int]) -> np.ndarray:
    """Returns how much each token looks at each of those before it, float64 (layers, H, N, N); rows add up to 1.

    Args:
        model: a CausalLM; it is left in the mode that it was in.
        ids: not more than the model's context.
    """
    was_training = model.training
    model.set_train(False)
    try:
        with record_attention() as recorded:
            model(Tensor(np.array([ids], np.int32)))
    finally:
        model.set_train(was_training)
    return np.concatenate(recorded)
