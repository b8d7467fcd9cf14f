"""Checks positional_encoding.py against msllm.layers; the variants in numpy are wrong on purpose."""

import numpy as np

from msllm.lessons.checking import Task, against


def sinusoidal(length, width):
    from msllm.layers.positions import sinusoidal as of_the_library

    return of_the_library(length, width)


def _sinusoids(length, width, halves=False, swap=False, exponent=lambda i, d: 2 * i / d, first=0, base=10000.0):
    i = np.arange(width // 2)
    angle = (np.arange(length) + first)[:, None] / base ** exponent(i, width)
    pair = (np.cos(angle), np.sin(angle)) if swap else (np.sin(angle), np.cos(angle))
    table = np.concatenate(pair, 1) if halves else np.stack(pair, 2).reshape(length, width)
    return table.astype(np.float32)


def _by_column(length, width, doubled):
    """The angle from the column's own number: a pair's two columns have different ones."""
    j = np.arange(width)
    angle = np.arange(length)[:, None] / 10000.0 ** (j * doubled / width)
    return np.where(j % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def _wrong_sinusoids(**how):
    return lambda *args: _sinusoids(*args, **how)


TWO_ANGLES = "sine and cosine of a pair have different exponents; columns 2i and 2i + 1 share 2i / D"
MISTAKES = [
    ("all sines stand before all cosines; they take turns: 0::2 and 1::2", _wrong_sinusoids(halves=True)),
    ("sine and cosine are exchanged: even columns hold the sine", _wrong_sinusoids(swap=True)),
    ("wrong exponent: i / D for pair i, where it is 2i / D", _wrong_sinusoids(exponent=lambda i, d: i / d)),
    ("wrong exponent: 4i / D for pair i, where it is 2i / D", _wrong_sinusoids(exponent=lambda i, d: 4 * i / d)),
    ("wrong exponent: its sign; 10000^(2i / D) divides", _wrong_sinusoids(exponent=lambda i, d: -2 * i / d)),
    (f"wrong exponent: {TWO_ANGLES}", lambda *args: _by_column(*args, 1)),
    (f"wrong exponent: {TWO_ANGLES}", lambda *args: _by_column(*args, 2)),
    ("positions count from 1; they count from 0", _wrong_sinusoids(first=1)),
    ("the base is 1000; it is 10000", _wrong_sinusoids(base=1000.0)),
]


def cases():
    return [(12, 8), (50, 6), (1, 2)]


TASKS = (Task("positional_encoding", against(sinusoidal, cases, MISTAKES)),)
