"""How long the layers of a model take, for cutting it into stages."""

import statistics
import time

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, ops

from msllm.layers import positions, run_blocks
from msllm.parallel.plans import Plan

# A backward pass takes about two forward passes; all stages but the last one run a second forward pass.
LAST_SHARE = 3 / 4


def layer_costs(model, plan: Plan, batch: int = 1, length: int = 64, runs: int = 3) -> tuple[list[float], float, float]:
    """Returns the seconds that a forward and a backward pass take on this machine: medians of ``runs``.

    Args:
        model: a whole CausalLM.
        plan: of its family.
        batch, length: B and T of the random ids that go through it.

    Returns:
        Those of each block, of what comes before the first, and of what comes after the last, the head and its loss.
    """
    body, blocks = model.body, getattr(model.body, plan.blocks)
    length = min(length, model.max_length or length)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length)).astype(np.int32)
    ids, place = Tensor(ids), positions(length)
    rest = body.between(place, length) if hasattr(body, "between") else {}
    x = body.embed(ids, place)

    def through(block):
        def run(x):
            x, update = run_blocks([block], x, None, None, None, **rest)
            return x if update is None else x + update

        return run

    def head(x):
        logits = model.head(body.finish(x, None))
        return model.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1))

    after = [getattr(body, name) for name in plan.last] + [model.embedding if model.tied else model.lm_head]
    before = [c for c in body.name_cells().values() if c is not blocks and c not in after[: len(plan.last)]]
    return (
        [_seconds(through(block), [block], x, runs) for block in blocks],
        _seconds(lambda x: body.embed(ids, place) + x, before, x, runs),
        _seconds(head, after, x, runs),
    )


def _seconds(run, cells, x, runs: int) -> float:
    weights = ParameterTuple(list({id(p): p for cell in cells for p in cell.trainable_params()}.values()))
    step = ms.value_and_grad(lambda x: ops.ReduceSum()(run(x)), 0, weights)
    times = []
    for _ in range(runs + 1):  # the first one warms up
        start = time.perf_counter()
        loss, _ = step(x)
        loss.asnumpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
