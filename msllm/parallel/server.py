"""A parameter server: some workers keep the parameters and update them, the others train.

Who trains sends gradients to the servers and gets new parameters back (Dean et al. 2012, "Large Scale Distributed Deep
Networks"; Li et al. 2014, "Scaling Distributed Machine Learning with the Parameter Server"). Each server has an equal
share of the bytes, in whole parameters, and updates it with an Optimizer of the library.

Synchronous servers sum the gradients of all who train and update once: the step is that of data parallelism. With
``staleness`` above 0, a server applies each gradient as it comes. That gradient was taken at parameters which may have
been updated since: how often is its staleness. Nobody gets more than ``staleness`` steps ahead of the slowest (Ho et
al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", section 2).
"""

import math
import selectors
import signal
import sys

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from msllm import kernels
from msllm.parallel.comm import Workers
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
    Listener,
    call,
    deal,
    receive_tensors,
    send_tensors,
)
from msllm.parallel.served import Served
from msllm.training.optimizer import OPTIMIZERS


def part(workers: Workers | None, config: ParallelConfig) -> "Served | Server":
    """Returns what this worker does in a run with parameter servers: the last ``config.servers`` of them serve.

    Raises:
        UserError: too few workers.
    """
    config = config.for_workers(1 if workers is None else workers.world)
    listener = Listener() if workers.rank >= config.data else None
    addresses = workers.objects(listener and listener.address)
    if listener is not None:
        return Server(workers, config, listener.accept(config.data))
    servers = range(config.data, workers.world)
    return Served(workers, config, {rank: call(addresses[rank], workers.rank, rank) for rank in servers})


class Server:
    """A worker that keeps its share of the parameters, updates them, and hands them out.

    Args:
        workers: all workers.
        config: with ``data`` of those who train, the first of the workers.
        lines: to them.

    Attributes:
        updates: how many gradients were applied, or sums of them.
    """

    def __init__(self, workers: Workers, config: ParallelConfig, lines: list[Line]):
        self.workers, self.bound, self.trainers = workers, config.staleness, range(config.data)
        self._lines = lines
        self.index, self.servers = workers.rank - config.data, config.servers
        self.updates, self._stop_at = 0, math.inf
        self._steps, self._seen, self._staleness = ([0] * config.data for _ in range(3))  # of each who trains
        self._gradients: dict[int, list[Tensor]] = {}
        self._asked: list[int] = []  # who waits until all have asked the same
        self._ahead: list[int] = []  # who waits until the slowest has caught up
        self._ended: set[int] = set()

    def serve(self) -> None:
        """Returns when all who train have ended.

        Raises:
            UserError: one of them has gone.
        """
        for number in (signal.SIGINT, signal.SIGTERM):  # they are for those who train, and need a server to stop
            signal.signal(number, signal.SIG_IGN)
        with selectors.DefaultSelector() as any_line:
            for trainer in self.trainers:
                any_line.register(self._lines[trainer], selectors.EVENT_READ, trainer)
            while len(self._ended) < len(self.trainers):
                for key, _ in any_line.select():
                    command, *numbers = self._lines[key.data].receive()
                    if command == END:
                        any_line.unregister(key.fileobj)
                    self._answer(key.data, int(command), *numbers)

    def _answer(self, trainer: int, command: int, first: float, second: float, third: float) -> None:
        """Does what one of those who train asks for; see RemoteOptimizer for the numbers."""
        if command == START:
            self._start(**self._lines[trainer].receive_json())
        elif command == SUM:
            self._gradients[trainer] = receive_tensors(self.workers, trainer, self.parameters)
            self._when_all(trainer, self._sum)
        elif command == UPDATE:
            self._when_all(trainer, lambda: self._update(first, second))
        elif command == APPLY:
            self._apply(trainer, first, second, bool(third))
        elif command == MEET:
            self._when_all(trainer, lambda: [self._hand_out(t) for t in self.trainers])
        elif command == STATE:
            self._lines[trainer].send(self.optimizer.step_count)
            for moments in (self.optimizer.exp_avg, self.optimizer.exp_avg_sq):
                send_tensors(self.workers, trainer, moments)
        elif command == LOAD:
            if trainer == 0:
                self._load(int(first), bool(second))
            self._when_all(trainer, lambda: [self._lines[t].send() for t in self.trainers])
        elif command == END:
            self._ended.add(trainer)
            self._let_go_on()

    def _start(self, kind: str, options: list, parameters: list) -> None:
        """Makes this server's share of the parameters, (name, shape) of each, and their optimiser."""
        mine = deal([math.prod(shape) for _, shape in parameters], self.servers)[self.index]
        self.parameters = [
            Parameter(ops.zeros(tuple(shape), ms.float32), name=name) for name, shape in (parameters[i] for i in mine)
        ]
        self.optimizer = OPTIMIZERS[kind](self.parameters, *options)
        size = sum(p.size for p in self.parameters)
        print(f"serving {size:,} parameters to {len(self.trainers)} workers", file=sys.stderr, flush=True)

    def _when_all(self, trainer: int, action) -> None:
        self._asked.append(trainer)
        if len(self._asked) == len(self.trainers):
            self._asked.clear()
            action()

    def _sum(self) -> None:
        total, *others = (self._gradients.pop(trainer) for trainer in self.trainers)
        for gradients in others:  # in the order of ranks, so that a run repeats
            total = [a + b for a, b in zip(total, gradients, strict=True)]
        self._total, squares = total, kernels.sum_squares(total)
        for trainer in self.trainers:
            self._lines[trainer].send(squares)

    def _update(self, learning_rate: float, scale: float) -> None:
        self.optimizer.step(self._total, learning_rate, scale)
        self.updates += 1
        for trainer in self.trainers:
            self._hand_out(trainer)

    def _apply(self, trainer: int, learning_rate: float, scale: float, interrupted: bool) -> None:
        gradients = receive_tensors(self.workers, trainer, self.parameters)
        self._staleness[trainer] = self.updates - self._seen[trainer]
        self.optimizer.step(gradients, learning_rate, scale)
        self.updates += 1
        self._steps[trainer] += 1
        if interrupted:  # nobody has begun the step after the next of whoever is ahead
            self._stop_at = min(self._stop_at, max(self._steps) + 1)
        self._ahead.append(trainer)
        self._let_go_on()

    def _let_go_on(self) -> None:
        """Hands out parameters to those who are not too far ahead."""
        slowest = min((steps for t, steps in enumerate(self._steps) if t not in self._ended), default=math.inf)
        waiting, self._ahead = self._ahead, []
        for trainer in waiting:
            if self._steps[trainer] - slowest > self.bound:
                self._ahead.append(trainer)
            else:
                self._hand_out(trainer, self._staleness[trainer], self._stop_at)

    def _hand_out(self, trainer: int, *numbers: float) -> None:
        self._seen[trainer] = self.updates
        self._lines[trainer].send(*numbers)
        send_tensors(self.workers, trainer, [p.value() for p in self.parameters])

    def _load(self, step: int, moments: bool) -> None:
        """Sets parameters, and moments where they come too, to what the first of those who train has."""
        for parameter, value in zip(self.parameters, receive_tensors(self.workers, 0, self.parameters), strict=True):
            parameter.set_data(value.copy())
        if moments:
            for kept in (self.optimizer.exp_avg, self.optimizer.exp_avg_sq):
                kept[:] = [value.copy() for value in receive_tensors(self.workers, 0, self.parameters)]
        self.optimizer.step_count = step
