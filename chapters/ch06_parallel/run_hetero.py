"""Section 6.7: states in files under a hard limit of memory; parameter servers, with and without waiting."""

import sys
from pathlib import Path

from msllm.lessons import Run, run

MIB = 2**20
WHERE = {
    "in memory": [],
    "moments on disk": ["--offload.optimizer", "disk"],
    "moments and blocks on disk": ["--offload.optimizer", "disk", "--offload.blocks", "disk"],
}


@run("6.7 a GPT-2 whose states exceed a hard limit of memory, with moments and blocks on disk (about 10 minutes)")
def offload(job: Run) -> None:
    layers, limit, steps = (8, 2100, 3) if job.quick else (12, 2300, 6)
    tokens, rows = made_up_tokens(job), []
    for name, options in WHERE.items():
        for most in (None, limit):
            rows.append({"states": name, "limit_mib": most, **limited_run(job, tokens, layers, steps, options, most)})
            tell(job, rows[-1])
    losses = [row["losses"] for row in rows if row["exit"] == 0]
    assert all(one == losses[0] for one in losses), "states on disk change the losses"
    assert rows[1]["exit"] != 0 and rows[-1]["exit"] == 0, "the limit does not separate the two"
    states = 16 * rows[0]["parameters"]
    job.say(f"losses of all that ran are equal: {losses[0]}; parameters, gradients and moments: {states / MIB:.0f} MiB")
    job.write_json("offload.json", {"rows": rows, "states_mib": states / MIB, "layers": layers, "steps": steps})
    job.savefig("offload.png", pictures().offload(rows, states / MIB, limit))


def made_up_tokens(job: Run) -> str:
    """Returns a folder of token files: time and memory are those of real text."""
    import shutil

    import numpy as np

    from msllm.commands.data import data
    from msllm.commands.prepare import train_tokenizer

    text, tokenizer, tokens = (job.output / name for name in ("text.txt", "tokenizer", "tokens"))
    words = ["red", "fox", "blue", "bird", "old", "men", "rain", "runs"]
    text.write_text(" ".join(np.random.default_rng(job.seed).choice(words, 3000)), encoding="utf-8")
    for old in (tokenizer, tokens):
        shutil.rmtree(old, ignore_errors=True)
    train_tokenizer([str(text)], str(tokenizer), None, "char")
    data("tokenize", [str(text)], str(tokenizer), str(tokens), 0.1, whole_files=True)
    return str(tokens)


def limited_run(job: Run, tokens: str, layers: int, steps: int, options: list[str], limit: int | None) -> dict:
    """Runs msllm pretrain in a process of its own; returns how it ended, its losses, and what it had in memory.

    Args:
        limit: MiB of private memory (RLIMIT_DATA), which the system refuses to go beyond; None for no limit. What is
            mapped from files does not count: the system may take it away at any time.
    """
    import re
    import resource
    import shutil
    import subprocess
    import time

    import numpy as np

    from msllm.files import read_json_lines

    folder, log = job.output / "model", job.output / "pretrain.log"
    shutil.rmtree(folder, ignore_errors=True)
    sizes = ["--hidden_size", "1024", "--layers", str(layers), "--heads", "16", "--max_positions", "128"]
    schedule = ["--max_steps", str(steps), "--save_steps", "2", "--learning_rate", "1e-4", "--dropout", "0"]
    rows = ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"]
    command = ["pretrain", "--data", tokens, "--output", str(folder), *sizes, *schedule, *rows, *options]

    def bound():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB))

    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "msllm", *command], stdout=out, stderr=out, preexec_fn=bound)
        peaks: dict[str, int] = {}
        while process.poll() is None:
            for kind, size in memory_of(process.pid).items():
                peaks[kind] = max(peaks.get(kind, 0), size)
            time.sleep(0.02)
    said = log.read_text(errors="replace")
    found = {"exit": process.returncode, "peaks_mib": peaks, "command": " ".join(options)}
    if process.returncode:
        errors = re.findall(r"^(?:[\w.]*Error: .*|terminate called.*)$", said, re.MULTILINE)
        return {**found, "error": errors[0] if errors else said[-200:]}
    entries = [e for e in read_json_lines(folder / "log.jsonl") if "loss" in e]
    seconds = float(np.median(np.diff([e["elapsed"] for e in entries])))
    parameters = int(said.split(" parameters;")[0].split()[-1].replace(",", ""))
    return {**found, "losses": [e["loss"] for e in entries], "seconds": seconds, "parameters": parameters}


def memory_of(pid: int) -> dict[str, int]:
    """Returns MiB of a process: private memory in use, private memory asked for, and what is mapped from files."""
    kinds = {"RssAnon": "private", "VmData": "asked for", "RssFile": "of files"}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[key].split()[0]) // 1024 for key, name in kinds.items() if key in values}


def tell(job: Run, row: dict) -> None:
    limit = "no limit" if row["limit_mib"] is None else f"limit {row['limit_mib']} MiB"
    peaks = ", ".join(f"{name} {size}" for name, size in row["peaks_mib"].items())
    how = f"failed: {row.get('error', '').strip()[:120]}"
    if row["exit"] == 0:
        how = f"{row['seconds']:.2f} s a step"
    job.say(f"{row['states']}, {limit}: {how}")
    job.say(f"  at most {peaks} MiB")


@run(
    "6.7 parameter servers: waiting for all, and not, beside a slow worker (about 8 minutes)",
    needs=("tinyshakespeare",),
)
def servers(job: Run) -> None:
    import numpy as np

    from msllm.lessons.chapters import load_module

    here = Path(__file__)
    chapter, experts = (load_module(here.with_name(f"{n}.py"), f"msllm_ch06_{n}") for n in ("run", "run_experts"))
    _, tokens = experts.letters(job)
    steps = 20 if job.quick else 200
    options = {"tokens": tokens, "tokenizer": str(job.output / "letters"), "steps": steps, "rows": 8, "seed": job.seed}
    alone = chapter.on_workers(job, "servers", 1, **options, folder=str(job.output / "alone"), stalenesses=[], slow=0.0)
    found = chapter.on_workers(
        job,
        "servers",
        3,
        **options,
        folder=str(job.output / "served"),
        stalenesses=[0, 4] if job.quick else [0, 1, 4, 16],
        slow=0.15,
    )
    modes, plain = found["modes"], alone["modes"][0]
    apart = max(abs(a - b) / abs(b) for a, b in zip(modes[0]["losses"], plain["losses"], strict=True))
    job.say(f"waiting for all: largest relative difference of a loss to one process over {steps} steps {apart:.1e}")
    assert apart < 1e-4, "synchronous servers do not train as one process"
    for mode in modes:
        stale = np.concatenate(mode["staleness"]) if mode["staleness"][0] else np.zeros(1)
        job.say(
            f"staleness {mode['bound']}: {mode['seconds']:.0f} s, {mode['updates']} updates, validation loss "
            f"{mode['validation_loss']:.4f}; staleness of a gradient {stale.mean():.2f} on average, at most "
            f"{stale.max():.0f}; a step sends {mode['sent'][0] / steps / 1e6:.2f} MB from one who trains, "
            f"{mode['sent'][-1] / steps / 1e6:.2f} MB from the server"
        )
    job.say(f"one process: validation loss {plain['validation_loss']:.4f}")
    job.write_json("servers.json", {"alone": plain, "modes": modes, "steps": steps, "largest_difference": apart})
    job.savefig("servers.png", pictures().servers(plain, modes))


def pictures():
    from msllm.lessons.chapters import load_module

    return load_module(Path(__file__).with_name("pictures_hetero.py"), "msllm_ch06_pictures_hetero")
