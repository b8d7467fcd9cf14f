"""Schedules: every pass once, no deadlock, idle time as the formula says; layers cut into the best parts."""

import collections
import itertools

import numpy as np
import pytest

from msllm.parallel.schedule import BACKWARD, FORWARD, Work, bubble, cut, order

# (schedule, stages, micro-batches, chunks) of all that ParallelConfig.check lets pass.
PIPELINES = [(name, p, m, 1) for name in ("gpipe", "1f1b") for p in range(1, 5) for m in range(1, 9)]
PIPELINES += [("interleaved", p, m, v) for p in range(2, 5) for m in range(p, 9, p) for v in (2, 3)]


def programs(schedule, stages, micro_batches, chunks) -> list[list[Work]]:
    """What each stage does."""
    return [order(schedule, stages, stage, micro_batches, chunks) for stage in range(stages)]


def run(works: list[list[Work]], chunks: int) -> dict[tuple[str, int, int], tuple[int, int]]:
    """Runs all stages together, each pass a unit of time: (kind, part of the model, micro-batch) -> (start, stop).

    A stage does nothing but wait until what its next pass needs has come; where all wait, this fails.
    """
    stages = len(works)
    parts, free, waiting = stages * chunks, [0] * stages, [collections.deque(w) for w in works]
    times: dict[tuple[str, int, int], tuple[int, int]] = {}
    while any(waiting):
        moved = False
        for stage, queue in enumerate(waiting):
            while queue:
                work = queue[0]
                part = work.chunk * stages + stage
                needs = [(FORWARD, part - 1, work.micro_batch)] if part > 0 else []
                if work.kind == BACKWARD:
                    needs = [(FORWARD, part, work.micro_batch)]
                    needs += [(BACKWARD, part + 1, work.micro_batch)] if part < parts - 1 else []
                if not all(need in times for need in needs):
                    break
                start = max([free[stage], *(times[need][1] for need in needs)])
                assert (work.kind, part, work.micro_batch) not in times, f"{work} twice on stage {stage}"
                times[work.kind, part, work.micro_batch] = start, start + 1
                free[stage], moved = start + 1, True
                queue.popleft()
        assert moved, f"all wait: {[queue[0] if queue else None for queue in waiting]}"
    return times


@pytest.mark.parametrize(("schedule", "stages", "micro_batches", "chunks"), PIPELINES)
def test_every_pass_runs_once_and_nobody_waits_for_ever(schedule, stages, micro_batches, chunks):
    works = programs(schedule, stages, micro_batches, chunks)
    every = {(kind, c, m) for kind in (FORWARD, BACKWARD) for c in range(chunks) for m in range(micro_batches)}
    for program in works:
        assert len(program) == len(every) and {(w.kind, w.chunk, w.micro_batch) for w in program} == every
    times = run(works, chunks)
    end = max(stop for _, stop in times.values())
    for stage in range(stages):
        busy = sum(1 for _, part, _ in times if part % stages == stage)
        assert (end - busy) / end == bubble(stages, micro_batches, chunks)


def test_an_order_that_would_never_end_is_found():
    first, last = programs("1f1b", 2, 2, 1)
    with pytest.raises(AssertionError, match="all wait"):
        run([first[::-1], last], 1)
    with pytest.raises(AssertionError, match="all wait"):  # the first has too few forward passes to begin with
        run([last, first], 1)


@pytest.mark.parametrize(("schedule", "stages", "micro_batches", "chunks"), PIPELINES)
def test_how_many_inputs_a_stage_keeps(schedule, stages, micro_batches, chunks):
    for stage, program in enumerate(programs(schedule, stages, micro_batches, chunks)):
        counts = list(itertools.accumulate(1 if work.kind == FORWARD else -1 for work in program))
        start = 2 * (stages - stage - 1) + (chunks - 1) * stages
        bounds = {"gpipe": micro_batches, "1f1b": stages - stage, "interleaved": start + 1}
        assert max(counts) == min(bounds[schedule], micro_batches * chunks) and min(counts) == counts[-1] == 0


def words(program: list[Work]) -> str:
    """Such as F0.1: forward, chunk 0, micro-batch 1."""
    return " ".join(f"{work.kind[0].upper()}{work.chunk}.{work.micro_batch}" for work in program)


def test_orders_are_those_of_the_papers():
    assert words(order("gpipe", 3, 1, 3)) == "F0.0 F0.1 F0.2 B0.0 B0.1 B0.2"
    first = "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3"
    assert words(order("1f1b", 3, 0, 4)) == first
    assert words(order("1f1b", 3, 2, 4)) == "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3"
    start, steady = "F0.0 F0.1 F1.0 F1.1 F0.2 B1.0", "F0.3 B1.1 F1.2 B0.0 F1.3 B0.1"
    assert words(order("interleaved", 2, 0, 4, 2)) == f"{start} {steady} B1.2 B1.3 B0.2 B0.3"
    start, steady = "F0.0 F0.1 F1.0 B1.0", "F1.1 B1.1 F0.2 B0.0 F0.3 B0.1 F1.2 B1.2 F1.3 B1.3"
    assert words(order("interleaved", 2, 1, 4, 2)) == f"{start} {steady} B0.2 B0.3"


def all_cuts(layers: int, parts: int):
    """Every way to deal layers out in order."""
    for places in itertools.combinations(range(1, layers), parts - 1):
        yield list(zip((0, *places), (*places, layers)))


def stage_costs(bounds, costs, first, last, last_share) -> np.ndarray:
    """What each stage takes."""
    found = np.array([sum(costs[start:stop]) for start, stop in bounds], float)
    found[-1] *= last_share
    found[0] += first
    found[-1] += last
    return found


def test_a_cut_is_the_best_of_all():
    rng = np.random.default_rng(0)
    several = 0
    for trial in range(600):
        layers = int(rng.integers(1, 9))
        parts = int(rng.integers(1, layers + 1))
        costs = (rng.integers(1, 9, layers) if trial % 2 else rng.random(layers)).astype(float).tolist()
        ends = (*rng.integers(0, 8, 2).tolist(), (1.0, 0.75, 0.5)[trial % 3])
        bounds = cut(costs, parts, *ends)
        assert bounds in list(all_cuts(layers, parts))  # in order, without a gap, none empty
        every = np.stack([stage_costs(b, costs, *ends) for b in all_cuts(layers, parts)])
        dearest, squares = every.max(1), (every**2).sum(1)
        best = dearest <= dearest.min() + 1e-12
        mine = stage_costs(bounds, costs, *ends)
        assert mine.max() <= dearest.min() + 1e-12 and (mine**2).sum() <= squares[best].min() + 1e-9
        several += best.sum() > 1
    assert several > 100  # with other stages that are more or less even


def test_the_other_stages_are_even_even_where_a_start_with_a_cheaper_dearest_stage_is_not():
    """The last stage is the dearest anyway: 50, 24, 24 have less squares than 10, 40, 48, whose dearest is cheaper."""
    assert cut([10.0, 40.0, 24.0, 24.0, 10.0], 4, last=60.0) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert cut([10.0, 40.0, 24.0, 24.0], 3) == [(0, 1), (1, 2), (2, 4)]


def test_like_layers_are_dealt_out_evenly_and_the_first_stages_have_one_more():
    assert cut([1.0] * 8, 3) == [(0, 3), (3, 6), (6, 8)]
    assert cut([1.0] * 8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert cut([1.0] * 12, 5) == [(0, 3), (3, 6), (6, 8), (8, 10), (10, 12)]
    assert cut([1.0] * 4, 2, last=2.0) == [(0, 3), (3, 4)]
    assert cut([1.0] * 4, 2, first=2.0) == [(0, 1), (1, 4)]
    assert cut([1.0] * 7, 2, last_share=0.75) == [(0, 3), (3, 7)]
    assert cut([3.0], 1) == [(0, 1)]
