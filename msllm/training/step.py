"""The one place that builds the step function: PyNative, or compiled with ms.jit."""

import math
from collections.abc import Callable

import mindspore as ms
from mindspore import ParameterTuple, Tensor

from msllm import kernels
from msllm.errors import UserError
from msllm.training.optimizer import AdamW


def build_step(model, loss: Callable, optimizer: AdamW, max_grad_norm: float, jit: bool) -> Callable:
    """Returns step(batches, learning_rate) -> (loss per target, gradient norm before clipping).

    Args:
        loss: (model, tensors) -> summed loss.
        max_grad_norm: see TrainingArguments.
        jit: compile forward and backward; stock kernels only.

    ``batches`` is a list of (tensors, number of targets): the micro-batches of one optimiser step. Their
    gradients add up to that of the mean over all targets, so n micro-batches equal one batch. A loss or
    norm that is no finite number leaves the parameters untouched; the caller looks at it.
    """
    if jit and kernels.active() == "cpu":
        raise UserError("jit needs stock kernels, the C++ ones run in PyNative; set MSLLM_KERNELS=stock")
    weights = ParameterTuple(optimizer.parameters)

    def forward(tensors, scale):
        return loss(model, tensors) * scale

    value_and_grad = ms.value_and_grad(forward, None, weights)
    if jit:
        value_and_grad = ms.jit(value_and_grad)

    def step(batches, learning_rate: float) -> tuple[float, float]:
        scale = Tensor(1.0 / max(1, sum(count for _, count in batches)), ms.float32)
        total, grads = 0.0, None
        for tensors, _ in batches:
            value, new = value_and_grad(tensors, scale)
            total += float(value.asnumpy())
            grads = list(new) if grads is None else [a + b for a, b in zip(grads, new, strict=True)]
        norm = math.sqrt(kernels.sum_squares(grads))
        if math.isfinite(total) and math.isfinite(norm):
            clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
            optimizer.step(grads, learning_rate, clip)
        return total, norm

    return step
