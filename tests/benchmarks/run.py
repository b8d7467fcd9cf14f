"""msllm beside PyTorch on the same weights, taking turns: ``make bench``.

    python -m tests.benchmarks.run                  # every part: 20 minutes on two cores
    python -m tests.benchmarks.run decode prompt    # some of them
    python -m tests.benchmarks.run train --quick    # tiny models, seconds, numbers without meaning; writes no files

Prints a table a part and writes PART.json, and a picture where there is one, into tests/benchmarks/results/. Each
part, and what is in its file: README.md in this folder.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import decode, growth, memory, startup, steady, train
from tests.benchmarks.cases import Decode, Growth, Memory, Prompt, Startup, Steady, Train, bert, gpt2, llama
from tests.benchmarks.process import Pool, machine
from tests.benchmarks.table import aligned

SMALL = gpt2(256, 4, 4, vocab=1000)
LLAMA_160M = llama(768, 12, 12, kv_heads=12, inner=3072)
LLAMA_GROUPED = llama(512, 8, 8, kv_heads=4, inner=1408)
BERT_SMALL = bert(512, 4, 8, inner=2048)

TINY, TINY_LLAMA = gpt2(64, 2, 2, vocab=300, positions=128), llama(64, 2, 4, kv_heads=2, inner=96, vocab=100)
TINY_BERT = bert(64, 2, 2, inner=128, vocab=100)

# What is measured, and the goals. Ratios of times are msllm / PyTorch, ratios of speeds too.
CASES: dict[str, list] = {
    "train": [
        Train("GPT-2 style d=256, 4 layers, B=8, T=128, V=1000", SMALL, batch=8, length=128, goal=0.70),
        Train("GPT-2 small, B=2, T=128", gpt2(), batch=2, length=128, goal=0.60),
        Train("LLaMA d=512, 8 layers, grouped-query, B=2, T=512", LLAMA_GROUPED, batch=2, length=512, goal=0.70),
        Train("BERT small d=512, 4 layers, B=16, T=128", BERT_SMALL, batch=16, length=128, goal=0.70),
    ],
    "decode": [
        Decode("GPT-2 small, batch 1", gpt2(), batch=1, goal=1.6, share_goal=0.75),
        Decode("LLaMA 160M, batch 1", LLAMA_160M, batch=1, goal=1.6, share_goal=0.75),
        Decode("GPT-2 small, batch 8", gpt2(), batch=8, goal=1.5, share_goal=None),
        Decode("LLaMA 160M, batch 8", LLAMA_160M, batch=8, goal=1.5, share_goal=None),
    ],
    "prompt": [
        Prompt("GPT-2 small, 1024 tokens", gpt2(positions=2048), length=1024, goal=0.8),
        Prompt("LLaMA 160M, 1024 tokens", LLAMA_160M, length=1024, goal=0.8),
    ],
    # Linear growth upon a constant part at most doubles; 5% for the allocator.
    "memory": [
        Memory(
            "GPT-2 style d=256, 4 layers, B=1, V=1000",
            gpt2(256, 4, 4, vocab=1000, positions=4096),
            lengths=(512, 1024, 2048, 4096),
            goal=2.1,
        )
    ],
    "startup": [Startup("GPT-2 small, fp32", gpt2(), goal=4.0)],
    "growth": [
        Growth(
            "GPT-2 style d=256, 4 layers, T=128, B=8, V=1000",
            base={"width": 256, "layers": 4, "length": 128, "batch": 8},
            values={
                "width": (128, 256, 512, 1024),
                "layers": (2, 4, 8, 16),
                "length": (64, 128, 256, 512, 1024),
                "batch": (1, 2, 4, 8, 16, 32),
            },
        )
    ],
    "steady": [Steady("GPT-2 style d=256, 4 layers, B=8, T=128, V=1000", SMALL, batch=8, length=128)],
}

# The same code paths in seconds; the numbers mean nothing.
QUICK: dict[str, list] = {
    "train": [
        Train(name, config, batch=2, length=32, goal=1.0, rounds=3, compiled=False)
        for name, config in (("tiny GPT-2", TINY), ("tiny LLaMA", TINY_LLAMA), ("tiny BERT", TINY_BERT))
    ],
    "decode": [
        Decode("tiny GPT-2, batch 2", TINY, 2, goal=1.0, share_goal=0.75, prompt=8, new=8, rounds=2),
        Decode("tiny LLaMA, batch 2", TINY_LLAMA, 2, goal=1.0, share_goal=None, prompt=8, new=8, rounds=2),
    ],
    "prompt": [Prompt("tiny GPT-2, 64 tokens", TINY, length=64, goal=1.0, rounds=2)],
    "memory": [Memory("tiny GPT-2", TINY, lengths=(32, 64), goal=2.1)],
    "startup": [Startup("tiny GPT-2", TINY, goal=30.0, runs=1, warm_up=False)],
    "growth": [
        Growth(
            "tiny GPT-2",
            base={"width": 32, "layers": 1, "length": 16, "batch": 1},
            values={"width": (32, 64), "layers": (1, 2), "length": (16, 32), "batch": (1, 2)},
            vocab=100,
            head_width=16,
            steps=3,
        )
    ],
    "steady": [Steady("tiny GPT-2", TINY, batch=2, length=32, steps=30, chunk=10)],
}


@dataclasses.dataclass(frozen=True)
class Part:
    """How a part measures one case, and shows the results of all."""

    measure: Callable[..., dict]
    table: Callable[[dict], tuple[list[str], list[list[str]]]]
    plot: Callable[[dict, Path], None] | None = None


PARTS = {
    "train": Part(train.measure, train.table),
    "decode": Part(decode.measure, decode.table),
    "prompt": Part(decode.measure_prompt, decode.table_prompt),
    "memory": Part(memory.measure, memory.table, memory.plot),
    "startup": Part(startup.measure, startup.table),
    "growth": Part(growth.measure, growth.table, growth.plot),
    "steady": Part(steady.measure, steady.table, steady.plot),
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    output = options.output or (None if options.quick else RESULTS)
    with Pool(reuse=options.quick) as pool:
        if options.quick:
            print("quick: tiny models, to see that everything runs; the numbers and the goals mean nothing\n")
        for name in options.parts or PARTS:
            run_part(name, options.quick, output, pool)


def run_part(name: str, quick: bool, output: Path | None, pool: Pool) -> None:
    """Measures every case of a part, prints the table, and writes the files where ``output`` is a folder."""
    facts, part, results = machine(pool), PARTS[name], {}
    for case in (QUICK if quick else CASES)[name]:
        results[case.name] = part.measure(case, pool)
    print(aligned(*part.table(results)), flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        content = {"part": name, "quick": quick, "machine": facts, "cases": results}
        (output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        if part.plot is not None:
            part.plot(results, output / f"{name}.png")
        print(f"written to {output / name}.json")
    print(flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns parts, quick and output; an unknown part ends with the list of those that there are."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"default all: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the files; default results/, here")
    return parser.parse_args(arguments)


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"unknown part {name!r}; valid are {', '.join(PARTS)}")
    return name


if __name__ == "__main__":
    main()
