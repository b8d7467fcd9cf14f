"""Peak memory of a train step as the sequence grows, a fresh process for each figure."""

from itertools import pairwise
from pathlib import Path

from tests.benchmarks.cases import Memory
from tests.benchmarks.process import Pool
from tests.benchmarks.table import at_most, verdict

_SIDES = ("msllm", "eager")
_STEPS = 3  # the optimiser's moments exist after the first


def measure(case: Memory, pool: Pool) -> dict:
    """Returns MiB at each length beyond imports and device start, and how they grow where the length doubles.

    ``growth`` below 2 is linear growth upon what the length does not change; ``mib_per_1000_tokens`` is the slope
    between neighbouring lengths, constant where growth is linear.
    """
    peaks: dict[str, list[float]] = {kind: [] for kind in _SIDES}
    with pool.model_folder(case.config) as folder:
        for length in case.lengths:
            with pool.workers(*_SIDES) as sides:
                for side in sides:
                    side.ask("load", folder=folder)
                    side.ask("prepare", rows=1, length=length)
                    side.ask("steps", count=_STEPS)
                    peaks[side.kind].append(side.ask("memory")["peak_mib"])
    result: dict = {"lengths": list(case.lengths)}
    gaps = [long - short for short, long in pairwise(case.lengths)]
    for kind, mib in peaks.items():
        slopes = [(long - short) / gap * 1000 for (short, long), gap in zip(pairwise(mib), gaps)]
        growth = [long / short for short, long in pairwise(mib)]
        result[kind] = {"peak_mib": mib, "growth": growth, "mib_per_1000_tokens": slopes}
    result["growth_goal"] = at_most(max(result["msllm"]["growth"]), case.goal)
    return result


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a length."""
    header = ["peak memory of a train step", "msllm MiB", "growth", "MiB/1000 tokens", "goal"]
    header += ["eager MiB", "growth", "MiB/1000 tokens"]
    rows = []
    for name, r in results.items():
        for i, length in enumerate(r["lengths"]):
            ours, theirs = (_cells(r[kind], i) for kind in _SIDES)
            rows.append([f"{name}, T={length}", *ours, verdict(r["growth_goal"]) if i else "", *theirs])
    return header, rows


def plot(results: dict, path: Path) -> None:
    """Both curves, and the line through the origin and msllm's largest figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    (name, r), *_ = results.items()
    for kind, label in (("msllm", "msllm"), ("eager", "PyTorch, eager")):
        axes.plot(r["lengths"], r[kind]["peak_mib"], marker="o", label=label)
    slope = r["msllm"]["peak_mib"][-1] / r["lengths"][-1]
    axes.plot(r["lengths"], [slope * length for length in r["lengths"]], color="gray", linestyle="--", label="linear")
    axes.set(xlabel="sequence length (tokens)", ylabel="peak memory beyond imports (MiB)", title=name)
    axes.set_ylim(bottom=0)
    axes.set_xticks(r["lengths"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _cells(side: dict, i: int) -> list[str]:
    peak = f"{side['peak_mib'][i]:.0f}"
    return [peak, f"{side['growth'][i - 1]:.2f}", f"{side['mib_per_1000_tokens'][i - 1]:.0f}"] if i else [peak, "", ""]
