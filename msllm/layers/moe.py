"""The mixture-of-experts layer: a router sends each token to a few of many feed-forward layers, the experts.

Shapes: N = B * T tokens, K choices of a token, E experts, M token copies that experts work on (N * K, or fewer),
D width, F inner width.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common._grad_function import _Function
from mindspore.ops.primitive import constexpr

from msllm import kernels
from msllm.errors import UserError
from msllm.layers.basic import Linear

_batch_matmul = ops.BatchMatMul()
_sum, _row_sum = ops.ReduceSum(), ops.ReduceSum(keep_dims=True)


class _RouterSoftmax(_Function):
    """Softmax and logsumexp of the router's logits (N, E), worked out on the host, which sorts the tokens anyway.

    In float64: ops.softmax is only good to 6e-6 on the CPU, and which expert is second may hang on less.
    """

    @staticmethod
    def forward(ctx, logits_NE):
        logits = logits_NE.asnumpy().astype(np.float64)
        top = logits.max(1, keepdims=True)
        powers = np.exp(logits - top)
        total = powers.sum(1, keepdims=True)
        probabilities = Tensor((powers / total).astype(np.float32))
        ctx.save_for_backward(probabilities)
        return probabilities, Tensor((np.log(total) + top).astype(np.float32))

    @staticmethod
    def backward(ctx, dprobabilities, dlogsumexp):
        (probabilities,) = ctx.saved_tensors
        inner = _row_sum(dprobabilities * probabilities, 1)
        return probabilities * (dprobabilities - inner + dlogsumexp)


@dataclasses.dataclass
class Routing:
    """Which experts work on which tokens.

    Attributes:
        ids: int32 (N, K), the experts of each token, its first choice first.
        weights: float32 Tensor (N, K), what their outputs are multiplied by.
        order: int32 (M,), the copies that experts work on, sorted by expert; in an expert first choices before second
            ones, then by token. Copy i is choice i % K of token i // K. Padding and what is beyond an expert's
            capacity is not among them.
        counts: int64 (E,), how many of them each expert has; their sum is M.
        load: int64 (E,), how many the router asked for, capacity left aside.
        probabilities, logsumexp: Tensors (N, E) and (N, 1), of the router's logits.
        real: bool (N,), False at padding; None where there is none.
    """

    ids: np.ndarray
    weights: Tensor
    order: np.ndarray
    counts: np.ndarray
    load: np.ndarray
    probabilities: Tensor
    logsumexp: Tensor
    real: np.ndarray | None

    @property
    def tokens(self) -> int:
        """The number of real tokens."""
        return len(self.ids) if self.real is None else int(self.real.sum())


class Expert(nn.Cell):
    """w2(silu(w1(x)) * w3(x)) (Shazeer 2020, equation 6), under Mixtral's names."""

    def __init__(self, width: int, inner: int, std: float = 0.02):
        super().__init__()
        self.w1 = Linear(width, inner, False, std)
        self.w2 = Linear(inner, width, False, std)
        self.w3 = Linear(width, inner, False, std)

    def construct(self, x):
        """x (..., D) -> (..., D)."""
        return self.w2(kernels.swiglu(self.w1(x), self.w3(x)))


class MoE(nn.Cell):
    """Each token's output is the weighted sum of its top_k experts' (Shazeer et al. 2017, equation 2; PyNative).

    With top_k = 2 and ``normalise`` it is Mixtral's layer (Jiang et al. 2024, section 2.1), with top_k = 1 and without
    it that of the Switch Transformer (Fedus et al. 2022, section 2.1). Padding is not routed: its output is zero.

    Args:
        width, inner: D and F.
        experts: E.
        top_k: K, the experts of a token.
        std: standard deviation of the initial weights.
        normalise: divide a token's K probabilities by their sum.
        capacity_factor: an expert takes at most ceil(capacity_factor * K * N / E) copies, N real tokens, first choices
            before second ones and in the order of tokens; the others contribute nothing (Lepikhin et al. 2021,
            section 2.2; Fedus et al. 2022, section 2.2). None sets no bound.

    Attributes:
        balance: after a forward pass the load-balancing loss E * sum over e of f_e P_e, a scalar Tensor, K where all
            experts get the same (Fedus et al. 2022, equations 4 to 6): f_e are the copies that the router asked of e
            per token, without a gradient, P_e its mean probability.
        z: the router's z-loss, mean(logsumexp(logits)^2), a scalar Tensor (Zoph et al. 2022, equation 5).
        load: int64 (E,), the copies that the router asked of each expert.
        exchange: None, or f(layer, x_sorted, counts) -> y_sorted, called in place of the local experts.
        shares: None, or (f (E,) float64, tokens) -> (f, tokens), the means over all workers, that of f weighed by
            their tokens: the mean of the workers' losses is then the loss of all their tokens together.

    Raises:
        UserError: top_k outside 1 to E, or a capacity_factor that is not above zero.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        top_k: int,
        std: float = 0.02,
        normalise: bool = True,
        capacity_factor: float | None = None,
    ):
        super().__init__()
        if not 1 <= top_k <= experts:
            raise UserError(f"a token goes to top_k = {top_k} of {experts} experts, expected 1 to {experts}; change it")
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise UserError(
                f"capacity_factor is {capacity_factor}, expected a number above 0 such as 1.25, or None; change it"
            )
        self.gate = Linear(width, experts, False, std)
        self.experts = nn.CellList([Expert(width, inner, std) for _ in range(experts)])
        self.expert_count, self.top_k, self.normalise = experts, top_k, normalise
        self.capacity_factor = capacity_factor
        self.balance = self.z = self.load = None
        self.exchange = self.shares = None

    def construct(self, x, mask=None, measure: bool = True):
        """x (..., D) -> (..., D).

        Args:
            mask: int32 (...), 1 = a real token; None where all are.
            measure: leave the losses and the load in ``balance``, ``z`` and ``load``.
        """
        # The compiler takes this condition from the comment behind it.
        if False:  # @jit.cond: True
            _refuse_jit()
        x_ND = x.reshape(-1, x.shape[-1])
        routing = self.route(x_ND, None if mask is None else mask.asnumpy().reshape(-1) != 0)
        x_sorted = kernels.embedding(Tensor(routing.order // self.top_k), x_ND)
        y_ND = self.combine(self.run_experts(x_sorted, routing.counts), routing)
        if measure:
            self._measure(routing)
        return y_ND.reshape(x.shape)

    def route(self, x_ND: Tensor, real: np.ndarray | None = None) -> Routing:
        """Sends tokens (N, D) to experts; ``real`` (N,) is False at padding."""
        probabilities, logsumexp = _RouterSoftmax.apply(self.gate(x_ND))
        ids = _largest(probabilities.asnumpy(), self.top_k)
        weights = ops.gather_d(probabilities, 1, Tensor(ids))
        if self.normalise:
            weights = weights / _row_sum(weights, 1)
        if real is not None and not real.any():
            weights = weights * 0.0  # of the first token, which _sort sends nevertheless
        return Routing(ids, weights, *self._sort(ids, real), probabilities, logsumexp, real)

    def _sort(self, ids: np.ndarray, real: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns order, counts and load of a Routing."""
        N, K = ids.shape
        copies = np.arange(N * K)  # the first choices of all tokens, then the second ones
        routed = load = self._per_expert(ids)
        if real is not None:
            load = self._per_expert(ids[real])
            if not real.any():  # other workers wait for this one's copies, also on the way back: there is always one
                real = np.arange(N) == 0
            copies, routed = copies[np.tile(real, K)], self._per_expert(ids[real])
        by_expert = np.argsort(ids.T.reshape(-1)[copies].astype(np.int16), kind="stable")
        counts = routed
        if self.capacity_factor is not None:
            capacity = math.ceil(Fraction(str(self.capacity_factor)) * len(copies) / len(routed))
            rank = np.arange(len(copies)) - np.repeat(np.cumsum(routed) - routed, routed)
            by_expert, counts = by_expert[rank < capacity], np.minimum(routed, capacity)
        copies = copies[by_expert]
        return (copies % N * K + copies // N).astype(np.int32), counts, load

    def _per_expert(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids.reshape(-1), minlength=self.expert_count)

    def run_experts(self, x_sorted: Tensor, counts: np.ndarray) -> Tensor:
        """The experts' outputs (M, D) of token copies (M, D) that are sorted by expert, ``counts`` (E,) of each."""
        if self.exchange is not None:
            return self.exchange(self, x_sorted, counts)
        return run_each(self.experts, x_sorted, counts)

    def combine(self, y_sorted: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of each token's copies: (M, D) -> (N, D)."""
        (N, K), (M, D) = routing.ids.shape, y_sorted.shape
        places = np.full(N * K, M, np.int32)
        places[routing.order] = np.arange(M, dtype=np.int32)
        if M < N * K:
            y_sorted = ops.concat((y_sorted, ops.zeros((1, D), y_sorted.dtype)), 0)  # of copies that no expert took
        copies_NKD = kernels.embedding(Tensor(places), y_sorted).reshape(N, K, D)
        return _batch_matmul(routing.weights.reshape(N, 1, K), copies_NKD).reshape(N, D)

    def _measure(self, routing: Routing) -> None:
        tokens = routing.tokens
        f = routing.load / max(tokens, 1)
        if self.shares is not None:
            f, tokens = self.shares(f, tokens)
        real = np.ones((1, 1)) if routing.real is None else routing.real[:, None]
        share = real / (tokens or 1)
        self.balance = _sum(routing.probabilities * Tensor((share * f * len(f)).astype(np.float32)))
        self.z = _sum(routing.logsumexp * routing.logsumexp * Tensor(share.astype(np.float32)))
        self.load = routing.load


@constexpr
def _refuse_jit():
    """Runs while a graph is compiled: UserError."""
    raise UserError("a mixture-of-experts layer sorts its tokens on the host, which jit cannot; set jit to false")


def run_each(experts: Sequence, x_sorted: Tensor, counts: Sequence[int]) -> Tensor:
    """Runs each of ``experts`` on its rows of x_sorted (M, D), the first on the first counts[0], and so on: (M, D).

    M is at least 1. An expert without a row is not run, and its gradient is zero.
    """
    busy = [(expert, int(count)) for expert, count in zip(experts, counts, strict=True) if count]
    if len(busy) == 1:
        return busy[0][0](x_sorted)
    parts = ops.split(x_sorted, [count for _, count in busy])  # mint.split has a wrong gradient
    return ops.concat([expert(part) for (expert, _), part in zip(busy, parts)], 0)


def moe_layers(model: nn.Cell) -> list[MoE]:
    """Returns the mixture-of-experts layers of a model, first to last; cells that hide some have them in ``hidden``."""
    cells = [cell for _, cell in model.cells_and_names()]
    return [layer for cell in cells for layer in ([cell] if isinstance(cell, MoE) else getattr(cell, "hidden", ()))]


def moe_losses(model: nn.Cell) -> tuple[Tensor, Tensor]:
    """Returns the means over a model's MoE layers of ``balance`` and ``z``, of its last forward pass.

    Of a part of a model that says how many layers the whole has, ``moe_layer_count``, this part's share of the means.

    Raises:
        UserError: the model has no such layer.
    """
    layers = moe_layers(model)
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no mixture-of-experts layer to balance; train it without moe_objective"
        )
    count = getattr(model, "moe_layer_count", len(layers))
    return tuple(sum(getattr(layer, name) for layer in layers) / count for name in ("balance", "z"))


def _largest(values_NE: np.ndarray, count: int) -> np.ndarray:
    """Returns the columns of each row's ``count`` largest values, int32 (N, count); of equal ones the first."""
    left, rows = values_NE.copy(), np.arange(len(values_NE))
    chosen = np.empty((len(left), count), np.int32)
    for i in range(count):
        chosen[:, i] = left.argmax(1)
        left[rows, chosen[:, i]] = -1.0
    return chosen
