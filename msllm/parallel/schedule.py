"""In which order a stage of a pipeline works, and how layers are dealt out to stages."""

import dataclasses
import math
from collections.abc import Callable, Sequence

FORWARD, BACKWARD = "forward", "backward"


@dataclasses.dataclass(frozen=True)
class Work:
    """One pass of one micro-batch through one piece of a stage."""

    kind: str
    chunk: int
    micro_batch: int


def order(schedule: str, stages: int, stage: int, micro_batches: int, chunks: int = 1) -> list[Work]:
    """Returns what a stage does, first to last.

    Args:
        schedule: "gpipe": all forward passes, then all backward passes (Huang et al. 2019, figure 2); "1f1b": after a
            start, one of each in turn, so that at most ``stages`` inputs are kept (Narayanan et al. 2019, figure 4);
            "interleaved": the same with ``chunks`` pieces on each stage, and a shorter start (Narayanan et al. 2021,
            figure 4), which needs a multiple of ``stages`` micro-batches.
    """
    total = micro_batches * chunks
    if schedule == "gpipe":
        start = total
    elif schedule == "1f1b":
        start = min(stages - stage - 1, total)
    else:
        start = min((stages - stage - 1) * 2 + (chunks - 1) * stages, total)
    forward = [Work(FORWARD, *_piece(k, stages, chunks)) for k in range(total)]
    backward = [Work(BACKWARD, chunks - 1 - c, m) for c, m in (_piece(k, stages, chunks) for k in range(total))]
    steady = [work for pair in zip(forward[start:], backward) for work in pair]
    return [*forward[:start], *steady, *backward[total - start :]]


def _piece(k: int, stages: int, chunks: int) -> tuple[int, int]:
    """Chunk and micro-batch of the k-th pass: ``stages`` micro-batches through one chunk, then through the next."""
    if chunks == 1:
        return 0, k
    rounds, rest = divmod(k, stages * chunks)
    return rest // stages, rounds * stages + rest % stages


def bubble(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Returns the share of a step that a stage waits, where all passes take equally long.

    (p - 1) / (v m + p - 1) with p stages, m micro-batches and v chunks (Narayanan et al. 2021, section 2.2, as a share
    of the whole step).
    """
    return (stages - 1) / (chunks * micro_batches + stages - 1)


def cut(
    costs: Sequence[float], parts: int, first: float = 0.0, last: float = 0.0, last_share: float = 1.0
) -> list[tuple[int, int]]:
    """Deals layers out to ``parts`` stages in order.

    The dearest stage is as cheap as can be; of the cuts for which it is, this one has the least sum of squares, so that
    the other stages are even.

    Args:
        costs: of each layer; at least as many as parts.
        first, last: of what the first stage has before its layers, and the last one after them.
        last_share: of its costs, a layer on the last stage has this share.

    Returns:
        (start, stop) of each part; none is empty.
    """
    layers = len(costs)
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    def cost(part: int, start: int, stop: int) -> float:
        if part == parts - 1:
            return last_share * (sums[stop] - sums[start]) + last + (first if part == 0 else 0.0)
        return sums[stop] - sums[start] + (first if part == 0 else 0.0)

    def best(extended: Callable[[float, float], float]) -> list[dict[int, tuple[float, int]]]:
        """[part][stop]: the least value of the layers before stop, and minus where its last part starts."""
        choices = [{stop: (extended(0.0, cost(0, 0, stop)), 0) for stop in range(1, layers + 1)}]
        for part in range(1, parts):
            before = choices[-1]
            choices.append(
                {
                    stop: min(
                        (extended(before[start][0], cost(part, start, stop)), -start) for start in range(part, stop)
                    )
                    for stop in range(part + 1, layers + 1)
                }
            )
        return choices

    dearest = best(max)[-1][layers][0]
    choices = best(lambda squares, one: squares + one * one if one <= dearest else math.inf)
    bounds, stop = [], layers
    for part in reversed(range(parts)):
        start = -choices[part][stop][1]
        bounds.append((start, stop))
        stop = start
    return bounds[::-1]
