"""Section 6.8: one model from slow to fast; each stage is what the profile of the one before advises."""

import json
import sys
from pathlib import Path

from msllm.lessons import Run, run

BATCH = 32  # examples; packed, rows of as many tokens
STAGES = {
    "as it comes": {"kernels": "stock", "batch": 1, "read": "in each step"},
    "C++ kernels": {"batch": 1, "read": "in each step"},
    f"batch of {BATCH}": {"batch": BATCH, "read": "in each step"},
    "by length": {"batch": BATCH, "read": "in each step", "group_by_length": True},
    "read once": {"batch": BATCH, "group_by_length": True},
    "packed": {"batch": 6, "packed": True},
    "2 workers, tensor": {"batch": 6, "packed": True, "workers": 2, "layout": {"tensor": 2}},
    "2 workers, data": {"batch": 3, "packed": True, "workers": 2},
}
QUICK = ("by length", "packed")
ROUNDS = 3  # of which each stage's fastest counts: what else runs on the machine only makes it slower


@run("6.8 a training made faster as its profile advises, tokens/s and parts of a step (about 10 minutes)", short=True)
def profile(job: Run) -> None:
    from msllm.files import write_json

    documents = beside("profile_stage").texts(job.seed)
    write_json(job.output / "texts.json", documents[: 200 if job.quick else None])
    found: dict[str, dict] = {}
    for _ in range(1 if job.quick else ROUNDS):
        for name in QUICK if job.quick else STAGES:
            summary = profiled(job, name)
            if name not in found or summary["tokens_per_second"] > found[name]["tokens_per_second"]:
                found[name] = summary
    for name, summary in found.items():
        tell(job, name, summary)
    job.write_json("profile.json", {"stages": {name: without_steps(one) for name, one in found.items()}})
    job.savefig("profile.png", picture(found))


def profiled(job: Run, name: str) -> dict:
    """Trains a stage and returns the summary of its profile."""
    from msllm.files import read_json

    folder = job.output / name.replace(" ", "-")
    options = {**STAGES[name], "seed": job.seed, "steps": 20}
    if job.quick:
        options |= {"steps": 2, "batch": 2}
    workers = options.pop("workers", 1)
    if workers > 1:
        from msllm.parallel import run_job

        command = [sys.executable, str(Path(__file__).with_name("profile_stage.py")), json.dumps(options), str(folder)]
        run_job(command, workers, job.output / "logs")
    else:
        beside("profile_stage").train(folder, **options)
    return read_json(folder / "profile" / "summary.json")


def tell(job: Run, name: str, summary: dict) -> None:
    """Says what a stage was busy with, and what the profile advises."""
    job.say(
        f"{name}: {summary['tokens_per_second']:,.0f} tokens/s, {summary['tokens_per_step']:,.0f} tokens and "
        f"{summary['workers'][0]['parts']['wall']:.1f} ms a step, {summary['padding']:.0%} padding"
    )
    for worker in summary["workers"]:
        parts = dict(worker["parts"])
        wall = parts.pop("wall")
        shares = ", ".join(
            f"{part.replace('_', ' ')} {ms / wall:.0%}" for part, ms in parts.items() if ms / wall > 0.005
        )
        job.say(f"  worker {worker['rank']}: {shares}")
    job.say(f"  advice: {summary['advice'][0]['text']}")


def without_steps(summary: dict) -> dict:
    """The figures without those of each step."""
    workers = [{key: value for key, value in one.items() if key != "steps"} for one in summary["workers"]]
    return {**summary, "workers": workers}


def picture(found: dict[str, dict]):
    """Two panels with a bar for each stage: the parts of a step on the slowest worker, and tokens a second."""
    from matplotlib.figure import Figure

    from msllm.training.profile_report import COLOURS

    figure = Figure(figsize=(11, 1.6 + 0.42 * len(found)), dpi=110, layout="constrained")
    shares, speeds = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = list(found)
    left = [0.0] * len(names)
    for part, colour in COLOURS.items():
        parts = [one["workers"][0]["parts"] for one in found.values()]
        widths = [100 * p[part] / p["wall"] for p in parts]
        shares.barh(names, widths, left=left, color=colour, label=part.replace("_", " "))
        left = [a + b for a, b in zip(left, widths)]
    shares.invert_yaxis()
    shares.set_xlim(0, 100)
    shares.set_xlabel("% of a step of the first worker")
    rates = [one["tokens_per_second"] for one in found.values()]
    bars = speeds.barh(names, rates, color="#3f7fb5")
    speeds.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=9)
    speeds.set_xscale("log")
    speeds.set_xlim(min(rates) / 2, max(rates) * 6)
    speeds.set_xlabel("tokens/s")
    handles, labels = shares.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=8)
    return figure


def beside(name: str):
    """Returns a module of this folder."""
    from msllm.lessons.chapters import load_module

    return load_module(Path(__file__).with_name(f"{name}.py"), f"msllm_ch06_{name}")
