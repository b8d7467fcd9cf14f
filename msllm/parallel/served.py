"""Those who train in a run with parameter servers, see msllm.parallel.server."""

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Tensor

from msllm import kernels
from msllm.errors import UserError
from msllm.layers import moe_layers
from msllm.parallel.comm import Group, Workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.messages import (
    APPLY,
    END,
    LOAD,
    MEET,
    START,
    STATE,
    SUM,
    UPDATE,
    Line,
    deal,
    receive_tensors,
    send_tensors,
)
from msllm.training.alone import Alone
from msllm.training.optimizer import OPTIMIZERS, Optimizer


class Served(Alone):
    """Those who train in a run with parameter servers, as one of them sees it; has Alone's methods.

    Args:
        workers: all workers.
        config: with ``data`` of those who train.
        lines: to the servers, by their ranks.

    Attributes: those of Alone, and
        group: those who train.
        synchronous: whether the servers wait for all gradients.
        optimizer: asks the servers, once it is made.
        interrupted: whether this process is to stop.
        staleness: of this process' gradients so far, in updates of the first server; empty where it is synchronous.
    """

    def __init__(self, workers: Workers, config: ParallelConfig, lines: Mapping[int, Line]):
        self.workers, self.lines, self.synchronous = workers, lines, config.staleness == 0
        self.group = Group("trainers", range(config.data), workers.rank, workers.traffic).open(workers.world)
        self.rank = self.data_rank = self.random_offset = workers.rank
        self.world = self.data_world = config.data
        self.any, self.agree, self.barrier = self.group.any, self.group.agree, self.group.barrier
        self.objects, self.watch = self.group.objects, workers.watch
        self.optimizers = {name: functools.partial(RemoteOptimizer, self, name) for name in OPTIMIZERS}
        self.staleness: list[int] = []
        self.optimizer: RemoteOptimizer | None = None
        self.interrupted, self._stop_at, self._squares = False, math.inf, 0.0

    def prepare(self, model, objective, jit):
        """See Alone; experts are balanced over the tokens of all, where all take the same step."""
        if self.synchronous:
            from msllm.parallel.experts import GlobalShares

            for layer in moe_layers(model):
                layer.shares = GlobalShares(self.group)
        return super().prepare(model, objective, jit)

    def forward_backward(self, batches, scale):
        """See Alone; what servers sum stays there, and no gradients are returned."""
        terms, grads = super().forward_backward(batches, scale)
        if not self.synchronous:
            return terms, grads
        self.optimizer.tell(SUM, tensors=grads)
        self._squares = sum(squares for squares, *_ in self.optimizer.heard())
        return self.group.sum_array(terms), []

    def sum_squares(self, gradients):
        """See Alone."""
        return self._squares if self.synchronous else kernels.sum_squares(gradients)

    def sum_array(self, values):
        """See Alone; a gradient that does not wait for the others is that of the mean over this process' targets."""
        return values if self._model.training and not self.synchronous else self.group.sum_array(values)

    def sum_terms(self, terms):
        """See Alone."""
        return self.group.sum_array(terms)

    def stop(self, interrupted):
        """See Alone; the servers name a step that nobody who does not wait for the others has passed yet."""
        if self.synchronous:
            return self.group.any(interrupted)
        self.interrupted = interrupted
        return len(self.staleness) >= self._stop_at

    def applied(self, staleness: float, stop_at: float) -> None:
        """Notes what a server said of this process' last gradient."""
        self.staleness.append(int(staleness))
        self._stop_at = stop_at

    def settle(self):
        """See Alone."""
        if not self.synchronous and self.optimizer is not None:
            self.optimizer.meet()

    def close(self):
        """See Alone; the servers end when all who train have said so."""
        with contextlib.suppress(UserError):  # of a server that has gone: there is an earlier error
            for line in self.lines.values():
                line.send(END)


class RemoteOptimizer(Optimizer):
    """An optimiser whose states and updates are the servers'; see Optimizer.

    Args:
        served: asks the servers.
        kind: name of the optimiser that they use.
    """

    def __init__(self, served: Served, kind: str, parameters, betas, epsilon: float, weight_decay: float):
        super().__init__(parameters, betas, epsilon, weight_decay)
        self.served, self.workers = served, served.workers
        served.optimizer = self
        about = {"kind": kind, "options": (betas, epsilon, weight_decay)}
        about["parameters"] = [(p.name, p.shape) for p in self.parameters]
        for line in served.lines.values() if served.rank == 0 else ():
            line.send(START)
            line.send_json(about)
        self._dealt = dict(zip(served.lines, deal([p.size for p in self.parameters], len(served.lines))))
        self._load(0)

    def zeros(self):
        """Returns nothing: the servers have the moments."""
        return None

    def tell(self, command: int, *numbers: float, tensors: Sequence[Tensor] | None = None) -> None:
        """Sends all servers a command, and each its part of ``tensors``, one a parameter."""
        for server, dealt in self._dealt.items():
            self.served.lines[server].send(command, *numbers)
            if tensors is not None:
                send_tensors(self.workers, server, [tensors[i] for i in dealt])

    def heard(self) -> list[tuple[float, ...]]:
        """Returns the numbers that each server replies."""
        return [line.receive() for line in self.served.lines.values()]

    def update(self, grads, learning_rate, grad_scale):
        """Has the servers take a step, with the gradients that they have summed or with this process' own."""
        if self.served.synchronous:
            self.tell(UPDATE, learning_rate, grad_scale)
            self._take_parameters()
        else:
            self.tell(APPLY, learning_rate, grad_scale, self.served.interrupted, tensors=grads)
            self.served.applied(*self._take_parameters()[0][:2])

    def meet(self) -> None:
        """Waits until all are here, and takes the newest parameters."""
        self.tell(MEET)
        self._take_parameters()

    def _take_parameters(self) -> list[tuple[float, ...]]:
        replies = []
        for server, dealt in self._dealt.items():
            replies.append(self.served.lines[server].receive())
            mine = [self.parameters[i] for i in dealt]
            for parameter, value in zip(mine, receive_tensors(self.workers, server, mine), strict=True):
                parameter.set_data(value.copy())
        return replies

    def state_dict(self):
        """See Optimizer; the moments of all servers come to this process."""
        state = {"step": np.array([0], np.int64)}
        self.tell(STATE)
        for server, dealt in self._dealt.items():
            state["step"][0] = self.served.lines[server].receive()[0]
            mine = [self.parameters[i] for i in dealt]
            for kind in ("exp_avg", "exp_avg_sq"):
                values = receive_tensors(self.workers, server, mine)
                state |= {f"{kind}.{p.name}": value.asnumpy() for p, value in zip(mine, values, strict=True)}
        return state

    def load_state_dict(self, state):
        """See Optimizer; the first process sends the servers its parameters and the moments."""
        self.step_count = int(state["step"][0])
        moments = [[Tensor(state[f"{kind}.{p.name}"]) for p in self.parameters] for kind in ("exp_avg", "exp_avg_sq")]
        self._load(self.step_count, *moments)

    def _load(self, step: int, *moments: Sequence[Tensor]) -> None:
        self.tell(LOAD, step, len(moments))
        if self.served.rank == 0:
            for server, dealt in self._dealt.items():
                for tensors in ([p.value() for p in self.parameters], *moments):
                    send_tensors(self.workers, server, [tensors[i] for i in dealt])
        self.heard()
