"""Checks top2_capacity.py against msllm.layers.MoE; the variants in numpy are wrong on purpose."""

import math

import numpy as np

from msllm.lessons.checking import Task, against


def _layer(experts, factor=None):
    """An MoE layer whose router gives its input as logits."""
    from mindspore import Tensor

    from msllm.layers import MoE

    layer = MoE(experts, 1, experts, 2, capacity_factor=factor)
    layer.gate.weight.set_data(Tensor(np.eye(experts, dtype=np.float32)))
    return layer


def _route(logits, factor=None):
    from mindspore import Tensor

    return _layer(logits.shape[1], factor).route(Tensor(logits))


def _logits(tokens, experts, seed=0):
    return (2 * np.random.default_rng(seed).standard_normal((tokens, experts))).astype(np.float32)


def choose_cases():
    return [(_logits(7, 4),), (_logits(5, 9, 1),), (_logits(3, 2, 2),)]


def choose(logits):
    return _route(logits).ids


CHOOSE_MISTAKES = [
    ("the smallest logits; the largest are asked for", lambda x: np.argsort(x, 1)[:, :2]),
    ("the second choice comes first", lambda x: np.argsort(-x, 1)[:, 1::-1]),
    (
        "the two are in the order of the experts; the larger logit comes first",
        lambda x: np.sort(np.argsort(-x, 1)[:, :2]),
    ),
    ("both choices are the first; leave it out when looking for the second", lambda x: np.argsort(-x, 1)[:, [0, 0]]),
    ("three or more choices; a token has two", lambda x: np.argsort(-x, 1)),
]


def weigh_cases():
    """Ordinary logits, and some that overflow exp."""
    large = _logits(4, 5, 3) + np.float32(2000)
    return [(x, choose(x)) for x in (_logits(7, 4), _logits(5, 9, 1), large)]


def weigh(logits, ids):
    return _route(logits).weights.asnumpy()


def _softmax(x, stable=True):
    powers = np.exp((x - x.max(1, keepdims=True) if stable else x).astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def _chosen(values, ids):
    return np.take_along_axis(values, ids, 1)


def _weigh(logits, ids, stable=True, divide=True):
    chosen = _chosen(_softmax(logits, stable), ids)
    return (chosen / chosen.sum(1, keepdims=True) if divide else chosen).astype(np.float32)


WEIGH_MISTAKES = [
    ("a token's two weights do not add up to 1: divide by their sum", lambda *a: _weigh(*a, divide=False)),
    (
        "exp overflows: take each row's largest logit away first",
        lambda *a: _weigh(np.float32(a[0]), a[1], stable=False),
    ),
    (
        "logits divided by their sum; they become probabilities first",
        lambda x, ids: _chosen(x, ids) / _chosen(x, ids).sum(1, keepdims=True),
    ),
    ("half each; the likelier expert counts more", lambda x, ids: np.full(ids.shape, 0.5, np.float32)),
    ("the two weights are exchanged", lambda *a: _weigh(*a)[:, ::-1]),
    ("weights of the first two experts; ids says which", lambda x, ids: _weigh(x, np.tile([0, 1], (len(x), 1)))),
]


def keep_cases():
    """Full experts in several ways, a product that is no whole number, room for all."""
    rng = np.random.default_rng(5)
    ids = np.stack([rng.permutation(4)[:2] for _ in range(11)])
    popular = np.stack([[0, 1 + i % 3] for i in range(6)] + [[1, 0]] * 3)
    return [(ids, 4, 1.0), (ids, 4, 0.5), (popular, 4, 1.0), (popular, 4, 1.25), (ids, 4, 4.0), (popular, 5, 0.3)]


def keep(ids, experts, factor):
    logits = np.zeros((len(ids), experts), np.float32)
    np.put_along_axis(logits, ids, np.array([[2.0, 1.0]], np.float32), 1)
    kept = np.zeros(ids.size, bool)
    kept[_route(logits, factor).order] = True
    return kept.reshape(ids.shape)


def _keep(ids, experts, factor, round_up=True, choices=2, order="F", apart=False, backwards=False):
    room = factor * choices * len(ids) / experts
    room, kept, taken = (math.ceil(room) if round_up else int(room)), np.zeros(ids.shape, bool), {}
    tokens = range(len(ids))[::-1] if backwards else range(len(ids))
    for i, c in [(i, c) for c in range(2) for i in tokens] if order == "F" else np.ndindex(ids.shape):
        key = (int(ids[i, c]), c if apart else 0)
        kept[i, c] = taken.get(key, 0) < room
        taken[key] = taken.get(key, 0) + 1
    return kept


def _wrong_keep(**how):
    return lambda *args: _keep(*args, **how)


KEEP_MISTAKES = [
    ("token by token; the first choices of all tokens come before any second one", _wrong_keep(order="C")),
    ("rounded down; room for a part of a token is room for one", _wrong_keep(round_up=False)),
    ("the capacity is that of one choice a token; there are 2 N of them", _wrong_keep(choices=1)),
    ("first and second choices are counted apart; an expert has room for both together", _wrong_keep(apart=True)),
    ("the last tokens are kept; the first ones are", _wrong_keep(backwards=True)),
    ("True where the expert has no room", lambda *a: ~_keep(*a)),
    ("all are kept", lambda ids, experts, factor: np.ones(ids.shape, bool)),
]


def loss_cases():
    even = np.full((8, 4), 0.25, np.float32), np.stack([[i % 4, (i + 1) % 4] for i in range(8)])
    one = np.tile(np.array([[0.7, 0.1, 0.1, 0.1]], np.float32), (6, 1)), np.tile([[0, 2]], (6, 1))
    logits = _logits(9, 5, 7)
    return [even, one, (_softmax(logits).astype(np.float32), choose(logits))]


def balance_loss(probabilities, ids):
    from mindspore import Tensor

    from msllm.layers.moe import Routing

    load = np.bincount(ids.reshape(-1), minlength=probabilities.shape[1])
    layer = _layer(probabilities.shape[1])
    none = Tensor(np.zeros((len(ids), 1), np.float32))
    layer._measure(Routing(ids, none, np.arange(ids.size), load, load, Tensor(probabilities), none, None))
    return float(layer.balance.asnumpy())


def _balance(P, ids, times=None, choices=slice(None), over=1, mean=True):
    E = P.shape[1]
    f = np.bincount(ids[:, choices].reshape(-1), minlength=E) / (len(ids) * over)
    return float((E if times is None else times) * (f * (P.mean(0) if mean else P.sum(0))).sum())


def _wrong_loss(**how):
    return lambda *args: _balance(*args, **how)


LOSS_MISTAKES = [
    ("E is missing as a factor", _wrong_loss(times=1)),
    ("f counts the first choices only; the second ones count too", _wrong_loss(choices=slice(0, 1))),
    ("f is divided by 2 N; divide by the N tokens", _wrong_loss(over=2)),
    ("P is a sum over tokens; it is their mean", _wrong_loss(mean=False)),
    (
        "f times f: the gradient comes of P alone, f has none",
        lambda P, ids: float(P.shape[1] * ((np.bincount(ids.ravel(), minlength=P.shape[1]) / len(ids)) ** 2).sum()),
    ),
    (
        "P times P; f is how many choices there are, not how likely",
        lambda P, ids: float(P.shape[1] * (P.mean(0) ** 2).sum()),
    ),
]

TASKS = (
    Task("choose", against(choose, choose_cases, CHOOSE_MISTAKES)),
    Task("weigh", against(weigh, weigh_cases, WEIGH_MISTAKES)),
    Task("keep", against(keep, keep_cases, KEEP_MISTAKES)),
    Task("balance_loss", against(balance_loss, loss_cases, LOSS_MISTAKES)),
)
