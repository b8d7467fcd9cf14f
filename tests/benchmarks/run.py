"""msllm beside PyTorch on the same weights, taking turns.

``make bench``, or ``python -m tests.benchmarks.run --quick``.

Prints a table and writes tests/benchmarks/results/core.json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = ("width", "layers", "heads", "batch", "length", "vocab")
TRAIN = {
    "d=256, 4 layers, B=8, T=128, V=1000": dict(zip(SHAPE, (256, 4, 4, 8, 128, 1000))),
    "GPT-2 small, B=2, T=128": dict(zip(SHAPE, (768, 12, 12, 2, 128, 50257))),
}
QUICK = {"d=64, 2 layers, B=2, T=32, V=100": dict(zip(SHAPE, (64, 2, 2, 2, 32, 100)))}


class Worker:
    """A worker process; ``ask`` sends a command and returns its answer."""

    def __init__(self, kind: str, folder: str):
        # A library's own messages stay out of the table; its errors are kept and shown if it dies.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", kind, folder],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def ask(self, **command) -> dict:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise SystemExit(f"a worker died at {command['do']}:\n{self.errors.read()[-3000:]}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def write_model(folder: str, case: dict) -> None:
    """Saves a random GPT-2 of the case's shape."""
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel

    config = GPT2Config.from_dict(
        {
            "n_embd": case["width"],
            "n_layer": case["layers"],
            "n_head": case["heads"],
            "vocab_size": case["vocab"],
            "n_positions": 1024,
        }
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def summary(times: list[float]) -> dict:
    """Median and the middle half, in milliseconds."""
    quarters = statistics.quantiles(times, n=4)
    return {"median_ms": statistics.median(times) * 1e3, "quartiles_ms": [quarters[0] * 1e3, quarters[2] * 1e3]}


def train(folder: str, case: dict, rounds: int) -> dict:
    """Times train steps in turns of one, and reads peak memory beyond the import."""
    sides = {kind: Worker(kind, folder) for kind in ("msllm", "torch")}
    losses = {}
    for kind, worker in sides.items():
        worker.ask(do="prepare", case=case)
        losses[kind] = [worker.ask(do="step")["loss"] for _ in range(3)]
    times = {kind: [] for kind in sides}
    for _ in range(rounds):
        for kind, worker in sides.items():
            times[kind].append(worker.ask(do="step")["seconds"])
    result = {
        kind: {**summary(times[kind]), "peak_mib": worker.ask(do="memory")["mib"], "first_losses": losses[kind]}
        for kind, worker in sides.items()
    }
    for worker in sides.values():
        worker.close()
    np.testing.assert_allclose(losses["msllm"], losses["torch"], rtol=1e-4)  # the same work was timed
    result["ratio"] = result["msllm"]["median_ms"] / result["torch"]["median_ms"]
    return result


def decode(folder: str, case: dict, rounds: int, prompt_length: int, count: int) -> dict:
    """Times greedy decoding in turns and measures the bandwidth between the turns."""
    prompt = np.random.default_rng(1).integers(0, case["vocab"], prompt_length).tolist()
    sides = {kind: Worker(kind, folder) for kind in ("msllm", "torch")}
    meter = Worker("bandwidth", folder)
    ids = {kind: worker.ask(do="greedy", prompt=prompt, count=count)["ids"] for kind, worker in sides.items()}
    times, speeds = {kind: [] for kind in sides}, []
    for _ in range(rounds):
        speeds.append(meter.ask(do="bandwidth")["gb_per_s"])
        for kind, worker in sides.items():
            times[kind].append(worker.ask(do="greedy", prompt=prompt, count=count)["seconds"])
    for worker in (*sides.values(), meter):
        worker.close()
    size = (Path(folder) / "model.safetensors").stat().st_size - 4 * 1024 * case["width"]  # positions: one row a token
    speed = statistics.median(speeds)
    floor = size / speed / 1e9
    result = {"bandwidth_gb_per_s": speed, "floor_ms_per_token": floor * 1e3, "same_ids": ids["msllm"] == ids["torch"]}
    for kind in sides:
        per_token = statistics.median(times[kind]) / count
        result[kind] = {
            "tokens_per_s": 1 / per_token,
            "share_of_bandwidth": floor / per_token,
            "spread_tokens_per_s": [count / max(times[kind]), count / min(times[kind])],
        }
    result["ratio"] = result["msllm"]["tokens_per_s"] / result["torch"]["tokens_per_s"]
    return result


def show(results: dict) -> None:
    print(f"{'train step':38} {'msllm ms':>22} {'torch ms':>22} {'ratio':>6} {'peak MiB':>14}")
    for name, r in results["train"].items():
        cells = [
            f"{r[k]['median_ms']:.1f} ({r[k]['quartiles_ms'][0]:.1f}-{r[k]['quartiles_ms'][1]:.1f})"
            for k in ("msllm", "torch")
        ]
        peaks = f"{r['msllm']['peak_mib']:.0f} / {r['torch']['peak_mib']:.0f}"
        print(f"{name:38} {cells[0]:>22} {cells[1]:>22} {r['ratio']:>6.2f} {peaks:>14}")
    for name, r in results["decode"].items():
        print(
            f"\ndecode {name}: bandwidth {r['bandwidth_gb_per_s']:.1f} GB/s, floor {r['floor_ms_per_token']:.1f} "
            f"ms/token, same ids: {r['same_ids']}"
        )
        for kind in ("msllm", "torch"):
            low, high = r[kind]["spread_tokens_per_s"]
            print(
                f"  {kind:6} {r[kind]['tokens_per_s']:7.1f} tokens/s ({low:.1f}-{high:.1f})  "
                f"{r[kind]['share_of_bandwidth']:.0%} of the bandwidth"
            )
        print(f"  ratio  {r['ratio']:7.2f}")


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    cases, rounds = (QUICK, 5) if quick else (TRAIN, 21)
    results: dict = {
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "date": time.strftime("%Y-%m-%d"),
        },
        "train": {},
        "decode": {},
    }
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            write_model(folder, case)
            results["train"][name] = train(folder, case, rounds)
            if name == list(cases)[-1]:
                shape = (8, 8) if quick else (32, 64)
                title = f"{name.split(',')[0]}, prompt {shape[0]} + {shape[1]} tokens, batch 1"
                results["decode"][title] = decode(folder, case, 3 if quick else 7, *shape)
    show(results)
    if not quick:
        path = Path(__file__).parent / "results" / "core.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nwritten to {path.relative_to(Path.cwd())}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
