"""What every worker runs for test_context: attention over shared tokens against the whole of it, computed here too.

    msrun --worker_num=2 --local_worker_num=2 --master_port=PORT --join=True worker_context.py OUTPUT.json

The first worker writes, of all workers: the largest difference of output and gradients, relative to the largest true
value, of each case; and the bytes sent, as counted and as the formulas have them.
"""

import functools
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import kernels
from msllm.errors import UserError
from msllm.parallel.comm import Group, Workers, start_workers
from msllm.parallel.context import HeadAttention, RingAttention, head_bytes, ring_bytes, token_places

BATCH, WIDTH, SCALE = 2, 12, 0.3
# Lengths of 8 pieces, for 4 workers: within a tile of the C++ kernels, and past one.
SHORT, LONG = 24, 8 * 70

CASES = {
    "causal": {"length": LONG},
    "not causal": {"length": LONG, "causal": False},
    "few tokens": {"length": 8},
    "contiguous shares": {"length": LONG, "zigzag": False},
    "grouped queries": {"length": LONG, "kv_heads": 4},
    "padded on the left": {"length": SHORT, "masks": ("key_mask",)},
    "a row without keys, not causal": {"length": SHORT, "causal": False, "masks": ("blind",)},
    "documents": {"length": LONG, "masks": ("row_start",)},
    "documents, not causal": {"length": SHORT, "causal": False, "masks": ("row_start",)},
    "alibi": {"length": LONG, "masks": ("slopes",)},
    "alibi, not causal": {"length": SHORT, "causal": False, "masks": ("slopes",)},
    "everything": {"length": LONG, "kv_heads": 4, "masks": ("key_mask", "row_start", "slopes")},
    "everything, contiguous": {"length": LONG, "zigzag": False, "masks": ("key_mask", "row_start", "slopes")},
}


class Case:
    """One attention on a whole example: inputs, and output and gradients of kernels.attention.

    Attributes:
        arrays: q (B, T, H, C), k and v (B, T, K, C), and the gradient of the output.
        options: the other arguments of attention, numpy.
        places_of: of the tokens of a member.
    """

    def __init__(self, length, heads=8, kv_heads=8, causal=True, zigzag=True, masks=()):
        rng = np.random.default_rng(length + kv_heads)
        shapes = [(BATCH, length, n, WIDTH) for n in (heads, kv_heads, kv_heads, heads)]
        self.arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.length, self.heads, self.kv_heads = length, heads, kv_heads
        self.places_of = functools.partial(token_places, zigzag=zigzag)
        self.options = {"causal": causal}
        if "key_mask" in masks or "blind" in masks:
            key_mask = np.ones((BATCH, length), np.int32)
            key_mask[0, : length // 3] = 0
            key_mask[1, length // 2] = 0
            if "blind" in masks:
                key_mask[1] = 0
            self.options["key_mask"] = key_mask
        if "row_start" in masks:
            # Documents end within pieces and at their ends; one is longer than a worker's share.
            cuts = np.array([0, length // 8, length // 8 + 3, length // 4, length - 5])
            rows = cuts[np.searchsorted(cuts, np.arange(length), side="right") - 1]
            self.options["row_start"] = np.stack([rows, np.zeros_like(rows)]).astype(np.int32)
        if "slopes" in masks:
            self.options["slopes"] = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32)

    def of_tokens(self, places):
        """Returns arrays and options of these tokens alone."""
        options = {n: x[:, places] if n in ("key_mask", "row_start") else x for n, x in self.options.items()}
        return [x[:, places] for x in self.arrays], options

    def whole(self):
        """Returns output and gradients of q, k and v by kernels.attention."""
        return output_and_gradients(kernels.attention, self.arrays, self.options)


def output_and_gradients(attention, arrays, options):
    """Returns out, dq, dk and dv, numpy; arrays are q, k, v and the gradient of the output."""
    q, k, v, dout = (Tensor(np.ascontiguousarray(x)) for x in arrays)
    masks = {n: Tensor(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x for n, x in options.items()}

    def weighted(*inputs):
        out = attention(*inputs, SCALE, **masks)
        return ops.reduce_sum(out * dout), out

    (_, out), grads = ms.value_and_grad(weighted, (0, 1, 2), has_aux=True)(q, k, v)
    return [x.asnumpy() for x in (out, *grads)]


def difference(got, want) -> float:
    """Returns the largest difference, relative to the largest wanted value; where all of it is 0, as it is."""
    return float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))


def run_case(group: Group, core, case: Case, formula) -> dict:
    """Returns the largest difference of this worker's tokens, and the bytes that it sent."""
    places = case.places_of(case.length, group.size, group.index)
    arrays, options = case.of_tokens(places)
    want = [x[:, places] for x in case.whole()]
    before = group.traffic.sent()
    masks = {n: Tensor(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    core(*(Tensor(np.ascontiguousarray(x)) for x in arrays[:3]), SCALE, **masks)
    forward = group.traffic.sent() - before
    got = output_and_gradients(core, arrays, options)
    backward = group.traffic.sent() - before - 2 * forward
    return {
        "differences": [difference(*pair) for pair in zip(got, want)],
        "counted": [forward, backward],
        "formula": list(formula),
    }


def run_all(group: Group) -> dict:
    """Returns the results of all cases: table, core and case -> result."""
    results = {}
    for table in ("stock", "cpu"):
        try:
            kernels.use(table)
        except UserError:  # the C++ kernels are not built
            continue
        for name, wanted in CASES.items():
            case = Case(**wanted)
            tokens = case.length // group.size
            if case.length % (2 * group.size):
                continue
            sizes = {"size": group.size, "batch": BATCH, "tokens": tokens, "head_width": WIDTH}
            masks = [n for n in ("key_mask", "row_start") if n in case.options]
            ring = ring_bytes(kv_heads=case.kv_heads, key_mask="key_mask" in masks, **sizes)
            heads = head_bytes(heads=case.heads, kv_heads=case.kv_heads, masks=len(masks), **sizes)
            for core, formula in ((RingAttention, ring), (HeadAttention, heads)):
                where = f"{table}, {core.__name__}, {name}"
                results[where] = run_case(group, core(group, case.places_of), case, formula)
    return results


def run_cross_attention(group: Group) -> dict:
    """Queries of one text and keys of another, longer one, as a translator's decoder has them."""
    rng = np.random.default_rng(7)
    q, dout = (rng.standard_normal((BATCH, SHORT, 8, WIDTH)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((BATCH, 2 * SHORT, 8, WIDTH)).astype(np.float32) for _ in range(2))
    key_mask = (np.arange(2 * SHORT) < np.array([[2 * SHORT], [SHORT + 5]])).astype(np.int32)
    whole = output_and_gradients(kernels.attention, (q, k, v, dout), {"causal": False, "key_mask": key_mask})
    mine, theirs = (token_places(n, group.size, group.index) for n in (SHORT, 2 * SHORT))
    want = [x[:, places] for x, places in zip(whole, (mine, mine, theirs, theirs))]
    arrays = q[:, mine], k[:, theirs], v[:, theirs], dout[:, mine]
    options = {"causal": False, "key_mask": key_mask[:, theirs]}
    return {
        core.__name__: [difference(*p) for p in zip(output_and_gradients(core(group), arrays, options), want)]
        for core in (RingAttention, HeadAttention)
    }


def run_dropout(group: Group) -> list[float]:
    """Returns how the heads' exchange drops weights: the kept share, and the largest difference between equal calls.

    All values are 1, so that an output is the sum of the weights kept, times 1 / (1 - p).
    """
    tokens = 64
    x = np.random.default_rng(group.index).standard_normal((BATCH, tokens, 8, WIDTH)).astype(np.float32)
    inputs, outs = (Tensor(x), Tensor(x), Tensor(np.ones_like(x))), []
    for _ in range(2):
        kernels.set_seed(3 + group.index)
        outs.append(HeadAttention(group)(*inputs, SCALE, causal=False, dropout=0.25).asnumpy())
    return [float(outs[0].mean()), float(np.abs(outs[0] - outs[1]).max()), float(outs[0].std())]


def main(output: str) -> None:
    workers: Workers | None = start_workers()
    if workers is None:
        raise SystemExit("start this under msrun, see the first lines of the file")
    result = {"cases": run_all(workers), "cross": run_cross_attention(workers), "dropout": run_dropout(workers)}
    everyone = workers.objects(result)
    if workers.rank == 0:
        Path(output).write_text(json.dumps(everyone, indent=1), encoding="utf-8")
    workers.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
