"""Linear, embedding, activations, norms, rotary and the loss against PyTorch in float64, values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8), (1, 1, 8), (300, 8)])
@pytest.mark.parametrize("width", [5, 130])
def test_linear(table, check, rng, shape, width):
    check(table.linear, F.linear, normal(rng, *shape), normal(rng, width, 8), normal(rng, width))


def test_linear_without_bias(table, check, rng):
    check(table.linear, F.linear, normal(rng, 2, 3, 8), normal(rng, 5, 8))


def test_embedding_adds_the_gradients_of_repeated_ids(table, check, rng):
    ids = np.array([[3, 0, 3, 6, 3], [1, 3, 0, 0, 2]], np.int32)

    def function(weight):
        return table.embedding(Tensor(ids), weight)

    check(function, lambda weight: F.embedding(torch.tensor(ids).long(), weight), normal(rng, 7, 5))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(table, check, approximate):
    x = np.linspace(-12, 12, 4001, dtype=np.float32).reshape(1, -1)

    def function(values):
        return table.gelu(values, approximate)

    check(function, lambda values: F.gelu(values, approximate=approximate), x)


def test_gelu_of_the_cpp_table_keeps_its_lower_tail(cpp):
    x = np.linspace(-9, -3, 101).astype(np.float32)
    exact = torch.tensor(x, dtype=torch.float64)
    want = 0.5 * exact * torch.erfc(-exact * 0.5**0.5)
    np.testing.assert_allclose(cpp.gelu(Tensor(x)).asnumpy(), want.numpy(), rtol=6e-6)


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 33), (20000,)])
def test_swiglu(table, check, rng, shape):
    check(table.swiglu, lambda gate, up: F.silu(gate) * up, 3 * normal(rng, *shape), normal(rng, *shape))


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 33), (700, 64)])
def test_layer_norm(table, check, rng, shape):
    D = shape[-1]

    def function(x, weight, bias):
        return table.layer_norm(x, weight, bias, 1e-5)

    check(
        function,
        lambda x, w, b: F.layer_norm(x, (D,), w, b, 1e-5),
        1 + normal(rng, *shape),
        normal(rng, D),
        normal(rng, D),
    )


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 33), (700, 64)])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_add_and_norm(table, check, rng, shape, kind):
    D = shape[-1]

    def function(x, add, weight, bias):
        if kind == "layer":
            total, y = table.add_layer_norm(x, add, weight, bias, 1e-5)
        else:
            total, y = table.add_rms_norm(x, add, weight, 1e-5)
        return 0.5 * total + 2.0 * y + bias

    def reference(x, add, weight, bias):
        total = x + add
        norm = (
            F.layer_norm(total, (D,), weight, bias, 1e-5) if kind == "layer" else F.rms_norm(total, (D,), weight, 1e-5)
        )
        return 0.5 * total + 2.0 * norm + bias

    check(function, reference, normal(rng, *shape), normal(rng, *shape), normal(rng, D), normal(rng, D))


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 1, 8), (300, 8)])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_linear_and_gelu(table, check, rng, shape, approximate):
    def function(x, weight, bias):
        return table.linear_gelu(x, weight, bias, approximate)

    def reference(x, weight, bias):
        return F.gelu(F.linear(x, weight, bias), approximate=approximate)

    check(function, reference, normal(rng, *shape), normal(rng, 130, 8), normal(rng, 130))


def test_embedding_sum_repeats_ids_that_lack_the_batch(table, check, rng):
    words, kinds = rng.integers(0, 7, (3, 5)).astype(np.int32), rng.integers(0, 2, (3, 5)).astype(np.int32)
    places = np.arange(5, dtype=np.int32)[None]

    def function(*weights):
        return table.embedding_sum((Tensor(words), Tensor(kinds), Tensor(places)), weights)

    def reference(*weights):
        ids = (torch.tensor(i).long() for i in (words, kinds, places))
        return sum(F.embedding(i, weight) for i, weight in zip(ids, weights, strict=True))

    check(function, reference, normal(rng, 7, 6), normal(rng, 2, 6), normal(rng, 9, 6))


def test_rotary_angles(table, rng):
    positions = rng.integers(0, 4000, (2, 7)).astype(np.int32)
    frequency = (1e4 ** -np.linspace(0, 1, 5)).astype(np.float32)
    cos, sin = table.rotary_angles(Tensor(positions), Tensor(frequency))
    angle = (positions[..., None].astype(np.float32) * frequency).astype(np.float64)
    np.testing.assert_allclose(cos.asnumpy(), np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin.asnumpy(), np.sin(angle), atol=1e-6)


def test_layer_norm_of_equal_numbers_is_the_bias(table):
    x, ones = np.full((2, 16), 3.0, np.float32), np.ones(16, np.float32)
    got = table.layer_norm(Tensor(x), Tensor(ones), Tensor(2 * ones), 1e-5)
    np.testing.assert_allclose(got.asnumpy(), 2.0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 33), (700, 64)])
def test_rms_norm(table, check, rng, shape):
    def function(x, weight):
        return table.rms_norm(x, weight, 1e-6)

    check(function, lambda x, w: F.rms_norm(x, shape[-1:], w, 1e-6), normal(rng, *shape), normal(rng, shape[-1]))


@pytest.mark.parametrize("tables", [1, 2])
def test_rotary(table, check, rng, tables):
    angle = normal(rng, tables, 7, 5)
    cos, sin = np.cos(angle), np.sin(angle)

    def function(x):
        return table.rotary(x, Tensor(cos), Tensor(sin))

    def reference(x):  # transformers' apply_rotary_pos_emb
        turned = torch.cat((-x[..., 5:], x[..., :5]), -1)
        full = [torch.tensor(np.concatenate((a, a), -1)).double()[:, :, None] for a in (cos, sin)]
        return x * full[0] + turned * full[1]

    check(function, reference, normal(rng, 2, 7, 3, 10))


@pytest.mark.parametrize("V", [9, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(table, check, rng, V, smoothing):
    labels = np.array([1, -100, 3, 0, V - 1], np.int32)

    def function(logits):
        return table.cross_entropy(logits, Tensor(labels), smoothing=smoothing)

    def reference(logits):
        return F.cross_entropy(logits, torch.tensor(labels).long(), reduction="none", label_smoothing=smoothing)

    check(function, reference, 5 * normal(rng, 5, V))


def test_cross_entropy_of_ignored_rows_is_zero_with_zero_gradient(table, check, rng):
    labels = np.full(3, 7, np.int32)

    def function(logits):
        return table.cross_entropy(logits, Tensor(labels), ignore_index=7)

    assert (function(Tensor(normal(rng, 3, 9))).asnumpy() == 0).all()
    check(function, lambda logits: 0 * logits.sum(-1), normal(rng, 3, 9))


def test_cross_entropy_of_large_logits_stays_exact(table):
    logits = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    got = table.cross_entropy(Tensor(logits), Tensor(np.array([1], np.int32))).asnumpy()
    np.testing.assert_allclose(got, [1.3132617], rtol=3e-6)


def test_nan_stays_nan(table, rng):
    x = normal(rng, 4, 8)
    x[2, 5] = np.nan
    ones = Tensor(np.ones(8, np.float32))
    labels = Tensor(np.array([0, 1, 2, 3], np.int32))
    rows = {
        "gelu": table.gelu(Tensor(x)),
        "gelu tanh": table.gelu(Tensor(x), "tanh"),
        "swiglu": table.swiglu(Tensor(x), Tensor(x)),
        "layer_norm": table.layer_norm(Tensor(x), ones, ones, 1e-5),
        "rms_norm": table.rms_norm(Tensor(x), ones, 1e-5),
        "cross_entropy": table.cross_entropy(Tensor(x), labels),
        "attention": table.attention(*[Tensor(x.reshape(4, 1, 1, 8))] * 3, scale=1.0),
    }
    for name, got in rows.items():
        bad = np.isnan(got.asnumpy().reshape(4, -1)).any(-1)
        assert bad.tolist() == [False, False, True, False], name
    assert np.isnan(table.sum_squares([Tensor(x)]))
