"""The bits of every C++ kernel are the same for any number of threads, and from run to run."""

import os
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from msllm.kernels import compiled, random_state
from msllm.models.llama import LlamaConfig, LlamaForCausalLM


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def everything(cpp):
    """Returns values and gradients of all kernels, at sizes that take several chunks each."""
    rng = np.random.default_rng(0)
    x, up, weight, bias = (Tensor(normal(rng, *shape)) for shape in [(600, 96), (600, 96), (96,), (96,)])
    square, table = Tensor(normal(rng, 96, 96)), Tensor(normal(rng, 50, 96))
    ids = Tensor(rng.integers(0, 50, 600).astype(np.int32))
    qkv = [Tensor(normal(rng, 2, 250, heads, 24)) for heads in (4, 2, 2)]
    angle = Tensor(normal(rng, 1, 250, 12))

    def attend(q, k, v):
        random_state.set_seed(1)
        return cpp.attention(cpp.rotary(q, angle, angle), k, v, 0.2, dropout=0.1)

    def attend_packed(qkv):
        return cpp.packed_attention(qkv, 4, True, 0.2)

    def normalize(x, weight, bias):
        x, y = cpp.add_layer_norm(x, cpp.layer_norm(x, weight, bias, 1e-5), weight, bias, 1e-5)
        return ops.concat(cpp.add_rms_norm(x, cpp.rms_norm(y, weight, 1e-5), weight, 1e-5))

    def feed(x, up, square, bias):
        return cpp.linear(cpp.swiglu(cpp.gelu(x, "tanh"), cpp.gelu(up)), square, bias)

    def loss(table):
        return cpp.cross_entropy(cpp.embedding_sum((ids, ids), (table, table)), ids)

    def multiply(x, square, bias):  # large enough for the tile unit, and so are its gradients
        return cpp.linear(cpp.linear_gelu(x, square, bias), square, bias)

    results = []
    for function, inputs in [
        (attend, qkv),
        (attend_packed, [Tensor(normal(rng, 2, 250, 96))]),
        (multiply, [Tensor(normal(rng, 300, 260)), Tensor(normal(rng, 260, 260)), Tensor(normal(rng, 260))]),
        (cpp.linear, [Tensor(normal(rng, 3, 260)), Tensor(normal(rng, 2000, 260))]),
        (normalize, [x, weight, bias]),
        (feed, [x, up, square, bias]),
        (loss, [table]),
    ]:

        def total(*inputs, function=function):
            y = function(*inputs)
            return ops.reduce_sum(y * y), y

        grads, y = ms.grad(total, tuple(range(len(inputs))), has_aux=True)(*inputs)
        results += [*y, *(grads if isinstance(grads, tuple) else (grads,))]
    param, mean, second = (Parameter(Tensor(normal(rng, 600, 96)), name=name) for name in "pmv")
    second.set_data(second * second)
    cpp.adamw([param], [x], [mean], [second], 0.1, 0.9, 0.99, 1e-8, [0.1], 3)
    return [r.asnumpy().tobytes() for r in [*results, param, mean, second]] + [cpp.sum_squares([x, up])]


def decoded():
    """Returns the logits of some tokens, one at a time, of a model with grouped heads."""
    sizes = {"hidden_size": 64, "intermediate_size": 640, "num_hidden_layers": 2, "num_attention_heads": 4}
    ms.set_seed(2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=900, num_key_value_heads=2, **sizes)).set_train(False)
    cache = model.make_cache(2, 5)
    steps = [Tensor(np.full((2, 1), i, np.int32)) for i in range(5)]
    return [model.next_logits(ids, None, None, cache).asnumpy().tobytes() for ids in steps]


def test_bits_do_not_depend_on_the_number_of_threads(path):
    module = compiled.cpp
    before = module.thread_count()
    try:
        module.set_thread_count(1)
        want = everything(path) + decoded()
        for count in (1, 2, 3, 8):
            module.set_thread_count(count)
            got = everything(path) + decoded()
            assert [i for i, (a, b) in enumerate(zip(want, got)) if a != b] == [], f"{count} threads"
    finally:
        module.set_thread_count(before)


def test_a_thread_for_each_core_that_the_process_may_use(cpp, monkeypatch):
    monkeypatch.delenv("MSLLM_THREADS", raising=False)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    paths = [Path(siblings.format(cpu)) for cpu in os.sched_getaffinity(0)]
    cores = {path.read_text() if path.is_file() else str(path) for path in paths}
    module, before = compiled.cpp, compiled.cpp.thread_count()
    module.set_thread_count(0)  # back to the default
    try:
        assert module.thread_count() == len(cores)
    finally:
        module.set_thread_count(before)
