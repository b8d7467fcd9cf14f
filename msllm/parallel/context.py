"""Attention among workers that share the tokens of each example, exact: forward and backward are those of one worker.

Two ways: a ring passes keys and values around, or the workers exchange tokens for heads. Either is called like
kernels.attention, with this worker's tokens, and set by ``msllm.layers.use_core``. PyNative, float32.

Shapes: B batch, T this worker's tokens (S those of its keys), H heads, K key-value heads, C head width. A place is the
number of a token within the example.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor, ops
from mindspore.common._grad_function import _Function

from msllm import kernels
from msllm.errors import UserError
from msllm.parallel.attention_blocks import Block, block_backward, block_forward, merge, nothing_seen
from msllm.parallel.comm import Group

_BYTES = 4  # of a float32, and of an int32


def token_places(length: int, size: int, index: int, zigzag: bool = True) -> np.ndarray:
    """Returns the places of the tokens that a member holds, int32 (length // size,), ascending.

    Args:
        length: tokens of an example.
        size, index: of the group, and of the member in it.
        zigzag: member i holds pieces i and 2 size - 1 - i of 2 size equal ones (Dubey et al. 2024, "The Llama 3 Herd of
            Models", section 3.3.2): under a causal mask every pair of members then has as many visible scores, while of
            contiguous shares the last has the most to do (Brandon et al. 2023, "Striped Attention", section 3). Else
            one contiguous share.

    Raises:
        UserError: the pieces do not divide ``length``.
    """
    pieces = 2 * size if zigzag else size
    if length < 1 or length % pieces:
        below = length // pieces * pieces
        raise UserError(
            f"examples of {length} tokens cannot be cut into {pieces} equal pieces, as {size} workers that share them "
            f"(parallel.sequence) need; use a length of {f'{below} or ' if below else ''}{below + pieces}"
        )
    width = length // pieces
    held = (index, pieces - 1 - index) if zigzag else (index,)
    return np.concatenate([np.arange(piece * width, (piece + 1) * width, dtype=np.int32) for piece in held])


def ring_bytes(size: int, batch: int, tokens: int, kv_heads: int, head_width: int, key_mask=False) -> tuple[int, int]:
    """Returns the bytes that a worker sends in the forward and in the backward pass of one RingAttention.

    With X the bytes of its keys, forward sends keys and values on size - 1 times: 2 (size - 1) X. Backward does so
    again, with the gradients of both, which move once more to come home: (4 size - 2) X. The members gather the key
    mask in the forward pass.

    Args:
        size: members of the ring.
        batch, tokens, kv_heads, head_width: of the keys of one worker.
        key_mask: whether there is one.
    """
    if size == 1:
        return 0, 0
    keys = batch * tokens * kv_heads * head_width * _BYTES
    mask = batch * tokens * _BYTES if key_mask else 0
    return (size - 1) * (2 * keys + mask), (4 * size - 2) * keys


def head_bytes(
    size: int, batch: int, tokens: int, heads: int, kv_heads: int, head_width: int, masks: int = 0
) -> tuple[int, int]:
    """Returns the bytes that a worker sends in the forward and in the backward pass of one HeadAttention.

    It keeps 1/size of its queries, keys, values and outputs, and sends the rest: (size - 1)/size of 2 (H + K) B T C
    numbers, in each direction.

    Args:
        size: members of the group.
        batch, tokens, heads, kv_heads, head_width: of the queries and keys of one worker.
        masks: how many of key_mask and row_start there are; the members gather them in the forward pass.
    """
    exchanged = (size - 1) * 2 * (heads + kv_heads) * batch * tokens * head_width * _BYTES // size
    return exchanged + (size - 1) * masks * batch * tokens * _BYTES, exchanged


@dataclasses.dataclass(frozen=True)
class Run:
    """Tokens that a member holds and that follow each other in the example too.

    Attributes:
        offset: of the first among the member's tokens.
        start, stop: places of the first and behind the last.
    """

    offset: int
    start: int
    stop: int

    def of(self, x, axis: int = 1):
        """Returns these tokens of a member's array or tensor; all of it as it is."""
        length = self.stop - self.start
        if x.shape[axis] == length:
            return x
        part = x[(slice(None),) * axis + (slice(self.offset, self.offset + length),)]
        return part.contiguous() if isinstance(part, Tensor) else part


def runs(places: np.ndarray) -> list[Run]:
    """Returns the runs of consecutive places, int (T,), in their order."""
    cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    return [Run(a, int(places[a]), int(places[b - 1]) + 1) for a, b in itertools.pairwise(cuts)]


@dataclasses.dataclass(frozen=True)
class RingPlan:
    """What one attention of a worker needs to know besides queries, keys and values.

    Attributes:
        scale, causal, slopes: as in kernels.attention.
        query_runs: of this worker.
        key_runs: of every member.
        key_mask: int32 (size, B, S) of every member, or None.
        row_start: int32 (B, T) of this worker, or None.
    """

    scale: float
    causal: bool
    query_runs: Sequence[Run]
    key_runs: Sequence[Sequence[Run]]
    key_mask: np.ndarray | None = None
    row_start: np.ndarray | None = None
    slopes: Tensor | None = None

    def block(self, query: Run, source: int, key: Run) -> Block | None:
        """Returns how a run of this worker's queries sees a run of a member's keys; None where it sees nothing."""
        if self.causal and key.start >= query.stop:
            return None
        key_mask = row_start = None
        if self.key_mask is not None:
            key_mask = key.of(self.key_mask[source])
            if not key_mask.any():
                return None
        if self.row_start is not None:
            row_start = query.of(self.row_start)
            if (row_start >= key.stop).all():
                return None
            row_start = np.clip(row_start - key.start, 0, key.stop - key.start)
        # Runs are equal or share nothing: what is not on the diagonal is seen as a whole, or not at all.
        diagonal = self.causal and key.start == query.start
        shift = key.stop - query.stop
        return Block(self.scale, diagonal, _ints(key_mask), _ints(row_start), self.slopes, shift)


def ring_step(plan: RingPlan, q_BTHC, k_BSKC, v_BSKC, source: int, parts: list) -> list:
    """Adds what this worker's queries see in the keys of member ``source``.

    Args:
        parts: (output, log-sum-exp) of each run of queries so far, None where it has seen nothing.

    Returns:
        ``parts`` with those keys seen too.
    """
    parts = list(parts)
    for i, query in enumerate(plan.query_runs):
        for key in plan.key_runs[source]:
            block = plan.block(query, source, key)
            if block is not None:
                new = block_forward(query.of(q_BTHC), key.of(k_BSKC), key.of(v_BSKC), block)
                parts[i] = new if parts[i] is None else merge(*parts[i], *new)
    return parts


def ring_join(plan: RingPlan, q_BTHC, parts: list) -> tuple[Tensor, Tensor]:
    """Returns output (B, T, H, C) and log-sum-exp (B, H, T) of all runs; zeros where a run has seen nothing."""
    for i, query in enumerate(plan.query_runs):
        if parts[i] is None:
            parts[i] = nothing_seen(query.of(q_BTHC))
    return _concat([out for out, _ in parts], 1), _concat([lse for _, lse in parts], 2)


def ring_step_grad(
    plan: RingPlan, q_BTHC, k_BSKC, v_BSKC, source: int, out_BTHC, lse_BHT, dout_BTHC
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what this worker's queries and the keys of member ``source`` add to dq, dk and dv."""
    queries, keys = plan.query_runs, plan.key_runs[source]
    dqs = [ops.zeros_like(query.of(q_BTHC)) for query in queries]
    dks, dvs = ([ops.zeros_like(key.of(x)) for key in keys] for x in (k_BSKC, v_BSKC))
    for i, query in enumerate(queries):
        lse = query.of(lse_BHT, axis=2)
        for j, key in enumerate(keys):
            block = plan.block(query, source, key)
            if block is not None:
                q, out, dout = (query.of(x) for x in (q_BTHC, out_BTHC, dout_BTHC))
                dq, dk, dv = block_backward(q, key.of(k_BSKC), key.of(v_BSKC), block, out, lse, dout)
                dqs[i], dks[j], dvs[j] = dqs[i] + dq, dks[j] + dk, dvs[j] + dv
    return _concat(dqs, 1), _concat(dks, 1), _concat(dvs, 1)


class _Ring(_Function):
    @staticmethod
    def forward(ctx, q, k, v, plan, group):
        ctx.plan, ctx.group = plan, group
        parts, keys, values = [None] * len(plan.query_runs), k, v
        for step in range(group.size):
            if step:
                keys, values = group.shift([keys, values])
            parts = ring_step(plan, q, keys, values, (group.index - step) % group.size, parts)
        out, lse = ring_join(plan, q, parts)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, keys, values, out, lse = ctx.saved_tensors
        plan, group = ctx.plan, ctx.group
        dq, dk, dv = (ops.zeros_like(x) for x in (q, keys, values))
        for step in range(group.size):
            if step:
                keys, values, dk, dv = group.shift([keys, values, dk, dv])
            source = (group.index - step) % group.size
            more = ring_step_grad(plan, q, keys, values, source, out, lse, dout)
            dq, dk, dv = dq + more[0], dk + more[1], dv + more[2]
        dk, dv = group.shift([dk, dv])
        return dq, dk, dv, None, None


class _Core:
    """What both ways have in common: who holds which tokens, and how they are called."""

    def __init__(self, group: Group, places_of: Callable[[int, int, int], np.ndarray] = token_places):
        self.group, self.places_of = group, places_of
        self._known: dict[int, list[np.ndarray]] = {}

    def __call__(
        self, q_BTHC, k_BTKC, v_BTKC, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
    ):
        """Returns this worker's rows of kernels.attention on the whole example: (B, T, H, C).

        Args:
            q_BTHC, k_BTKC, v_BTKC: float32, of this worker's tokens; K divides H. Queries of other tokens than the keys
                are taken where places do not matter: no causal, no row_start, no slopes.
            scale: float factor of the scores.
            causal: a query sees only keys at its place or before.
            key_mask: int32 (B, T) of this worker's keys, 1 = may be seen.
            row_start: int32 (B, T), the place of the first key that a query may see.
            slopes: float32 (H,): ALiBi, by the distance of places.
            dropout: probability of dropping an attention weight.

        All workers call it alike, with a mask or without. A query that sees no key gives zeros, and zero gradients.

        Raises:
            UserError: the layout cannot cut the length, or see the class.
        """
        T, S = q_BTHC.shape[1], k_BTKC.shape[1]
        if T != S and (causal or row_start is not None or slopes is not None):
            raise ValueError(f"{T} queries and {S} keys: causal, row_start and slopes need those of the same tokens")
        places = self._places(T), self._places(S)
        return self._attend(q_BTHC, k_BTKC, v_BTKC, places, scale, causal, key_mask, row_start, slopes, dropout)

    def _places(self, tokens: int) -> list[np.ndarray]:
        """Returns the places of every member's tokens, where each holds as many as given."""
        if tokens not in self._known:
            size = self.group.size
            held = [self.places_of(tokens * size, size, i) for i in range(size)]
            if any(len(p) != tokens for p in held) or (np.sort(np.concatenate(held)) != np.arange(tokens * size)).any():
                raise ValueError(f"places_of must deal {tokens * size} places out to {size} members, as many to each")
            self._known[tokens] = held
        return self._known[tokens]


class RingAttention(_Core):
    """Attention whose keys and values go around a ring of workers.

    Every worker keeps its queries, sees its own keys first and then those of the member before, and so on; outputs are
    merged by their log-sum-exp. Backward sends keys and values around once more, with their gradients. A run of queries
    and a run of keys with nothing visible between them cost nothing. ``ring_bytes`` has what is sent.

    Dropout raises UserError: no worker has all weights of a query at once.

    Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context", section 3.

    Args:
        group: the workers that share the tokens.
        places_of: (length, size, index) -> int (length // size,), the places of the tokens that a member holds. Few
            runs of consecutive places make large blocks.
    """

    def _attend(self, q, k, v, places, scale, causal, key_mask, row_start, slopes, dropout):
        if dropout > 0.0:
            raise UserError(
                f"attention dropout is {dropout}, and the ring never has all weights of a query at once; set attention "
                f"dropout to 0, or use --parallel.attention heads"
            )
        if key_mask is not None:
            key_mask = self.group.all_gather(key_mask).asnumpy().reshape(self.group.size, *key_mask.shape)
        row_start = None if row_start is None else row_start.asnumpy()
        query_runs, key_runs = runs(places[0][self.group.index]), [runs(held) for held in places[1]]
        plan = RingPlan(float(scale), causal, query_runs, key_runs, key_mask, row_start, slopes)
        return _Ring.apply(q, k, v, plan, self.group)


class _Exchange:
    """All tokens of some heads for some tokens of all heads, and back."""

    def __init__(self, group: Group, places: Sequence[np.ndarray]):
        self.group, self.tokens = group, len(places[0])
        by_member = np.concatenate(places).astype(np.int32)
        self._to_places, self._to_members = Tensor(np.argsort(by_member).astype(np.int32)), Tensor(by_member)

    def to_heads(self, x_BTHC):
        """Returns (B, T * size, H // size, C), tokens in the order of their places."""
        parts = self.group.all_to_all(ops.split(x_BTHC, x_BTHC.shape[2] // self.group.size, 2))
        return ops.gather(_concat(parts, 1), self._to_places, 1)

    def to_tokens(self, x_BTHC):
        """The inverse of ``to_heads``."""
        parts = ops.split(ops.gather(x_BTHC, self._to_members, 1), self.tokens, 1)
        return _concat(self.group.all_to_all(parts), 2)

    def gather(self, mask_BT):
        """Returns the whole mask (B, T * size), in the order of places."""
        return ops.gather(self.group.all_gather(mask_BT, 1), self._to_places, 1)


class _ToHeads(_Function):
    """Queries, keys and values in one: backward, all workers send the three gradients in the same order."""

    @staticmethod
    def forward(ctx, q, k, v, query_exchange, key_exchange):
        ctx.exchanges = (query_exchange, key_exchange, key_exchange)
        return tuple(exchange.to_heads(x) for exchange, x in zip(ctx.exchanges, (q, k, v)))

    @staticmethod
    def backward(ctx, *grads):
        return (*(exchange.to_tokens(x) for exchange, x in zip(ctx.exchanges, grads)), None, None)


class _ToTokens(_Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        return exchange.to_tokens(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.exchange.to_heads(dy), None


class HeadAttention(_Core):
    """Attention whose workers exchange some tokens of all heads for all tokens of some heads, and back.

    The kernel runs as on one worker, on H / size heads; ``head_bytes`` has what is sent.

    UserError where the workers do not divide H and K. With dropout, a worker draws for its heads from its own random
    state: seed the workers differently, or heads of different workers lose the same weights.

    Source: Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.

    Args:
        group, places_of: as for RingAttention.
    """

    def _attend(self, q, k, v, places, scale, causal, key_mask, row_start, slopes, dropout):
        size, H, K = self.group.size, q.shape[2], k.shape[2]
        if H % size or K % size:
            raise UserError(
                f"{size} workers (parallel.sequence) do not divide the {H} attention heads and {K} key-value heads, as "
                f"attention heads needs; use --parallel.attention ring, or a sequence that divides {math.gcd(H, K)}"
            )
        queries, keys = (_Exchange(self.group, held) for held in places)
        key_mask = None if key_mask is None else keys.gather(key_mask)
        row_start = None if row_start is None else queries.gather(row_start)
        slopes = None if slopes is None else ops.split(slopes, H // size)[self.group.index]
        q, k, v = _ToHeads.apply(q, k, v, queries, keys)
        out = kernels.attention(q, k, v, scale, causal, key_mask, row_start, slopes, None, dropout)
        return _ToTokens.apply(out, queries)


def _ints(mask: np.ndarray | None) -> Tensor | None:
    return None if mask is None else Tensor(np.ascontiguousarray(mask, np.int32))


def _concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else ops.concat(parts, axis)
