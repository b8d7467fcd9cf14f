"""Whether a long run keeps its pace and its memory: many train steps of msllm in one process."""

import statistics
from pathlib import Path

from tests.benchmarks.cases import Steady
from tests.benchmarks.process import Pool


def measure(case: Steady, pool: Pool) -> dict:
    """Returns the median step in ms and the resident memory in MiB for each ``chunk`` of steps."""
    steps, medians, memory = [], [], []
    with pool.workers("msllm") as (worker,):
        worker.ask("build", config=case.config)
        worker.ask("prepare", rows=case.batch, length=case.length)
        for done in range(case.chunk, case.steps + 1, case.chunk):
            answer = worker.ask("steps", count=case.chunk)
            steps.append(done)
            medians.append(statistics.median(answer["times"]) * 1e3)
            memory.append(answer["rss_mib"])
    return {
        "steps": steps,
        "median_ms": medians,
        "rss_mib": memory,
        "last_to_first": medians[-1] / medians[0],
        "rss_growth_mib": memory[-1] - memory[0],
    }


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows; memory is that after the first chunk and at the end."""
    header = ["many steps", "steps", "first ms", "last ms", "last / first", "RSS MiB", "growth MiB"]
    rows = []
    for name, r in results.items():
        times = [f"{r['median_ms'][0]:.1f}", f"{r['median_ms'][-1]:.1f}", f"{r['last_to_first']:.3f}"]
        memory = [f"{r['rss_mib'][0]:.0f} - {r['rss_mib'][-1]:.0f}", f"{r['rss_growth_mib']:.1f}"]
        rows.append([name, str(r["steps"][-1]), *times, *memory])
    return header, rows


def plot(results: dict, path: Path) -> None:
    """Step time above, memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    (name, r), *_ = results.items()
    upper.plot(r["steps"], r["median_ms"], marker="o")
    upper.set(ylabel="median train step (ms)", title=name)
    lower.plot(r["steps"], r["rss_mib"], marker="o", color="tab:orange")
    lower.set(xlabel="steps", ylabel="resident memory (MiB)")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path)
