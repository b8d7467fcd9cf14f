"""Section 6.6's auto-parallel: what MindSpore makes of a layout, and what its searches make of none, without cards."""

import dataclasses

from msllm.lessons import Run, run

# model -> cards -> layout by hand; tensor-parallel cards are those of one node, with its eight.
LAYOUTS = {
    "gpt2": {8: {"tensor": 4}, 64: {"tensor": 4, "optimizer": 1}, 1024: {"tensor": 4, "optimizer": 1}},
    "llama2-7b": {8: {"tensor": 8}, 64: {"tensor": 8, "optimizer": 1}, 1024: {"tensor": 8, "optimizer": 1}},
    "bloom-560m": {8: {"tensor": 8}, 64: {"tensor": 8, "optimizer": 1}, 1024: {"tensor": 8, "optimizer": 1}},
    "bloom-7b1": {
        8: {"tensor": 8},
        64: {"tensor": 8, "optimizer": 1},
        1024: {"tensor": 8, "pipeline": 2, "micro_batches": 2, "optimizer": 1},
    },
    "llama2-13b": {
        8: {"tensor": 8},
        64: {"tensor": 8, "optimizer": 1, "recompute": True},
        1024: {"tensor": 8, "pipeline": 2, "micro_batches": 2, "optimizer": 1},
    },
    "llama2-70b": {
        8: {"tensor": 8},
        64: {"tensor": 8, "optimizer": 1, "recompute": True},
        1024: {"tensor": 8, "optimizer": 1, "recompute": True},
    },
}
LENGTH = 2048
HEADS = ("model", "cards", "layout", "layers", "stages", "seconds", "GiB here", "weights GiB", "moments GiB")
HEADS += ("sent GiB", "uncut")
SEARCHES = ("none", "sharding_propagation", "recursive_programming", "dynamic_programming")


@run("6.6 MindSpore's auto-parallel for 8, 64 and 1,024 cards that are not here (about half an hour)")
def compile(job: Run) -> None:
    from msllm.commands.parallel import columns
    from msllm.files import read_json, write_json

    kept = job.output / "compiled.json"  # half an hour's work goes on where it was interrupted
    found = read_json(kept) if kept.is_file() else {}
    for name, layouts in list(LAYOUTS.items())[: 1 if job.quick else None]:
        for cards, values in layouts.items() if not job.quick else [(8, layouts[8])]:
            key = f"{name}-{cards}"
            if key not in found:
                found[key] = one_compiled(job, name, cards, values)
                write_json(kept, found)
            job.say("  ".join(found[key]["row"]))
            job.write_text("compile.txt", columns(HEADS, [one["row"] for one in found.values()], 4) + "\n")
            job.write_json("compile.json", found)


def one_compiled(job: Run, name: str, cards: int, values: dict) -> dict:
    """Compiles one layout of one model."""
    import time

    from msllm.models.presets import config_of
    from msllm.parallel.auto.picture import sharding

    config, start = config_of(name), time.perf_counter()
    config = dataclasses.replace(config, n_layer=2) if job.quick else config
    work, checks = compiled(job, f"{name}-{cards}", config, cards, values)
    seconds = time.perf_counter() - start
    if (name, cards) == ("llama2-7b", 64):
        job.savefig("sharding.png", sharding(checks, f"{name}, {cards} cards: {work.parallel}"))
    return {
        "row": row(name, cards, work, checks, seconds),
        "seconds": seconds,
        "peak_bytes": max(check.peak_bytes for check in checks),
        "stages": [figures(work, check) for check in checks],
    }


@run("6.6 the three searches beside a layout by hand: what a card holds and sends (about 5 minutes)")
def search(job: Run) -> None:
    from msllm.models.presets import config_of

    # Two layers and no rotary positions: dynamic programming runs out of memory on more operators.
    sizes = {"n_layer": 2, "n_embd": 1024, "n_head": 16, "vocab_size": 32000}
    config = dataclasses.replace(config_of("gpt2"), **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    found = {}
    for name in SEARCHES[:2] if job.quick else SEARCHES:
        values = {"tensor": 4, "search": name}
        work, (check,) = compiled(job, f"search-{name}", config, 8, values, batch=2)
        found[name] = {"seconds": check.seconds, **figures(work, check)}
        by_part = ", ".join(f"{part} {size / 2**20:,.1f}" for part, size in found[name]["sent"].items() if size > 1024)
        title = "by hand" if name == "none" else name
        job.say(f"{title}: {check.seconds:.1f} s; a card holds {held(check) / 2**20:,.1f} MiB of weights and moments")
        job.say(f"  and sends, in MiB a step if in rings: {by_part}")
    job.write_json("search.json", {"config": config.to_dict(), "cards": 8, "found": found})
    job.savefig("search.png", beside("pictures").searches(found))


def compiled(job: Run, name: str, config, cards: int, values: dict, batch: int = 1) -> tuple:
    """Returns the Work and what was found of each stage."""
    from msllm.models.presets import example_length
    from msllm.parallel.auto.check import Work, check_layout, compile_stages
    from msllm.parallel.config import ParallelConfig

    length = example_length(config, LENGTH)
    parallel = check_layout(config, ParallelConfig(**values), cards, length)
    work = Work(config, parallel, length, batch)
    return work, compile_stages(work, job.output / "graphs" / name)


def row(name: str, cards: int, work, checks: list, seconds: float) -> tuple[str, ...]:
    """A line of the table; the numbers are those of the stage that has most."""
    from msllm.parallel.auto.check import by_part, uncut
    from msllm.parallel.plans import sizes

    weights, moments = (max(getattr(c, what) for c in checks) / 2**30 for what in ("weight_bytes", "optimizer_bytes"))
    sent = max(sum(by_part(check).values()) for check in checks) / 2**30
    peak = max(check.peak_bytes for check in checks) / 2**30
    left = sum(len(uncut(work, check)) for check in checks)
    numbers = (f"{seconds:.1f}", f"{peak:.2f}", f"{weights:.2f}", f"{moments:.2f}", f"{sent:.2f}", str(left))
    return (name, str(cards), str(work.parallel), str(sizes(work.config)["layers"]), str(len(checks)), *numbers)


def figures(work, check) -> dict:
    """What is kept of a card."""
    from msllm.parallel.auto.check import by_part, uncut

    return {
        "rank": check.rank,
        "weight_bytes": check.weight_bytes,
        "optimizer_bytes": check.optimizer_bytes,
        "sent": by_part(check),
        "collectives": [dataclasses.asdict(c) for c in check.graph.collectives],
        "uncut": len(uncut(work, check)),
    }


def held(check) -> int:
    return check.weight_bytes + check.optimizer_bytes


def beside(name: str):
    """Returns a module of this folder."""
    from pathlib import Path

    from msllm.lessons.chapters import load_module

    return load_module(Path(__file__).with_name(f"{name}.py"), f"msllm_ch06_{name}")
