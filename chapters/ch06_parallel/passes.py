"""What the passes of a pipeline's step say: how long a stage waits, how many inputs it keeps; for run.py.

A pass is (kind, chunk, micro-batch, start, stop), as Pipeline.events has it; a step is a list of passes a stage.
"""

import statistics

from msllm.parallel.schedule import BACKWARD, FORWARD


def span(step: list) -> float:
    """Returns the seconds from the first start of any stage to the last stop."""
    return max(p[-1][4] for p in step) - min(p[0][3] for p in step)


def typical(steps: list) -> list:
    """Returns the step of median length."""
    return sorted(steps, key=span)[len(steps) // 2]


def idle(step: list) -> list[float]:
    """Returns the share of the step that each stage waits."""
    return [1 - sum(stop - start for *_, start, stop in passes) / span(step) for passes in step]


def most_kept(passes: list) -> int:
    """Returns how many micro-batches had at most been forward and not yet backward; each chunk keeps its own."""
    kept = most = 0
    for kind, *_ in passes:
        kept += 1 if kind == FORWARD else -1
        most = max(most, kept)
    return most


def without_delays(step: list) -> list:
    """Returns the step as it were if messages took no time and passes of one kind on one chunk were equally long."""
    stages, chunks = len(step), 1 + max(p[1] for p in step[0])
    took: dict[tuple, list[float]] = {}
    for stage, passes in enumerate(step):
        for kind, chunk, _, start, stop in passes:
            took.setdefault((stage, kind, chunk), []).append(stop - start)
    done: dict[tuple, float] = {}  # (kind, part of the model, micro-batch) -> when
    replayed: list[list] = [[] for _ in step]
    while any(len(new) < len(old) for new, old in zip(replayed, step)):
        for stage, (new, old) in enumerate(zip(replayed, step)):
            if len(new) == len(old):
                continue
            kind, chunk, micro_batch, *_ = old[len(new)]
            part = chunk * stages + stage
            before, last = (part - 1, part == 0) if kind == FORWARD else (part + 1, part == stages * chunks - 1)
            needed = 0.0 if last else done.get((kind, before, micro_batch))
            if needed is None:
                continue
            start = max(needed, new[-1][4] if new else 0.0)
            stop = start + statistics.median(took[stage, kind, chunk])
            done[kind, part, micro_batch] = stop
            new.append((kind, chunk, micro_batch, start, stop))
    return replayed


def milliseconds(step: list, kind: str) -> list[float]:
    """Returns how long a pass takes on each stage: the median over all of its kind."""
    return [1000 * statistics.median(stop - start for k, *_, start, stop in passes if k == kind) for passes in step]


def summary(schedule: dict) -> dict:
    """Returns the figures of one schedule of on_workers.timeline, of its step of median length."""
    from msllm.parallel.schedule import bubble

    step = typical(schedule["steps"])
    return {
        "schedule": schedule["schedule"],
        "chunks": schedule["chunks"],
        "layers": schedule["layers"],
        "seconds": span(step),
        "idle": idle(step),
        "idle_without_delays": idle(without_delays(step)),
        "formula": bubble(len(step), schedule["micro_batches"], schedule["chunks"]),
        "most_kept": [most_kept(passes) for passes in step],
        "forward_ms": milliseconds(step, FORWARD),
        "backward_ms": milliseconds(step, BACKWARD),
        "passes": step,
    }
