"""What a run shows and writes while it goes: a bar, log.jsonl and loss.png."""

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from msllm.files import atomic_file, read_json_lines


class Report:
    """The bar, the log and the picture of one run.

    Args:
        folder: gets log.jsonl (a JSON object a line) and loss.png.
        total: optimiser steps of the run.
        done: steps that an earlier session of the run finished; later lines of the log are dropped.
    """

    def __init__(self, folder: Path, total: int, done: int):
        self.path, self.picture = folder / "log.jsonl", folder / "loss.png"
        self.entries = [e for e in read_json_lines(self.path) if e["step"] <= done]
        with atomic_file(self.path) as tmp:
            tmp.write_text("".join(json.dumps(e) + "\n" for e in self.entries))
        self.file = self.path.open("a", encoding="utf-8")
        # tqdm draws on a terminal only; elsewhere (a file, CI) a line a tenth of the run says the same.
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True)
        self.total, self.every, self.start, self.tokens = total, max(1, total // 10), time.perf_counter(), 0
        self.done = done

    def step(self, step: int, tokens: int, entry: dict | None, loss: float) -> None:
        """Counts a finished step of ``tokens`` tokens; ``entry`` goes into the log where it is not None."""
        self.tokens += tokens
        elapsed = time.perf_counter() - self.start
        rate = self.tokens / elapsed
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s", refresh=False)
        self.bar.update(1)
        if entry is not None:
            self.write({"step": step, **entry, "tokens_per_second": round(rate, 1), "elapsed": round(elapsed, 2)})
        if self.bar.disable and (step % self.every == 0 or step == self.total):
            left = elapsed / (step - self.done) * (self.total - step)
            print(
                f"step {step}/{self.total}  loss {loss:.4f}  {rate:,.0f} tokens/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def write(self, entry: dict) -> None:
        """Appends one object to log.jsonl at once, so that a kill loses nothing."""
        self.entries.append(entry)
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        tqdm.write(text, file=sys.stderr)

    def sync(self) -> None:
        """Makes the log as durable as the checkpoint that is about to be written."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Ends the bar and draws loss.png from the whole log."""
        self.bar.close()
        self.file.close()
        if self.entries:
            plot_losses(self.entries, self.picture)


class Silence:
    """A Report of the workers but the first: it takes the same calls and shows nothing."""

    def __init__(self, *ignored):
        pass

    def step(self, *ignored) -> None:
        """Counts nothing."""

    write = say = sync = close = step


def training_seconds(entries: list[dict]) -> float:
    """Returns the seconds that a run took, all its sessions together, from the objects of its log.jsonl."""
    elapsed = [e["elapsed"] for e in entries if "elapsed" in e]
    # Each session counts from zero.
    return sum(now for now, after in zip(elapsed, [*elapsed[1:], 0.0]) if after < now)


def plot_losses(entries: list[dict], path: Path) -> None:
    """Draws training and evaluation loss by step from the objects of a log.jsonl into a PNG."""
    from matplotlib.figure import Figure  # half a second to import, and only runs that log need it

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    train = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    if train:
        steps, losses = zip(*train)
        axes.plot(
            steps, losses, color="tab:blue", alpha=0.3 if len(train) > 50 else 1, linewidth=1, label="training loss"
        )
        if len(train) > 50:
            axes.plot(steps, _smooth(losses), color="tab:blue", label="training loss, running mean")
    evaluated = [(e["step"], e["eval_loss"]) for e in entries if "eval_loss" in e]
    if evaluated:
        axes.plot(*zip(*evaluated), color="tab:orange", marker="o", label="evaluation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as tmp:
        figure.savefig(tmp, format="png")


def _smooth(values, decay: float = 0.95) -> list[float]:
    mean, out = values[0], []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        out.append(mean)
    return out
