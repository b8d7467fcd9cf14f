"""How much memory MindSpore itself keeps of each gradient: ``python -m tests.benchmarks.bare_gradient``.

One product of two small matrices, MindSpore's operators only: what grows here grows in every training loop.
"""

import gc

import mindspore as ms
import numpy as np
import psutil
from mindspore import Parameter, ParameterTuple, Tensor, ops

CALLS = 2000


def main() -> None:
    weight, x = Parameter(Tensor(np.ones((8, 8), np.float32)), name="w"), Tensor(np.ones((4, 8), np.float32))
    gradient = ms.value_and_grad(lambda a: ops.matmul(a, weight).sum(), None, ParameterTuple([weight]))
    process = psutil.Process()
    for _ in range(300):  # caches fill
        gradient(x)
    before = process.memory_info().rss
    for _ in range(CALLS):
        gradient(x)
    gc.collect()
    print(f"{(process.memory_info().rss - before) / CALLS:.0f} bytes a call over {CALLS} calls")


if __name__ == "__main__":
    main()
