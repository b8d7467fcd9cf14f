"""Checks masked_attention.py against msllm.kernels; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against

INFINITY = float("inf")


def mask_cases():
    """Without padding, with some on the right, with some between; and a batch of one."""
    return [
        (np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 1, 1]], np.int32),),
        (np.ones((1, 3), np.int32),),
    ]


def visible_keys(key_mask):
    from mindspore import Tensor

    from msllm.kernels import stock

    T = key_mask.shape[1]
    return stock.visible_keys(T, T, True, Tensor(key_mask), None).asnumpy()[:, 0]


def _visible(key_mask, past=np.tril, keys=True, queries=False):
    T, real = key_mask.shape[1], key_mask.astype(bool)
    seen = np.broadcast_to(past(np.ones((T, T), bool)), (len(key_mask), T, T))
    seen = seen & real[:, None, :] if keys else seen
    return seen & real[:, :, None] if queries else seen


MASK_MISTAKES = [
    ("the mask is the wrong way round: False where a key may be seen", lambda m: ~_visible(m)),
    ("the mask is the wrong way round: a query sees the tokens after it", lambda m: _visible(m, past=np.triu)),
    (
        "the mask is the wrong way round: a query sees the tokens after it, and not itself",
        lambda m: _visible(m, past=lambda x: np.triu(x, 1)),
    ),
    ("a query does not see its own token: s <= t, not s < t", lambda m: _visible(m, past=lambda x: np.tril(x, -1))),
    ("padding is still seen: key_mask is not used", lambda m: _visible(m, keys=False)),
    ("a query sees the tokens after it: only padding is hidden", lambda m: _visible(m, past=lambda x: x)),
    (
        "padding is hidden as a query (key_mask[:, :, None]), not as a key (key_mask[:, None, :])",
        lambda m: _visible(m, keys=False, queries=True),
    ),
    (
        "padding is hidden as a query too: a row without any key makes softmax divide by zero",
        lambda m: _visible(m, queries=True),
    ),
]


def attention_cases():
    """Two ordinary inputs, and one whose scores overflow exp."""
    rng = np.random.default_rng(0)

    def case(key_mask, width, size=1.0):
        shape = (len(key_mask), len(key_mask[0]), width)
        q, k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
        return q * np.float32(size), k * np.float32(size), v, visible_keys(np.array(key_mask, np.int32))

    return [
        case([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], 8),
        case([[1, 1, 1]], 4),
        case([[1, 1, 1, 1, 1, 1]] * 2, 8, size=10.0),
    ]


def attention(q, k, v, visible):
    from mindspore import Tensor

    from msllm import kernels

    q, k, v = (Tensor(np.ascontiguousarray(x[:, :, None])) for x in (q, k, v))
    key_mask = Tensor(visible[:, -1].astype(np.int32))  # the last query sees all but padding
    return kernels.attention(q, k, v, q.shape[-1] ** -0.5, True, key_mask).asnumpy()[:, :, 0]


def _attention(q, k, v, visible, power=-0.5, hide="before", fill=-INFINITY, axis=-1, stable=True):
    scores = q @ k.swapaxes(1, 2) * np.float32(q.shape[-1] ** power)
    if hide == "inverse":
        scores = np.where(visible, fill, scores)
    elif hide == "zero":
        scores = scores * visible
    elif hide == "before":
        scores = np.where(visible, scores, fill)
    weights = np.exp(scores - scores.max(axis, keepdims=True) if stable else scores)
    weights = weights / weights.sum(axis, keepdims=True)
    return (weights * visible if hide == "after" else weights) @ v


def _wrong_attention(**how):
    return lambda *args: _attention(*args, **how)


ATTENTION_MISTAKES = [
    ("the scores are not divided by sqrt(C)", _wrong_attention(power=0)),
    ("the scores are divided by C; it is its square root", _wrong_attention(power=-1)),
    ("the scores are multiplied by sqrt(C), not divided", _wrong_attention(power=0.5)),
    ("the mask is the wrong way round: what is visible is hidden", _wrong_attention(hide="inverse")),
    ("the mask is the wrong way round: what is visible is hidden", _wrong_attention(hide="inverse", fill=-1e9)),
    ("softmax is over the wrong axis: over the queries, not the keys", _wrong_attention(axis=1)),
    ("softmax is over the wrong axis: over the queries, not the keys", _wrong_attention(axis=1, fill=-1e9)),
    ("softmax is over the wrong axis: over the sentences, not the keys", _wrong_attention(axis=0)),
    ("softmax is over the wrong axis: over the sentences, not the keys", _wrong_attention(axis=0, fill=-1e9)),
    ("the mask comes after softmax: the weights of a query no longer add up to 1", _wrong_attention(hide="after")),
    ("hidden scores are set to 0, whose exp is 1; set them to minus infinity", _wrong_attention(hide="zero")),
    ("the mask is not used", _wrong_attention(hide="none")),
    ("exp overflows: take each row's largest score away first", _wrong_attention(stable=False)),
]


TASKS = (
    Task("visible_keys", against(visible_keys, mask_cases, MASK_MISTAKES)),
    Task("attention", against(attention, attention_cases, ATTENTION_MISTAKES)),
)
