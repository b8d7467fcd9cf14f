"""The figures show the numbers they are given."""

import numpy as np
import pytest

from msllm.classic import figures


def test_bars_are_as_long_as_the_bits():
    rows = [{"name": n, "kind": k, "bits": b} for n, k, b in (("a", "x", 6.0), ("b", "x", 2.5), ("c", "y", 2.0))]
    axes = figures.bars(rows).axes[0]
    assert [p.get_width() for p in axes.patches] == [6.0, 2.5, 2.0]
    colours = [p.get_facecolor() for p in axes.patches]
    assert colours[0] == colours[1] != colours[2]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in axes.texts] == ["6.00", "2.50", "2.00"]


def test_by_order():
    rows = [
        {"name": f"{f}, n = {n}", "context": n - 1, "bits": 4.5 / n + (f == "B"), "stored": n * 1e6}
        for f in "AB"
        for n in (2, 3)
    ]
    axes = figures.by_order(rows, ["A", "B"]).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[2, 2.25], [3, 1.5]], [[2, 3.25], [3, 2.5]]]


def test_by_context_joins_neighbours():
    axes = figures.by_context({"fixed": [(1, 3.5), (5, 2.2)]}, {"net": list(range(1, 65))}).axes[0]
    fixed, net = axes.lines
    assert fixed.get_xydata().tolist() == [[1, 3.5], [5, 2.2]]
    x, y = net.get_xydata().T
    np.testing.assert_allclose(x, y)  # the mean of 1, 2, ... over a span is its middle
    assert x[:3].tolist() == [1, 2, 3] and x[-1] == pytest.approx(np.mean(range(48, 65)))


def test_curves_and_levels():
    axes = figures.curves({"net": [(100, 4.0), (200, 3.0), (400, 2.5)]}, {"level": 2.2}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[100, 4.0], [200, 3.0], [400, 2.5]]
    assert set(axes.lines[1].get_ydata()) == {2.2}


def test_timeline_leaves_out_what_a_paper_does_not_say():
    rows = [
        {"name": "old", "date": "2003-02", "kind": "neural", "parameters": None, "training_tokens": 14e6},
        {"name": "new", "date": "2024-12", "kind": "Transformer", "parameters": 72e9, "training_tokens": 18e12},
    ]
    left, right = figures.timeline(rows).axes
    points = [[tuple(p) for c in axes.collections for p in c.get_offsets()] for axes in (left, right)]
    assert points == [[(72e9, 1)], [(14e6, 0), (18e12, 1)]]
    assert [t.get_text() for t in left.texts] == ["72B"] and [t.get_text() for t in right.texts] == ["14M", "18T"]
    assert [t.get_text() for t in left.get_yticklabels()] == ["old  2003-02", "new  2024-12"]


def test_words_are_drawn_at_their_principal_components():
    from sklearn.decomposition import PCA

    vectors = np.random.default_rng(0).standard_normal((12, 5))
    axes = figures.words([str(i) for i in range(12)], vectors).axes[0]
    want = PCA(2).fit_transform(vectors)
    np.testing.assert_allclose(np.abs(axes.collections[0].get_offsets()), np.abs(want), rtol=1e-6)
    assert [t.get_text() for t in axes.texts] == [str(i) for i in range(12)]
