"""Checks loss_shift.py against msllm.training and msllm.kernels; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, Wrong, against

IGNORED = -100


def label_cases():
    """A whole sequence, one with a prompt and padding that are not predicted, and a single token."""
    return [
        (np.array([[5, 3, 8, 2, 9], [7, 0, 4, 6, 1]], np.int32),),
        (np.array([[IGNORED, IGNORED, 8, 2, 9], [7, 0, 4, IGNORED, IGNORED]], np.int32),),
        (np.array([[6]], np.int32),),
    ]


def next_tokens(labels):
    from msllm.training.losses import to_device

    batch = {"input_ids": np.zeros_like(labels), "attention_mask": np.ones_like(labels), "labels": labels}
    return to_device(batch)[0]["targets"].asnumpy().reshape(labels.shape)


def _moved(labels, by=-1, last=IGNORED, first=None, axis=1):
    out = np.roll(labels, by, axis=axis)
    if last is not None:
        out[:, -1] = last
    if first is not None:
        out[:, 0] = first
    return out


LABEL_MISTAKES = [
    (
        "moved to the right: at position t stands the label of t + 1, not of t - 1",
        lambda y: _moved(y, by=1, last=None, first=IGNORED),
    ),
    ("the labels are not moved", lambda y: y.copy()),
    (
        "the first token comes round to the last position, as with np.roll; set it to -100",
        lambda y: _moved(y, last=None),
    ),
    ("the last position keeps its label; it has no next token: -100", lambda y: np.append(y[:, 1:], y[:, -1:], 1)),
    ("the last position has 0, which is a token; it has no next token: -100", lambda y: _moved(y, last=0)),
    ("the last position is cut off; keep the shape, and set it to -100", lambda y: y[:, 1:]),
    ("moved by two", lambda y: np.append(y[:, 2:], np.full_like(y[:, :2], IGNORED), 1)[:, : y.shape[1]]),
    ("the sequences are moved, not the tokens: the tokens are the last axis", lambda y: _moved(y, axis=0)),
]


def cases():
    """With and without what is not predicted, a sequence without a target, tiny probabilities, logits that overflow."""
    rng = np.random.default_rng(2)
    whole, prompts = (labels for (labels,) in label_cases()[:2])
    empty = np.array([[IGNORED, IGNORED, IGNORED], [4, IGNORED, 2]], np.int32)

    def logits(labels):
        # More words than 100: as an index, -100 picks one.
        return rng.standard_normal((*labels.shape, 120)).astype(np.float32)

    large = logits(prompts) * np.float32(300)
    return [
        (logits(prompts), prompts),
        (logits(whole), whole),
        (logits(empty), empty),
        (-np.abs(large), prompts),
        (large, prompts),
    ]


def next_token_loss(logits, labels):
    from mindspore import Tensor

    from msllm import kernels

    targets = next_tokens(labels).reshape(-1)
    loss = kernels.cross_entropy(Tensor(logits.reshape(-1, logits.shape[-1])), Tensor(targets), IGNORED).asnumpy()
    return float(loss.sum(dtype=np.float64) / (targets != IGNORED).sum())


def _log_softmax(x, stable=True, divide=False):
    x = x - x.max(-1, keepdims=True) if stable else x
    weights = np.exp(x)
    total = weights.sum(-1, keepdims=True)
    return np.log(weights / total) if divide else x - np.log(total)


def _mean(loss, kept):
    return loss[kept].mean()


def _loss(logits, labels, shift=1, reduce=_mean, ignored=None, **softmax):
    """The loss, with ways to get it wrong; ``shift`` says which logits meet which labels."""
    T = labels.shape[1]
    meets = {1: (slice(0, T - 1), slice(1, T)), 0: (slice(0, T), slice(0, T)), -1: (slice(1, T), slice(0, T - 1))}
    positions, targets = meets[shift]
    log_p, targets = _log_softmax(logits[:, positions], **softmax), labels[:, targets]
    lost = -np.take_along_axis(log_p, targets[..., None] % logits.shape[-1], -1)[..., 0]
    return float(reduce(lost, targets != IGNORED if ignored is None else ignored(targets)))


def _wrong(**how):
    return lambda *args: _loss(*args, **how)


def _all_positions(logits, labels):
    """Divided by all positions, the last one too."""
    return _loss(logits, labels, reduce=lambda loss, kept: (loss * kept).sum() / labels.size)


OVERFLOW = "exp overflows: take each row's largest value away first"
LOSS_MISTAKES = [
    ("no shift, as for a BERT: the logits at position t are for the token at t + 1", _wrong(shift=0)),
    ("the shift goes the wrong way: the logits at position t are for the token at t + 1", _wrong(shift=-1)),
    (
        "the mean is over all tokens; divide by the number of those to predict",
        _wrong(reduce=lambda loss, kept: (loss * kept).mean()),
    ),
    ("the mean is over all positions; divide by the number of tokens to predict", _all_positions),
    (
        "-100 is used as a label: it picks the 100th word from the end",
        _wrong(reduce=lambda loss, kept: loss.mean()),
    ),
    (
        "a label of 0 is left out: it is a token too, only -100 says that nothing is predicted",
        _wrong(ignored=lambda targets: targets > 0),
    ),
    (
        "the mean of each sequence's mean; every token weighs the same",
        _wrong(reduce=lambda loss, kept: ((loss * kept).sum(1) / kept.sum(1)).mean()),
    ),
    (
        "the mean of each sequence's mean; every token weighs the same",
        _wrong(reduce=lambda loss, kept: ((loss * kept).sum(1) / np.maximum(kept.sum(1), 1)).mean()),
    ),
    ("the sum; the mean is asked for", _wrong(reduce=lambda loss, kept: (loss * kept).sum())),
    (OVERFLOW, _wrong(stable=False)),
    (OVERFLOW, _wrong(stable=False, divide=True)),
    ("the logarithm of a probability that is rounded to 0; write x - log(sum(exp(x)))", _wrong(divide=True)),
    ("the sign: a loss is minus the log-probability", lambda *args: -_loss(*args)),
    ("bits: the logarithm is of base 2; here it is the natural one", lambda *args: _loss(*args) / np.log(2)),
    ("the perplexity; the loss is its logarithm", lambda *args: float(np.exp(_loss(*args)))),
]


def check_next_tokens(function) -> None:
    against(next_tokens, label_cases, LABEL_MISTAKES)(function)
    (labels,) = label_cases()[0]
    given = labels.copy()
    function(given)
    if not np.array_equal(given, labels):
        raise Wrong("labels itself is changed, and is no longer the sequence's; change a copy, labels.copy()")


TASKS = (
    Task("next_tokens", check_next_tokens),
    Task("next_token_loss", against(next_token_loss, cases, LOSS_MISTAKES)),
)
