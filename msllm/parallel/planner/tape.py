"""The record of a forward pass: which tensors live when, forward and backward, counted in bytes.

An operator allocates its outputs. What it or the backward pass will need again lives on; the rest goes after its last
use. Backward, in the opposite order, an operator allocates the gradients of its weights and inputs, and then lets go of
the gradients of its outputs and of what it had saved. A tensor that several operators used has a gradient of each,
which are added. That is what MindSpore's PyNative mode does with msllm's kernels, tensor by tensor.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        name: of the kernel, for reports.
        inputs: names of tensors that get a gradient.
        outputs: names of tensors and their bytes.
        saves: names of inputs and outputs that the backward pass needs.
        statistics: bytes of what is kept besides, such as means or log-sum-exps.
        weights: bytes of the gradients of its parameters.
        gradient: how the inputs' gradients come about: "each" has its own, "shared" is one for all (of a sum), "same"
            is the output's (a sum over workers, a bias).
        view: whether the one output is the one input under another name, whose gradient is a tensor of its own.
        scratch, back_scratch: bytes that it needs while it runs, forward and backward.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    saves: tuple[str, ...] = ()
    statistics: int = 0
    weights: int = 0
    gradient: str = "each"
    view: bool = False
    scratch: int = 0
    back_scratch: int = 0


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a piece of a model takes, in bytes.

    Attributes:
        kept: what it leaves for the backward pass.
        forward: the most that lives in its forward pass, what it leaves included.
        backward: the most that lives in its backward pass, ``kept`` and the gradients that come in included.
        gradients: of its weights, which its backward pass leaves.
        moved: of the inputs and outputs of its forward pass, by operator: what goes through the memory's wires.
    """

    kept: int
    forward: int
    backward: int
    gradients: int
    moved: dict[str, int]


def footprint(ops: Sequence[Op], given: dict[str, int], seeds: Sequence[Sequence[str]]) -> Footprint:
    """Runs operators in order, and back.

    Args:
        ops: in order.
        given: the bytes of the tensors that come in; they belong to whoever made them.
        seeds: the outputs whose gradients come in: a group of names shares one gradient.
    """
    sizes, store = dict(given), {name: name for name in given}
    for op in ops:
        sizes |= op.outputs
        store |= {name: store[op.inputs[0]] if op.view else name for name, _ in op.outputs}
    saves = [{store[name] for name in op.saves} - set(given) for op in ops]
    results = {store[name] for group in seeds for name in group} | set(given)
    forward, kept = _forward(ops, store, sizes, saves, results)
    backward, gradients = _Backward(ops, sizes, saves, kept).run(seeds)
    moved: Counter = Counter()
    for op in ops:
        if not op.view:
            moved[op.name] += sum(sizes[name] for name in op.inputs) + sum(size for _, size in op.outputs)
    return Footprint(kept, forward, backward, gradients, moved)


def _forward(ops, store: dict[str, str], sizes: dict[str, int], saves, results: set[str]) -> tuple[int, int]:
    """Returns the most that lives, and what is kept at the end; ``store``: the tensor that a name's numbers are in."""
    last = {store[name]: i for i, op in enumerate(ops) for name in op.inputs}
    saved = set().union(*saves)
    live = peak = 0
    for i, op in enumerate(ops):
        made = [] if op.view else [name for name, _ in op.outputs]
        live += sum(sizes[name] for name in made) + op.statistics
        peak = max(peak, live + op.scratch)
        for name in {*made, *(store[name] for name in op.inputs)} - saved - results:
            if last.get(name, -1) <= i:
                live -= sizes[name]
    return peak, sum(op.statistics for op in ops) + sum(sizes[name] for name in saved)


class _Backward:
    """Lives through a backward pass; a gradient is [bytes, how many tensors it is the gradient of]."""

    def __init__(self, ops, sizes: dict[str, int], saves: list[set[str]], kept: int):
        self.ops, self.sizes, self.saves = ops, sizes, saves
        self.saved = Counter(name for names in saves for name in names)
        self.live = self.peak = kept
        self.held: dict[str, list[int]] = {}

    def run(self, seeds) -> tuple[int, int]:
        """Returns the most that lives, and the gradients of all weights."""
        for group in seeds:
            shared = self._new(self.sizes[group[0]])
            for name in group:
                self._add(name, shared)
        gradients = 0
        for op, saves in zip(reversed(self.ops), reversed(self.saves)):
            gradients += op.weights
            self._step(op, saves)
        return self.peak, gradients

    def _step(self, op: Op, saves: set[str]) -> None:
        outputs = [name for name, _ in op.outputs if name in self.held]
        self._grow(op.weights)
        self._grow(op.back_scratch)
        if op.gradient == "same":
            (source,) = outputs
            for name in op.inputs:
                self._add(name, self.held[source])
        elif op.inputs:
            shared = self._new(self.sizes[op.inputs[0]]) if op.gradient == "shared" else None
            for name in op.inputs:
                self._add(name, shared or self._new(self.sizes[name]))
        self.live -= op.back_scratch + op.statistics
        for name in outputs:
            self._release(self.held.pop(name))
        for name in saves:
            self.saved[name] -= 1
            if not self.saved[name]:
                self.live -= self.sizes[name]

    def _grow(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def _new(self, size: int) -> list[int]:
        self._grow(size)
        return [size, 0]

    def _add(self, name: str, gradient: list[int]) -> None:
        """Gives a tensor a gradient, or the sum of the one that it has and another."""
        gradient[1] += 1
        if name in self.held:
            total = self._new(self.sizes[name])
            total[1] = 1
            for part in (self.held[name], gradient):
                self._release(part)
            gradient = total
        self.held[name] = gradient

    def _release(self, gradient: list[int]) -> None:
        gradient[1] -= 1
        if not gradient[1]:
            self.live -= gradient[0]
