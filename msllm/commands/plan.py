"""msllm parallel plan: which layout trains a model on so many cards, by memory and time worked out."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.files import make_folder
from msllm.parallel.launch import COMMAND_LINE


def plan(
    model: str,
    cards: int,
    batch: int = 512,
    seq: int | None = None,
    hardware: str = "ascend-910b",
    card_memory: str | None = None,
    topology: str | None = None,
    mode: Literal["explicit", "auto"] | None = None,
    top: int = 10,
    choose: int = 1,
    output: str = "outputs/plan",
) -> None:
    """Plans how cards share a model: memory, bytes and time of every layout, the best ones, and the run file of one.

    Nothing is built or run. The memory of explicit mode agrees with measured CPU workers; that of auto mode, and all
    seconds, are estimates.

    Args:
        model: a name such as llama2-7b, a config.json, or the folder of one.
        cards: their number.
        batch: examples of an optimiser step, on all cards together.
        seq: tokens of an example; without it, the longest that the model takes, at most 4096.
        hardware: ascend-910, ascend-910b or cpu-worker, or FILE.yaml[:NAME] of the same form.
        card_memory: bytes of a card for the model, such as 32GB (32e9) or 32GiB (32 x 2^30); without it, the preset's.
        topology: cards of a node and, where known, GB/s that a card really sends within it and beyond, such as
            8:30:12.5; without it, the preset's.
        mode: auto is MindSpore's auto-parallel, in bfloat16; explicit msllm's own collectives, in float32; without it,
            the preset's.
        top: how many layouts are shown.
        choose: which of them the run file is for.
        output: folder of plan.json, with every layout and why it was dropped, and run.yaml for msllm pretrain.
    """
    for name, value in (("cards", cards), ("batch", batch), ("top", top), ("choose", choose)):
        if value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more; change it")
    job = _job(model, cards, batch, seq, hardware, card_memory, topology, mode)
    from msllm.parallel.planner.search import search

    found = search(job)
    fit = [c for c in found if c.time is not None]
    if not fit:
        raise UserError(_impossible(job, found))
    if choose > len(fit):
        raise UserError(f"choose is {choose}, and {len(fit)} layouts fit; use 1 to {len(fit)}")
    _show(job, found, fit, min(top, len(fit)), model)
    folder = make_folder(output)
    _write(job, found, fit[choose - 1], model, folder)
    print(f"{folder}: plan.json, run.yaml (number {choose})")


def _job(model, cards, batch, seq, hardware, card_memory, topology, mode):
    """Returns what is planned; UserError where a model or hardware is unknown, or the length too long."""
    from msllm.models.presets import check_length, config_of, example_length
    from msllm.parallel.planner.hardware import load

    card = load(hardware)
    card = card if card_memory is None else card.with_memory(card_memory)
    card = card if topology is None else card.with_topology(topology)
    config = config_of(model)
    from msllm.parallel.planner.search import Job
    from msllm.parallel.planner.sizes import ModelSizes

    length = example_length(config) if seq is None else seq
    check_length(config, length, "seq")
    return Job(ModelSizes(config), card, cards, batch, length, mode or card.mode)


def _impossible(job, found) -> str:
    """Says what does not fit, by how much, and how many cards would do."""
    from msllm.parallel.planner.report import gib, words
    from msllm.parallel.planner.search import enough_cards, least, too_much

    best = least(found)
    if best is None:
        return f"no layout can be run on {job.cards} cards: {found[0].reason}; use another number of cards, or batch"
    term, over = too_much(best.memory, job.hardware.memory)
    enough = enough_cards(job)
    then = "no number of cards would do"
    if enough is not None:
        then = f"{enough[0]} cards would do, as {words(enough[1].parallel)}"
    return (
        f"no layout fits: the least, {words(best.parallel)}, needs {gib(best.memory.total)} GiB and a card has "
        f"{gib(job.hardware.memory)}, {gib(over)} too much; its {term} are what goes over; {then}"
    )


def _show(job, found, fit, shown: int, model: str) -> None:
    from rich.console import Console

    from msllm.parallel.planner.report import details, dropped, gib, table

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    card, sizes = job.hardware, job.model
    console.print(
        f"{model}: {sizes.numbers:,} parameters; {job.cards} x {card.name} of {gib(card.memory)} GiB, {job.mode} mode; "
        f"{job.batch} examples of {job.length} tokens a step; {len(found)} layouts, {len(fit)} fit"
    )
    console.print(f"figures of the card are leads, not promises: {card.source}")
    console.print(table(fit[:shown]))
    console.print(
        "m: micro-batches x examples; parameters to GiB: of the fullest card; products, memory, messages: seconds of a "
        "step; waits: share of a step in which a stage does; of number 1:"
    )
    twin = dataclasses.replace(fit[0].parallel, recompute=not fit[0].parallel.recompute)
    other = next((c for c in found if c.parallel == twin and c.memory is not None), None)
    for line in details(job, fit[0], other):
        console.print(line)
    console.print("not among them:")
    for line in dropped(found, shown):
        console.print(f"  {line}")


def _write(job, found, chosen, model: str, folder: Path) -> None:
    import shlex

    from msllm.files import write_json
    from msllm.parallel.planner.report import as_values, write_run

    words = COMMAND_LINE.get() or ["parallel", "plan", "--model", model, "--cards", str(job.cards)]
    command = shlex.join(["msllm", *words])
    about = {"command": command, "cards": job.cards, "batch": job.batch, "length": job.length, "mode": job.mode}
    values = {**about, "hardware": dataclasses.asdict(job.hardware), "layouts": [as_values(c) for c in found]}
    write_json(folder / "plan.json", values)
    write_run(folder / "run.yaml", job, model, command, chosen)
