"""From starting ``msllm generate`` to its first output, and what it holds in memory by then."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.cases import Startup
from tests.benchmarks.process import Pool, WorkerError
from tests.benchmarks.table import at_most, verdict

_TEXTS = ["The capital of France is Paris.", "Say one, two, three, four, word by word."]
_PROMPT = "The capital of France is"
_MIB = 1024 * 1024


def measure(case: Startup, pool: Pool) -> dict:
    """Returns seconds to the first output with a warm page cache, and peak memory against the size of the weights.

    ``copies``: how often the weights would fit into what the process holds beyond the imports.
    """
    base = pool.writer.ask("memory")["base_mib"]
    with pool.model_folder(case.config, _TEXTS) as folder:
        size = (Path(folder) / "model.safetensors").stat().st_size / _MIB
        if case.warm_up:  # brings the files, and the code, into the page cache
            first_output(folder)
        runs = [first_output(folder) for _ in range(case.runs)]
    seconds, peaks = zip(*runs)
    middle, peak = statistics.median(seconds), statistics.median(peaks)
    return {
        "seconds": middle,
        "runs_seconds": list(seconds),
        "peak_rss_mib": peak,
        "imports_rss_mib": base,
        "weights_mib": size,
        "copies": (peak - base) / size,
        "seconds_goal": at_most(middle, case.goal),
    }


def first_output(folder: str) -> tuple[float, float]:
    """Runs the command once; returns seconds to the first byte that it prints, and its peak memory in MiB by then.

    The memory is read from /proc: the figure that wait4 returns would count this process too, at the fork.
    """
    script = Path(sys.executable).with_name("msllm")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "msllm"]
    command += ["generate", "--model", folder, "--prompt", _PROMPT, "--max_new_tokens", "1"]
    with tempfile.TemporaryFile("w+") as messages:
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, bufsize=0) as process:
            first = process.stdout.read(1)
            seconds = time.perf_counter() - start
            status = Path(f"/proc/{process.pid}/status").read_text() if first else ""
            process.stdout.read()
        if not first or process.returncode:
            messages.seek(0)
            raise WorkerError(f"msllm generate ended with {process.returncode}:\n{messages.read()[-3000:]}")
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [
        "msllm generate to its first output",
        "seconds",
        "goal",
        "weights MiB",
        "peak MiB",
        "imports MiB",
        "copies",
    ]
    rows = []
    for name, r in results.items():
        low, high = min(r["runs_seconds"]), max(r["runs_seconds"])
        cells = [name, f"{r['seconds']:.2f} ({low:.2f}-{high:.2f})", verdict(r["seconds_goal"])]
        cells += [f"{r[key]:.0f}" for key in ("weights_mib", "peak_rss_mib", "imports_rss_mib")]
        rows.append([*cells, f"{r['copies']:.2f}"])
    return header, rows
