"""One side of a comparison in a process of its own: ``python -m tests.benchmarks.worker SIDE``, one of SIDES.

Reads commands as JSON lines, ``{"do": NAME, ...arguments}``, and answers each with one JSON line: what the method NAME
of the side returns and the ``seconds`` that it took, or an ``error``. The parent takes turns between workers.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

SIDES = {
    "msllm": "tests.benchmarks.msllm_side:Msllm",
    "eager": "tests.benchmarks.torch_side:Eager",
    "compile": "tests.benchmarks.torch_side:Compiled",
    "bandwidth": "tests.benchmarks.torch_side:Bandwidth",
}
IGNORE_INDEX = -100
_MASKED_SHARE = 0.15  # of the tokens are targets of the masked-LM loss (Devlin et al. 2019, section 3.1)


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Starts VmHWM anew from what is resident now; where the kernel refuses, the peak counts loading too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def batch(family: str, vocab: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random ids and the targets at each position, both int32 (rows, length), equal on every side."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    targets = np.full_like(ids, IGNORE_INDEX)
    if family == "bert":
        masked = rng.random(ids.shape) < _MASKED_SHARE
        targets[masked] = ids[masked]
        ids[masked] = vocab - 1  # any one id will do as the mask token
    else:
        targets[:, :-1] = ids[:, 1:]
    return ids, targets


class Side:
    """What both sides answer; they give ``load``, ``prepare``, ``self.step`` and ``_greedy``.

    ``base`` is the resident memory in MiB after imports and device start: peaks are counted from there.
    """

    def __init__(self):
        self.base = memory_mib("VmRSS")

    def steps(self, count: int = 1) -> dict:
        """Runs train steps; returns their losses, their times in seconds and the memory in MiB afterwards."""
        losses, times = [], []
        for _ in range(count):
            start = time.perf_counter()
            losses.append(self.step())
            times.append(time.perf_counter() - start)
        return {"losses": losses, "times": times, "rss_mib": memory_mib("VmRSS")}

    def memory(self) -> dict:
        """Peak resident memory since ``prepare`` beyond ``base``, and ``base``, in MiB."""
        return {"peak_mib": memory_mib("VmHWM") - self.base, "base_mib": self.base}

    def greedy(self, prompts: list[list[int]], count: int) -> dict:
        """Decodes; returns the new ids a row and when each step's tokens were known, in seconds from the call."""
        times: list[float] = []
        start = time.perf_counter()
        ids = self._greedy(prompts, count, lambda: times.append(time.perf_counter() - start))
        return {"ids": ids, "times": times}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    module, name = SIDES[sys.argv[1]].split(":")
    side = getattr(importlib.import_module(module), name)()
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        try:
            answer = getattr(side, command.pop("do"))(**command) or {}
        except Exception as e:  # the parent decides whether it can go on without this side
            answer = {"error": f"{type(e).__name__}: {e}"}
        answer["seconds"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
