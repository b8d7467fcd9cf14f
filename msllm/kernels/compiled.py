"""The compiled module behind the C++ kernels, and the checks that its functions leave to Python."""

import contextlib
import sys
from pathlib import Path

import mindspore as ms

from msllm.kernels import cached, random_state


def load():
    """Returns the compiled module; a damaged one is built again, a missing one is not: that is `make setup`'s part."""
    try:
        return cached.load()
    except cached.Damaged:
        from msllm.kernels import build  # needs this package

        print(
            f"the C++ kernels in {cached.folder()} are damaged; building them again (about a minute)...",
            file=sys.stderr,
            flush=True,
        )
        build.build()
        return cached.load()


try:
    cpp = load()
except Exception as e:  # no build, or one that fails: the reason goes to whoever chooses the kernels
    raise ImportError(str(e)) from e

# MindSpore's MatMul keeps threads of its own busy, which then fight for the cores with those of the other kernels;
# the library behind it takes ours. Where the wheel does not bring that library, the kernels multiply by themselves.
LIBRARY = str(Path(ms.__file__).parent / "lib" / "libdnnl.so.3")
cpp.load_gemm(LIBRARY)
with contextlib.suppress(RuntimeError):  # the user has chosen a number already
    # MindSpore's few remaining operators are small, and its idle threads spin on the cores that ours need.
    ms.device_context.cpu.op_tuning.threads_num(1)


def check(condition, name, message, *tensors):
    """Raises ValueError unless condition holds; the message ends with the shapes."""
    if not condition:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"{name}: {message}, got {shapes}")


def check_dtype(name, dtype, *tensors):
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: the C++ kernels need {dtype}, got {tensor.dtype}; cast it, or use stock kernels")


def next_mask(name, p):
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}: dropout probability must be in [0, 1), got {p}")
    return random_state.next_call() if p > 0.0 else (0, 0)
