"""What MindSpore's memory pool of the CPU holds: its own functions for that, ms.runtime.memory_allocated and the like,
give 0 there.

Resident memory does not tell: the pool takes a gigabyte at a time, keeps what is let go of, and places tensors so that
gaps remain. The pool counts what it has handed out, and the most of it; this file asks it, by way of symbols that
MindSpore's libraries export and two places in its classes, known for one release on one kind of processor. Elsewhere
``available`` says why not.
"""

import ctypes
import platform
import sys
from pathlib import Path

import mindspore as ms
from mindspore import ops

from msllm.errors import UserError

_RELEASE, _MACHINE = "2.9.0", "x86_64"
_MARGIN = 1024  # bytes that the pool takes for a tensor beyond its own, at most
# Of DeviceContext, where its resource manager lies; of that one's functions, which returns the pool. Both follow from
# the headers that the wheel brings (device_context.h).
_RESOURCES, _GET_POOL = 0x10, 0x2D0
_MANAGER = "_ZN9mindspore6device20DeviceContextManager"
_POOL = "9mindspore6device21DynamicMemPoolBestFit"
_SYMBOLS = {
    "used": f"_ZTv0_n280_NK{_POOL}22TotalUsedMemStatisticsEv",
    "peak": f"_ZTv0_n320_NK{_POOL}25MaxMemAllocatedStatisticsEv",
    "reset": f"_ZTv0_n384_N{_POOL}20ResetMaxMemAllocatedEv",
}


def available() -> str:
    """Returns "" where the pool can be asked, else why not."""
    if (ms.__version__, platform.machine(), sys.platform) != (_RELEASE, _MACHINE, "linux"):
        return (
            f"the pool's counters are known for mindspore {_RELEASE} on Linux, {_MACHINE}; this is {ms.__version__} on "
            f"{sys.platform}, {platform.machine()}"
        )
    try:
        _libraries()
    except (OSError, AttributeError) as e:
        return f"MindSpore's libraries lack the pool's counters: {e}"
    return ""


class MemoryPool:
    """The pool of this process.

    Raises:
        UserError: it cannot be asked, or does not count as it should.
    """

    def __init__(self):
        if reason := available():
            raise UserError(f"{reason}; memory can be planned here, not measured")
        ops.zeros((1,), ms.float32).asnumpy()  # there is no pool before the first operator
        self._functions, self._pool = _libraries(), _pool_address()
        before = self.used()
        probe = ops.zeros((1 << 18,), ms.float32)
        probe.asnumpy()
        if not 0 <= self.used() - before - probe.nbytes <= _MARGIN:
            raise UserError(
                f"the pool counts {self.used() - before} bytes for a tensor of {probe.nbytes}: it is not the one that "
                f"was looked for; memory can be planned here, not measured"
            )

    def used(self) -> int:
        """Returns the bytes of all tensors that live in the pool, each with up to 1,024 more."""
        return self._functions["used"](self._pool)

    def peak(self) -> int:
        """Returns the most that ``used`` was since the last ``reset``."""
        return self._functions["peak"](self._pool)

    def reset(self) -> None:
        """Lets ``peak`` start over from what is in use."""
        self._functions["reset"](self._pool)


def _libraries() -> dict:
    folder = Path(ms.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libmindspore_memory_pool.so"))
    functions = {name: library[symbol] for name, symbol in _SYMBOLS.items()}
    for name, function in functions.items():
        function.restype, function.argtypes = None if name == "reset" else ctypes.c_size_t, [ctypes.c_void_p]
    return functions


def _pool_address() -> int:
    """Asks the context of the CPU for its pool."""
    library = ctypes.CDLL(str(Path(ms.__file__).parent / "lib" / "libmindspore_hardware_abstract.so"))
    instance, find = library[f"{_MANAGER}11GetInstanceEv"], library[f"{_MANAGER}16GetDeviceContextERKSs"]
    instance.restype, instance.argtypes = ctypes.c_void_p, []
    # A std::string of the old ABI is a pointer to characters behind their length, room and count of owners.
    text = ctypes.create_string_buffer(bytes(_Header(3, 3, 0)) + b"CPU\0")
    string = ctypes.c_void_p(ctypes.addressof(text) + ctypes.sizeof(_Header))
    context = (ctypes.c_void_p * 2)()  # a shared_ptr, returned by way of its address
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_void_p] * 3
    find(ctypes.addressof(context), instance(), ctypes.addressof(string))
    if not context[0]:
        raise UserError("MindSpore has no context of the CPU; memory can be planned here, not measured")
    resources = _read(context[0] + _RESOURCES)
    get_pool = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_read(_read(resources) + _GET_POOL))
    return get_pool(resources)


class _Header(ctypes.Structure):
    _fields_ = [("length", ctypes.c_size_t), ("room", ctypes.c_size_t), ("owners", ctypes.c_ssize_t)]


def _read(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value
