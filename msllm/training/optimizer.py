"""The optimisers: AdamW over all parameters at once, and LAMB."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from msllm import kernels

# Biases and norms are one-dimensional: decaying them only shrinks scales (transformers leaves them out too).
_DECAYED_DIMENSIONS = 2


class Optimizer:
    """What adaptive optimisers share: the moments of every parameter, saved and restored.

    Args:
        parameters: those that are trained.
        betas: decays of the moments.
        epsilon: added to the denominator.
        weight_decay: decoupled decay of matrices.
    """

    def __init__(self, parameters: list[Parameter], betas: tuple[float, float], epsilon: float, weight_decay: float):
        self.parameters, self.betas, self.epsilon, self.step_count = list(parameters), betas, epsilon, 0
        # A piece of a parameter says what the whole is.
        decayed = (getattr(p, "decayed", p.ndim >= _DECAYED_DIMENSIONS) for p in self.parameters)
        self.decay = [weight_decay if d else 0.0 for d in decayed]
        self.exp_avg, self.exp_avg_sq = self.zeros(), self.zeros()

    def zeros(self):
        """Returns the first moments: what is read and set by the number of a parameter."""
        return [ops.zeros(p.shape, ms.float32) for p in self.parameters]

    def step(self, grads: list[Tensor], learning_rate: float, grad_scale: float) -> None:
        """Updates the parameters in place; gradients are first multiplied by ``grad_scale``."""
        self.step_count += 1
        self.update(grads, learning_rate, grad_scale)

    def update(self, grads: list[Tensor], learning_rate: float, grad_scale: float) -> None:
        """What a kind of optimiser does in step number ``step_count``."""
        raise TypeError(f"{type(self).__name__} does not say how it updates")

    def _adam(self, targets, grads, learning_rate, decay, grad_scale) -> None:
        moments = (self.exp_avg, self.exp_avg_sq)
        kernels.adamw(
            targets, grads, *moments, learning_rate, *self.betas, self.epsilon, decay, self.step_count, grad_scale
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns the moments as arrays named exp_avg.<parameter> and exp_avg_sq.<parameter>, and the step."""
        state = {"step": np.array([self.step_count], np.int64)}
        for p, mean, square in zip(self.parameters, self.exp_avg, self.exp_avg_sq, strict=True):
            state[f"exp_avg.{p.name}"], state[f"exp_avg_sq.{p.name}"] = mean.asnumpy(), square.asnumpy()
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restores what state_dict returned; KeyError where it belongs to other parameters."""
        self.step_count = int(state["step"][0])
        for i, p in enumerate(self.parameters):
            self.exp_avg[i] = Tensor(np.array(state[f"exp_avg.{p.name}"]))
            self.exp_avg_sq[i] = Tensor(np.array(state[f"exp_avg_sq.{p.name}"]))


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), equal to torch.optim.AdamW."""

    def update(self, grads, learning_rate, grad_scale):
        self._adam(self.parameters, grads, learning_rate, self.decay, grad_scale)


class Lamb(Optimizer):
    """Adam's step, for each matrix as long as the matrix itself (You et al. 2020, algorithm 2, with phi(z) = z).

    Biases and norms, which are not decayed, take Adam's step as it is.
    """

    def update(self, grads, learning_rate, grad_scale):
        # From zero, at rate 1 and without decay, Adam's kernel leaves minus the direction.
        directions = [ops.zeros(p.shape, ms.float32) for p in self.parameters]
        self._adam(directions, grads, 1.0, [0.0] * len(directions), grad_scale)
        for parameter, minus, decay in zip(self.parameters, directions, self.decay, strict=True):
            trust = 1.0
            if parameter.ndim >= _DECAYED_DIMENSIONS:
                minus = minus - decay * parameter
                lengths = [math.sqrt(kernels.sum_squares([t])) for t in (parameter, minus)]
                trust = lengths[0] / lengths[1] if min(lengths) > 0 else 1.0
            ops.assign(parameter, parameter + learning_rate * trust * minus)


OPTIMIZERS = {"adamw": AdamW, "lamb": Lamb}
