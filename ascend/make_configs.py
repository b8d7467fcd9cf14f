"""Writes ascend/configs: for each model and number of cards the planner's best layout, checked by the compile check.

python ascend/make_configs.py                 # plans, compiles, writes; about 40 minutes on two cores
python ascend/make_configs.py --model llama2-7b --cards 8

A model that does not fit on so many cards gets no file: the planner's line says what is too much. Each file is what
``msllm parallel plan`` wrote, with the options of the optimiser below it. The compile check looks at two and three
layers of the first and the last stage and works the others out, with as many micro-batches as stages, or two: more are
more rounds of the same messages. configs/plans.txt says what it found, or that it was not run.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from msllm.cli import main
from msllm.commands.parallel import columns
from msllm.files import read_json, write_json

HERE = Path(__file__).parent
CONFIGS, CARDS = HERE / "configs", (8, 16, 64)
# model -> tokens of an example, the peak rate of its paper (Touvron et al. 2023b, table 1; BigScience 2022, table 3).
MODELS = {
    "llama2-7b": (4096, 3.0e-4),
    "llama2-13b": (4096, 3.0e-4),
    "llama2-70b": (4096, 1.5e-4),
    "bloom-560m": (2048, 3.0e-4),
    "bloom-7b1": (2048, 1.2e-4),
}
EXAMPLES_A_CARD = 8
HEADS = ("file", "layout", "weights and moments GiB", "sent a step GiB", "uncut", "compile check")
OPTIMIZER = """\
# Not the planner's: the optimiser as in the paper, for a run of 2,000 steps.
learning_rate: {rate:.1e}
lr_scheduler_type: cosine
warmup_ratio: 0.03
adam_beta2: 0.95
weight_decay: 0.1
max_steps: 2000
save_steps: 500
"""


def make(model: str, cards: int, folder: Path, checks: bool) -> tuple[str, ...]:
    """Plans, writes and checks one file; returns its line of the table."""
    length, rate = MODELS[model]
    name, plan, check = f"{model}_{cards}p.yaml", folder / "plan", folder / "check"
    words = ["parallel", "plan", "--model", model, "--cards", str(cards), "--seq", str(length)]
    code, _, err = run([*words, "--batch", str(EXAMPLES_A_CARD * cards), "--output", str(plan)])
    (CONFIGS / name).unlink(missing_ok=True)
    if code:
        return (name, "-", "-", "-", "-", err.strip().splitlines()[-1].removeprefix("error: "))
    text = (
        (plan / "run.yaml").read_text().replace(f" --output {plan}", "").replace("run.yaml", f"ascend/configs/{name}")
    )
    (CONFIGS / name).write_text(text + OPTIMIZER.format(rate=rate))
    layout = json.loads((plan / "plan.json").read_text())["layouts"][0]
    if not checks:
        return (name, layout["layout"], "-", "-", "-", "not run")
    parallel = yaml.safe_load(text)["parallel"]
    stages = parallel.get("pipeline", 1)
    parallel["micro_batches"] = min(parallel.get("micro_batches", 1), max(stages, 2))
    words = ["parallel", "compile", "--model", model, "--cards", str(cards), "--length", str(length), "--fast"]
    words += ["--batch", str(layout["rows"]), *(f"--parallel.{key}={value}" for key, value in parallel.items())]
    held = sent = uncut = 0
    for stage in sorted({0, stages - 1}):
        code, _, err = run([*words, "--rank", str(stage * cards // stages), "--output", str(check / str(stage))])
        if code:
            return (name, layout["layout"], "-", "-", "-", err.strip().splitlines()[-1].removeprefix("error: "))
        found = json.loads((check / str(stage) / "compile.json").read_text())["stages"][0]
        held = max(held, (found["weight_bytes"] + found["optimizer_bytes"]) / 2**30)
        sent = max(sent, sum(c["sent_estimate"] for c in found["collectives"]) / 2**30)
        uncut += len(found["uncut"])
    return (name, layout["layout"], f"{held:.2f}", f"{sent:.2f}", str(uncut), "compiles")


def table(rows: dict[str, Sequence[str]]) -> str:
    """Returns the lines of all files, and below them those of what fits no layout."""
    known = [rows[name] for model in MODELS for cards in CARDS if (name := f"{model}_{cards}p.yaml") in rows]
    without = [f"{row[0]}: {row[-1]}" for row in known if row[1] == "-"]
    return "\n".join([columns(HEADS, [row for row in known if row[1] != "-"], 2), "", *without])


def run(words: list[str]) -> tuple[int, str, str]:
    """Returns exit code, standard output and error of an msllm command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cards", nargs="+", type=int, default=list(CARDS))
    parser.add_argument("--plan_only", action="store_true", help="write the files without the compile check")
    parser.add_argument("--output", type=Path, default=Path("outputs/configs"), help="folder of plans and graphs")
    given = parser.parse_args()
    CONFIGS.mkdir(exist_ok=True)
    kept = CONFIGS / "plans.json"
    rows = read_json(kept) if kept.is_file() else {}
    for model in given.model:
        for cards in given.cards:
            row = make(model, cards, given.output / f"{model}_{cards}p", not given.plan_only)
            before = rows.get(row[0])
            if not given.plan_only or before is None or before[1] != row[1]:  # what was found of a layout stays true
                rows[row[0]] = row
            print("  ".join(row), file=sys.stderr, flush=True)
            write_json(kept, rows)
            (CONFIGS / "plans.txt").write_text(table(rows) + "\n")
    print(table(rows))
