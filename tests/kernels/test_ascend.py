"""The choices of the Ascend table, with fakes in place of the fused operators: no Ascend device is needed.

The fakes compute with stock kernels what the documentation promises, so masks, layouts and arguments are checked;
the operators' own numbers are not.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from msllm.kernels import ascend, stock


def normal(rng, *shape, dtype=ms.float16):
    return Tensor(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


@pytest.mark.parametrize(
    "change, fits",
    [
        ({}, True),
        ({"dtype": ms.bfloat16}, True),
        ({"dtype": ms.float32}, False),
        ({"q_shape": (2, 8, 4, 24)}, False),
        ({"q_shape": (2, 8, 4, 528)}, False),
        ({"q_shape": (2049, 8, 4, 64)}, False),
        ({"q_shape": (2, 8, 257, 64)}, False),
        ({"slopes": True}, False),
        ({"dropout": 0.1}, False),
        ({"k_shape": (2, 2**19 + 1, 2, 64)}, False),
    ],
)
def test_flash_attention_is_taken_where_its_conditions_hold(change, fits):
    assert (
        ascend.supports_flash(**{"q_shape": (2, 8, 4, 64), "k_shape": (2, 9, 2, 64), "dtype": ms.float16, **change})
        is fits
    )


def test_other_conditions():
    f16, f32 = ms.float16, ms.float32
    assert ascend.supports_rms_norm((f32, f32), 1e-6) and not ascend.supports_rms_norm((f16, f32), 1e-6)
    assert not ascend.supports_rms_norm((f32, f32), 0.0)
    assert ascend.supports_rotary((1, 4, 2, 64), (f16, f16, f16))
    assert not ascend.supports_rotary((1, 4, 2, 64), (f16, f32, f32))
    assert not ascend.supports_rotary((1, 4, 2, 896), (f16, f16, f16))
    assert not ascend.supports_rotary((1000, 4, 2, 64), (f16, f16, f16))
    assert ascend.supports_adamw([f32] * 4, 0.1, 3) and ascend.supports_adamw([f16, f16, f32, f32], 0.1, 3)
    assert not ascend.supports_adamw([f32, f16, f32, f32], 0.1, 3)
    assert not ascend.supports_adamw([f32] * 4, Tensor(0.1), 3)


@pytest.fixture
def flash(monkeypatch):
    """Replaces flash_attention_score by its definition, and records what it was given."""
    calls = []

    def fake(query, key, value, head_num, attn_mask=None, scalar_value=1.0, input_layout="BSH", sparse_mode=0):
        calls.append((attn_mask, sparse_mode))
        assert input_layout == "BSND" and head_num == query.shape[2]
        q, k, v = (ops.transpose(x.astype(ms.float32), (0, 2, 1, 3)).asnumpy() for x in (query, key, value))
        k, v = (np.repeat(x, q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = scalar_value * q @ k.swapaxes(2, 3)
        T, L = scores.shape[2:]
        if sparse_mode == 3:
            assert attn_mask.shape == (2048, 2048)
            hidden = np.triu(np.ones((T, L), bool), L - T + 1)
        else:
            hidden = np.zeros((T, L), bool) if attn_mask is None else attn_mask.asnumpy()
        weights = np.exp(np.where(hidden, -1e4, scores) - scores.max())
        out = weights / weights.sum(-1, keepdims=True) @ v
        return Tensor(out.swapaxes(1, 2)).astype(query.dtype)

    monkeypatch.setattr(ops, "flash_attention_score", fake)
    return calls


@pytest.mark.parametrize(
    "options, mode",
    [
        ({}, 3),
        ({"causal": False}, 0),
        ({"length": 7}, 3),
        ({"key_mask": Tensor(np.array([[1] * 9, [0] * 3 + [1] * 6], np.int32))}, 0),
        ({"key_mask": Tensor(np.array([[1] * 9, [0] * 9], np.int32)), "causal": False}, 0),
        ({"row_start": Tensor(np.array([[0, 0, 4, 4, 7]] * 2, np.int32))}, 0),
    ],
)
def test_flash_attention_gets_masks_that_mean_the_same(flash, rng, options, mode):
    q, k, v = normal(rng, 2, 5, 4, 16), normal(rng, 2, 9, 2, 16), normal(rng, 2, 9, 2, 16)
    got = ascend.attention(q, k, v, 0.25, **options).astype(ms.float32).asnumpy()
    want = stock.attention(*(x.astype(ms.float32) for x in (q, k, v)), 0.25, **options).asnumpy()
    assert [call[1] for call in flash] == [mode]
    np.testing.assert_allclose(got, want, atol=3e-3)


def test_attention_in_float32_or_with_alibi_is_the_stock_one(flash, rng):
    q = normal(rng, 1, 4, 2, 16, dtype=ms.float32)
    slopes = Tensor(np.array([0.5, 0.25], np.float32))
    for x, options in ((q, {}), (q, {"slopes": slopes})):
        got = ascend.attention(x, x, x, 0.25, **options)
        assert (got.asnumpy() == stock.attention(x, x, x, 0.25, **options).asnumpy()).all()
    assert flash == []


def test_rms_norm_and_rotary_give_the_fused_operators_what_they_want(monkeypatch, rng):
    x, weight = normal(rng, 2, 3, 8, dtype=ms.float32), normal(rng, 8, dtype=ms.float32)
    monkeypatch.setattr(ops, "rms_norm", lambda x, gamma, epsilon: (stock.rms_norm(x, gamma, epsilon), None))
    assert (ascend.rms_norm(x, weight, 1e-5).asnumpy() == stock.rms_norm(x, weight, 1e-5).asnumpy()).all()

    def fused(x, cos, sin, mode):
        assert mode == 0 and cos.shape == sin.shape == (1, 5, 1, 8)
        low, high = x[..., :4], x[..., 4:]
        return x * cos + ops.concat((-high, low), -1) * sin

    monkeypatch.setattr(ops, "rotary_position_embedding", fused)
    x, cos, sin = (normal(rng, *shape, dtype=ms.float32) for shape in ((2, 5, 3, 8), (1, 5, 4), (1, 5, 4)))
    np.testing.assert_allclose(ascend.rotary(x, cos, sin).asnumpy(), stock.rotary(x, cos, sin).asnumpy(), atol=1e-6)


def test_adamw_counts_steps_from_zero_for_the_fused_operator(monkeypatch, rng):
    calls = []
    monkeypatch.setattr(ascend, "_adamw", lambda *arguments: calls.append(arguments))
    p, g, m, v = ([normal(rng, 3, dtype=ms.float32)] for _ in range(4))
    ascend.adamw(p, g, m, v, 0.1, 0.9, 0.99, 1e-8, [0.2], 5, grad_scale=0.5)
    ((var, mean, square, _, grad, step, lr, beta1, beta2, decay, eps, amsgrad, maximize),) = calls
    assert var is p[0] and mean is m[0] and square is v[0]
    assert step.asnumpy().tolist() == [4.0]
    assert (lr, beta1, beta2, decay, eps, amsgrad, maximize) == (0.1, 0.9, 0.99, 0.2, 1e-8, False, False)
    assert (grad.asnumpy() == g[0].asnumpy() * np.float32(0.5)).all()
