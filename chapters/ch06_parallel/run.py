"""Chapter 6, parallel training: what workers share, what they send each other, what each of them holds.

msllm chapter 6                         lists the runs
msllm chapter 6 --run timeline          the full run
msllm chapter 6 --run timeline --quick  the same on two workers and small models
"""

from pathlib import Path

from msllm.lessons import Run, run

QUICK_STRATEGIES = ["gpipe", "optimizer-2", "heads"]  # two families, so that one process is trained twice only
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@run(
    "6.1-6.5 every strategy on 2, 4 and 8 workers beside one process; bytes counted and by formula (about half an hour)"
)
def verify(job: Run) -> None:
    import contextlib
    import io

    from msllm.commands import parallel
    from msllm.files import read_json

    pictures = beside("pictures")
    for workers in (2,) if job.quick else (2, 4, 8):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = parallel.verify(workers, QUICK_STRATEGIES if job.quick else None, str(job.output))
        job.write_text(f"verify-{workers}.txt", printed.getvalue())
        table = printed.getvalue().splitlines()
        found = read_json(job.output / f"verify-{workers}.json")
        job.write_json(f"verify-{workers}.json", found)
        job.savefig(f"wire-{workers}.png", pictures.wire(found["rows"], workers))
        job.say("\n".join(table if job.quick else table[-1:]))
        assert code == 0, "a strategy does not compute what one process computes"


@run("6.4 passes of a pipeline of two stages: gpipe, 1f1b, interleaved; how long a stage waits (about 2 minutes)")
def timeline(job: Run) -> None:
    passes, pictures = beside("passes"), beside("pictures")
    width, micro_batches = (64 if job.quick else 256), 8
    found = on_workers(
        job,
        "timeline",
        2,  # cores of this machine: more stages would wait for a core, not for each other
        sizes={"vocab_size": 1000, "n_positions": 128, "n_embd": width, "n_layer": 8, "n_head": 4},
        batch=micro_batches * (1 if job.quick else 8),
        micro_batches=micro_batches,
        steps=3 if job.quick else 9,
        schedules=[{"schedule": "gpipe"}, {"schedule": "1f1b"}, {"schedule": "interleaved", "chunks": 2}],
    )
    summaries = [passes.summary(schedule) for schedule in found["schedules"]]
    for one in summaries:
        job.say(f"{one['schedule']}: layers {one['layers']}, a step takes {one['seconds']:.3f} s")
        for name in ("forward_ms", "backward_ms"):
            job.say(f"  {name[:-3]} pass: {', '.join(f'{ms:.1f}' for ms in one[name])} ms")
        shares = ("idle", "idle_without_delays")
        measured, ideal = (", ".join(f"{share:.1%}" for share in one[name]) for name in shares)
        job.say(f"  waits {measured}; if messages took no time {ideal}; formula {one['formula']:.1%}")
        job.say(f"  inputs kept at most: {', '.join(map(str, one['most_kept']))}")
    job.write_json("timeline.json", {"schedules": summaries})
    job.savefig("timeline.png", pictures.gantt(summaries))


@run("6.2 and 6.3 who holds which slice: tensor and pipeline parallel, and flat shares of the optimiser (a minute)")
def slices(job: Run) -> None:
    import math
    import re
    import shutil

    from msllm.parallel.sharded import ShardedCheckpoint
    from msllm.parallel.slices import Slice

    shutil.rmtree(job.output / "checkpoints", ignore_errors=True)
    cut = {"tensor": 2} if job.quick else {"tensor": 2, "pipeline": 2, "micro_batches": 2}
    shared = {"optimizer": 1} if job.quick else {**cut, "optimizer": 1}
    sizes = {"vocab_size": 65, "n_positions": 64, "n_embd": 64, "n_layer": 4, "n_head": 4}
    found = []
    for workers, layouts in ((2, [cut, shared]),) if job.quick else ((4, [cut]), (8, [shared])):
        folder = str(job.output / "checkpoints" / str(workers))
        found += on_workers(job, "slices", workers, sizes=sizes, layouts=layouts, folder=folder)["layouts"]
    held = [[Slice(**values) for values in rank] for rank in found[0]["held"]]
    saved = ShardedCheckpoint(found[1]["checkpoint"])
    owned = [saved.slices(rank, "exp_avg") for rank in range(saved.world)]
    # The border of two flat shares falls somewhere into a matrix: the block of the first such is shown.
    cut_names = [p.name for p in owned[0] if p.flat != (0, math.prod(p.box)) and len(p.shape) > 1]
    block = int((re.findall(r"\.h\.(\d+)\.", " ".join(cut_names)) or ["0"])[0])
    # A checkpoint has each number once: of those with the same moments, such as of a norm, the first worker writes.
    for name, parts, what, i in (("slices", held, "holds parameters", 0), ("shares", owned, "writes moments", block)):
        layout = found[name == "shares"]["layout"]
        matrices = ("wte", *(f"h.{i}.{matrix}" for matrix in MATRICES), "h.3.attn.c_attn")
        names = list(dict.fromkeys(f"transformer.{matrix}.weight" for matrix in matrices))
        tell_slices(job, layout, parts, (names[1], *cut_names), what)
        picture = beside("pictures").owners(parts, names, f"{layout}: which worker {what}")
        job.savefig(f"{name}.png", picture)
    job.write_json("slices.json", {"layouts": [{**one, "checkpoint": Path(one["checkpoint"]).name} for one in found]})


def tell_slices(job: Run, layout: str, parts: list, names: tuple, what: str) -> None:
    """Says how much each worker has, and what of a few parameters."""
    for rank, mine in enumerate(parts):
        verb, things = what.split()
        job.say(f"{layout}: worker {rank} {verb} {sum(part.size for part in mine):,} {things}")
        for part in mine:
            if part.name in names and (part.ranges or part.flat):
                ranges = ", ".join(f"{start}:{stop}" for start, stop in part.ranges or ())
                words = [f"{('rows', 'columns')[part.axis]} {ranges}"] if ranges else []
                words += [f"read row by row {part.flat[0]}:{part.flat[1]}"] if part.flat else []
                job.say(f"  of {part.name} {' x '.join(map(str, part.shape))} {'; '.join(words)}")


@run("6.3 what ZeRO 0 to 3 leaves on a worker: tensors counted, memory measured, formula (about 5 minutes)")
def memory(job: Run) -> None:
    sizes = {"vocab_size": 8000, "n_positions": 64, "n_embd": 512, "n_layer": 8, "n_head": 8}
    if job.quick:
        sizes |= {"vocab_size": 2000, "n_embd": 128, "n_layer": 4}
    groups = {}
    for workers in (2,) if job.quick else (2, 4):
        groups[workers] = []
        for level in (0, 3) if job.quick else range(4):
            found = on_workers(job, "memory", workers, sizes=sizes, batch=2 * workers, level=level)
            fullest = max(found["workers"], key=lambda w: w["parameters"] + w["gradients"] + w["moments"])
            row = {
                "level": level,
                "numbers": found["numbers"],
                **fullest,
                "formula": zero_bytes(level, found["numbers"], workers),
            }
            groups[workers].append(row)
            held = [f"{name} {row[name] / 2**20:.1f}" for name in ("parameters", "gradients", "moments")]
            total = sum(fullest[name] for name in ("parameters", "gradients", "moments"))
            job.say(
                f"{workers} workers, optimizer {level}: {', '.join(held)}, together {total / 2**20:.1f} MiB; formula "
                f"{row['formula'] / 2**20:.1f}; resident memory grew by {row['growth'] / 2**20:.1f}"
            )
            assert abs(total - row["formula"]) < 0.01 * row["formula"], "the tensors are not those of the formula"
    job.write_json("memory.json", {"sizes": sizes, "workers": groups})
    job.savefig("memory.png", beside("pictures").memory(groups))


def zero_bytes(level: int, numbers: int, workers: int) -> float:
    """Rajbhandari et al. 2020, section 5 and figure 1, with float32 for all: 4 bytes a number.

    The share of the parameters beside the whole, levels 1 and 2, is what the paper's optimiser keeps in float32.
    """
    shared = 1 / workers
    parameters = {0: 1, 1: 1 + shared, 2: 1 + shared, 3: shared}[level]
    gradients, moments = (1 if level < 2 else shared), (2 if level < 1 else 2 * shared)
    return 4 * numbers * (parameters + gradients + moments)


def beside(name: str):
    """Returns a module of this folder."""
    from msllm.lessons.chapters import load_module

    return load_module(Path(__file__).with_name(f"{name}.py"), f"msllm_ch06_{name}")


def on_workers(job: Run, task: str, workers: int, **options) -> dict:
    """Runs a task of on_workers.py on some workers; returns what they measured."""
    import json
    import sys

    from msllm.files import read_json
    from msllm.parallel import run_job

    result = job.output.resolve() / f"{task}-measured.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("on_workers.py")), task, json.dumps(options), str(result)]
    run_job(command, workers, job.output / "logs")
    return read_json(result)
