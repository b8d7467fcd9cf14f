"""Brings MindSpore up quietly on the device that is there: Ascend, or else the CPU."""

import os

from msllm import signals

os.environ.setdefault("GLOG_v", "3")  # read once by MindSpore's C++ logger, so it must be set before the import


def _start() -> str:
    if ms.get_context("device_target") == "Ascend":  # MindSpore's default where such a device is usable
        return "Ascend"
    ms.set_device("CPU")
    # Handing every operator to another thread costs more than it gains on a CPU with few cores.
    ms.runtime.launch_blocking()
    return "CPU"


with signals.wait():
    import mindspore as ms

    DEVICE = _start()
