"""msllm parallel: whether layouts of workers compute what one process computes."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from msllm.errors import UserError


def verify(
    workers: int = 4,
    strategy: list[str] | None = None,
    output: str = "outputs/parallel",
    time_limit: float | None = None,
    quick: bool = False,
) -> int:
    """Runs every way of spreading a model on workers of this machine against one process, and prints a table.

    Args:
        workers: how many.
        strategy: names of those to run; without it, all that so many workers can show.
        output: folder of the logs and of verify-WORKERS.json.
        time_limit: seconds after which the run is stopped.
        quick: one model for each strategy, and two steps instead of ten.

    Returns:
        0, or 1 where a row is not within its bounds.
    """
    if workers not in (2, 4, 8):
        raise UserError(
            f"workers is {workers}, expected 2, 4 or 8: the models have 8 layers, heads and experts; use one of them"
        )
    from msllm.files import read_json
    from msllm.parallel.launch import run_on_workers, started_workers

    if started_workers() is not None:
        return _run_rows(strategy, Path(output), quick)
    from msllm.parallel.verify import chosen

    chosen(workers, strategy)  # a misspelt name shows before workers start
    command = ["parallel", "verify", "--workers", str(workers), "--output", output, *(["--quick"] if quick else [])]
    if strategy is not None:
        command += ["--strategy", *strategy]
    run_on_workers(workers, command, Path(output) / "logs", time_limit)
    rows = read_json(_results(Path(output), workers))["rows"]
    print(table(rows))
    broken = sum(not row["holds"] for row in rows)
    print(f"{len(rows) - broken} of {len(rows)} rows hold on {workers} workers")
    return 1 if broken else 0


def _run_rows(names: list[str] | None, output: Path, quick: bool) -> int:
    """What each worker does."""
    from msllm import kernels
    from msllm.files import write_json
    from msllm.parallel import start_workers
    from msllm.parallel.verify import BOUND, QUICK_STEPS, STEPS, chosen, run_rows

    workers = start_workers()

    def tell(line: str) -> None:
        if workers.rank == 0:
            print(line, file=sys.stderr, flush=True)

    steps = QUICK_STEPS if quick else STEPS
    rows = run_rows(workers, chosen(workers.world, names, quick), steps, tell)
    if workers.rank == 0:
        values = [{**dataclasses.asdict(row), "holds": row.holds} for row in rows]
        about = {"workers": workers.world, "steps": steps, "bound": BOUND, "kernels": kernels.active()}
        write_json(_results(output, workers.world), {**about, "rows": values})
    workers.barrier()
    return 0


def _results(output: Path, workers: int) -> Path:
    return output / f"verify-{workers}.json"


def table(rows: list[dict]) -> str:
    """Returns the rows as lines of text."""
    heads = ("strategy", "layout", "model", "loss", "parameter", "bytes a step", "formula", "peak MiB", "holds")
    cells = [
        (
            row["strategy"],
            row["layout"],
            row["family"],
            f"{row['loss']:.1e}",
            f"{row['parameter']:.1e}",
            f"{row['sent']:,.0f}",
            f"{row['formula']:,.0f}",
            f"{row['memory'] / 2**20:,.1f}",
            "yes" if row["holds"] else "NO",
        )
        for row in rows
    ]
    return columns(heads, cells, 3)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Returns a table as lines of text; the first ``left`` columns are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = []
    for line in (heads, *rows):
        words = [w.ljust(n) if i < left else w.rjust(n) for i, (w, n) in enumerate(zip(line, widths))]
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)
