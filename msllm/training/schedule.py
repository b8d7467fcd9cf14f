"""Learning-rate schedules: factors between 0 and 1 by step, equal to transformers'."""

import math


def learning_rate_factor(kind: str, step: int, warmup: int, total: int) -> float:
    """Returns what the peak learning rate is multiplied by.

    Args:
        kind: a key of SCHEDULES.
        step: optimiser steps already done, so 0 for the first.
        warmup: steps of linear rise from 0.
        total: steps of the whole run.
    """
    if step < warmup:
        return step / warmup
    return SCHEDULES[kind](step, warmup, total)


def _linear(step: int, warmup: int, total: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def _inverse_sqrt(step: int, warmup: int, total: int) -> float:
    """Falls as 1/sqrt(step) from the end of the warm-up, or of a nominal one of 10,000 steps without warm-up."""
    timescale = warmup or 10_000
    return 1 / math.sqrt((step + timescale - warmup) / timescale)


SCHEDULES = {
    "constant": lambda step, warmup, total: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
}
