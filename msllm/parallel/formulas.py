"""How many bytes a worker sends per step, worked out from sizes and layout.

With p members, the ring algorithms send (p - 1)/p of the whole for reduce-scatter and all-gather, and twice that for
all-reduce (Patarasuk and Yuan 2009). All numbers are float32. X stands for the bytes of the residual stream (B, T, D)
of a worker's tokens.
"""

import math

from msllm.layers import moe_layers
from msllm.parallel.comm import Group
from msllm.parallel.context import head_bytes, ring_bytes
from msllm.parallel.strategy import Strategy

FLOAT = 4


def bytes_per_step(strategy: Strategy, batch: int, length: int, steps: int, masked: float = 0.0) -> float:
    """Returns the bytes that this worker sends in an optimiser step, those of single numbers left aside.

    Args:
        strategy: with a model prepared and trained for ``steps``: how many token copies its experts have sent is
            known only then.
        batch, length: examples of all workers together in a step, and their tokens.
        masked: the share of the steps whose examples have padding.
    """
    rows, tokens = batch // strategy.config.data, length // strategy.config.sequence
    parts = _tensor(strategy, rows * tokens), _pipeline(strategy, rows * tokens)
    sequence = masked * _sequence(strategy, rows, tokens, 1) + (1 - masked) * _sequence(strategy, rows, tokens, 0)
    return sum(parts) + sequence + _gradients(strategy) + _experts(strategy, steps)


def _share(group: Group) -> float:
    return (group.size - 1) / group.size


def _blocks(strategy: Strategy) -> tuple[float, int]:
    """How often a step runs a block of this worker forward, on average, and how many blocks it has.

    Blocks whose inputs alone are kept run twice; so do all parts of a pipeline but the last.
    """
    once = 2 if strategy.config.recompute or strategy.config.optimizer == 3 else 1
    if strategy.pipeline is None:
        return once, strategy.sizes["layers"]
    stage = strategy.pipeline.stage
    runs = layers = 0
    for chunk, (start, stop) in enumerate(stage.pieces):
        layers += stop - start
        runs += (stop - start) * (once if stage.part(chunk) == stage.parts - 1 else 2)
    return runs / layers, layers


def _tensor(strategy: Strategy, tokens: int) -> float:
    """Two sums a block and direction, of attention and feed-forward layer, or the gather and scatter they consist of
    (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, section 4.2.2); see _experts for theirs."""
    group, split = strategy.mesh.tensor, strategy.config.split_norms
    if group.size == 1:
        return 0.0
    X, half = FLOAT * tokens * strategy.width, _share(group)  # half of an all-reduce, per byte
    experts = bool(moe_layers(strategy.model))
    each_way = 2 * half * X * (1 if experts else 2)
    if experts and split:  # all tokens are gathered for the router, and so are their gradients
        each_way += half * X
    passes, layers = _blocks(strategy)
    total = layers * (passes + 1) * each_way
    stage = None if strategy.pipeline is None else strategy.pipeline.stage
    if stage is None or stage.is_first:
        twice = 1 if stage is None else 2
        total += (half * X * (1 + twice)) if split else twice * 2 * half * X
    if stage is None or stage.is_last:
        total += 2 * half * X  # the head: its input's gradient, or the input and its gradient
        total += FLOAT * tokens * ((group.size - 1) + 2 * half)  # cross-entropy: a sum and a label each
    partial = sum(size for name, size in strategy.trained.items() if name in strategy.partial)
    times = strategy.config.micro_batches if strategy.config.optimizer >= 2 else 1
    return total + times * 2 * half * FLOAT * partial


def _sequence(strategy: Strategy, rows: int, tokens: int, masks: int) -> float:
    group, sizes = strategy.mesh.sequence, strategy.sizes
    if group.size == 1:
        return 0.0
    tensor, head_width = strategy.mesh.tensor.size, strategy.width // sizes["heads"]
    heads, kv_heads = sizes["heads"] // tensor, sizes["kv_heads"] // tensor
    if strategy.config.attention == "ring":
        forward, backward = ring_bytes(group.size, rows, tokens, kv_heads, head_width, key_mask=bool(masks))
    else:
        forward, backward = head_bytes(group.size, rows, tokens, heads, kv_heads, head_width, masks)
    passes, layers = _blocks(strategy)
    return layers * (passes * forward + backward)


def _pipeline(strategy: Strategy, tokens: int) -> float:
    if strategy.pipeline is None:
        return 0.0
    stage, ends = strategy.pipeline.stage, strategy.mesh.ends
    X = FLOAT * tokens * strategy.width / (strategy.mesh.tensor.size if strategy.config.split_norms else 1)
    parts = [stage.part(chunk) for chunk in range(len(stage.pieces))]
    total = X * sum((part < stage.parts - 1) + (part > 0) for part in parts)
    tied = strategy.trained.get(strategy.tied, 0)
    return total + 2 * _share(ends) * FLOAT * tied


def _gradients(strategy: Strategy) -> float:
    """Gradients, and parameters from their owners (Rajbhandari et al. 2020, section 7)."""
    level, times = strategy.config.optimizer, strategy.config.micro_batches
    total = 0.0
    for of_experts in (False, True):
        group = strategy.samples(of_experts)
        size = sum(n for name, n in strategy.trained.items() if strategy.is_expert(name) == of_experts)
        if level:
            size = math.ceil(size / group.size) * group.size
        scatter = gather = _share(group) * FLOAT * size
        total += gather + scatter * (times if level >= 2 else 1)
    for block in strategy.blocks if level == 3 else ():
        whole = block.shares.length * strategy.mesh.samples.size
        total += times * 3 * _share(strategy.mesh.samples) * FLOAT * whole
    return total


def _experts(strategy: Strategy, steps: int) -> float:
    """Token copies to the experts and back, the same of their gradients, and the table of how many go where; what
    tensor-parallel workers sum is what their experts worked on."""
    expert, tensor, total = strategy.mesh.expert, strategy.mesh.tensor, 0.0
    passes, _ = _blocks(strategy)
    for layer in moe_layers(strategy.model):
        if layer.exchange is not None:
            both = FLOAT * strategy.width / steps * (passes + 1) / passes
            total += both * (layer.exchange.moved + 2 * _share(tensor) * layer.exchange.rows)
            calls = passes * strategy.config.micro_batches
            total += calls * (expert.size - 1) * FLOAT * strategy.sizes["experts"]
    return total
