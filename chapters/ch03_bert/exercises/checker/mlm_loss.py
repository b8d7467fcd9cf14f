"""Checks mlm_loss.py against msllm.kernels; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against


def cases():
    """Ordinary logits, a sequence without a label, probabilities below the smallest float, values that overflow exp."""
    rng = np.random.default_rng(1)
    # 0 is a token like any other.
    labels = np.array([[-100, 7, -100, 110, -100], [0, -100, 55, 9, -100]], np.int32)
    empty = np.array([[-100, -100, -100], [-100, 2, -100]], np.int32)

    def logits(labels):
        # More words than 100: as an index, -100 picks one.
        return rng.standard_normal((*labels.shape, 120)).astype(np.float32)

    large = logits(labels) * np.float32(300)
    return [(logits(labels), labels), (logits(empty), empty), (-np.abs(large), labels), (large, labels)]


def mlm_loss(logits, labels):
    from mindspore import Tensor

    from msllm import kernels

    rows = Tensor(logits.reshape(-1, logits.shape[-1]))
    loss = kernels.cross_entropy(rows, Tensor(labels.reshape(-1))).asnumpy()
    return float(loss.sum(dtype=np.float64) / (labels != -100).sum())


def _log_softmax(x, stable=True, divide=False):
    x = x - x.max(-1, keepdims=True) if stable else x
    weights = np.exp(x)
    total = weights.sum(-1, keepdims=True)
    return np.log(weights / total) if divide else x - np.log(total)


def _loss(logits, labels, reduce=lambda loss, kept: loss[kept].mean(), **softmax):
    """The loss, with ways to get it wrong: what is lost at a label of -100 is what the index -100 picks."""
    lost = -np.take_along_axis(_log_softmax(logits, **softmax), labels[..., None] % logits.shape[-1], -1)[..., 0]
    return float(reduce(lost, labels != -100))


def _wrong_loss(**how):
    return lambda *args: _loss(*args, **how)


OVERFLOW = "exp overflows: take each row's largest value away first"
MISTAKES = [
    (
        "the mean is over all tokens; divide by the number of labels",
        _wrong_loss(reduce=lambda loss, kept: (loss * kept).mean()),
    ),
    (
        "-100 is used as a label: it picks the 100th word from the end",
        _wrong_loss(reduce=lambda loss, kept: loss.mean()),
    ),
    (
        "a label of 0 is left out: it is a token too, only -100 says that nothing is predicted",
        lambda logits, labels: _loss(logits, np.where(labels > 0, labels, -100)),
    ),
    (
        "shifted as for a GPT: BERT's logits at position t are for the token at t",
        lambda logits, labels: _loss(logits[:, :-1], labels[:, 1:]),
    ),
    (
        "the mean of each sequence's mean; every label weighs the same",
        _wrong_loss(reduce=lambda loss, kept: ((loss * kept).sum(1) / kept.sum(1)).mean()),
    ),
    (
        "the mean of each sequence's mean; every label weighs the same",
        _wrong_loss(reduce=lambda loss, kept: ((loss * kept).sum(1) / np.maximum(kept.sum(1), 1)).mean()),
    ),
    ("the sum; the mean is asked for", _wrong_loss(reduce=lambda loss, kept: (loss * kept).sum())),
    (
        "the sum divided by the number of sequences; divide by the number of labels",
        _wrong_loss(reduce=lambda loss, kept: (loss * kept).sum() / len(kept)),
    ),
    (OVERFLOW, _wrong_loss(stable=False)),
    (OVERFLOW, _wrong_loss(stable=False, divide=True)),
    ("the logarithm of a probability that is rounded to 0; write x - log(sum(exp(x)))", _wrong_loss(divide=True)),
    ("the sign: a loss is minus the log-probability", lambda *args: -_loss(*args)),
]

TASKS = (Task("mlm_loss", against(mlm_loss, cases, MISTAKES)),)
