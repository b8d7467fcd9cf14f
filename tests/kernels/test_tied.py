"""A tied weight's gradient: that of the head and that of the embedding in one, as the stock kernels give it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from msllm import kernels
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def model(cpp):
    ms.set_seed(1)
    config = GPT2Config(vocab_size=40, n_embd=24, n_layer=1, n_head=2, n_positions=16, initializer_range=0.3)
    return GPT2LMHeadModel(config).set_train(False)


@pytest.fixture
def ids(rng):
    return [Tensor(rng.integers(0, 40, (2, 7)).astype(np.int32)) for _ in range(2)]


def once(model, ids):
    return (model(ids[0]) ** 2).sum()


def twice(model, ids):
    return (model(ids[0]) * model(ids[1])).sum()


def head_again(model, ids):
    return (model(ids[0]) ** 2).sum() + (model.head(ops.ones((1, 2, 24))) ** 2).sum()


def head_alone(model, ids):
    model(ids[0])
    return (model.head(ops.ones((1, 2, 24))) ** 2).sum()


def body_alone(model, ids):
    return (model.transformer(ids[0]) ** 3).sum()


def with_a_cache(model, ids):
    return (model(ids[0][:1, :3], cache=model.make_cache(1, 3)) ** 2).sum()


def gradient(loss, model, ids):
    weight = ParameterTuple([model.transformer.wte.weight])
    return ms.grad(lambda: loss(model, ids), None, weight)()[0].asnumpy()


@pytest.mark.parametrize("loss", [once, twice, head_again, head_alone, body_alone])
def test_equal_to_the_stock_kernels(model, ids, assert_same, loss):
    kernels.use("cpu")
    got = gradient(loss, model, ids)
    try:
        kernels.use("stock")
        want = gradient(loss, model, ids)
    finally:
        kernels.use("cpu")
    assert_same(got, want)


def test_the_head_keeps_its_gradient_where_a_cache_has_none(model, ids):
    assert np.abs(gradient(with_a_cache, model, ids)).max() > 0


def test_a_frozen_weight_has_no_gradient_and_no_harm(model, ids):
    model.transformer.wte.weight.requires_grad = False
    others = ParameterTuple([p for p in model.get_parameters() if p.requires_grad])
    grads = ms.grad(lambda: once(model, ids), None, others)()
    assert len(grads) == len(others) and all(np.isfinite(g.asnumpy()).all() for g in grads)


def test_an_error_inside_leaves_nothing_behind(model, ids):
    from msllm.kernels import cpu

    with pytest.raises(ValueError, match="do not fit"):
        model(Tensor(np.zeros((1, 17), np.int32)))
    assert cpu._ties == {}
