"""AdamW over all parameters at once."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from msllm import kernels

# Biases and norms are one-dimensional: decaying them only shrinks scales (transformers leaves them out too).
_DECAYED_DIMENSIONS = 2


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), equal to torch.optim.AdamW.

    Args:
        parameters: those that are trained.
        betas, epsilon, weight_decay: as in the paper.
    """

    def __init__(self, parameters: list[Parameter], betas: tuple[float, float], epsilon: float, weight_decay: float):
        self.parameters, self.betas, self.epsilon, self.step_count = list(parameters), betas, epsilon, 0
        self.decay = [weight_decay if p.ndim >= _DECAYED_DIMENSIONS else 0.0 for p in self.parameters]
        self.exp_avg = [ops.zeros(p.shape, ms.float32) for p in self.parameters]
        self.exp_avg_sq = [ops.zeros(p.shape, ms.float32) for p in self.parameters]

    def step(self, grads: list[Tensor], learning_rate: float, grad_scale: float) -> None:
        """Updates the parameters in place; gradients are first multiplied by ``grad_scale``."""
        self.step_count += 1
        kernels.adamw(
            self.parameters,
            grads,
            self.exp_avg,
            self.exp_avg_sq,
            learning_rate,
            *self.betas,
            self.epsilon,
            self.decay,
            self.step_count,
            grad_scale,
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
        self.exp_avg = [Tensor(np.array(state[f"exp_avg.{p.name}"])) for p in self.parameters]
        self.exp_avg_sq = [Tensor(np.array(state[f"exp_avg_sq.{p.name}"])) for p in self.parameters]
