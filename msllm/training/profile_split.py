"""Where the time of steps went, worked out of what all workers noted.

Each moment of a step belongs to one part, so that the parts add up to the step's wall time. It is the first of these
that it fits; on a device of its own, which goes on beside Python, compute comes before waiting and communication:

    other               evaluation and checkpoints
    waiting             in a collective, a send or a receive that a worker it needs has not come to yet
    communication       in one that all have come to: bytes move
    compute             an operator of MindSpore or a C++ kernel runs
    data                a batch is made: read, padded, put into tensors
    between_operators   the rest: Python, what MindSpore does around an operator, and the copies that make a strided
                        view contiguous, which its profiler does not see

Idle, as a device is idle, is waiting and between_operators together. Waiting is known where collectives are called by
this process and block, on a CPU; on Ascend it is part of communication.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from msllm.training.profile_recording import DATA, OTHER, SPANS, Message, Operator, Recording

PARTS = ("data", "compute", "communication", "waiting", "between_operators", "other")
_ORDER = ("other", "waiting", "communication", "compute", "data", "between_operators")
_ORDER_ON_DEVICE = ("other", "compute", "waiting", "communication", "data", "between_operators")
_TWO = ("send", "receive", "delivery")
MS = 1e6  # ns


def divide(start: int, end: int, intervals: Iterable[tuple[int, int, int]], count: int) -> list[int]:
    """Divides the time from ``start`` to ``end`` among ``count`` parts; what no interval covers is the last one's.

    Args:
        intervals: (part, start, end); where several overlap, the lowest part has the moment.

    Returns:
        The ns of each part; they add up to end - start.
    """
    edges = []
    for part, first, last in intervals:
        first, last = max(first, start), min(last, end)
        if first < last:
            edges += [(first, part, 1), (last, part, -1)]
    totals, open_, before = [0] * count, [0] * count, start
    for moment, part, change in sorted(edges):
        totals[next((i for i, n in enumerate(open_) if n), count - 1)] += moment - before
        open_[part] += change
        before = moment
    totals[-1] += end - before
    return totals


def waits(recordings: Sequence[Recording]) -> list[list[tuple[int, int]]]:
    """Returns for each worker and each of its messages how long it waited (ns), and for whom.

    The n-th call of a worker on a channel meets the n-th of the others. It waits until the last of them begins; none
    is waited for by a call that is over before.
    """
    starts: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    keys: list[list[tuple[str, int]]] = []
    for recording in recordings:
        counts: dict[tuple[str, str], int] = defaultdict(int)
        keys.append([])
        for message in recording.messages:
            side = message.channel, message.operation if message.operation in _TWO else ""
            key = message.channel, counts[side]
            counts[side] += 1
            keys[-1].append(key)
            if message.operation != "delivery":  # which meets the receive of what was sent before
                starts[key][recording.rank] = message.start - _late(recording, recordings[0])
    found = []
    for recording, mine in zip(recordings, keys):
        found.append([])
        for message, key in zip(recording.messages, mine):
            others = {rank: start for rank, start in starts[key].items() if rank != recording.rank}
            last = max(others, key=others.get, default=recording.rank)
            came = others.get(last, 0) + _late(recording, recordings[0])
            found[-1].append((min(max(0, came - message.start), message.end - message.start), last))
    return found


def _late(recording: Recording, first: Recording) -> int:
    """How far a machine's clock is ahead of the first worker's: both left one barrier, but for a message's time."""
    return 0 if recording.host == first.host else recording.met - first.met


def _intervals(recording: Recording, waited: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Returns the intervals of each part but the rest: (start, end), overlapping ones too."""
    parts: dict[str, list[tuple[int, int]]] = {part: [] for part in PARTS}
    for name, start, end in recording.spans:
        if name in (DATA, OTHER):
            parts[name].append((start, end))
    if not recording.on_device:
        for message, (wait, _) in zip(recording.messages, waited):
            parts["waiting"].append((message.start, message.start + wait))
            parts["communication"].append((message.start + wait, message.end))
    for operator in recording.operators:
        parts["communication" if operator.collective else "compute"].append((operator.start, operator.end))
    return parts


def split_steps(recording: Recording, waited: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """Returns the parts of each step, and their sum under "wall": ms."""
    order = _ORDER_ON_DEVICE if recording.on_device else _ORDER
    named = _intervals(recording, waited)
    intervals = [(order.index(part), *both) for part, found in named.items() for both in found]
    steps = []
    for step in recording.steps:
        near = [i for i in intervals if i[1] < step.end and i[2] > step.start]
        values = dict(zip(order, divide(step.start, step.end, near, len(order))))
        steps.append({"wall": (step.end - step.start) / MS, **{part: values[part] / MS for part in PARTS}})
    return steps


def summarize(recordings: Sequence[Recording]) -> dict:
    """Returns what summary.json holds.

    Args:
        recordings: of all workers, in the order of their ranks, of the same steps.

    Returns:
        steps: their numbers. settings: what the advice depends on. workers: for each, "parts" (mean ms a step),
        "steps" (those of each step) and "waits_for" (mean ms a step, by rank). phases: mean ms a step of the first
        worker's spans, "loop" the rest. operators: of the first worker, see operator_table. tokens_per_second of all
        workers, padding: the share of places that hold none.
    """
    first, waited = recordings[0], waits(recordings)
    count = len(first.steps)
    workers = []
    for recording, mine in zip(recordings, waited):
        steps, waits_for = split_steps(recording, mine), [0.0] * len(recordings)
        evaluating = _covers(_evaluations(recording))
        for message, (wait, rank) in zip(recording.messages, mine):
            waits_for[rank] += 0.0 if evaluating(message.start) else wait / MS / count
        parts = {name: float(np.mean([step[name] for step in steps])) for name in ("wall", *PARTS)}
        workers.append({"rank": recording.rank, "parts": parts, "steps": steps, "waits_for": waits_for})
    readers = {recording.data_rank: recording for recording in recordings}.values()
    tokens = sum(step.tokens for recording in readers for step in recording.steps)
    places = sum(step.places for recording in readers for step in recording.steps)
    return {
        "steps": [step.number for step in first.steps],
        "settings": dict(first.settings),
        "tokens_per_step": tokens / count,
        "tokens_per_second": tokens / count / workers[0]["parts"]["wall"] * 1e3,
        "padding": 1 - tokens / places if places else 0.0,
        "phases": _phases(first),
        "workers": workers,
        "operators": operator_table(first, waited[0]),
    }


def _phases(recording: Recording) -> dict[str, float]:
    whole = sum(step.end - step.start for step in recording.steps)
    sums = {name: sum(end - start for span, start, end in recording.spans if span == name) for name in SPANS}
    sums["loop"] = whole - sum(sums.values())
    return {name: value / MS / len(recording.steps) for name, value in sums.items()}


def operator_table(recording: Recording, waited: Sequence[tuple[int, int]]) -> list[dict]:
    """Returns operators, kernels and messages by time, the longest first, those of evaluations left out.

    Each is a name, its source ("MindSpore", "C++ kernel", or the group of a message), calls and ms a step, waiting_ms
    of them, and the mean us of a call. What runs inside a message is in its time.
    """
    evaluating = _covers(_evaluations(recording))
    sending = _covers([] if recording.on_device else [(m.start, m.end) for m in recording.messages])
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])

    def add(name: str, source: str, event: Message | Operator, wait: int) -> None:
        for i, value in enumerate((1, event.end - event.start, wait)):
            sums[name, source][i] += value

    for message, (wait, _) in zip(recording.messages, waited):
        if sending(message.start) and not evaluating(message.start):
            add(message.operation, f"group {message.group}", message, wait)
    for operator in recording.operators:
        if not sending(operator.start) and not evaluating(operator.start):
            add(operator.name, operator.source, operator, 0)
    steps = len(recording.steps)
    rows = [
        {
            "name": name,
            "source": source,
            "calls": calls / steps,
            "ms": total / MS / steps,
            "waiting_ms": wait / MS / steps,
            "mean_us": total / calls / 1e3,
        }
        for (name, source), (calls, total, wait) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def _evaluations(recording: Recording) -> list[tuple[int, int]]:
    return [(start, end) for name, start, end in recording.spans if name == OTHER]


def _covers(intervals: Iterable[tuple[int, int]]) -> Callable[[int], bool]:
    """Returns moment -> whether one of these intervals, none of which overlap, holds it."""
    intervals = sorted(intervals)
    starts = [start for start, _ in intervals]

    def covers(moment: int) -> bool:
        place = bisect_right(starts, moment) - 1
        return place >= 0 and moment < intervals[place][1]

    return covers
