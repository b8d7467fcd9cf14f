"""msllm parallel compile: what MindSpore's auto-parallel makes of a layout, on a machine without cards."""

import contextlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from msllm.commands.parallel import columns
from msllm.errors import UserError
from msllm.files import make_folder
from msllm.parallel.config import ParallelConfig
from msllm.parallel.launch import ALONE


def compile_layout(
    model: str,
    cards: int,
    output: str = "outputs/compile",
    length: int | None = None,
    batch: int = 1,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    rank: int | None = None,
    fast: bool = False,
    parallel: ParallelConfig = ALONE,
) -> None:
    """Compiles a training step with MindSpore's auto-parallel for absent cards: what each would hold and send.

    Args:
        model: a name such as llama2-7b, a config.json, or the folder of one.
        cards: their number.
        output: folder of compile.json, sharding.png, MindSpore's strategy files and its graphs.
        length: tokens of an example; without it, the longest that the model takes, at most 4096.
        batch: examples of each data-parallel rank in a micro-batch.
        dtype: of activations; parameters and moments are float32.
        rank: the card whose program is compiled; without it, the first of each pipeline stage.
        fast: compile a few layers and work the others out, which add the same each.
        parallel: the layout; its mode is auto.
    """
    for name, value in (("cards", cards), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more; change it")
    from msllm.models.presets import config_of, example_length
    from msllm.parallel.auto.check import Work, check_layout, compile_stages, summary

    config = config_of(model)
    length = example_length(config) if length is None else length
    work = Work(config, check_layout(config, parallel, cards, length), length, batch, dtype)
    folder = make_folder(output)
    checks = compile_stages(work, folder, rank, fast, _clock)
    _write(work, checks, folder, f"{model}, {cards} cards: {work.parallel}", summary(work, checks))
    for check in checks:
        print(report(work, check))
    seconds, peak = sum(c.seconds for c in checks), max(c.peak_bytes for c in checks)
    print(
        f"compiled for {cards} cards ({work.parallel}) in {seconds:.1f} s with {peak / 2**30:.2f} GiB here; nothing "
        f"ran on a card, and nothing is said of a card's peak of memory or its speed\n"
        f"{folder}: {', '.join(['compile.json', 'sharding.png', *(c.strategy.name for c in checks if c.strategy)])}"
    )


@contextlib.contextmanager
def _clock(what: str) -> Iterator[None]:
    """Shows for how long something has been going on; how much is left, MindSpore does not say."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(what, file=sys.stderr, flush=True)
        yield
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        progress.add_task(what, total=None)
        yield


def _write(work, checks, folder: Path, title: str, found: dict) -> None:
    from msllm.files import atomic_file, write_json
    from msllm.parallel.auto.picture import sharding

    write_json(folder / "compile.json", found)
    with atomic_file(folder / "sharding.png") as tmp:
        sharding(checks, title).savefig(tmp, format="png")


def report(work, check) -> str:
    """Returns what one card holds and sends, as lines of text."""
    from msllm.parallel.auto.check import uncut

    lines = [
        f"stage {check.stage}, card {check.rank}: {_gib(check.weight_bytes)} of weights, "
        f"{_gib(check.optimizer_bytes)} of optimiser states",
        "",
        columns(("parameter", "how many", "whole", "on the card", "share", "MiB"), parameter_rows(check), 1),
        "",
        columns(
            ("part", "collective", "type", "cards", "calls", "payload MiB", "sent MiB (estimate)"),
            [
                (
                    c.part,
                    c.kind,
                    c.dtype,
                    str(c.members),
                    str(c.count),
                    f"{c.payload / 2**20:,.2f}",
                    f"{c.sent / 2**20:,.2f}",
                )
                for c in check.graph.collectives
            ],
            3,
        ),
        "",
    ]
    return "\n".join(lines + warnings(uncut(work, check), check))


def parameter_rows(check) -> list[tuple[str, ...]]:
    """Returns a row for the parameters of one name in all layers that are cut alike."""
    groups: dict[tuple, list[str]] = {}
    for name, shape in check.shapes.items():
        groups.setdefault((_in_all_layers(name), shape, check.graph.parameters[name][1]), []).append(name)
    rows = []
    for (name, shape, card), names in groups.items():
        whole, part = (math.prod(sizes) for sizes in (shape, card))
        size = sum(check.graph.nbytes(n) for n in names)
        rows.append((name, str(len(names)), _text(shape), _text(card), f"1/{whole // part}", f"{size / 2**20:,.2f}"))
    return rows


def warnings(uncut: dict[str, tuple[int, int]], check) -> list[str]:
    """Returns a line for each kind of parameter that fewer cards share than the layout says."""
    groups: dict[tuple, int] = {}
    for name, (shared, wanted) in uncut.items():
        key = (_in_all_layers(name), check.graph.parameters[name][1], shared, wanted)
        groups[key] = groups.get(key, 0) + 1
    return [
        f"warning: {count} x {name}: shared by {shared} of {wanted} cards: {_text(card)} cannot be divided evenly "
        f"any further, and the others hold the same"
        for (name, card, shared, wanted), count in groups.items()
    ]


def _in_all_layers(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
