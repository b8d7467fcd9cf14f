"""What changes tensors in place or draws random bits: AdamW, the cache, the gradient norm, dropout."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor, ops


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_adamw_equals_torch(table, rng, assert_same):
    shapes, decay = [(3, 4), (20000,), (5,)], [0.1, 0.0, 0.3]
    start = [normal(rng, *shape) for shape in shapes]
    params = [Parameter(Tensor(x), name=f"p{i}") for i, x in enumerate(start)]
    means = [ops.zeros_like(p) for p in params]
    squares = [ops.zeros_like(p) for p in params]
    wants = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in start]
    optimizer = torch.optim.AdamW(
        [{"params": [w], "weight_decay": d} for w, d in zip(wants, decay)], lr=0.02, betas=(0.8, 0.95), eps=1e-6
    )
    for step in range(1, 6):
        grads = [normal(rng, *shape) for shape in shapes]
        for want, grad in zip(wants, grads):
            want.grad = torch.tensor(grad.astype(np.float64)) * 0.5
        optimizer.step()
        table.adamw(params, [Tensor(g) for g in grads], means, squares, 0.02, 0.8, 0.95, 1e-6, decay, step, 0.5)
    for param, mean, square, want in zip(params, means, squares, wants):
        assert_same(param.asnumpy(), want.detach().numpy(), 1e-6)
        assert_same(mean.asnumpy(), optimizer.state[want]["exp_avg"].numpy(), 1e-6)
        assert_same(square.asnumpy(), optimizer.state[want]["exp_avg_sq"].numpy(), 1e-6)


def test_adamw_lets_nan_through(table):
    tensors = [[Parameter(Tensor([1.0, 1.0]), name=name)] for name in "pgmv"]
    table.adamw(tensors[0], [Tensor([np.nan, 1.0], ms.float32)], *tensors[2:], 0.1, 0.9, 0.99, 1e-8, [0.0], 1)
    assert np.isnan(tensors[0][0].asnumpy()).tolist() == [True, False]


def test_adamw_of_unequal_lists_raises(cpp):
    x = [ops.zeros(3)]
    with pytest.raises(ValueError, match=r"different lengths \[1, 0, 1, 1, 1\]"):
        cpp.adamw(x, [], x, x, 0.1, 0.9, 0.99, 1e-8, [0.0], 1)


def test_sum_squares_adds_in_float64(table):
    tensors = [Tensor(np.full(2**20, 1e-4, np.float32)), Tensor(np.array([[3.0, 4.0]], np.float32))]
    want = 2**20 * float(np.float32(1e-4)) ** 2 + 25.0
    assert table.sum_squares(tensors) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("start, T", [(0, 1), (3, 2), (7, 1), (0, 8)])
def test_cache_write(table, rng, start, T):
    cache, new = normal(rng, 2, 8, 3, 5), normal(rng, 2, T, 3, 5)
    buffer = Parameter(Tensor(cache), name="cache")
    assert table.cache_write(buffer, Tensor(new), start) is buffer
    cache[:, start : start + T] = new
    assert (buffer.asnumpy() == cache).all()


def test_cache_write_past_the_end_raises(cpp):
    with pytest.raises(ValueError, match="with room for new"):
        cpp.cache_write(ops.zeros((1, 4, 1, 2)), ops.ones((1, 2, 1, 2)), 3)


def test_ids_and_labels_outside_the_vocabulary_raise(cpp, rng):
    weight = Tensor(normal(rng, 4, 3))
    with pytest.raises(Exception, match=r"id 4 at position 1 is outside \[0, 4\)"):
        cpp.embedding(Tensor(np.array([1, 4], np.int32)), weight).asnumpy()
    with pytest.raises(Exception, match=r"label -1 at position 0 is outside \[0, 3\)"):
        cpp.cross_entropy(weight, Tensor(np.array([-1, 4, 0, 0], np.int32))).asnumpy()


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("linear", [(2, 3), (4, 5)], r"expected x \(..., I\) and weight \(O, I\), got \(2, 3\), \(4, 5\)"),
        ("linear", [(2, 3), (4, 3), (3,)], r"expected bias \(O,\)"),
        ("swiglu", [(2, 3), (2, 4)], "two equal shapes"),
        ("layer_norm", [(2, 3), (4,), (4,), 1e-5], r"weight and bias \(D,\)"),
        ("rms_norm", [(2, 3), (2,), 1e-5], r"weight and bias \(D,\)"),
        ("add_layer_norm", [(2, 3), (1, 3), (3,), (3,), 1e-5], "two equal shapes"),
        ("linear_gelu", [(2, 3), (4, 3), (3,)], r"expected bias \(O,\)"),
        ("packed_attention", [(1, 2, 10), 2, False, 1.0], r"expected \(B, T, 3 H C\) with H = 2"),
        ("rotary", [(1, 4, 2, 6), (1, 4, 2), (1, 4, 2)], "C/2"),
    ],
)
def test_wrong_shapes_raise_before_anything_runs(cpp, name, arguments, message):
    tensors = [ops.zeros(a) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(cpp, name)(*tensors)


def test_dropout_scales_what_it_keeps(table):
    table.set_seed(3)
    x = np.full((100, 64), 2.0, np.float32)
    y = table.dropout(Tensor(x), 0.25).asnumpy()
    assert set(np.unique(y)) == {0.0, np.float32(2.0 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    rows, columns = (y == 0).mean(1), (y == 0).mean(0)
    assert rows.std() < 0.08 and columns.std() < 0.07  # independent bits: 0.054 and 0.043 are expected


def test_dropout_gradient_uses_the_mask_of_the_forward_pass(table, rng):
    table.set_seed(4)
    x = normal(rng, 30, 7)

    def twice(values):
        return ops.reduce_sum(table.dropout(table.dropout(values, 0.4), 0.2) * Tensor(x))

    grad = ms.grad(twice)(Tensor(x)).asnumpy()
    table.set_seed(4)
    forward = table.dropout(table.dropout(Tensor(x), 0.4), 0.2).asnumpy()
    np.testing.assert_allclose(grad, forward, rtol=1e-6)


def test_dropout_goes_on_from_a_saved_state(table, rng):
    table.set_seed(2**32 + 5)
    x = Tensor(normal(rng, 9, 50))
    table.dropout(x, 0.5)
    state = table.get_rng_state()
    assert state == {"seed": 5, "calls": 1}
    following = [table.dropout(x, 0.5).asnumpy() for _ in range(2)]
    assert (following[0] != following[1]).any()
    table.set_rng_state(state)
    assert all((table.dropout(x, 0.5).asnumpy() == y).all() for y in following)


def test_dropout_of_zero_changes_nothing_and_draws_nothing(table, rng):
    table.set_seed(0)
    x = Tensor(normal(rng, 3, 4))
    assert (table.dropout(x, 0.0).asnumpy() == x.asnumpy()).all()
    assert table.get_rng_state()["calls"] == 0


def test_both_tables_drop_the_same_elements(cpp, rng):
    from msllm import kernels
    from msllm.kernels import stock

    x = Tensor(normal(rng, 3, 11, 70))
    masks = []
    for module in (stock, cpp):
        kernels.set_seed(12345678901)
        masks.append(module.dropout(x, 0.3).asnumpy() == 0)
    assert (masks[0] == masks[1]).all()


def test_dropout_counts_its_calls_under_jit(rng):
    from msllm import kernels
    from msllm.kernels import stock

    x = Tensor(normal(rng, 6, 8))

    @ms.jit
    def compiled(values):
        return stock.dropout(values, 0.5)

    kernels.set_seed(1)
    in_graph = [compiled(x).asnumpy() for _ in range(2)]
    kernels.set_seed(1)
    assert all((stock.dropout(x, 0.5).asnumpy() == y).all() for y in in_graph)
