"""What MindSpore's profiler left behind, as Operators."""

import csv
import re
from pathlib import Path

from msllm.errors import UserError
from msllm.training.profile_recording import Operator

_ON_CPU = "cpu_op_execute_timestamp_*.txt"  # name;kind;start_ns,duration_ms,thread start_ns,duration_ms,thread ...
_ON_DEVICE = "kernel_details.csv"
_COLLECTIVE = "hcom_"  # how kernels of HCCL are named


def read_operators(folder: Path) -> list[Operator]:
    """Returns the operators that MindSpore's profiler has seen.

    On a CPU it sees operators, not the copies that make a strided view contiguous, which have none. On Ascend this
    reads kernel_details.csv, as MindSpore 2.9 writes it; written from its source, never run there.

    Raises:
        UserError: there is no file of either kind.
    """
    for pattern, read in ((_ON_DEVICE, _of_device), (_ON_CPU, _of_cpu)):
        found = sorted(folder.rglob(pattern))
        if found:
            return [operator for path in found for operator in read(path)]
    raise UserError(
        f"MindSpore's profiler left neither {_ON_CPU} nor {_ON_DEVICE} in {folder}; train without profile, or with "
        f"MindSpore 2.9"
    )


def _of_cpu(path: Path) -> list[Operator]:
    operators = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, calls = line.split(";", 2)
        name = re.sub(r"-op\d+$", "", name.rsplit("/", 1)[-1])  # Default/ReduceSum-op0
        for call in calls.split():
            start, milliseconds, _ = call.split(",")
            operators.append(Operator(name, "MindSpore", int(start), int(start) + round(float(milliseconds) * 1e6)))
    return operators


def _of_device(path: Path) -> list[Operator]:
    operators = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            start = _nanoseconds(row["Start Time(us)"])
            names = row["Type"], row["Name"]
            collective = any(name.startswith(_COLLECTIVE) for name in names)
            end = start + _nanoseconds(row["Duration(us)"])
            operators.append(Operator(names[0], "MindSpore", start, end, collective))
    return operators


def _nanoseconds(microseconds: str) -> int:
    """As text: 16 digits and three after the point are more than a float has."""
    whole, _, rest = microseconds.strip().partition(".")
    return int(whole) * 1000 + int(rest[:3].ljust(3, "0"))
