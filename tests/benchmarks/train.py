"""Train steps: forward, backward and AdamW, one step of each side in turn."""

import numpy as np

from tests.benchmarks.cases import Train
from tests.benchmarks.process import Pool, Worker, WorkerError, spread
from tests.benchmarks.table import at_most, milliseconds, verdict

_FIRST = 3  # losses that are compared; the steps also warm up


def measure(case: Train, pool: Pool) -> dict:
    """Returns step times, memory and first losses of every side, and the ratios of the medians."""
    kinds = ("msllm", "eager", "compile") if case.compiled else ("msllm", "eager")
    with pool.model_folder(case.config) as folder, pool.workers(*kinds) as started:
        sides = {worker.kind: worker for worker in started}
        losses, result = {}, {}
        for kind in kinds:
            try:
                losses[kind] = _first_losses(sides[kind], folder, case)
            except WorkerError as e:
                if kind != "compile":
                    raise
                result["compile_error"] = str(e)[-500:]
        for kind in losses:  # the same work is timed
            np.testing.assert_allclose(losses[kind], losses["eager"], rtol=1e-4, err_msg=f"losses of {kind}")
        times: dict[str, list[float]] = {kind: [] for kind in losses}
        for _ in range(case.rounds):
            for kind, side_times in times.items():
                side_times += sides[kind].ask("steps")["times"]
        for kind in losses:
            peak = sides[kind].ask("memory")["peak_mib"]
            result[kind] = {**spread(times[kind]), "peak_mib": peak, "first_losses": losses[kind]}
    ours = result["msllm"]["median_ms"]
    result["ratio_to_eager"] = ours / result["eager"]["median_ms"]
    result["ratio_to_compile"] = ours / result["compile"]["median_ms"] if "compile" in result else None
    result["ratio_goal"] = at_most(result["ratio_to_eager"], case.goal)
    return result


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows; peaks are those of msllm and eager PyTorch."""
    header = ["train step", "msllm ms", "eager ms", "compile ms", "/ eager", "/ compile", "goal", "peak MiB"]
    rows = []
    for name, r in results.items():
        compiled = milliseconds(r["compile"]) if "compile" in r else "failed" if "compile_error" in r else "-"
        to_compile = "-" if r["ratio_to_compile"] is None else f"{r['ratio_to_compile']:.2f}"
        cells = [milliseconds(r["msllm"]), milliseconds(r["eager"]), compiled, f"{r['ratio_to_eager']:.2f}", to_compile]
        peaks = f"{r['msllm']['peak_mib']:.0f} / {r['eager']['peak_mib']:.0f}"
        rows.append([name, *cells, verdict(r["ratio_goal"]), peaks])
    return header, rows


def _first_losses(side: Worker, folder: str, case: Train) -> list[float]:
    side.ask("load", folder=folder)
    side.ask("prepare", rows=case.batch, length=case.length)
    return side.ask("steps", count=_FIRST)["losses"]
