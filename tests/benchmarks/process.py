"""Worker processes, statistics of their times, and facts about the machine."""

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.worker import cores

# A side's threads may spin for some milliseconds after their work; the next turn waits until they sleep.
_PAUSE = 0.02


class WorkerError(RuntimeError):
    """A worker could not do what it was asked for."""


class Worker:
    """A worker process; see tests.benchmarks.worker for the protocol."""

    def __init__(self, kind: str):
        self.kind = kind
        # A library's own messages stay out of the table; they are kept and shown where the process dies.
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", kind],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            cwd=Path(__file__).parents[2],
        )

    def ask(self, do: str, **arguments) -> dict:
        """Sends a command and returns its answer; WorkerError where the side raised or died."""
        time.sleep(_PAUSE)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerError(f"the {self.kind} worker failed at {do}: {answer['error']}")
                return answer
        self.messages.seek(0)
        raise WorkerError(f"the {self.kind} worker died at {do}:\n{self.messages.read()[-3000:]}")

    def end(self) -> None:
        """Lets the process end, without waiting for it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def close(self) -> None:
        self.process.wait()
        self.process.stdout.close()
        self.messages.close()


class Pool:
    """The workers of a run; a context that ends those that it still has.

    Args:
        reuse: hand out the same workers again and again, which saves their imports; what one case leaves in memory
            is then there in the next, so it is for quick runs only.
    """

    def __init__(self, reuse: bool = False):
        self.reuse, self.kept = reuse, {}

    @property
    def writer(self) -> Worker:
        """A worker of msllm for what does not measure memory: it lives as long as the pool."""
        return self._keep("msllm")

    @contextlib.contextmanager
    def workers(self, *kinds: str) -> Iterator[list[Worker]]:
        """A worker of each kind, started all at once, and gone afterwards."""
        if self.reuse:
            yield [self._keep(kind) for kind in kinds]
            return
        started = [Worker(kind) for kind in kinds]
        try:
            yield started
        finally:
            _close(started)

    @contextlib.contextmanager
    def model_folder(self, config: dict, texts: list[str] | None = None) -> Iterator[str]:
        """A folder with a random model of ``config``, gone afterwards; with ``texts`` it has a tokenizer too."""
        with tempfile.TemporaryDirectory() as parent:
            folder = str(Path(parent) / "model")
            self.writer.ask("write", config=config, folder=folder, texts=texts)
            yield folder

    def _keep(self, kind: str) -> Worker:
        if kind not in self.kept:
            self.kept[kind] = Worker(kind)
        return self.kept[kind]

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        _close(list(self.kept.values()))


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.end()
    for worker in workers:
        worker.close()


def spread(times: list[float]) -> dict:
    """Median and the middle half of times in seconds, in milliseconds."""
    quarters = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": statistics.median(times) * 1e3, "quartiles_ms": [quarters[0] * 1e3, quarters[2] * 1e3]}


def machine(pool: Pool) -> dict:
    """What the numbers depend on; ``load_average`` is that of the minute before, this harness included."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "date": time.strftime("%Y-%m-%d"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("mindspore", "torch", "numpy")},
        "kernels": pool.writer.ask("about")["kernels"],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()
