"""The bits of every C++ kernel are the same for any number of threads, and from run to run."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops


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
        cpp.random_state.set_seed(1)
        return cpp.attention(cpp.rotary(q, angle, angle), k, v, 0.2, dropout=0.1)

    def normalize(x, weight, bias):
        return cpp.rms_norm(cpp.layer_norm(x, weight, bias, 1e-5), weight, 1e-5)

    def feed(x, up, square, bias):
        return cpp.linear(cpp.swiglu(cpp.gelu(x, "tanh"), cpp.gelu(up)), square, bias)

    def loss(table):
        return cpp.cross_entropy(cpp.embedding(ids, table), ids)

    results = []
    for function, inputs in [
        (attend, qkv),
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


def test_bits_do_not_depend_on_the_number_of_threads(cpp):
    module, before = cpp.cached.load(), cpp.cached.load().thread_count()
    try:
        module.set_thread_count(1)
        want = everything(cpp)
        for count in (1, 2, 3, 8):
            module.set_thread_count(count)
            got = everything(cpp)
            assert [i for i, (a, b) in enumerate(zip(want, got)) if a != b] == [], f"{count} threads"
    finally:
        module.set_thread_count(before)
