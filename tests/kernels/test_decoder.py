"""Whole decoder blocks in one call, on every path, against the same model block by block."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from msllm import kernels
from msllm.layers import run_blocks
from msllm.models.bloom import BloomConfig, BloomForCausalLM
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
from msllm.models.llama import LlamaConfig, LlamaForCausalLM
from msllm.tuning import LoraConfig, lora

V = 50


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=24, n_layer=3, n_head=3, n_positions=64))


def gpt2_erf():
    config = GPT2Config(vocab_size=V, n_embd=40, n_layer=2, n_head=2, n_inner=36, activation_function="gelu")
    return GPT2LMHeadModel(config)


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, num_key_value_heads=2, head_dim=20, attention_bias=True, **sizes))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=30, n_layer=2, n_head=3))


@pytest.fixture(params=[gpt2, gpt2_erf, llama, bloom], ids=lambda make: make.__name__)
def model(request, rng):
    model = request.param().set_train(False)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor((rng.standard_normal(parameter.shape) * 0.3).astype(np.float32)))
    return model


def decode(model, ids, steps, mask=None):
    """Logits of every token, fed in pieces of the given lengths."""
    cache, logits, start = model.make_cache(ids.shape[0], ids.shape[1]), [], 0
    for count in steps:
        end = start + count
        seen = None if mask is None else Tensor(mask[:, :end])
        places = None if mask is None else np.maximum(mask.cumsum(1) - 1, 0)[:, start:end].astype(np.int32)
        new = Tensor(ids[:, start:end])
        logits.append(model(new, seen, None if places is None else Tensor(places), cache=cache).asnumpy())
        cache.length, start = end, end
    return np.concatenate(logits, 1)


@pytest.mark.parametrize("rows, steps", [(1, [9, 1, 1, 2, 4, 5]), (3, [7, 1, 2, 1]), (8, [4, 1, 1, 1])])
@pytest.mark.parametrize("padded", [False, True])
def test_equal_to_block_by_block(path, model, rng, assert_same, monkeypatch, rows, steps, padded):
    ids, mask = rng.integers(0, V, (rows, sum(steps))).astype(np.int32), None
    if padded:
        mask = np.ones_like(ids)
        mask[0, :2] = 0
    fused = decode(model, ids, steps, mask)
    monkeypatch.setattr(kernels, "make_decoder", lambda blocks: None)
    whole = decode(model, ids, steps, mask)
    seen = slice(None) if mask is None else mask.astype(bool)
    assert_same(fused[seen], whole[seen])
    if mask is None:
        assert_same(fused, model(Tensor(ids)).asnumpy())


def test_it_is_taken_for_few_tokens_only(path, rng, monkeypatch):
    model = gpt2().set_train(False)
    calls, decode_blocks = [], path.make_decoder

    def recording(blocks):
        decoder = decode_blocks(blocks)
        whole = type(decoder).__call__
        monkeypatch.setattr(type(decoder), "__call__", lambda *args: calls.append(args[1].shape[:2]) or whole(*args))
        return decoder

    monkeypatch.setattr(kernels, "make_decoder", recording)
    decode(model, rng.integers(0, V, (2, 14)).astype(np.int32), [5, 4, 1, 4])
    assert calls == [(2, 4), (2, 1), (2, 4)]


def test_weights_that_change_are_seen(path, model, rng, assert_same):
    ids = Tensor(rng.integers(0, V, (1, 1)).astype(np.int32))
    cache = model.make_cache(1, 4)
    first = model(ids, cache=cache).asnumpy()
    for parameter in model.get_parameters():
        parameter.set_data(Tensor((rng.standard_normal(parameter.shape) * 0.3).astype(np.float32)))
    second = model(ids, cache=cache).asnumpy()
    assert np.abs(first - second).max() > 0.01
    assert_same(second, model(ids).asnumpy())


def test_adapters_are_computed_by_their_own_cells(path, rng, assert_same):
    model = gpt2().set_train(False)
    lora.apply(model, LoraConfig(r=2, target_modules=["c_fc"]))
    for parameter in model.get_parameters():
        parameter.set_data(Tensor((rng.standard_normal(parameter.shape) * 0.3).astype(np.float32)))
    assert model.make_cache(1, 4).decoder(model.transformer.h) is None
    ids = rng.integers(0, V, (1, 6)).astype(np.int32)
    assert_same(decode(model, ids, [3, 1, 2]), model(Tensor(ids)).asnumpy())


def test_a_full_cache_says_so(path, rng):
    model = gpt2().set_train(False)
    cache = model.make_cache(1, 2)
    cache.length = 2
    with pytest.raises(ValueError, match="the cache holds 2 tokens, 3 were asked for"):
        model(Tensor(np.zeros((1, 1), np.int32)), cache=cache)
    x = ms.ops.zeros((1, 1, 24))
    with pytest.raises(ValueError, match="the cache holds 2 tokens"):
        run_blocks(model.transformer.h, x, None, None, cache)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keys": (2, 4, 3, 8)}, r"expected 3 caches \(1, 4, 3, 8\)"),
        ({"keys": (1, 4, 3, 6)}, r"expected 3 caches \(1, 4, 3, 8\)"),
        ({"x": (1, 1, 20)}, r"expected x \(B, T, 24\)"),
        ({"rotary": ((1, 2, 4), (1, 2, 4))}, r"cos and sin \(1 or B, T, C/2\)"),
        ({"slopes": (2,)}, r"expected slopes \(3,\)"),
        ({"key_mask": (1, 9)}, r"expected key_mask \(1, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_raise(path, change, message):
    decoder = path.make_decoder([block.parts() for block in gpt2().set_train(False).transformer.h])
    caches = [ms.ops.zeros(change.get("keys", (1, 4, 3, 8))) for _ in range(3)]
    rotary = tuple(ms.ops.zeros(shape) for shape in change["rotary"]) if "rotary" in change else None
    slopes = ms.ops.zeros(change["slopes"]) if "slopes" in change else None
    mask = ms.ops.zeros(change["key_mask"], ms.int32) if "key_mask" in change else None
    with pytest.raises(ValueError, match=message):
        decoder(ms.ops.zeros(change.get("x", (1, 1, 24))), caches, caches, 0, mask, rotary, slopes)


def test_training_mode_goes_block_by_block(path, rng, monkeypatch):
    model = gpt2().set_train(True)
    monkeypatch.setattr(kernels, "make_decoder", lambda blocks: pytest.fail("dropout would be skipped"))
    model(Tensor(rng.integers(0, V, (1, 2)).astype(np.int32)), cache=model.make_cache(1, 2))


def test_bloom_with_its_residual_after_the_norm_goes_block_by_block(path):
    config = BloomConfig(
        vocab_size=V, hidden_size=30, n_layer=2, n_head=3, apply_residual_connection_post_layernorm=True
    )
    model = BloomForCausalLM(config)
    assert model.make_cache(1, 2).decoder(model.transformer.h) is None
