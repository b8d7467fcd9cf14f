"""What an Ascend card leaves to its host: the states and the update of the optimiser, and the table of tokens.

Operators with ``set_device("CPU")`` run on the host's processor, on what is in its memory. On a CPU that is where all
runs: the numbers are the same, and nothing is saved. Not run on Ascend hardware.
"""

import contextlib
import logging
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common._grad_function import _Function

from msllm.errors import UserError
from msllm.layers import Embedding
from msllm.training.optimizer import Optimizer


class HostAdamW(Optimizer):
    """AdamW whose moments stay on the host, where each new one and the step are worked out; the device adds the step.

    MindSpore's nn.AdamOffload does so for Adam, for graphs alone, with decay added to the gradient and the epsilon of
    Kingma and Ba (2015, end of section 2). This uses its operator, AdamNoUpdateParam, for AdamW: with powers of the
    betas of 0 the operator corrects nothing, so that the corrections go into rate and epsilon, in float64:
    rate = lr sqrt(1 - beta2^t) / (1 - beta1^t), epsilon = eps sqrt(1 - beta2^t). The betas are those that float32 makes
    of them, as the operator's own 1 - beta2 is off by 1e-5 of itself else.
    """

    def __init__(self, parameters, betas, epsilon: float, weight_decay: float):
        super().__init__(parameters, betas, epsilon, weight_decay)
        with _no_warning():  # that it will go: as long as it is there, nothing else leaves the parameter to the device
            self._step = _on_host(ops.operations.AdamNoUpdateParam())
        self._device, self._host = _Add(lambda operator: operator), _Add(_on_host)

    def update(self, grads, learning_rate, grad_scale):
        """See Optimizer."""
        beta1, beta2 = map(float, np.float32(self.betas))
        correction = math.sqrt(1 - beta2**self.step_count)
        rate, epsilon = learning_rate * correction / (1 - beta1**self.step_count), self.epsilon * correction
        options = [Tensor(x, ms.float32) for x in (0.0, 0.0, rate, beta1, beta2, epsilon)]
        for i, parameter in enumerate(self.parameters):
            gradient = grads[i] if grad_scale == 1.0 else grads[i] * grad_scale
            step = self._step(self.exp_avg[i], self.exp_avg_sq[i], *options, gradient)
            # A table that is on the host must not go to the device for its update.
            add = self._host if getattr(parameter, "on_host", False) else self._device
            add(parameter, 1 - learning_rate * self.decay[i], step)


class _Add:
    """parameter = factor * parameter + step, where ``place`` puts operators."""

    def __init__(self, place):
        self._times, self._plus, self._assign = place(ops.Mul()), place(ops.Add()), place(ops.Assign())

    def __call__(self, parameter, factor: float, step: Tensor) -> None:
        kept = parameter if factor == 1.0 else self._times(parameter, Tensor(factor, ms.float32))
        self._assign(parameter, self._plus(kept, step))


class _Lookup(_Function):
    """Rows of a table, and the gradient of the table, on the host.

    nn.EmbeddingLookup(target="CPU") has the same forward operator; its gradient is a row for each id, which PyNative
    mode hands out as if it were that of the table.
    """

    @staticmethod
    def forward(ctx, table, ids):
        ctx.rows = table.shape[0]
        ctx.save_for_backward(ids)
        return _on_host(ops.EmbeddingLookup())(table, ids, 0)

    @staticmethod
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return _on_host(ops.UnsortedSegmentSum())(rows, ids.reshape(-1), ctx.rows), None


class HostEmbedding(nn.Cell):
    """An Embedding whose table stays on the host: the rows of a batch go to the device, and their gradients back."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        self.weight = embedding.weight
        self.weight.on_host = True

    def construct(self, ids):
        """ids int32 (...) -> (..., D)."""
        return _Lookup.apply(self.weight, ids)


def apply(model) -> None:
    """Puts a HostEmbedding in the place of the table of tokens of a decoder-only model.

    Raises:
        UserError: the head multiplies by the same table, on the device; the table is no plain one.
    """
    if getattr(model, "tied", True):
        raise UserError(
            "offload.embedding is host, and the head of this model multiplies by the table of tokens, which the device "
            "needs for that; leave it out, or use a decoder-only model with tie_word_embeddings false"
        )
    if type(model.embedding) is not Embedding:
        raise UserError(
            f"offload.embedding is host, and the table of tokens is a {type(model.embedding).__name__}; leave out "
            f"offload.embedding, or what changed it"
        )
    name = model.embedding.weight.name
    setattr(model.body, model.embedding_name, HostEmbedding(model.embedding))
    model.embedding.weight.name = name


@contextlib.contextmanager
def _no_warning():
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _on_host(operator):
    return operator.set_device("CPU")
