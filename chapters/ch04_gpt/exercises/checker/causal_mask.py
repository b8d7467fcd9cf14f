"""Checks causal_mask.py against msllm.kernels; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against


def shape_cases():
    """Without a cache; one step of writing; several tokens over a cache; a single token."""
    return [(4, 4), (1, 5), (3, 5), (1, 1)]


def causal_mask(T, S):
    from msllm.kernels import stock

    return stock.visible_keys(T, S, True, None, None).asnumpy()[0, 0]


def _causal(T, S, offset=None, compare=np.less_equal):
    offset = S - T if offset is None else offset
    return compare(np.arange(S)[None, :], np.arange(T)[:, None] + offset)


NO_CACHE = "query t is at position S - T + t: with a cache the queries are the last tokens, not the first"
NOT_ITSELF = "a query does not see its own token: it sees keys up to and with its own position"
LATER = "the mask is the wrong way round: a query sees the tokens after it"
MASK_MISTAKES = [
    (NO_CACHE, lambda T, S: _causal(T, S, offset=0)),
    (NOT_ITSELF, lambda T, S: _causal(T, S, compare=np.less)),
    (LATER, lambda T, S: _causal(T, S, compare=np.greater_equal)),
    (f"{LATER}, and not itself: False where it may see", lambda T, S: _causal(T, S, compare=np.greater)),
    (f"{NOT_ITSELF}; and {NO_CACHE}", lambda T, S: _causal(T, S, 0, np.less)),
    (f"{LATER}; and {NO_CACHE}", lambda T, S: _causal(T, S, 0, np.greater_equal)),
    ("a query sees one token after it: the offset is S - T, not one more", lambda T, S: _causal(T, S, S - T + 1)),
    ("the offset has the wrong sign: S - T, not T - S", lambda T, S: _causal(T, S, T - S)),
    ("a query sees every key", lambda T, S: np.ones((T, S), bool)),
]


def batch_cases():
    """Padding on the left, without a cache and with one; padding on the right; one step of writing; no padding."""
    left = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], np.int32)
    right = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
    return [(5, left), (2, left), (4, right), (1, left), (2, np.ones((1, 4), np.int32))]


def visible_keys(T, key_mask):
    from mindspore import Tensor

    from msllm.kernels import stock

    return stock.visible_keys(T, key_mask.shape[1], True, Tensor(key_mask), None).asnumpy()[:, 0]


def _visible(T, key_mask, keys=True, queries=False, causal=True, join=np.logical_and, **how):
    S, real = key_mask.shape[1], key_mask == 1
    seen = np.broadcast_to(_causal(T, S, **how) if causal else np.ones((T, S), bool), (len(real), T, S))
    seen = join(seen, real[:, None, :]) if keys else seen
    return seen & real[:, S - T :, None] if queries else seen


def _wrong(**how):
    return lambda *args: _visible(*args, **how)


BATCH_MISTAKES = [
    ("padding is still seen: key_mask is not used", _wrong(keys=False)),
    ("only padding is hidden: a query sees the tokens after it", _wrong(causal=False)),
    (NO_CACHE, _wrong(offset=0)),
    (NOT_ITSELF, _wrong(compare=np.less)),
    (LATER, _wrong(compare=np.greater_equal)),
    ("both must hold: not after the query and no padding; & instead of |", _wrong(join=np.logical_or)),
    ("padding is hidden as a query, not as a key: key_mask[:, None, :]", _wrong(keys=False, queries=True)),
    ("padding is hidden as a query too; the rule is about keys alone", _wrong(queries=True)),
    ("padding is seen and tokens are hidden: key_mask is 1 for a token", lambda T, m: _visible(T, 1 - m)),
]


TASKS = (
    Task("causal_mask", against(causal_mask, shape_cases, MASK_MISTAKES)),
    Task("visible_keys", against(visible_keys, batch_cases, BATCH_MISTAKES)),
)
