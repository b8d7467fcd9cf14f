"""Boxes: any part is taken apart without a gap or an overlap, and read from any others."""

import itertools

import numpy as np
import pytest

from msllm.parallel.boxes import boxes_of, common, moved, span, view, without
from msllm.parallel.sharded import ShardedCheckpoint, finish, write_part
from msllm.parallel.slices import Slice


def random_shape(rng) -> tuple[int, ...]:
    """Up to four axes, none of them empty."""
    return tuple(int(n) for n in rng.integers(1, 7, int(rng.integers(0, 5))))


def random_box(shape, rng):
    """A box of such an array that is not empty."""
    starts = [int(rng.integers(0, n)) for n in shape]
    return tuple((start, int(rng.integers(start, n)) + 1) for start, n in zip(starts, shape))


def at(box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def random_parts(shape, rng) -> list[Slice]:
    """Parts that make a parameter: ranges dealt out along a random axis, some of them cut again when flat."""

    def cuts(size, count):
        limits = [0, *np.sort(rng.integers(0, size + 1, count - 1)).tolist(), size]
        return list(itertools.pairwise(limits))

    parts = [Slice("w", shape)]
    if shape and rng.random() < 0.8:
        axis, workers = int(rng.integers(len(shape))), int(rng.integers(1, 4))
        ranges = cuts(shape[axis], workers * int(rng.integers(1, 4)))
        parts = [Slice("w", shape, axis, tuple(ranges[i::workers])) for i in range(workers)]
    out = []
    for part in parts:
        flat = cuts(part.size, int(rng.integers(1, 5))) if rng.random() < 0.5 else [None]
        out += [Slice("w", shape, part.axis, part.ranges, f) for f in flat]
    return [out[i] for i in rng.permutation(len(out))]


def test_any_parts_are_read_from_any_others(tmp_path):
    rng = np.random.default_rng(1)
    for trial in range(60):
        shape = random_shape(rng)
        whole = rng.standard_normal(shape).astype(rng.choice(["float32", "float16", "float64", "int8"]))
        folder, parts = tmp_path / str(trial), random_parts(shape, rng)
        for rank in range(2):  # a worker may hold several parts of a name
            held = [("param", part, np.asarray(part.of(whole))) for part in parts[rank::2]]
            write_part(folder, rank, held)
        finish(folder, 2, {})
        checkpoint = ShardedCheckpoint(folder)
        assert [s for r in range(2) for s in checkpoint.slices(r, "param")] == parts[::2] + parts[1::2]
        for part in [Slice("w", shape), *random_parts(shape, rng)]:
            got = checkpoint.read("param", part)
            assert got.dtype == whole.dtype and got.shape == part.local_shape
            assert np.array_equal(got, part.of(whole)), (shape, parts, part)


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def test_boxes_hold_each_element_of_a_part_once_and_say_where_it_lies(rng):
    for _ in range(200):
        shape = random_shape(rng)
        numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        for part in random_parts(shape, rng):
            found = boxes_of(part)
            got = np.concatenate([np.array([], int), *(numbers[at(box)].reshape(-1) for box, _ in found)])
            assert sorted(got) == sorted(part.of(numbers).reshape(-1)), part
            whole = Slice(part.name, shape, part.axis, part.ranges).of(numbers)  # before a flat range is taken
            for box, shift in found:
                assert np.array_equal(whole[at(moved(box, part.axis, -shift))], numbers[at(box)]), (part, box)


def test_two_boxes_have_their_overlap_in_common_and_the_rest_without_it(rng):
    apart = 0
    for _ in range(300):
        shape = random_shape(rng)
        a, b = random_box(shape, rng), random_box(shape, rng)
        counts = np.zeros((2, *shape), int)
        counts[(0, *at(a))] = counts[(1, *at(b))] = 1
        both = counts.all(0)
        shared = common(a, b)
        assert (shared is None) == (not both.any())
        if shared is None:
            apart += 1
            continue
        assert both[at(shared)].all() and both.sum() == both[at(shared)].size
        rest = np.zeros(shape, int)
        for box in without(a, shared):
            rest[at(box)] += 1
        assert np.array_equal(rest, counts[0] - both)
    assert 20 < apart < 280


def test_a_view_reads_and_writes_a_box_of_what_lies_flat(rng):
    for _ in range(100):
        shape = random_shape(rng)
        whole = rng.standard_normal(shape)
        box = random_box(shape, rng)
        flat = whole.reshape(-1)
        first, stop = span(shape, box)
        assert flat[first] == whole[at(box)].flat[0] and flat[stop - 1] == whole[at(box)].flat[-1]
        piece = flat[first:stop].copy()
        assert np.array_equal(view(piece, shape, box, first), whole[at(box)])
        view(flat, shape, box, 0)[...] = 0
        assert not whole[at(box)].any() and np.count_nonzero(whole) == whole.size - whole[at(box)].size
