"""Experts that are spread over workers: token copies go to the worker that has their expert, and back."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn

from msllm import kernels
from msllm.layers.moe import MoE, run_each
from msllm.parallel import functional
from msllm.parallel.comm import Group
from msllm.parallel.tensor import column_slice, cut, row_slice


class ExpertExchange:
    """All-to-all dispatch (Lepikhin et al. 2021, section 3.2); takes the place of MoE's own run_experts.

    Args:
        expert: workers that hold the experts together, each as many, in order.
        tensor: workers that share the matrices of each expert.

    Attributes:
        moved: token copies that this worker has sent to others' experts, or back to where they came from.
        rows: token copies that its own experts have worked on.
    """

    def __init__(self, expert: Group, tensor: Group):
        self.expert, self.tensor = expert, tensor
        self.moved = self.rows = 0

    def __call__(self, layer: MoE, x_sorted: Tensor, counts: Sequence[int]) -> Tensor:
        """The experts' outputs (M, D) of token copies (M, D) that are sorted by expert, ``counts`` (E,) of each."""
        size, index = self.expert.size, self.expert.index
        if size == 1:
            return self._run(layer.experts, x_sorted, counts)
        table = self.expert.all_gather(Tensor(np.asarray(counts, np.int32)[None])).asnumpy().reshape(size, size, -1)
        mine = table[:, index]  # (source, expert of mine): the copies that come
        to, received = table[index].sum(1).tolist(), mine.sum(1).tolist()
        self.moved += sum(to) + sum(received) - to[index] - received[index]
        x = functional.exchange_rows(x_sorted, self.expert, to, received)
        if sum(received):
            by_expert = np.argsort(np.repeat(np.tile(np.arange(mine.shape[1]), size), mine.reshape(-1)), kind="stable")
            back = np.argsort(by_expert, kind="stable")
            local = list(layer.experts)[index * mine.shape[1] : (index + 1) * mine.shape[1]]
            x = kernels.embedding(Tensor(by_expert.astype(np.int32)), x)
            x = kernels.embedding(Tensor(back.astype(np.int32)), self._run(local, x, mine.sum(0)))
        return functional.exchange_rows(x, self.expert, received, to)

    def _run(self, experts, x, counts):
        self.rows += x.shape[0]
        y = run_each(experts, functional.copy(x, self.tensor), counts)
        return functional.sum_over(y, self.tensor)


def spread(layer: MoE, expert: Group, tensor: Group) -> None:
    """Leaves a layer the experts of this worker, and of their matrices its share."""
    per = len(layer.experts) // expert.size
    mine = range(expert.index * per, (expert.index + 1) * per)
    for i, one in enumerate(list(layer.experts)):
        if i not in mine:
            layer.experts[i] = nn.Cell()
        elif tensor.size > 1:
            for linear in (one.w1, one.w3):
                linear.weight = cut(linear.weight, column_slice(linear.weight, tensor))
            one.w2.weight = cut(one.w2.weight, row_slice(one.w2.weight, tensor))
    if expert.size > 1 or tensor.size > 1:
        layer.exchange = ExpertExchange(expert, tensor)


class GlobalShares:
    """MoE's ``shares``: which part of all workers' tokens each expert gets, for the balancing loss."""

    def __init__(self, samples: Group):
        self.samples = samples

    def __call__(self, f: np.ndarray, tokens: float) -> tuple[np.ndarray, float]:
        """f (E,) and the tokens of this worker to the share of all tokens, and the mean of a worker's."""
        sums = self.samples.sum_array(np.append(f * tokens, tokens))
        return sums[:-1] / max(sums[-1], 1), sums[-1] / self.samples.size
