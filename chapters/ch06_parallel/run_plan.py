"""Section 6.6's planner: its memory and bytes beside what workers of this machine take, and plans for clusters."""

from pathlib import Path

from msllm.lessons import Run, run

SIZES = {
    "gpt2": {
        **{"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 1000},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    },
    "bloom": {"hidden_size": 256, "n_layer": 4, "n_head": 4, "vocab_size": 1000},
    "llama": {
        **{"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 1000},
    },
    "mixtral": {
        **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "num_local_experts": 4, "vocab_size": 1000},
    },
}
PIPELINE = {"pipeline": 2, "micro_batches": 4}
LAYOUTS = {
    2: [
        ("gpt2", {}),
        ("llama", {}),
        ("mixtral", {}),
        ("gpt2", {"tensor": 2}),
        ("llama", {"tensor": 2, "split_norms": True}),
        ("gpt2", {"recompute": True}),
        ("llama", {"micro_batches": 4}),
        ("gpt2", {"optimizer": 1}),
        ("llama", {"optimizer": 2, "micro_batches": 2}),
        ("gpt2", {"optimizer": 3}),
        ("llama", {"optimizer": 3, "micro_batches": 2}),
        ("gpt2", PIPELINE),
        ("llama", {**PIPELINE, "schedule": "gpipe"}),
        ("llama", {**PIPELINE, "schedule": "interleaved", "chunks": 2}),
        ("bloom", {**PIPELINE, "recompute": True}),
        ("llama", {"sequence": 2}),
        ("gpt2", {"sequence": 2, "attention": "heads"}),
        ("mixtral", {"expert": 2}),
    ],
    4: [
        ("gpt2", {"tensor": 2, **PIPELINE}),
        ("llama", {"tensor": 2, **PIPELINE, "split_norms": True}),
        ("llama", {"pipeline": 4, "micro_batches": 8}),
        ("gpt2", {**PIPELINE, "optimizer": 1}),
        ("bloom", {"tensor": 2, "optimizer": 3}),
        ("llama", {"tensor": 2, "sequence": 2}),
    ],
}
QUICK = {2: [("gpt2", {}), ("llama", {"tensor": 2}), ("gpt2", PIPELINE)]}
PLANS = (
    ("llama2-7b", 64, "ascend-910", 4096),
    ("llama2-70b", 64, "ascend-910b", 4096),
    ("bloom-7b1", 64, "ascend-910", 2048),
)


@run("6.6 the planner's memory and bytes beside those of 2 and 4 workers, and plans for 64 cards (about 3 minutes)")
def plan(job: Run) -> None:
    rows = []
    for workers, layouts in (QUICK if job.quick else LAYOUTS).items():
        rows += compared(job, workers, layouts)
    job.say(
        f"{'workers':7}  {'model':8} {'layout':44} {'planned MiB':>11} {'measured':>9} {'apart':>6}  {'bytes sent':>11}"
    )
    for row in rows:
        job.say(
            f"{row['workers']:7}  {row['family']:8} {row['layout']:44} {row['planned'] / 2**20:11.2f} "
            f"{row['measured'] / 2**20:9.2f} {row['apart']:+6.1%}  {row['sent']:11,.0f}"
        )
    largest = max(abs(row["apart"]) for row in rows if not row["routed"])
    job.say(f"memory is at most {largest:.1%} apart, experts on several workers left aside; bytes are equal")
    job.write_json("plan.json", {"sizes": SIZES, "rows": rows})
    job.savefig("plan.png", picture(rows))
    assert largest < 0.05, "the planner's memory is not what workers take"
    for model, cards, hardware, length in PLANS[:1] if job.quick else PLANS:
        job.say(planned_for(job, model, cards, hardware, length))


def compared(job: Run, workers: int, layouts: list) -> list[dict]:
    """Runs layouts on workers; returns a row for each, of the worker that holds most."""
    import json
    import sys

    from msllm.files import read_json
    from msllm.parallel import run_job
    from msllm.parallel.planner.measure import Case, Measured, planned
    from msllm.parallel.planner.report import words

    cases = [{"family": f, "sizes": SIZES[f], "layout": x, "rows": 16, "length": 128} for f, x in layouts]
    script, result = Path(__file__).with_name("on_workers_plan.py"), job.output.resolve() / f"plan-{workers}.json"
    run_job([sys.executable, str(script), json.dumps(cases), str(result)], workers, job.output / "logs")
    rows = []
    for values in read_json(result)["cases"]:
        measured = [Measured(**one) for one in values.pop("workers")]
        case = Case(**values)
        found = [planned(case, workers, rank, one) for rank, one in enumerate(measured)]
        for one, (_, _, sent) in zip(measured, found):
            assert abs(sent - one.sent) <= 1e-6 * one.sent, f"{values}: {one.sent} bytes sent, {sent} planned"
        held, memory, sent = max(found, key=lambda f: f[1].total)
        most = max(one.peak for one in measured)
        routed = held.parallel.expert > 1
        about = {"workers": workers, "family": case.family, "layout": words(held.parallel), "routed": routed}
        terms = {
            name: getattr(memory, name) for name in ("parameters", "moments", "gradients", "activations", "buffers")
        }
        numbers = {"planned": memory.total, "measured": most, "apart": memory.total / most - 1, "sent": sent}
        rows.append({**about, **numbers, "moment": memory.moment, **terms})
    return rows


def planned_for(job: Run, model: str, cards: int, hardware: str, length: int) -> str:
    """Returns what msllm parallel plan prints."""
    import contextlib
    import io

    from msllm.commands.plan import plan

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        plan(model, cards, 512, length, hardware, top=5, output=str(job.output / model))
    lines = printed.getvalue().splitlines()[:-1]
    return "\n".join(
        [f"\n$ msllm parallel plan --model {model} --cards {cards} --hardware {hardware} --seq {length}", *lines]
    )


def picture(rows: list[dict]):
    """A bar for each layout: the terms of the planner's memory; a mark where the measured peak lies."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.3 * len(rows) + 1.4), dpi=110, layout="constrained")
    axes, places, left = figure.subplots(), np.arange(len(rows)), np.zeros(len(rows))
    for name in ("parameters", "moments", "gradients", "activations", "buffers"):
        size = np.array([row[name] / 2**20 for row in rows])
        axes.barh(places, size, left=left, label=name, alpha=0.8)
        left += size
    axes.plot(
        [row["measured"] / 2**20 for row in rows], places, "k|", markersize=12, markeredgewidth=2, label="measured"
    )
    names = [f"{row['workers']} workers, {row['family']}: {row['layout']}" for row in rows]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("MiB on the fullest worker")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", ncols=6, fontsize=8)
    return figure
