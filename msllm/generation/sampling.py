"""Logits processors and samplers: small functions of numpy arrays that compose. V vocabulary."""

from collections.abc import Callable, Sequence

import numpy as np

from msllm.generation.config import GenerationConfig

Processor = Callable[[np.ndarray, Sequence[int]], np.ndarray]


def processors(config: GenerationConfig) -> list[Processor]:
    """Returns the functions (logits (V,), ids so far) -> logits (V,) that the options ask for, in transformers' order.

    Tokens that are left out get -inf.
    """
    chain: list[Processor] = []
    if config.repetition_penalty != 1:
        chain.append(lambda logits, ids: penalise_repetition(logits, ids, config.repetition_penalty))
    if config.do_sample:
        if config.temperature != 1:
            chain.append(lambda logits, ids: logits / np.float32(config.temperature))
        if config.top_k:
            chain.append(lambda logits, ids: keep_top_k(logits, config.top_k))
        if config.top_p < 1:
            chain.append(lambda logits, ids: keep_top_p(logits, config.top_p))
        if config.min_p > 0:
            chain.append(lambda logits, ids: keep_min_p(logits, config.min_p))
    return chain


def penalise_repetition(logits: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """Divides positive logits of tokens in ``ids`` by ``penalty`` and multiplies negative ones."""
    logits, seen = logits.copy(), np.unique(np.asarray(ids, np.int64))
    chosen = logits[seen]
    logits[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return logits


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keeps the k largest logits (and their equals)."""
    if k >= logits.size:
        return logits
    return np.where(logits < np.partition(logits, -k)[-k], -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keeps the smallest set of most likely tokens with probability >= p (Holtzman et al. 2020, section 3.1)."""
    order = np.argsort(-logits, kind="stable")
    mass_before = np.cumsum(softmax(logits[order])) - softmax(logits[order])
    kept = np.full_like(logits, -np.inf)
    chosen = order[mass_before < p]
    kept[chosen] = logits[chosen]
    return kept


def keep_min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keeps tokens at least p times as likely as the most likely one (Nguyen et al. 2024, section 3)."""
    return np.where(logits < logits.max() + np.log(p), -np.inf, logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (..., V) of logits (..., V), in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (..., V) of logits (..., V), in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def draw(logits: np.ndarray, rng: np.random.Generator) -> int:
    """Draws a token from softmax(logits) by inverting the cumulative distribution."""
    cumulative = np.cumsum(softmax(logits))
    return int(min(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"), logits.size - 1))
