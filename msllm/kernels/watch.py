"""The calls of C++ kernels, timed: MindSpore's profiler does not see them."""

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator

_CALLERS = ("msllm.kernels.cpu", "msllm.kernels.cpu_attention")  # the modules whose ``cpp`` is the compiled one


class _Timed:
    """The compiled module, with ``note`` called after each of its functions, those of backward passes too."""

    def __init__(self, module, note: Callable[[str, int, int], None]):
        self._module, self._note = module, note

    def __getattr__(self, name):
        value, note = getattr(self._module, name), self._note
        if not inspect.isbuiltin(value):  # a class or a number
            return value

        def timed(*args):
            start = time.time_ns()
            try:
                return value(*args)
            finally:
                note(name, start, time.time_ns())

        setattr(self, name, timed)
        return timed


@contextlib.contextmanager
def watched(note: Callable[[str, int, int], None]) -> Iterator[None]:
    """While open, ``note`` gets the name, start and end (ns of time.time_ns) of every call of a C++ kernel."""
    modules = [sys.modules[name] for name in _CALLERS if name in sys.modules]
    compiled = [module.cpp for module in modules]
    for module in modules:
        module.cpp = _Timed(module.cpp, note)
    try:
        yield
    finally:
        for module, cpp in zip(modules, compiled):
            module.cpp = cpp
