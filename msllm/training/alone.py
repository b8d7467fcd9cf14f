"""What the loop asks of the processes of a run, as the only one answers it."""

from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.training.objective import Objective
from msllm.training.optimizer import OPTIMIZERS


def scaled_value_and_grad(model, objective: Objective, parameters: list) -> Callable:
    """Returns (tensors, scale) -> ((loss, terms), gradients): of scale * terms, (K,) or (), and of their sum."""

    def forward(tensors, scale):
        terms = objective.loss(model, tensors) * scale
        return terms if terms.ndim == 0 else ops.reduce_sum(terms), terms

    return ms.value_and_grad(forward, None, ParameterTuple(parameters), has_aux=True)


class Alone:
    """A run in one process; msllm.parallel has those of several, with the same methods.

    Attributes:
        rank, world: this process and the number of all.
        data_rank, data_world: which examples of a batch it takes.
        random_offset: what is added to the seed of dropout.
        length_multiple: what the length of a batch is padded to a multiple of.
        micro_batches: pieces that a batch is cut into.
        sharded: whether each process writes its part of a checkpoint.
        fixed_shapes: whether all batches have one length, as a compiled step wants them.
        optimizers: by name; the states may be elsewhere than in this process' memory.
    """

    rank, world = 0, 1
    data_rank, data_world = 0, 1
    random_offset, length_multiple, micro_batches = 0, 1, 1
    sharded = fixed_shapes = False
    optimizers = OPTIMIZERS

    def prepare(self, model, objective: Objective, jit: bool) -> list:
        """Gets ready to train a model; returns the parameters that the optimiser of this process updates.

        Args:
            jit: compile forward and backward; stock kernels only.
        """
        if jit and kernels.active() == "cpu":
            raise UserError("jit needs stock kernels, the C++ ones run in PyNative; set MSLLM_KERNELS=stock")
        parameters = list(model.trainable_params())
        self._model, self._objective = model, objective
        self._value_and_grad = scaled_value_and_grad(model, objective, parameters)
        if jit:
            compiled = ms.jit(self._value_and_grad)
            # A plain dict is a constant to the compiler, and each new batch would be compiled anew.
            self._value_and_grad = lambda tensors, scale: compiled(ms.mutable(dict(tensors)), scale)
        return parameters

    def local(self, tensors: Mapping[str, Tensor], counts: np.ndarray) -> tuple[Mapping[str, Tensor], np.ndarray]:
        """Returns the part of a micro-batch that this process works on, and its counts of targets (K,)."""
        return tensors, counts

    def forward_backward(self, batches: list, scale: Tensor) -> tuple[np.ndarray, list[Tensor]]:
        """Returns the scaled sums of the loss terms (K,), and the gradients of the parameters of ``prepare``.

        Args:
            batches: the tensors of each micro-batch, see ``local``.
            scale: what the terms are multiplied by, () or (K,).
        """
        terms, grads = np.zeros(max(1, scale.size)), None
        for tensors in batches:
            (_, values), new = self._value_and_grad(tensors, scale)
            terms = terms + values.asnumpy()
            grads = list(new) if grads is None else self.accumulate(grads, new)
        return terms, grads

    def accumulate(self, sums: list[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
        """Returns the gradients of the parameters, with those of one more micro-batch."""
        return [a + b for a, b in zip(sums, new, strict=True)]

    def evaluate(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """Returns the sums of the loss terms (K,) of this process' part of a batch."""
        return np.atleast_1d(self._objective.loss(self._model, tensors).asnumpy().astype(np.float64))

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """Returns counts of targets, summed over all processes that have other targets."""
        return values

    def sum_terms(self, terms: np.ndarray) -> np.ndarray:
        """Returns what ``evaluate`` gave, summed over all processes."""
        return terms

    def own_step(self, optimizer, max_grad_norm: float) -> Callable | None:
        """Returns the step of build_step where forward, backward and update are one graph, else None."""

    def sum_squares(self, gradients: list[Tensor]) -> float:
        """Returns the sum of squares of all gradients of the model."""
        return kernels.sum_squares(gradients)

    def after_update(self) -> None:
        """Called once the optimiser has updated the parameters."""

    def any(self, flag: bool) -> bool:
        """Returns whether it is true for any process."""
        return flag

    def stop(self, interrupted: bool) -> bool:
        """Returns whether to stop after this step, because this or another process was interrupted."""
        return self.any(interrupted)

    def settle(self) -> None:
        """Called before a model is evaluated or written: then all processes have its newest parameters."""

    def close(self) -> None:
        """Called when the run is over, by an error too."""

    def objects(self, value) -> list:
        """Returns what every process gave, in the order of their ranks."""
        return [value]

    def watch(self, timer: Callable | None) -> None:
        """Lets ``timer`` (operation, group, channel, action) -> the action's result run what is sent to others.

        Args:
            timer: None ends it. A channel names those who take part.
        """

    def agree(self, settings: Mapping) -> None:
        """Raises UserError where another process has other data or options: sums of their gradients mean nothing."""

    def barrier(self) -> None:
        """Waits for all processes."""
