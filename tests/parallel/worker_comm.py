"""Run on several workers: every collective and its gradient against what one process computes; writes JSON."""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

import msllm.kernels  # noqa: F401  sets how MindSpore starts
from msllm.errors import UserError
from msllm.parallel import functional
from msllm.parallel.comm import start_workers
from msllm.parallel.config import ParallelConfig
from msllm.parallel.mesh import Mesh


def everyones(group, shape=(4, 2)):
    """What each member holds, known to all."""
    return [np.random.default_rng(rank).normal(size=shape).astype(np.float32) for rank in group.ranks]


def collectives(group) -> dict[str, bool]:
    """Which collectives give what numpy gives."""
    whole = everyones(group)
    mine, total = Tensor(whole[group.index]), np.sum(whole, 0)
    ragged = [np.full((i + 1, 2), 10 * group.index + i, np.float32) for i in range(group.size)]
    came = group.all_to_all([Tensor(part) for part in ragged], [(group.index + 1, 2)] * group.size)
    right = {
        "all-reduce": np.allclose(group.all_reduce(mine).asnumpy(), total, rtol=1e-6),
        "mean": np.allclose(group.all_reduce(mine, "mean").asnumpy(), total / group.size, rtol=1e-6),
        "max": np.array_equal(group.all_reduce(mine, "max").asnumpy(), np.max(whole, 0)),
        "min": np.array_equal(group.all_reduce(mine, "min").asnumpy(), np.min(whole, 0)),
        "all-gather": np.array_equal(group.all_gather(mine, 1).asnumpy(), np.concatenate(whole, 1)),
        "reduce-scatter": np.allclose(
            group.reduce_scatter(mine).asnumpy(), np.split(total, group.size)[group.index], rtol=1e-6
        ),
        "all-to-all": all((c.asnumpy() == 10 * i + group.index).all() for i, c in enumerate(came)),
        "shift": np.array_equal(group.shift([mine])[0].asnumpy(), whole[group.index - 1]),
        "objects": group.objects({"rank": group.rank}) == [{"rank": rank} for rank in group.ranks],
        "numbers": group.sum_array(np.array([1.0 + 2**-40]))[0] == group.size * (1 + 2**-40),
        "any": group.any(group.index == group.size - 1) and not group.any(False),
    }
    if group.index == 0:
        group.send(mine, 1)
    if group.index == 1:
        right["send"] = np.array_equal(group.receive((4, 2), 0).asnumpy(), whole[0])
    return right


def gradients(group) -> dict[str, bool]:
    """Whether each pair of functional gives the gradient of the whole: sum over workers of sum(weights * f(x))."""
    whole = everyones(group)
    x, index, size = Tensor(whole[group.index]), group.index, group.size
    right = {}

    def check(name, run, expected, weights):
        value = ms.grad(lambda x: ops.ReduceSum()(run(x) * Tensor(weights)))(x).asnumpy()
        right[name] = np.allclose(value, expected, rtol=1e-5, atol=1e-6)

    same = np.random.default_rng(7).normal(size=(4 * size, 2)).astype(np.float32)
    own = [np.random.default_rng(20 + rank).normal(size=(4, 2)).astype(np.float32) for rank in group.ranks]
    check("copy", lambda x: functional.copy(x, group), np.sum(own, 0), own[index])
    check("sum", lambda x: functional.sum_over(x, group), same[:4], same[:4])
    wide = [np.random.default_rng(40 + rank).normal(size=(4 * size, 2)).astype(np.float32) for rank in group.ranks]
    mine = slice(4 * index, 4 * index + 4)
    check("gather", lambda x: functional.gather(x, group, 0), np.sum(wide, 0)[mine], wide[index])
    check("gather, not summed", lambda x: functional.gather(x, group, 0, summed=False), same[mine], same)
    rows = 4 // size
    pieces = [w[:rows] for w in own]
    check("sum_scatter", lambda x: functional.sum_scatter(x, group, 0), np.concatenate(pieces), pieces[index])
    check("split", lambda x: functional.split(x, group, 0), np.concatenate(pieces), pieces[index])
    to = [rows] * size
    exchanged = [np.concatenate([own[j][i * rows : (i + 1) * rows] for j in range(size)]) for i in range(size)]
    back = np.concatenate([exchanged[j][index * rows : (index + 1) * rows] for j in range(size)])
    check("exchange_rows", lambda x: functional.exchange_rows(x, group, to, to), back, exchanged[index])
    # All to the first member: the others get nothing, and send it back.
    to, received = [4] + [0] * (size - 1), [4 if index == 0 else 0] * size

    def there_and_back(x):
        rows = functional.exchange_rows(x, group, to, received)
        return functional.exchange_rows(rows * 3.0 if rows.size else rows, group, received, to)

    right["uneven rows"] = np.allclose(there_and_back(x).asnumpy(), 3 * x.asnumpy())
    check("uneven exchange_rows", there_and_back, 3 * own[index], own[index])
    return right


def main() -> None:
    folder = Path(sys.argv[1])
    workers = start_workers()
    mesh = Mesh(workers, ParallelConfig(tensor=2))
    found = {"groups": {}}
    for group in (workers, mesh.tensor, mesh.data):
        if group.size > 1:
            found["groups"][f"{group.name} {list(group.ranks)}"] = {**collectives(group), **gradients(group)}
    workers.traffic.clear()
    workers.all_reduce(ops.zeros((6,), ms.float32))
    found["counted"] = [(name, group, c.calls, c.payload, c.sent) for (name, group), c in workers.traffic.items()]
    try:
        workers.agree({"data": "3 examples" if workers.rank == 1 else "5 examples"})
    except UserError as e:
        found["disagreement"] = str(e)
    (folder / f"found-{workers.rank}.json").write_text(json.dumps(found, default=bool))
    workers.barrier()
    workers.all_reduce(ops.zeros((3 + workers.rank,), ms.float32))  # shapes that differ end the job


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(2)
