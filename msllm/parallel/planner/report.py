"""What a search found, as a table, as JSON and as the YAML of a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from msllm.files import atomic_file
from msllm.parallel.config import ParallelConfig
from msllm.parallel.planner.memory import Memory
from msllm.parallel.planner.search import TERMS, Candidate, Job

_COLUMNS = ("", "layout", "m", *TERMS, "GiB", "step s", "products", "memory", "messages", "waits", "tokens/s", "MFU")


def gib(size: float) -> str:
    """Bytes in GiB with one decimal."""
    return f"{size / 2**30:,.1f}"


def words(parallel: ParallelConfig) -> str:
    """A layout in short, such as "dp16 pp4 zero1 1f1b recompute"."""
    parts = [str(parallel)]
    parts += [parallel.schedule + (f" x{parallel.chunks}" if parallel.chunks > 1 else "")] * (parallel.pipeline > 1)
    parts += [parallel.attention] * (parallel.sequence > 1)
    return " ".join([*parts, *["norms"] * parallel.split_norms, *["recompute"] * parallel.recompute])


def table(best: Sequence[Candidate]):
    """Returns a rich Table of layouts that fit."""
    from rich.table import Table

    found = Table(title=None, box=None, header_style="bold", pad_edge=False)
    for name in _COLUMNS:
        found.add_column(name, justify="left" if name == "layout" else "right")
    for number, c in enumerate(best, 1):
        t = c.time
        found.add_row(
            str(number),
            words(c.parallel),
            f"{c.parallel.micro_batches} x {c.rows}",
            *(gib(getattr(c.memory, term)) for term in TERMS),
            gib(c.memory.total),
            f"{t.total:,.2f}",
            f"{t.products:,.2f}",
            f"{t.memory + t.update:,.2f}",
            f"{sum(t.messages.values()):,.2f}",
            f"{c.waits:.0%}",
            f"{c.speed:,.0f}",
            f"{c.share:.0%}",
        )
    return found


def details(job: Job, best: Candidate, other: Candidate | None) -> list[str]:
    """Returns lines about the best layout: what its messages carry, and its twin with or without recomputation."""
    sent = [f"{name} {gib(size)}" for name, size in best.time.sent.items() if size]
    lines = [f"a card sends in a step (GiB): {', '.join(sent) or 'nothing'}"]
    held = f"{gib(best.memory.activations)} GiB of activations"
    if other is not None:
        with_, without = (best, other) if best.parallel.recompute else (other, best)
        held = f"activations {gib(without.memory.activations)} GiB, with recompute {gib(with_.memory.activations)} GiB"
    return [*lines, f"{held}; fullest: stage {best.stage} in {best.memory.moment}"]


def dropped(found: Sequence[Candidate], shown: int) -> list[str]:
    """Returns a line for each reason why layouts are not among the best, with their number and an example."""
    lines, fit = [], [c for c in found if c.time is not None]
    if len(fit) > shown:
        last = fit[shown - 1]
        slow = fit[shown]
        lines.append(
            f"{len(fit) - shown}: fit and are slower than the best {shown}, such as {words(slow.parallel)} with "
            f"{slow.parallel.micro_batches} x {slow.rows} examples and "
            f"{slow.speed:,.0f} tokens/s, {1 - slow.speed / last.speed:.0%} less than number {shown}"
        )
    kinds: dict[str, list[Candidate]] = {}
    for c in found:
        if c.time is None:
            kinds.setdefault(c.kind, []).append(c)
    for some in sorted(kinds.values(), key=len, reverse=True):
        nearest = min(some, key=lambda c: c.memory.total if c.memory else 0)
        lines.append(f"{len(some)}: such as {words(nearest.parallel)}: {nearest.reason}")
    return lines


def as_values(c: Candidate) -> dict:
    """Returns a candidate as JSON has it: bytes, seconds, and why it was dropped."""
    values = {"layout": words(c.parallel), **_settings(c.parallel), "rows": c.rows, "dropped": c.reason}
    if c.memory is not None:
        values["memory"] = {**dataclasses.asdict(c.memory), "total": c.memory.total, "stage": c.stage}
    if c.time is not None:
        values["seconds"] = {**dataclasses.asdict(c.time), "total": c.time.total}
        values |= {"tokens_per_second": c.speed, "mfu": c.share, "bubble": c.waits}
    return values


def _settings(parallel: ParallelConfig) -> dict:
    """What of a layout is not as it is by default, and its data degree."""
    values, usual = dataclasses.asdict(parallel), dataclasses.asdict(ParallelConfig())
    return {name: value for name, value in values.items() if value != usual[name] or name in ("data", "mode")}


def run_values(job: Job, model: str, chosen: Candidate) -> dict:
    """Returns the options of msllm pretrain that train the model in this layout."""
    return {
        "config_name": model,
        "block_size": job.length,
        "per_device_train_batch_size": job.batch // chosen.parallel.data,
        "gradient_accumulation_steps": 1,
        "parallel": _settings(chosen.parallel),
    }


def write_run(path: Path, job: Job, model: str, command: str, chosen: Candidate) -> None:
    """Writes the YAML of a run, with what was estimated of it as comments.

    Args:
        path: of the file.
        job: what was planned.
        model: as the user named it.
        command: that planned it.
        chosen: the layout.
    """
    memory: Memory = chosen.memory
    about = [
        f"made by: {command}",
        f"hardware: {job.hardware.name} x {job.cards}; an estimate, not a measurement:",
        f"{gib(memory.total)} of {gib(job.hardware.memory)} GiB on the fullest card "
        f"({', '.join(f'{term} {gib(getattr(memory, term))}' for term in TERMS if getattr(memory, term))}),",
        f"{chosen.time.total:.2f} s a step of {job.batch} x {job.length} tokens, {chosen.speed:,.0f} tokens/s, "
        f"bubble {chosen.waits:.0%}",
        f"run it: msllm pretrain --config {path.name} --data TOKENS --output OUT, on {job.cards} cards under msrun",
    ]
    text = "".join(f"# {line}\n" for line in about)
    with atomic_file(path) as tmp:
        tmp.write_text(text + yaml.safe_dump(run_values(job, model, chosen), sort_keys=False), encoding="utf-8")
