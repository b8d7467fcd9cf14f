"""The one place that builds the step function: PyNative, or compiled with ms.jit."""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.training.objective import Objective
from msllm.training.optimizer import Optimizer


def build_step(
    model, objective: Objective, optimizer: Optimizer, max_grad_norm: float, jit: bool, workers=None
) -> Callable:
    """Returns step(batches, learning_rate) -> (mean of each loss term (K,), gradient norm before clipping).

    Args:
        objective: its loss is differentiated.
        max_grad_norm: see TrainingArguments.
        jit: compile forward and backward; stock kernels only.
        workers: see Trainer.

    ``batches`` is a list of (tensors, counts of targets): the micro-batches of one optimiser step. Their
    gradients add up to that of the mean over all targets, so n micro-batches equal one batch, and N workers equal
    one. A loss or norm that is no finite number leaves the parameters untouched; the caller looks at it.
    """
    if jit and kernels.active() == "cpu":
        raise UserError("jit needs stock kernels, the C++ ones run in PyNative; set MSLLM_KERNELS=stock")
    weights, factors = ParameterTuple(optimizer.parameters), np.array(objective.weights)

    def forward(tensors, scale):
        terms = objective.loss(model, tensors) * scale
        return terms if terms.ndim == 0 else ops.reduce_sum(terms), terms

    value_and_grad = ms.value_and_grad(forward, None, weights, has_aux=True)
    if jit:
        value_and_grad = ms.jit(value_and_grad)

    def step(batches, learning_rate: float) -> tuple[np.ndarray, float]:
        counts = sum(objective.counts(c) for _, c in batches)
        if workers is not None:
            counts = workers.sum_array(counts)
        share = factors / np.maximum(counts, 1)
        scale = Tensor((share if len(share) > 1 else share[0]).astype(np.float32))
        terms, grads = np.zeros(len(share)), None
        for tensors, _ in batches:
            (_, values), new = value_and_grad(tensors, scale)
            terms = terms + values.asnumpy()
            grads = list(new) if grads is None else [a + b for a, b in zip(grads, new, strict=True)]
        if workers is not None:
            terms, grads = workers.sum_array(terms), workers.sum_tensors(grads)
        norm = math.sqrt(kernels.sum_squares(grads))
        if np.isfinite(terms).all() and math.isfinite(norm):
            clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
            optimizer.step(grads, learning_rate, clip)
        return terms / factors, norm

    return step
