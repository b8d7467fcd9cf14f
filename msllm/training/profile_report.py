"""Shows a profile and writes its files."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from msllm.files import atomic_file, write_json
from msllm.training.profile_recording import Recording
from msllm.training.profile_split import PARTS

FILES = ("summary.json", "operators.csv", "trace_view.json", "step.png")
_SHOWN = 12  # operators in the table
_WIDTH = 110  # of the tables where there is no terminal
COLOURS = {
    "data": "#6aa56a",
    "compute": "#3f7fb5",
    "communication": "#d9822b",
    "waiting": "#b94a48",
    "between_operators": "#bbbbbb",
    "other": "#8064a2",
}


def tell(folder: Path, summary: dict, out: TextIO) -> None:
    """Prints the parts of a step, the operators that take longest, and the advice, without tearing a bar."""
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    terminal = out.isatty()
    console = Console(
        file=text, force_terminal=terminal, width=None if terminal else _WIDTH, highlight=False, soft_wrap=False
    )
    steps, wall = summary["steps"], summary["workers"][0]["parts"]["wall"]
    console.print(
        f"profile of steps {steps[0]} to {steps[-1]}: {wall:.1f} ms a step, {summary['tokens_per_second']:,.0f} "
        f"tokens/s, {summary['padding']:.0%} padding"
    )
    parts = Table("ms a step", *(part.replace("_", " ") for part in PARTS), box=None, pad_edge=False)
    for worker in summary["workers"]:
        mine = worker["parts"]
        cells = (f"{mine[part]:.1f} ({mine[part] / mine['wall']:.0%})" for part in PARTS)
        parts.add_row(f"worker {worker['rank']}", *cells)
    table = Table("operator", "from", "calls", "ms a step", "of a step", "us a call", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in summary["operators"][:_SHOWN]:
        share = f"{row['ms'] / wall:.1%}"
        numbers = f"{row['calls']:.1f}", f"{row['ms']:.2f}", share, f"{row['mean_us']:.0f}"
        table.add_row(row["name"], row["source"], *numbers)
    for block in (parts, "", table, "", *_waits(summary)):
        console.print(block)
    for finding in summary["advice"]:
        console.print(f"- {finding['text']}", style="bold", soft_wrap=True)
    console.print(f"written to {folder}: {', '.join(FILES)}; open the trace in ui.perfetto.dev", soft_wrap=True)
    tqdm.write("\n".join(line.rstrip() for line in text.getvalue().splitlines()), file=out)


def _waits(summary: dict) -> Iterator[str]:
    for worker in summary["workers"]:
        times = sorted(enumerate(worker["waits_for"]), key=lambda both: -both[1])
        told = ", ".join(f"{ms:.1f} ms for worker {rank}" for rank, ms in times if ms > 0)
        if told:
            yield f"worker {worker['rank']} waits {told} a step"


def write(folder: Path, summary: dict, recordings: Sequence[Recording]) -> None:
    """Writes FILES into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    with atomic_file(folder / "operators.csv") as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, list(summary["operators"][0]))
        rows.writeheader()
        rows.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in summary["operators"]
        )
    with atomic_file(folder / "trace_view.json") as tmp:
        tmp.write_text(json.dumps({"traceEvents": list(trace_events(recordings))}), encoding="utf-8")
    with atomic_file(folder / "step.png") as tmp:
        picture(summary).savefig(tmp, format="png")


def trace_events(recordings: Sequence[Recording]) -> Iterator[dict]:
    """Yields events of Chrome's trace format (a process a worker; rows of steps, spans, messages and operators)."""
    origin = recordings[0].steps[0].start
    rows = ("steps", "parts", "messages", "operators")
    for recording in recordings:
        pid = recording.rank
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": f"worker {pid}"}}
        for tid, name in enumerate(rows):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
        events = [(0, f"step {s.number}", "step", s.start, s.end, {"tokens": s.tokens}) for s in recording.steps]
        events += [(1, name, "part", start, end, {}) for name, start, end in recording.spans]
        events += [
            (2, m.operation, "message", m.start, m.end, {"group": m.group, "workers": m.channel})
            for m in recording.messages
        ]
        events += [(3, o.name, o.source, o.start, o.end, {}) for o in recording.operators]
        for tid, name, kind, start, end, args in events:
            times = {"ts": (start - origin) / 1e3, "dur": (end - start) / 1e3}
            yield {"ph": "X", "name": name, "cat": kind, "pid": pid, "tid": tid, **times, "args": args}


def picture(summary: dict):
    """Returns a Figure with a bar for each step of each worker, in the colours of its parts."""
    from matplotlib.figure import Figure

    workers = summary["workers"]
    figure = Figure(figsize=(8, 1.2 + 2.6 * len(workers)), dpi=110, layout="constrained")
    for axes, worker in zip(figure.subplots(len(workers), 1, sharex=True, sharey=True, squeeze=False)[:, 0], workers):
        bottom = [0.0] * len(summary["steps"])
        for part in PARTS:
            heights = [step[part] for step in worker["steps"]]
            axes.bar(summary["steps"], heights, 0.8, bottom, color=COLOURS[part], label=part.replace("_", " "))
            bottom = [low + height for low, height in zip(bottom, heights)]
        axes.set_ylabel("ms")
        axes.grid(alpha=0.3, axis="y")
        if len(workers) > 1:
            axes.set_title(f"worker {worker['rank']}", fontsize=10)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(PARTS), fontsize=8)
    return figure
