"""Attention against a plain PyTorch formula in float64, values and gradients, over odd shapes and every mask."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops

# B, T, S, H, K, C: T = 1; below, at and past tiles of 48 queries and 64 keys; widths that are no multiple of a vector
SHAPES = [
    (2, 1, 1, 1, 1, 5),
    (1, 5, 5, 3, 3, 5),
    (2, 49, 49, 3, 1, 16),
    (1, 130, 130, 2, 2, 64),
    (1, 200, 200, 2, 1, 20),
    (2, 3, 70, 4, 2, 8),
    (1, 50, 129, 6, 2, 24),
    (1, 1, 300, 4, 2, 64),
]


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def reference(q, k, v, scale, causal=True, key_mask=None, row_start=None, slopes=None, length=None, kept=None):
    """The definition in the docstring of stock.attention; kept: dropout's factors (B, H, T, L)."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    L = k.shape[1] if length is None else length
    q, k, v = (x.transpose(1, 2) for x in (q, k[:, :L], v[:, :L]))
    scores = scale * q @ k.repeat_interleave(group, 1).transpose(2, 3)
    distance = torch.arange(L)[None] - torch.arange(L - T, L)[:, None]
    visible = torch.ones(q.shape[0], 1, T, L, dtype=torch.bool)
    if causal:
        visible = visible & (distance <= 0)
    if key_mask is not None:
        visible = visible & torch.tensor(key_mask).bool()[:, None, None]
    if row_start is not None:
        visible = visible & (torch.arange(L) >= torch.tensor(row_start)[:, None, :, None])
    if slopes is not None:
        scores = scores + torch.tensor(slopes)[:, None, None] * distance
    weights = torch.softmax(torch.where(visible, scores, -1e30), -1) * visible
    if kept is not None:
        weights = weights * kept
    return (weights @ v.repeat_interleave(group, 1)).transpose(1, 2)


def compare(table, check, rng, shape, arrays=None, **options):
    B, T, S, H, K, C = shape
    tensors = {name: Tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}

    def function(q, k, v):
        return table.attention(q, k, v, C**-0.5, **tensors)

    arrays = arrays or (normal(rng, B, T, H, C), normal(rng, B, S, K, C), normal(rng, B, S, K, C))
    check(function, lambda q, k, v: reference(q, k, v, C**-0.5, **options), *arrays)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [True, False])
def test_plain(table, check, rng, shape, causal):
    compare(table, check, rng, shape, causal=causal)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_all_masks_together(table, check, rng, shape):
    B, T, S, H, _, _ = shape
    L = max(T, S - 3)
    key_mask = (rng.random((B, L)) < 0.8).astype(np.int32)
    row_start = rng.integers(0, max(1, L - T), (B, T)).astype(np.int32)
    slopes = (2.0 ** -np.arange(1, H + 1)).astype(np.float32)
    compare(table, check, rng, shape, key_mask=key_mask, row_start=row_start, slopes=slopes, length=L)


def test_packed_documents_do_not_see_each_other(table, check, rng):
    row_start = np.repeat([0, 70, 75, 160], [70, 5, 85, 40]).astype(np.int32)[None]
    compare(table, check, rng, (1, 200, 200, 2, 2, 8), row_start=row_start)


def test_keys_beyond_length_have_no_effect_and_no_gradient(table, rng):
    q, k, v = normal(rng, 1, 6, 2, 8), normal(rng, 1, 90, 2, 8), normal(rng, 1, 90, 2, 8)
    k[:, 70:] = np.nan
    v[:, 70:] = np.nan

    def total(*inputs):
        return ops.reduce_sum(table.attention(*inputs, 0.3, length=70))

    value, grads = ms.value_and_grad(total, (0, 1, 2))(*map(Tensor, (q, k, v)))
    assert np.isfinite(value.asnumpy())
    for grad in grads[1:]:
        assert (grad.asnumpy()[:, 70:] == 0).all() and np.isfinite(grad.asnumpy()).all()


@pytest.mark.parametrize("T", [1, 3, 70])
def test_a_query_that_sees_no_key_gives_zeros(table, check, rng, T):
    key_mask = np.ones((2, T), np.int32)
    key_mask[1] = 0
    out = table.attention(*(Tensor(normal(rng, 2, T, 2, 8)) for _ in range(3)), 1.0, key_mask=Tensor(key_mask))
    assert (out.asnumpy()[1] == 0).all() and (out.asnumpy()[0] != 0).all()
    compare(table, check, rng, (2, T, T, 2, 2, 8), key_mask=key_mask)


def test_more_queries_than_keys_leaves_the_first_ones_blind(table, check, rng):
    compare(table, check, rng, (1, 9, 5, 2, 2, 8))


def test_scores_of_any_size_do_not_overflow(table, rng):
    arrays = (100 * normal(rng, 1, 70, 1, 8), 100 * normal(rng, 1, 70, 1, 8), normal(rng, 1, 70, 1, 8))
    # The products are of the order 1e4, so a float32 score is only good to 1e-3: compare values loosely.
    out = table.attention(*map(Tensor, arrays), 0.35).asnumpy()
    want = reference(*(torch.tensor(a).double() for a in arrays), 0.35).numpy()
    assert np.abs(out - want).max() < 5e-3


def test_slices_of_one_projection_need_no_copies(table, check, rng):
    def function(qkv):
        q, k, v = (qkv[:, :, i * 16 : (i + 1) * 16].reshape(2, 70, 2, 8) for i in range(3))
        return table.attention(q, k, v, 0.5)

    def by_torch(qkv):
        return reference(*(x.reshape(2, 70, 2, 8) for x in qkv.split(16, -1)), 0.5)

    check(function, by_torch, normal(rng, 2, 70, 48))


def test_transposed_inputs(table, rng, assert_same):
    x = normal(rng, 2, 3, 70, 8)  # (B, H, T, C) seen as (B, T, H, C)
    out = table.attention(*[Tensor(x).transpose(0, 2, 1, 3)] * 3, 0.5).asnumpy()
    by_torch = torch.tensor(x).double().transpose(1, 2)
    assert_same(out, reference(by_torch, by_torch, by_torch, 0.5).numpy())


@pytest.mark.parametrize("T", [1, 70])
def test_dropout_keeps_the_share_and_the_gradient_follows_the_same_mask(table, check, rng, T):
    S, p = 70, 0.3
    shape = (2, T, 2, S)
    eye = np.broadcast_to(np.eye(S, dtype=np.float32)[None, :, None], (2, S, 2, S)).copy()

    def masked(q, k, v):
        table.set_rng_state({"seed": 5, "calls": 2})
        return table.attention(q, k, v, 0.5, causal=False, dropout=p)

    # Zero scores weigh keys equally and unit values show the weights, so the output shows the mask itself.
    weights = masked(Tensor(np.zeros(shape, np.float32)), Tensor(np.zeros((2, S, 2, S), np.float32)), Tensor(eye))
    kept = torch.tensor(np.round(weights.asnumpy() * S * (1 - p)) / (1 - p)).double().transpose(1, 2)
    assert abs(float((kept == 0).double().mean()) - p) < (0.05 if T == 70 else 0.2)
    check(
        masked,
        lambda q, k, v: reference(q, k, v, 0.5, causal=False, kept=kept),
        normal(rng, 2, T, 2, 8),
        normal(rng, 2, S, 2, 8),
        normal(rng, 2, S, 2, 8),
    )


def test_both_tables_drop_the_same_weights(cpp, rng, assert_same):
    from msllm import kernels
    from msllm.kernels import stock

    tensors = [Tensor(normal(rng, 2, 50, 2, 8)) for _ in range(3)]
    outs = []
    for module in (stock, cpp):
        kernels.set_seed(11)
        outs.append(module.attention(*tensors, 0.5, dropout=0.4).asnumpy())
    assert_same(outs[1], outs[0])
    assert kernels.get_rng_state() == {"seed": 11, "calls": 1}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"length": 0}, r"length 0 is outside \[1, 4\]"),
        ({"dropout": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"key_mask": Tensor(np.ones((1, 3), np.int32))}, r"expected key_mask \(1, 4\), got \(1, 3\)"),
        ({"key_mask": Tensor(np.ones((1, 4), np.float32))}, "need Int32, got Float32"),
        ({"slopes": Tensor(np.ones(2, np.float32))}, r"expected slopes \(1,\), got \(2,\)"),
    ],
)
def test_wrong_options_raise(cpp, rng, wrong, message):
    x = Tensor(normal(rng, 1, 4, 1, 8))
    with pytest.raises(ValueError, match=message):
        cpp.attention(x, x, x, 1.0, **wrong)


def test_wrong_shapes_and_types_raise(cpp, rng):
    x = Tensor(normal(rng, 1, 4, 3, 8))
    with pytest.raises(ValueError, match="K dividing H"):
        cpp.attention(x, x[:, :, :2], x[:, :, :2], 1.0)
    with pytest.raises(ValueError, match="need Float32, got Float16"):
        cpp.attention(x, x, x.astype(ms.float16), 1.0)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 49, 3, 16), (1, 130, 2, 64)])
def test_packed_projection(table, check, rng, shape, interleaved):
    B, T, H, C = shape
    slopes, mask = normal(rng, H), rng.integers(0, 2, (B, T)).astype(np.int32)

    def function(qkv):
        return table.packed_attention(qkv, H, interleaved, 0.3, key_mask=Tensor(mask), slopes=Tensor(slopes))

    def definition(qkv):
        parts = qkv.reshape(B, T, H, 3, C).unbind(3) if interleaved else qkv.reshape(B, T, 3, H, C).unbind(2)
        return reference(*parts, 0.3, key_mask=mask, slopes=slopes).reshape(B, T, H * C)

    check(function, definition, normal(rng, B, T, 3 * H * C))
