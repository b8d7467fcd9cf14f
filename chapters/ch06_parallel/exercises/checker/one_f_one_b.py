"""Checks one_f_one_b.py against msllm.parallel.schedule; the variants are wrong on purpose."""

from collections.abc import Callable

from msllm.lessons.checking import Task, Wrong, against

FORWARD, BACKWARD = "forward", "backward"


def cases():
    """Each stage of four, one stage alone, fewer micro-batches than stages."""
    return [*((4, stage, 8) for stage in range(4)), (1, 0, 3), (4, 0, 2), (4, 1, 1), (2, 0, 4), (2, 1, 4)]


def order_1f1b(stages, stage, micro_batches):
    from msllm.parallel.schedule import order

    return [(work.kind, work.micro_batch) for work in order("1f1b", stages, stage, micro_batches)]


def _order(stages, stage, micro_batches, start=lambda p, s: p - s - 1, most=True, backward_first=False, cooldown=True):
    first = start(stages, stage)
    first = min(first, micro_batches) if most else first
    forward = [(FORWARD, i) for i in range(max(micro_batches, first))]
    backward = [(BACKWARD, i) for i in range(micro_batches)]
    pairs = list(zip(forward[first:], backward))
    steady = [work for pair in pairs for work in (pair[::-1] if backward_first else pair)]
    return [*forward[:first], *steady, *(backward[len(pairs) :] if cooldown else [])]


def _wrong(**how):
    return lambda *args: _order(*args, **how)


ORDER_MISTAKES = [
    ("all forward passes come first, as in GPipe", _wrong(start=lambda p, s: 10**6)),
    ("the start is one forward pass too long: it is p - stage - 1", _wrong(start=lambda p, s: p - s)),
    ("every stage starts alike; the later a stage, the shorter its start", _wrong(start=lambda p, s: p - 1)),
    ("the first stage starts with the fewest; it is the other way round", _wrong(start=lambda p, s: s)),
    ("there is no start: a stage waits for the first backward pass", _wrong(start=lambda p, s: 0)),
    ("in a pair, backward comes first; the last stage has nothing to go back from", _wrong(backward_first=True)),
    ("the backward passes that are left at the end are missing", _wrong(cooldown=False)),
    ("there are micro-batches that do not exist: the start is at most m long", _wrong(most=False)),
    (
        "backward passes go from the last micro-batch to the first; they come in the order of the forward passes",
        lambda p, s, m: [(k, i if k == FORWARD else m - 1 - i) for k, i in _order(p, s, m)],
    ),
]


def check_order(function: Callable) -> None:
    """As ``against``, but the first line is about the first pass that is another."""
    try:
        against(order_1f1b, cases, ORDER_MISTAKES)(function)
    except Wrong as e:
        raise Wrong(_first_difference(function) or e.args[0], *e.args[1:]) from None


def _first_difference(function: Callable) -> str:
    for args in cases():
        got, expected = function(*args), order_1f1b(*args)
        if not isinstance(got, (list, tuple)) or list(got) == expected:
            continue
        for i, right in enumerate(expected):
            if i == len(got):
                return f"stage {args[1]} of {args[0]} stops after {i} passes; number {i} is {right}"
            if got[i] != right:
                return f"pass number {i} of stage {args[1]} of {args[0]} is {got[i]!r}, right is {right}"
        more = f"does {len(got)} passes, right is {len(expected)}; {got[len(expected)]!r} is too much"
        return f"stage {args[1]} of {args[0]} {more}"
    return ""


def kept_cases():
    gpipe = [*((FORWARD, i) for i in range(5)), *((BACKWARD, i) for i in range(5))]
    return [*((order_1f1b(*args),) for args in cases()), (gpipe,), ([],)]


def most_kept(order):
    kept = most = 0
    for kind, _ in order:
        kept += 1 if kind == FORWARD else -1
        most = max(most, kept)
    return most


KEPT_MISTAKES = [
    ("how many are kept at the end, which is none; the most at any time is asked for", lambda order: 0),
    (
        "all forward passes are counted; a backward pass frees an input",
        lambda order: sum(k == FORWARD for k, _ in order),
    ),
    (
        "only the start is counted; the first forward pass of the pairs comes before its backward pass",
        lambda order: next((i for i, (k, _) in enumerate(order) if k == BACKWARD), 0) - 1 if order else 0,
    ),
]


def share_cases():
    return [(4, 8), (2, 8), (1, 5), (4, 1), (8, 64), (4, 8, 2), (2, 4, 3)]


def idle_share(stages, micro_batches, chunks=1):
    from msllm.parallel.schedule import bubble

    return bubble(stages, micro_batches, chunks)


SHARE_MISTAKES = [
    (
        "over the time of the work alone, (p - 1) / (v m); the step is longer by the waiting itself",
        lambda p, m, v=1: (p - 1) / (v * m),
    ),
    ("the chunks: a start takes 1 / v as long", lambda p, m, v=1: (p - 1) / (m + p - 1)),
    ("p - 1 passes go by before the last stage starts, not p", lambda p, m, v=1: p / (v * m + p)),
    ("the share of the work; that of the waiting is asked for", lambda p, m, v=1: v * m / (v * m + p - 1)),
    ("the chunks make the waiting shorter, not longer", lambda p, m, v=1: v * (p - 1) / (m + v * (p - 1))),
]

TASKS = (
    Task("order_1f1b", check_order),
    Task("most_kept", against(most_kept, kept_cases, KEPT_MISTAKES)),
    Task("idle_share", against(idle_share, share_cases, SHARE_MISTAKES)),
)
