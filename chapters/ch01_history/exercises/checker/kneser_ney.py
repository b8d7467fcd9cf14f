"""Checks kneser_ney.py against msllm.classic; the variants are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against

# 1 follows 0 often and nothing else; 2 follows three words; 5 is only the last word; 6 is not in the text.
TEXT = np.array([0, 1] * 6 + [3, 2, 0, 2, 4, 2, 4, 5])
RANDOM = np.random.default_rng(0).integers(0, 9, 200)


def continuation_distribution(ids, vocab_size):
    return _model(ids, vocab_size, 0.0).next_distribution([])


def bigram_distribution(ids, vocab_size, h, discount):
    return _model(ids, vocab_size, discount).next_distribution([h])


def _model(ids, vocab_size, discount):
    from msllm.classic import KneserNey

    return KneserNey(ids, vocab_size, 2, discounts=[(0.0,) * 3, (discount,) * 3])


def perplexity(probabilities):
    from msllm.classic import perplexity as of_the_library

    return of_the_library(np.log(probabilities))


def _pairs(ids):
    return np.stack([ids[:-1], ids[1:]], 1)


def _continuation(ids, vocab_size, column=1, distinct=True):
    pairs = _pairs(ids)
    pairs = np.unique(pairs, axis=0) if distinct else pairs
    counts = np.bincount(pairs[:, column], minlength=vocab_size)
    return counts / counts.sum()


def _followed(ids, h):
    """c(h): how often something follows h."""
    return (ids[:-1] == h).sum()


def _all(ids, h):
    return (ids == h).sum()


def _bigram(
    ids,
    vocab_size,
    h,
    discount,
    lower=_continuation,
    types=True,
    take=True,
    unseen=None,
    floor=True,
    total=_followed,
    apart=_followed,
):
    """The distribution, with ways to get it wrong; ``total`` is c(h), and where ``apart`` is 0 ``lower`` is taken."""
    counts = np.bincount(ids[1:][ids[:-1] == h], minlength=vocab_size)
    if apart(ids, h) == 0:
        return lower(ids, vocab_size) if unseen is None else unseen(vocab_size)
    left = counts - (discount if take else 0.0)
    weight = discount * (np.count_nonzero(counts) if types else 1) / total(ids, h)
    return (np.maximum(left, 0) if floor else left) / total(ids, h) + weight * lower(ids, vocab_size)


def _frequency(ids, vocab_size):
    return np.bincount(ids, minlength=vocab_size) / len(ids)


def _wrong_bigram(**how):
    return lambda *args: _bigram(*args, **how)


CONTINUATION_MISTAKES = [
    (
        "every occurrence counts; a pair counts once, however often it is there",
        lambda i, v: _continuation(i, v, 1, False),
    ),
    ("this is each word's share of the text; what counts is after how many different words it stands", _frequency),
    ("these are the different words after w; N1+(* w) are those before it", lambda i, v: _continuation(i, v, 0)),
    (
        "divided by V; divide by the number of different pairs",
        lambda i, v: _continuation(i, v) * len(np.unique(_pairs(i), axis=0)) / v,
    ),
]
BIGRAM_MISTAKES = [
    (
        "the lower distribution is each word's share of the text; it is the continuation distribution",
        _wrong_bigram(lower=_frequency),
    ),
    (
        "the weight of the lower distribution is D / c(h); it is D N1+(h *) / c(h), a discount for each word seen",
        _wrong_bigram(types=False),
    ),
    ("nothing is taken from the counts; the sum is above 1", _wrong_bigram(take=False)),
    ("counts of 0 become -D; the maximum with 0 is missing", _wrong_bigram(floor=False)),
    ("after a word that nothing follows: the continuation distribution, not 0", _wrong_bigram(unseen=np.zeros)),
    (
        "after a word that nothing follows: the continuation distribution, not 1 / V",
        _wrong_bigram(unseen=lambda v: np.full(v, 1 / v)),
    ),
    (
        "after a word that nothing follows 0 is divided by 0; that case is apart",
        _wrong_bigram(unseen=lambda v: np.full(v, np.nan)),
    ),
    ("c(h) counts the last word too, which nothing follows", _wrong_bigram(total=_all)),
    ("c(h) counts the last word too, which nothing follows", _wrong_bigram(total=_all, apart=_all)),
    ("the continuation distribution is not added", _wrong_bigram(lower=lambda ids, v: np.zeros(v))),
]
PERPLEXITY_MISTAKES = [
    ("the sign; perplexity is 1 or more", lambda p: float(np.exp(np.mean(np.log(p))))),
    ("this is the mean of -ln p; its exponential is missing", lambda p: float(-np.mean(np.log(p)))),
    (
        "the logarithm is to base 2, the exponential to base e; take one base",
        lambda p: float(np.exp(-np.mean(np.log2(p)))),
    ),
    ("these are bits; the power of 2 is missing", lambda p: float(-np.mean(np.log2(p)))),
    ("this is the mean of 1 / p; the mean is of the logarithms", lambda p: float(np.mean(1 / p))),
    ("this is 1 over the mean of p; the mean is of the logarithms", lambda p: float(1 / np.mean(p))),
    (
        "the product of many probabilities is rounded to 0; add logarithms",
        lambda p: float(np.prod(p)) ** (-1 / len(p)) if np.prod(p) else np.inf,
    ),
    ("the sum of ln p is not divided by N", lambda p: float(np.exp(-np.sum(np.log(p))))),
]


def texts():
    return [(TEXT, 7), (RANDOM, 10)]


def contexts():
    # 7 is RANDOM's last word, and others follow it elsewhere; 9 is not in it.
    return [(TEXT, 7, h, 0.4) for h in (0, 2, 4, 5, 6)] + [(RANDOM, 10, h, 0.75) for h in (3, 7, 9)]


def probabilities():
    rng = np.random.default_rng(1)
    return [(np.array([0.5, 0.25, 0.125]),), (np.full(4, 1 / 65),), (rng.uniform(0.01, 0.2, 3000),)]


TASKS = (
    Task("continuation_distribution", against(continuation_distribution, texts, CONTINUATION_MISTAKES)),
    Task("bigram_distribution", against(bigram_distribution, contexts, BIGRAM_MISTAKES)),
    Task("perplexity", against(perplexity, probabilities, PERPLEXITY_MISTAKES)),
)
