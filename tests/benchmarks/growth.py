"""How the time of msllm's train step grows with width, layers, length and batch, beside the count of operations."""

from pathlib import Path

from tests.benchmarks.cases import AXES, Growth, gpt2
from tests.benchmarks.process import Pool, Worker, spread

_WARM_UP = 3
_LABELS = {"width": "model width d", "layers": "layers", "length": "tokens a row T", "batch": "rows B"}


def measure(case: Growth, pool: Pool) -> dict:
    """Returns, for each axis, its values, the step times in ms and the operations of a step."""
    points: dict[tuple[int, ...], dict] = {}
    axes = {}
    for axis, values in case.values.items():
        shapes = [{**case.base, axis: value} for value in values]
        keys = [tuple(shape[name] for name in AXES) for shape in shapes]
        for key, shape in zip(keys, shapes):
            if key not in points:  # the base case lies on every axis
                points[key] = _point(pool.writer, case, **shape)
        axes[axis] = {"values": list(values), **{k: [points[p][k] for p in keys] for k in points[keys[0]]}}
    return {"base": case.base, "axes": axes}


def operations(width: int, layers: int, length: int, batch: int, parameters: int) -> float:
    """Floating-point operations of forward and backward.

    6 a token and parameter (a multiplication and an addition forward, twice that backward; Kaplan et al. 2020,
    section 2.1), the position table left out and the tied token table counted once, as the head; and 6 L D T a token
    for the two products of causal attention, which reads half of the T x T pairs.
    """
    multiplied = parameters - length * width
    return batch * length * (6.0 * multiplied + 6.0 * layers * width * length)


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a point."""
    header = ["train step of msllm", "value", "ms", "quartiles", "GFLOP", "GFLOP/s"]
    rows = []
    for r in results.values():
        for axis, points in r["axes"].items():
            columns = (points[key] for key in ("values", "median_ms", "quartiles_ms", "flop"))
            for value, middle, (low, high), flop in zip(*columns):
                rate = f"{flop / middle / 1e6:.0f}"
                cells = [_LABELS[axis], str(value), f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{flop / 1e9:.2f}", rate]
                rows.append(cells)
    return header, rows


def plot(results: dict, path: Path) -> None:
    """A log-log panel an axis; the line of the operations goes through the largest point."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    (name, r), *_ = results.items()
    for axes, (axis, points) in zip(figure.subplots(2, 2).flat, r["axes"].items()):
        values, times = points["values"], points["median_ms"]
        per_flop = times[-1] / points["flop"][-1]
        axes.loglog(values, times, marker="o", label="measured median")
        line = [flop * per_flop for flop in points["flop"]]
        axes.loglog(values, line, color="gray", linestyle="--", label="in proportion to the operations")
        axes.set(xlabel=_LABELS[axis], ylabel="train step (ms)")
        axes.set_xticks(values)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.suptitle(f"Around {name}")
    figure.savefig(path)


def _point(worker: Worker, case: Growth, width: int, layers: int, length: int, batch: int) -> dict:
    config = gpt2(width, layers, max(1, width // case.head_width), case.vocab, positions=length)
    parameters = worker.ask("build", config=config)["parameters"]
    worker.ask("prepare", rows=batch, length=length)
    worker.ask("steps", count=_WARM_UP)
    times = worker.ask("steps", count=case.steps)["times"]
    flop = operations(width, layers, length, batch, parameters)
    return {**spread(times), "flop": flop, "parameters": parameters}
