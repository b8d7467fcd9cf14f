"""Checks skip_gram.py against msllm.classic; the variants are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against

COUNTS = np.array([800, 100, 60, 30, 10])


def keep_probabilities(counts, t):
    return _model(counts, t).keep


def noise_distribution(counts):
    shares = np.diff(_model(counts, 1.0).noise, prepend=0.0)
    return shares / shares.sum()


def _model(counts, t):
    """The library's model of a text with these counts; its vocabulary has the words by falling count."""
    from msllm.classic import SkipGram

    corpus = [str(word) for word, count in enumerate(counts) for _ in range(count)]
    return SkipGram(corpus, width=2, min_count=1, subsample=t)


def negative_sampling_loss(v, u):
    # The library's loss is float32 and of ordinary products; this is its formula where float64 is asked for.
    return float(np.logaddexp(0, -(u @ v) * _signs(u)).sum())


def gradient_of_v(v, u):
    import mindspore as ms

    from msllm.classic.word2vec import negative_sampling_loss as of_the_library

    tensors = [ms.Tensor(x[None].astype(np.float32)) for x in (v, u)]
    return ms.grad(of_the_library, 0)(*tensors).asnumpy()[0].astype(np.float64)


def _signs(u):
    return np.array([1.0] + [-1.0] * (len(u) - 1))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loss(v, u, signs=_signs, mean=False, total=True):
    losses = np.logaddexp(0, -(u @ v) * signs(u))
    return float((losses.mean() if mean else losses.sum()) if total else losses[0])


def _overflowing(v, u):
    return float(-np.log(_sigmoid((u @ v) * _signs(u))).sum())


def _gradient(v, u, labels=None, transform=lambda g: g):
    labels = (_signs(u) > 0).astype(float) if labels is None else labels(u)
    return transform(_sigmoid(u @ v) - labels) @ u


KEEP_MISTAKES = [
    ("not at most 1", lambda c, t: np.sqrt(t / (c / c.sum()))),
    (
        "this is how likely a word is thrown out; asked for is how likely it stays",
        lambda c, t: 1 - np.minimum(1, np.sqrt(t * c.sum() / c)),
    ),
    ("the root is missing", lambda c, t: np.minimum(1, t * c.sum() / c)),
    ("f is the word's share of the text, not its count", lambda c, t: np.minimum(1, np.sqrt(t / c))),
    (
        "f and t are exchanged: frequent words are the ones that go",
        lambda c, t: np.minimum(1, np.sqrt(c / c.sum() / t)),
    ),
]
NOISE_MISTAKES = [
    ("the power 3/4 is missing", lambda c: c / c.sum()),
    ("the sum is not 1: divide after taking the power", lambda c: (c / c.sum()) ** 0.75),
    ("the sum is not 1: divide by the sum of the powers", lambda c: c**0.75),
    ("the power is 4/3; it is 3/4, which helps rare words", lambda c: c ** (4 / 3) / (c ** (4 / 3)).sum()),
    ("every word is as likely; frequent words are more so", lambda c: np.full(len(c), 1 / len(c))),
]
LOSS_MISTAKES = [
    ("exp overflows or ln 0 for large products; use np.logaddexp(0, -x)", _overflowing),
    ("the sign: a loss is above 0", lambda v, u: -_loss(v, u)),
    (
        "noise words have the neighbour's sign: their products should be small",
        lambda v, u: _loss(v, u, lambda u: np.ones(len(u))),
    ),
    ("neighbour and noise are exchanged", lambda v, u: _loss(v, u, lambda u: -_signs(u))),
    ("the mean is taken; the terms are added", lambda v, u: _loss(v, u, mean=True)),
    ("the noise words are missing", lambda v, u: _loss(v, u, total=False)),
]
GRADIENT_MISTAKES = [
    ("the sign: the gradient points to where the loss grows", lambda v, u: -_gradient(v, u)),
    (
        "the neighbour's 1 is not taken away: s(x) - 1 for row 0",
        lambda v, u: _gradient(v, u, lambda u: np.zeros(len(u))),
    ),
    ("1 is taken away for the noise words too", lambda v, u: _gradient(v, u, lambda u: np.ones(len(u)))),
    ("divided by 1 + K; the terms are added", lambda v, u: _gradient(v, u) / len(u)),
    ("this is the gradient with respect to the first row of u", lambda v, u: (_sigmoid(u @ v) - 1)[0] * v),
]


def counts():
    return [(COUNTS, 0.05), (COUNTS, 0.5), (np.array([5, 4, 3, 2]), 0.001)]


def noise_counts():
    return [(COUNTS,), (np.array([9, 8, 3]),)]


def vectors(large=0.0):
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_normal(d), rng.standard_normal((1 + k, d))) for d, k in ((6, 3), (4, 1), (8, 5))]
    return [*pairs, (np.full(4, large), rng.standard_normal((3, 4)))] if large else pairs


TASKS = (
    Task("keep_probabilities", against(keep_probabilities, counts, KEEP_MISTAKES)),
    Task("noise_distribution", against(noise_distribution, noise_counts, NOISE_MISTAKES)),
    Task("negative_sampling_loss", against(negative_sampling_loss, lambda: vectors(700.0), LOSS_MISTAKES)),
    Task("gradient_of_v", against(gradient_of_v, vectors, GRADIENT_MISTAKES)),
)
