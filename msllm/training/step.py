"""The one place that builds the step function: what one process does, and several together."""

import math
from collections.abc import Callable

import numpy as np
from mindspore import Tensor

from msllm.training.objective import Objective
from msllm.training.optimizer import Optimizer
from msllm.training.profile import Off
from msllm.training.profile_recording import FORWARD_BACKWARD, OPTIMIZER


def build_step(
    workers, objective: Objective, optimizer: Optimizer, max_grad_norm: float, profile: Off | None = None
) -> Callable:
    """Returns step(batches, learning_rate) -> (mean of each loss term (K,), gradient norm before clipping).

    Args:
        workers: the processes of the run, an Alone or the like; it has prepared the model.
        objective: its weights are those of the terms.
        optimizer: of the parameters that ``workers`` named.
        max_grad_norm: see TrainingArguments.
        profile: is told what the step is busy with.

    ``batches`` is a list of (tensors, counts of targets): the micro-batches of one optimiser step. Their
    gradients add up to that of the mean over all targets, so n micro-batches equal one batch, and N workers equal
    one. A loss or norm that is no finite number leaves the parameters untouched; the caller looks at it.
    """
    own = workers.own_step(optimizer, max_grad_norm)
    if own is not None:
        return own
    factors, span = np.array(objective.weights), (profile or Off()).span

    def step(batches, learning_rate: float) -> tuple[np.ndarray, float]:
        mine = [workers.local(tensors, objective.counts(counts)) for tensors, counts in batches]
        share = factors / np.maximum(workers.sum_array(sum(counts for _, counts in mine)), 1)
        scale = Tensor((share if len(share) > 1 else share[0]).astype(np.float32))
        with span(FORWARD_BACKWARD):
            terms, grads = workers.forward_backward([tensors for tensors, _ in mine], scale)
        with span(OPTIMIZER):
            norm = math.sqrt(workers.sum_squares(grads))
            if np.isfinite(terms).all() and math.isfinite(norm):
                clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
                optimizer.step(grads, learning_rate, clip)
                workers.after_update()
        return terms / factors, norm

    return step
