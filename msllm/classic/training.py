"""Training a network on windows of a text with the one Trainer, and measuring it on the held-out part."""

import dataclasses
import math
import time
from pathlib import Path

import numpy as np

from msllm.classic.characters import random_windows, sliding_windows
from msllm.classic.scoring import character_losses
from msllm.files import read_json_lines
from msllm.training import Trainer, TrainingArguments


@dataclasses.dataclass(frozen=True)
class WindowTask:
    """A text and how networks are trained and measured on it.

    Args:
        ids: the whole text.
        start: where its held-out part begins.
        block: predictions of a training window.
        batch: windows of a step.
        seed: of the windows; networks with one seed see the same windows in the same order.
    """

    ids: np.ndarray
    start: int
    block: int
    batch: int
    seed: int = 0

    def train(self, model, folder: Path, steps: int, learning_rate: float, context: int = 1) -> dict:
        """Trains a model with nanoGPT's optimiser settings for small texts, the rate falling to 0 as a cosine.

        Args:
            folder: of the result; what an earlier run left there is replaced.
            steps: optimiser steps.
            context: for the curve, see sliding_windows.

        Returns:
            characters_seen, seconds (and cpu_seconds, of all threads), and the curve: (characters seen, bits per
            character on a tenth of the held-out part), 20 times.
        """
        args = TrainingArguments(
            max_steps=steps,
            per_device_train_batch_size=self.batch,
            per_device_eval_batch_size=64,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 10),
            adam_beta2=0.99,
            weight_decay=0.1,
            logging_steps=100,
            eval_steps=max(1, steps // 20),
            save_steps=0,
            seed=self.seed,
        )
        windows = random_windows(self.ids[: self.start], self.block + 1, steps * self.batch, self.seed)
        tenth = sliding_windows(self.ids, self.start, self.block + 1, context)[::10]
        wall, cpu = time.perf_counter(), time.process_time()
        Trainer(model, args, windows, folder, tenth).train(overwrite=True)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        entries = read_json_lines(Path(folder) / "log.jsonl")
        found = [(e["step"], e["eval_loss"]) for e in entries if "eval_loss" in e]
        each = self.batch * self.block
        curve = [(step * each, loss / math.log(2)) for step, loss in found]
        return {"characters_seen": steps * each, "seconds": wall, "cpu_seconds": cpu, "curve": curve}

    def held_out_bits(self, model, context: int = 1, memory: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns -log2 P of every held-out character, and how many characters stood before each in its window.

        Args:
            context: at least so many stand there.
            memory: at most so many, default ``block``.
        """
        windows = sliding_windows(self.ids, self.start, (memory or self.block) + 1, context)
        losses, before = character_losses(model, windows)
        return losses / math.log(2), before
