"""Checks label_smoothed_loss.py against msllm.kernels; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against

PADDING = 0


def logit_cases():
    """Ordinary logits, a batch of sentences, probabilities below the smallest float, values that overflow exp."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((3, 5)).astype(np.float32),),
        (rng.standard_normal((2, 4, 7)).astype(np.float32) * 3,),
        (np.array([[0.0, -1.0, -300.0]], np.float32),),
        (np.array([[1000.0, 999.0, 998.5]], np.float32),),
    ]


def log_softmax(logits):
    """Class by class: the cross-entropy of a class is minus its log-probability."""
    from mindspore import Tensor

    from msllm import kernels

    V = logits.shape[-1]
    rows = np.repeat(logits.reshape(-1, V), V, axis=0)
    classes = np.tile(np.arange(V, dtype=np.int32), len(rows) // V)
    return -kernels.cross_entropy(Tensor(rows), Tensor(classes)).asnumpy().reshape(logits.shape)


def _log_softmax(x, axis=-1, stable=True, log=np.log):
    weights = np.exp(x - x.max(axis, keepdims=True) if stable else x)
    return log(weights / weights.sum(axis, keepdims=True))


def _naive(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


OVERFLOW = "exp overflows: take each row's largest value away first"
SOFTMAX_MISTAKES = [
    (OVERFLOW, _naive),
    (OVERFLOW, lambda x: _log_softmax(x, stable=False)),
    (
        "the logarithm of a probability that is rounded to 0; write log(exp(x) / sum) as x - log(sum)",
        _log_softmax,
    ),
    ("the logarithm is missing", lambda x: _log_softmax(x, log=lambda p: p)),
    ("softmax is over the wrong axis: the classes are the last", lambda x: _log_softmax(x, axis=0)),
    ("softmax is over the wrong axis: the classes are the last", lambda x: _log_softmax(x, axis=-2)),
    ("the logarithm is of base 2", lambda x: _log_softmax(x, log=np.log2)),
    ("the logarithm is of base 10", lambda x: _log_softmax(x, log=np.log10)),
]


def loss_cases():
    """With padding, without smoothing, without padding; tiny probabilities, logits that overflow exp; padding of 6."""
    rng = np.random.default_rng(0)
    ids = np.array([[1, 5, 3, 7, 2], [1, 4, 2, PADDING, PADDING]], np.int32)

    def case(ids, words, smoothing, size=1.0, largest=np.inf, padding_id=PADDING):
        logits = rng.standard_normal((*ids.shape, words)) * size
        return np.minimum(logits, largest).astype(np.float32), ids, smoothing, padding_id

    return [
        case(ids, 8, 0.1),
        case(ids, 8, 0.0),
        case(np.array([[1, 3, 2]], np.int32), 5, 0.3),
        case(ids, 8, 0.1, size=300.0, largest=0.0),
        case(ids, 8, 0.1, size=300.0),
        case(np.array([[1, 5, 0, 7, 2], [1, 4, 2, 6, 6]], np.int32), 8, 0.1, padding_id=6),
    ]


def label_smoothed_loss(logits, ids, smoothing, padding_id):
    from mindspore import Tensor

    from msllm import kernels

    rows, labels = np.ascontiguousarray(logits[:, :-1]).reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    loss = kernels.cross_entropy(Tensor(rows), Tensor(np.ascontiguousarray(labels)), padding_id, smoothing).asnumpy()
    return float(loss.sum(dtype=np.float64) / (labels != padding_id).sum())


def _mean(loss, kept):
    return loss[kept].mean()


def _loss(logits, ids, smoothing, padding_id, shift=1, reduce=_mean, smooth="all", log=log_softmax):
    """The loss, with ways to get it wrong; ``shift`` says which logits meet which ids."""
    T = ids.shape[1]
    meets = {1: (slice(0, T - 1), slice(1, T)), 0: (slice(0, T), slice(0, T)), -1: (slice(1, T), slice(0, T - 1))}
    positions, targets = meets[shift]
    log_p, labels = log(np.ascontiguousarray(logits[:, positions])), ids[:, targets]
    right = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    V = logits.shape[-1]
    every = -log_p.sum(-1)
    rest = {"all": every / V, "others": (every - right) / (V - 1), "sum": every, "none": right}[smooth]
    return float(reduce((1 - smoothing) * right + smoothing * rest, labels != padding_id))


def _wrong_loss(**how):
    return lambda *args: _loss(*args, **how)


LOSS_MISTAKES = [
    ("no shift: the logits at position t are for the token at t + 1", _wrong_loss(shift=0)),
    ("the shift goes the wrong way: the logits at position t are for the token at t + 1", _wrong_loss(shift=-1)),
    (
        "the mean is over padding too: divide by the number of tokens to predict",
        _wrong_loss(reduce=lambda loss, kept: (loss * kept).mean()),
    ),
    ("padding is predicted too: its losses are not left out", _wrong_loss(reduce=lambda loss, kept: loss.mean())),
    (
        "the mean of each sentence's mean; every token weighs the same",
        _wrong_loss(reduce=lambda loss, kept: ((loss * kept).sum(1) / kept.sum(1)).mean()),
    ),
    ("the sum; the mean is asked for", _wrong_loss(reduce=lambda loss, kept: (loss * kept).sum())),
    (
        "padding_id is not used: padding is not always 0",
        lambda logits, ids, smoothing, padding_id: _loss(logits, ids, smoothing, 0),
    ),
    ("no label smoothing", _wrong_loss(smooth="none")),
    ("e is spread over the V - 1 other words; here it is over all V", _wrong_loss(smooth="others")),
    ("each word gets e, not e / V: take the mean over the words, not the sum", _wrong_loss(smooth="sum")),
    (OVERFLOW, _wrong_loss(log=_naive)),
    (OVERFLOW, _wrong_loss(log=lambda x: _log_softmax(x, stable=False))),
    ("the logarithm of a probability that is rounded to 0; use log_softmax", _wrong_loss(log=_log_softmax)),
    ("the sign: a loss is minus the log-probability", lambda *args: -_loss(*args)),
]

TASKS = (
    Task("log_softmax", against(log_softmax, logit_cases, SOFTMAX_MISTAKES)),
    Task("label_smoothed_loss", against(label_smoothed_loss, loss_cases, LOSS_MISTAKES)),
)
