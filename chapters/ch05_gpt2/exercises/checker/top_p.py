"""Checks top_p.py against msllm.generation; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, Wrong, against


def logit_cases():
    """Ordinary logits, a token that is left out already, values that overflow exp, logits that are all the same."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal(9).astype(np.float32),),
        (np.array([1.0, -np.inf, 3.0, 0.5], np.float32),),
        (np.array([1000.0, 998.0, 995.0, -1000.0], np.float32),),
        (np.zeros(4, np.float32),),
    ]


def softmax(logits):
    from msllm.generation.sampling import softmax as library

    return library(logits).astype(np.float32)


def _softmax(x, stable=True, base=np.exp, total=True):
    weights = base(x.astype(np.float64) - x.max() if stable else x)
    return weights / weights.sum() if total else weights


SOFTMAX_MISTAKES = [
    ("exp overflows: take the largest logit away first", lambda x: _softmax(x, stable=False)),
    ("the probabilities do not add up to 1: divide by their sum", lambda x: _softmax(x, total=False)),
    ("the probabilities do not add up to 1: divide by their sum", lambda x: _softmax(x, stable=False, total=False)),
    ("the powers are of 2; softmax takes those of e", lambda x: _softmax(x, base=np.exp2)),
    ("the logarithm of softmax", lambda x: np.log(_softmax(x))),
    ("the signs: a larger logit is a larger probability", lambda x: _softmax(-x)),
]


def cases():
    """Tokens out of order and several p; a p that one token exceeds; a token that is left out; values that overflow."""
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal(12) * 2).astype(np.float32)
    half = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
    return [
        (logits, 0.9),
        (logits, 0.5),
        (logits, 0.97),
        (half, 0.6),
        (half, 0.1),
        (half, 0.96),
        (np.array([2.0, -np.inf, 1.0, 0.0], np.float32), 0.8),
        (np.array([1000.0, 999.0, 998.0, 990.0], np.float32), 0.8),
    ]


def keep_top_p(logits, p):
    from msllm.generation.sampling import keep_top_p as library

    return library(logits, p)


def _keep(logits, p, stays=lambda before, after, p: before < p, ascending=False, sort=True, place=True, out="logits"):
    order = np.argsort(logits if ascending else -logits, kind="stable")
    order = order if sort else np.arange(len(logits))
    mass = _softmax(logits)[order]
    after = np.cumsum(mass)
    chosen = stays(after - mass, after, p)
    result = np.full_like(logits, -np.inf)
    if place:
        result[order[chosen]] = logits[order[chosen]]
    else:
        result[chosen] = logits[chosen]
    if out == "probabilities":
        return np.where(result == -np.inf, 0, _softmax(logits)).astype(np.float32)
    if out == "again":
        return _softmax(result).astype(np.float32)
    return np.where(result == -np.inf, 0, logits) if out == "zero" else result


def _wrong(**how):
    return lambda *args: _keep(*args, **how)


def _one(logits, p):
    """Without the token that reaches p, but never without any."""
    kept = _keep(logits, p, stays=lambda before, after, p: after <= p)
    best = logits.argmax()
    kept[best] = logits[best]
    return kept


def _raw(logits, p):
    order = np.argsort(-logits, kind="stable")
    kept = np.full_like(logits, -np.inf)
    chosen = order[np.cumsum(logits[order]) - logits[order] < p]
    kept[chosen] = logits[chosen]
    return kept


REACHES = "the token with which the sum reaches p belongs to the set; compare the sum before a token with p"
MISTAKES = [
    (f"{REACHES} (and no token is left where the first exceeds p)", _wrong(stays=lambda before, after, p: after <= p)),
    (REACHES, _one),
    ("the least likely tokens are kept: order them by -logits", _wrong(ascending=True)),
    ("the tokens are not ordered by probability before they are summed", _wrong(sort=False)),
    (
        "what holds for the ordered tokens is used for the tokens in their places: kept[order[...]]",
        _wrong(place=False),
    ),
    (
        "min-p or a threshold: tokens of probability p or more; it is their sum that counts",
        lambda logits, p: np.where(_softmax(logits) >= p, logits, -np.inf),
    ),
    (
        "tokens of probability 1 - p or more; it is their sum that counts",
        lambda logits, p: np.where(_softmax(logits) >= 1 - p, logits, -np.inf),
    ),
    ("the sum is of logits, not of probabilities", _raw),
    ("left out means -inf: a logit of 0 is still a probability", _wrong(out="zero")),
    ("probabilities are returned; the logits are asked for", _wrong(out="probabilities")),
    ("probabilities are returned; the logits are asked for", _wrong(out="again")),
    ("one token more than needed stays", _wrong(stays=lambda before, after, p: np.append(0, before[:-1]) < p)),
]


def check_top_p(function) -> None:
    against(keep_top_p, cases, MISTAKES)(function)
    logits, p = cases()[0]
    given = logits.copy()
    function(given, p)
    if not np.array_equal(given, logits):
        raise Wrong("logits itself is changed, and whoever called with it goes on with that; change a copy")


TASKS = (Task("softmax", against(softmax, logit_cases, SOFTMAX_MISTAKES)), Task("keep_top_p", check_top_p))
