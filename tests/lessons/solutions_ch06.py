"""Right solutions of chapter 6's exercises, and changes to them that are each a mistake with its message."""

RIGHT = {
    "ring_all_reduce": """
import numpy as np

def reduce_scatter(arrays, ring):
    p = len(arrays)
    pieces = [np.split(a, p) for a in arrays]
    moving = [pieces[r][(r - 1) % p] for r in range(p)]
    for k in range(p - 1):
        for r in range(p):
            ring.send(r, moving[r])
        moving = [ring.receive(r) + pieces[r][(r - 2 - k) % p] for r in range(p)]
    return moving

def all_gather(pieces, ring):
    p = len(pieces)
    parts = [[None] * p for _ in range(p)]
    for r in range(p):
        parts[r][r] = pieces[r]
    for k in range(p - 1):
        for r in range(p):
            ring.send(r, parts[r][(r - k) % p])
        for r in range(p):
            parts[r][(r - 1 - k) % p] = ring.receive(r)
    return [np.concatenate(own) for own in parts]

def all_reduce(arrays, ring):
    return all_gather(reduce_scatter(arrays, ring), ring)
""",
    "column_row": """
import numpy as np

def gelu(x):
    return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(np.float32)

def cut_columns(weight, size, index, matrices=1):
    return np.concatenate([np.split(one, size)[index] for one in np.split(weight, matrices)])

def cut_rows(weight, size, index):
    return np.split(weight, size, axis=1)[index]

def mlp(x, w1, b1, w2, b2, size, all_reduce):
    outs = []
    for i in range(size):
        inner = gelu(x @ cut_columns(w1, size, i).T + cut_columns(b1[:, None], size, i)[:, 0])
        outs.append(inner @ cut_rows(w2, size, i).T)
    return all_reduce(outs) + b2
""",
    "one_f_one_b": """
def order_1f1b(stages, stage, micro_batches):
    start = min(stages - stage - 1, micro_batches)
    order = [("forward", i) for i in range(start)]
    for i in range(start, micro_batches):
        order += [("forward", i), ("backward", i - start)]
    return order + [("backward", i) for i in range(micro_batches - start, micro_batches)]

def most_kept(order):
    kept = most = 0
    for kind, _ in order:
        kept += 1 if kind == "forward" else -1
        most = max(most, kept)
    return most

def idle_share(stages, micro_batches, chunks=1):
    return (stages - 1) / (chunks * micro_batches + stages - 1)
""",
    "top2_capacity": """
import math

import numpy as np

def softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

def choose(logits):
    return np.argsort(-logits, 1)[:, :2]

def weigh(logits, ids):
    chosen = np.take_along_axis(softmax(logits), ids, 1)
    return chosen / chosen.sum(1, keepdims=True)

def keep(ids, experts, factor):
    room = math.ceil(factor * 2 * len(ids) / experts)
    kept, taken = np.zeros(ids.shape, bool), np.zeros(experts, int)
    for choice in range(2):
        for token, expert in enumerate(ids[:, choice]):
            kept[token, choice] = taken[expert] < room
            taken[expert] += 1
    return kept

def balance_loss(probabilities, ids):
    f = np.bincount(ids.ravel(), minlength=probabilities.shape[1]) / len(ids)
    return float(probabilities.shape[1] * (f * probabilities.mean(0)).sum())
""",
    "zero_shares": """
import numpy as np

def owned_range(numbers, workers, rank):
    length = -(-numbers // workers)
    return min(rank * length, numbers), min((rank + 1) * length, numbers)

def owned_parts(sizes, workers, rank):
    start, stop = owned_range(sum(sizes), workers, rank)
    parts, offset = [], 0
    for i, size in enumerate(sizes):
        first, last = max(start, offset) - offset, min(stop, offset + size) - offset
        if first < last:
            parts.append((i, first, last))
        offset += size
    return parts

def merge(shares, shapes):
    row, parts, start = np.concatenate(shares), [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        parts.append(row[start : start + size].reshape(shape))
        start += size
    return parts
""",
}

HELPERS = ""

SCATTER, GATHER, SUM = (("ring_all_reduce", name) for name in ("reduce_scatter", "all_gather", "all_reduce"))
COLUMNS, ROWS, MLP = (("column_row", name) for name in ("cut_columns", "cut_rows", "mlp"))
ORDER, KEPT, SHARE = (("one_f_one_b", name) for name in ("order_1f1b", "most_kept", "idle_share"))
CHOOSE, WEIGH, KEEP, LOSS = (("top2_capacity", name) for name in ("choose", "weigh", "keep", "balance_loss"))
RANGE, PARTS, MERGE = (("zero_shares", name) for name in ("owned_range", "owned_parts", "merge"))
ADDED = "ring.receive(r) + pieces[r][(r - 2 - k) % p]"
BOTH = "all_gather(reduce_scatter(arrays, ring), ring)"
CUT = "np.concatenate([np.split(one, size)[index] for one in np.split(weight, matrices)])"
LOOPS = "    for choice in range(2):\n        for token, expert in enumerate(ids[:, choice]):\n"
BY_TOKEN = "    for token in range(len(ids)):\n        for choice, expert in enumerate(ids[token]):\n"
LENGTH = "-(-numbers // workers)"

# exercise, function, what is changed, into what, what the message holds
WRONG = [
    (*SCATTER, "return moving", "return moving[1:] + moving[:1]", "member r ends with piece r + 1"),
    (*SCATTER, ADDED, "ring.receive(r)", "each member adds its own piece"),
    (*SCATTER, "range(p - 1)", "range(p - 2)", "a round is missing"),
    (*SCATTER, ADDED, "ring.receive(r) + 2 * pieces[r][(r - 2 - k) % p]", "added twice"),
    (*SCATTER, "return moving", "return [m / p for m in moving]", "the mean"),
    (
        *SCATTER,
        "    return moving",
        "    for r in range(p): ring.send(r, moving[r])\n    return moving",
        "one round too many",
    ),
    (*SCATTER, "moving = [ring", "arrays[0][:] = 0; moving = [ring", "are changed"),
    (*SCATTER, "pieces = [", "return list(np.split(sum(arrays), p)); pieces = [", "the ring is not used"),
    (*SCATTER, "            ring.send(r, moving[r])", "            ring.receive(r)", "has sent nothing more"),
    (*GATHER, "(r - k) % p])", "r])", "values are wrong"),
    (
        *GATHER,
        "np.concatenate(own) for own in parts",
        "np.concatenate(own[1:] + own[:1]) for own in parts",
        "wrong places",
    ),
    (
        *GATHER,
        "np.concatenate(own) for own in parts",
        "np.concatenate(own[r:] + own[:r]) for r, own in enumerate(parts)",
        "its own piece first",
    ),
    (
        *GATHER,
        "np.concatenate(own) for own in parts",
        "np.concatenate([own[(r - i) % p] for i in range(p)]) for r, own in enumerate(parts)",
        "as they came",
    ),
    (
        *GATHER,
        "    for k in range(p - 1):",
        "    parts = [[pieces[0] * 0 if q is None else q for q in own] for own in parts]\n    for k in range(p - 2):",
        "a round is missing",
    ),
    (*SUM, BOTH, "[a / len(arrays) for a in all_gather(reduce_scatter(arrays, ring), ring)]", "the mean"),
    (*SUM, BOTH, "[arrays[0]] * len(arrays)", "as a broadcast gives it"),
    (*SUM, BOTH, "arrays", "as they were"),
    (*SUM, BOTH, "[sum(arrays)] * len(arrays)", "the ring is not used"),
    (
        *SUM,
        "return " + BOTH,
        "own = [a.copy() for a in arrays]; moving = arrays\n    for _ in arrays[1:]:\n"
        "        for r, a in enumerate(moving): ring.send(r, a)\n"
        "        moving = [ring.receive(r) for r in range(len(arrays))]\n"
        "        own = [a + b for a, b in zip(own, moving)]\n    return own",
        "whole arrays are sent",
    ),
    (*COLUMNS, CUT, "np.split(weight, size)[index]", "cut as one matrix"),
    (*COLUMNS, CUT, "np.split(weight, size, axis=1)[index] if weight.shape[1] > 1 else weight", "the wrong axis"),
    (*COLUMNS, CUT, "weight[index::size]", "every N-th row"),
    (*COLUMNS, "[index]", "[size - 1 - index]", "counted backwards"),
    (*COLUMNS, CUT, "np.split(weight, matrices)[index % matrices]", "it has its part of each"),
    (*ROWS, "axis=1", "axis=0", "the wrong axis"),
    (*ROWS, "np.split(weight, size, axis=1)[index]", "weight[:, index::size]", "every N-th column"),
    (*ROWS, "[index]", "[size - 1 - index]", "counted backwards"),
    (*MLP, "all_reduce(outs) + b2", "all_reduce([out + b2 for out in outs])", "N times"),
    (*MLP, " + b2", "", "b2 is missing"),
    (*MLP, " + cut_columns(b1[:, None], size, i)[:, 0]", "", "b1 is missing"),
    (*MLP, "inner = gelu(", "inner = (", "gelu is missing"),
    (*MLP, "all_reduce(outs) + b2", "all_reduce(outs) / size + b2", "the mean"),
    (*MLP, "all_reduce(outs) + b2", "outs[0] + b2", "the first worker only"),
    (*MLP, "all_reduce(outs) + b2", "gelu(x @ w1.T + b1) @ w2.T + b2", "the whole matrices are used"),
    (*MLP, "    return", "    all_reduce(outs)\n    return", "called 2 times"),
    (*MLP, "all_reduce(outs)", "all_reduce(outs[0])", "takes a list of 1 arrays"),
    (
        *MLP,
        "return all_reduce(outs) + b2",
        "all_reduce([w1] * size); return gelu(x @ w1.T + b1) @ w2.T + b2",
        "after the second matrix",
    ),
    (*ORDER, "min(stages - stage - 1, micro_batches)", "micro_batches", "as in GPipe"),
    (*ORDER, "stages - stage - 1", "stages - stage", "one forward pass too long"),
    (*ORDER, "stages - stage - 1", "stages - 1", "every stage starts alike"),
    (*ORDER, "stages - stage - 1", "stage", "the other way round"),
    (*ORDER, "min(stages - stage - 1, micro_batches)", "0", "there is no start"),
    (*ORDER, "min(stages - stage - 1, micro_batches)", "0", "pass number 1 of stage 0 of 4 is ('backward', 0)"),
    (
        *ORDER,
        '[("forward", i), ("backward", i - start)]',
        '[("backward", i - start), ("forward", i)]',
        "backward comes first",
    ),
    (*ORDER, "return order + ", "return order; ", "that are left at the end"),
    (*ORDER, "return order + ", "return order; ", "stops after 13 passes; number 13 is ('backward', 5)"),
    (*ORDER, "    return order + ", "    order.append(('forward', 9))\n    return order + ", "is ('forward', 9)"),
    (
        *ORDER,
        'return order + [("backward", i) for i in range(micro_batches - start, micro_batches)]',
        'order += [("backward", i) for i in range(micro_batches - start, micro_batches)]\n'
        '    return [(k, i if k == "forward" else micro_batches - 1 - i) for k, i in order]',
        "from the last micro-batch to the first",
    ),
    (*KEPT, "return most", "return kept", "none"),
    (*KEPT, "else -1", "else 0", "a backward pass frees an input"),
    (
        *KEPT,
        "else -1\n        most = max(most, kept)",
        "else -1\n        if kind != 'forward': return kept",
        "only the start",
    ),
    (*SHARE, " + stages - 1)", ")", "over the time of the work alone"),
    (*SHARE, "chunks * micro_batches", "micro_batches", "the chunks"),
    (
        *SHARE,
        "(stages - 1) / (chunks * micro_batches + stages - 1)",
        "stages / (chunks * micro_batches + stages)",
        "not p",
    ),
    (*SHARE, "return (stages - 1)", "return 1 - (stages - 1)", "the share of the work"),
    (*CHOOSE, "-logits", "logits", "the smallest logits"),
    (*CHOOSE, "[:, :2]", "[:, 1::-1]", "the second choice comes first"),
    (*CHOOSE, "np.argsort(-logits, 1)[:, :2]", "np.sort(np.argsort(-logits, 1)[:, :2])", "the order of the experts"),
    (*CHOOSE, "[:, :2]", "[:, [0, 0]]", "both choices are the first"),
    (*CHOOSE, "[:, :2]", "", "a token has two"),
    (*WEIGH, "chosen / chosen.sum(1, keepdims=True)", "chosen", "do not add up to 1"),
    (*WEIGH, "x - x.max(1, keepdims=True)", "x", "exp overflows"),
    (*WEIGH, "softmax(logits)", "logits", "logits divided by their sum"),
    (*WEIGH, "return chosen", "return np.full(ids.shape, 0.5, np.float32); chosen", "half each"),
    (*WEIGH, "chosen / chosen.sum(1, keepdims=True)", "(chosen / chosen.sum(1, keepdims=True))[:, ::-1]", "exchanged"),
    (*WEIGH, "softmax(logits), ids", "softmax(logits), np.tile([0, 1], (len(ids), 1))", "the first two experts"),
    (*KEEP, LOOPS, BY_TOKEN, "come before any second one"),
    (*KEEP, "math.ceil", "int", "rounded down"),
    (*KEEP, "factor * 2", "factor", "of one choice a token"),
    (*KEEP, "    for choice in range(2):\n", "    for choice in range(2):\n        taken[:] = 0\n", "counted apart"),
    (*KEEP, "return kept", "return ~kept", "no room"),
    (*KEEP, "return kept", "return kept | True", "all are kept"),
    (*KEEP, "enumerate(ids[:, choice])", "list(enumerate(ids[:, choice]))[::-1]", "the first ones are"),
    (*LOSS, "probabilities.shape[1] * (f", "1 * (f", "E is missing"),
    (*LOSS, "ids.ravel()", "ids[:, 0]", "the first choices only"),
    (*LOSS, "/ len(ids)", "/ ids.size", "divide by the N tokens"),
    (*LOSS, "probabilities.mean(0)", "probabilities.sum(0)", "it is their mean"),
    (*LOSS, "probabilities.mean(0)", "f", "f times f"),
    (*LOSS, "(f * probabilities.mean(0))", "(probabilities.mean(0) ** 2)", "P times P"),
    (*RANGE, LENGTH, "numbers // workers", "rounded down"),
    (*RANGE, "min((rank + 1) * length, numbers)", "(rank + 1) * length", "the zeros that fill up"),
    (
        *RANGE,
        "min(rank * length, numbers), min((rank + 1) * length, numbers)",
        "rank * length, (rank + 1) * length",
        "zeros",
    ),
    (*RANGE, "min(rank * length, numbers), ", "rank * length, ", "start is not limited"),
    (*RANGE, ", min((rank + 1) * length, numbers)", ", length", "start and stop are asked for"),
    (*RANGE, "min(rank * length, numbers), min((rank + 1)", "(rank - 1) * length, min(rank", "ranks count from 0"),
    (
        *RANGE,
        "return min(rank * length, numbers), min((rank + 1) * length, numbers)",
        "small, more = divmod(numbers, workers); start = rank * small + min(rank, more)\n"
        "    return start, start + small + (rank < more)",
        "one number more",
    ),
    (*PARTS, "first, last))", "first + offset, last + offset))", "ranges in the row"),
    (*PARTS, "first, last))", "first, last - first))", "(parameter, first, length)"),
    (
        *PARTS,
        "if first < last",
        "if start <= offset < stop and (first := 0) == 0 and (last := size)",
        "dealt out whole",
    ),
    (*PARTS, "if first < last", "if first < last or size == 0", "owns nothing is listed"),
    (
        *PARTS,
        "    parts, offset",
        "    return [(i, *owned_range(n, workers, rank)) for i, n in enumerate(sizes)\n"
        "            if owned_range(n, workers, rank)[0] < owned_range(n, workers, rank)[1]]\n    parts, offset",
        "divided among all workers",
    ),
    (*MERGE, "reshape(shape)", "reshape(shape, order='F')", "column by column"),
    (*MERGE, "start += size", "pass", "from the start of the row"),
    (*MERGE, "np.concatenate(shares)", "np.concatenate(shares[::-1])", "the wrong order"),
    (*MERGE, "np.concatenate(shares)", "np.stack(shares, 1).ravel()", "number by number"),
    (*MERGE, ".reshape(shape)", "", "the parameters have the shapes"),
]
