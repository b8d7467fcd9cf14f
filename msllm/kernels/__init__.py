"""The one room that knows the device: a table of functions with three implementations.

``stock`` is composed of MindSpore operators (any device, also under ms.jit), ``cpu`` is C++ (PyNative), ``ascend``
uses fused operators. The choice is made at import, from the device or from the environment variable
MSLLM_KERNELS, and ``use`` changes it: callers write ``kernels.linear(...)``, so they follow.
"""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from msllm.errors import UserError, nearest
from msllm.kernels.device import DEVICE  # before any other import of mindspore: it sets how mindspore starts

# isort: split
from msllm.kernels import stock
from msllm.kernels.random_state import get_rng_state, set_rng_state, set_seed
from msllm.kernels.stock import (
    adamw,
    add,
    add_layer_norm,
    add_rms_norm,
    attention,
    cache_write,
    cross_entropy,
    dropout,
    embedding,
    embedding_sum,
    gelu,
    layer_norm,
    linear,
    linear_gelu,
    make_decoder,
    packed_attention,
    rms_norm,
    rotary,
    rotary_angles,
    split_packed,
    sum_squares,
    swiglu,
    tied,
)

__all__ = [
    "DEVICE",
    "active",
    "adamw",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cache_write",
    "cross_entropy",
    "dropout",
    "embedding",
    "embedding_sum",
    "gelu",
    "get_rng_state",
    "layer_norm",
    "linear",
    "linear_gelu",
    "make_decoder",
    "packed_attention",
    "replaced",
    "rms_norm",
    "rotary",
    "rotary_angles",
    "set_rng_state",
    "set_seed",
    "split_packed",
    "sum_squares",
    "swiglu",
    "table",
    "tied",
    "use",
]

_active = "stock"


class NoKernels(UserError):
    """The C++ kernels have not been built, or cannot be loaded."""


def table() -> tuple[str, ...]:
    """Returns the names of the kernel functions."""
    return tuple(stock.__all__)


def active() -> str:
    """Returns the implementation in use: "stock", "cpu" or "ascend"."""
    return _active


def use(name: str) -> None:
    """Switches every kernel to one implementation.

    Args:
        name: "stock", "cpu", "ascend", or "auto": what suits the device; on a CPU, stock with one warning when
            the C++ kernels have not been built.

    Raises:
        UserError: unknown name, "cpu" without a usable build, or "ascend" without such a device.
    """
    global _active
    if name not in ("stock", "cpu", "ascend", "auto"):
        raise UserError(
            f"unknown kernels {name!r}{nearest(name, ('stock', 'cpu', 'ascend', 'auto'))}; "
            f"use stock, cpu, ascend or auto"
        )
    module = _auto() if name == "auto" else _load(name)
    for function in stock.__all__:
        globals()[function] = getattr(module, function)
    _active = module.__name__.rsplit(".", 1)[1]


@contextlib.contextmanager
def replaced(**functions: Callable) -> Iterator[None]:
    """While open, some kernels are others of the same signature and the rest are stock, for compiling a model.

    ``active`` is "stock" then.
    """
    before = _active
    use("stock")
    try:
        globals().update(functions)
        yield
    finally:
        use(before)


def _auto():
    if DEVICE == "Ascend":
        return _load("ascend")
    try:
        return _load("cpu")
    except NoKernels as e:
        if sys.orig_argv[1:3] != ["-m", "msllm.kernels.build"]:  # which is about to build them
            warnings.warn(f"slower stock kernels are in use: {e}", stacklevel=3)
        return stock


def _load(name: str):
    if name == "stock":
        return stock
    if name == "ascend" and DEVICE != "Ascend":
        raise UserError(f"MSLLM_KERNELS=ascend needs an Ascend device, found {DEVICE}; use stock, cpu or auto")
    try:
        return importlib.import_module(f"msllm.kernels.{name}")
    except ImportError as e:
        raise NoKernels(str(e)) from e


use(os.environ.get("MSLLM_KERNELS") or "auto")
