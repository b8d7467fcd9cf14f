"""Brings MindSpore up quietly on the device that is there: Ascend, or else the CPU."""

import os
import signal

os.environ.setdefault("GLOG_v", "3")  # read once by MindSpore's C++ logger, so it must be set before the import

# Threads inherit what is blocked: signals shall reach the main thread, where Python expects them, and no other.
_SIGNALS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "pthread_sigmask") else set()
if _SIGNALS:
    _before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

import mindspore as ms  # noqa: E402


def _start() -> str:
    if ms.get_context("device_target") == "Ascend":  # MindSpore's default where such a device is usable
        return "Ascend"
    ms.set_device("CPU")
    # Handing every operator to another thread costs more than it gains on a CPU with few cores.
    ms.runtime.launch_blocking()
    return "CPU"


DEVICE = _start()
if _SIGNALS:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before)
