"""Checkpoints: folders checkpoint-<step> that are complete or not there at all."""

import dataclasses
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from msllm.errors import UserError
from msllm.files import atomic_folder, read_json, write_json
from msllm.models.weights import read_file, read_weights, save_tensors

STATE, OPTIMIZER = "trainer_state.json", "optimizer.safetensors"
LAYOUT = "layout.json"  # of a checkpoint whose parts several workers wrote, see msllm.parallel.sharded


@dataclasses.dataclass
class TrainerState:
    """What a run needs, beside weights and moments, to go on as if it had not stopped."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    rng_state: dict = dataclasses.field(default_factory=dict)
    fingerprint: dict = dataclasses.field(default_factory=dict)


def save(output: Path, state: TrainerState, optimizer: dict[str, np.ndarray], write_model) -> Path:
    """Writes output/checkpoint-<step> in one step and returns it; ``write_model(folder)`` adds the model's files."""
    path = output / f"checkpoint-{state.step}"
    with atomic_folder(path) as tmp:
        write_model(tmp)
        save_tensors(optimizer, tmp / OPTIMIZER)
        write_json(tmp / STATE, dataclasses.asdict(state))
    return path


def finish(output: Path, state: TrainerState) -> None:
    """Writes the state into output/checkpoint-<step>, whose parts several workers have written: now it is whole."""
    write_json(output / f"checkpoint-{state.step}" / STATE, dataclasses.asdict(state))


def load(path: Path) -> tuple[TrainerState, dict[str, np.ndarray]]:
    """Returns the state and the optimiser's arrays of a checkpoint, {} of one in parts; UserError where it is none."""
    if (path / STATE).is_file() and (path / LAYOUT).is_file():
        return TrainerState(**read_json(path / STATE)), {}
    if not (path / STATE).is_file() or not (path / OPTIMIZER).is_file():
        raise UserError(
            f"{path} is no checkpoint of a run: it lacks {STATE} or {OPTIMIZER}; "
            f"give a checkpoint-<step> folder, or auto"
        )
    return TrainerState(**read_json(path / STATE)), read_file(path / OPTIMIZER, writable=False)


def average(paths: list[Path]) -> dict[str, np.ndarray]:
    """Returns the mean weights of several checkpoints (Vaswani et al. 2017, section 6.1)."""
    sums: dict[str, np.ndarray] = {}
    for path in paths:
        for name, tensor in read_weights(path).items():
            sums[name] = sums[name] + tensor if name in sums else np.array(tensor, np.float64)
    return {name: (total / len(paths)).astype(np.float32) for name, total in sums.items()}


def find(output: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first; those that several workers had not finished are none."""
    return [path for path in _folders(output) if (path / STATE).is_file()]


def checksum(examples: Sequence[Mapping]) -> str:
    """Names the content of a data set: the number of examples and a checksum of all that they hold, or its own."""
    if getattr(examples, "checksum", None) is not None:
        return f"{len(examples)} examples, {examples.checksum}"
    crc = 0
    for example in examples:
        for key in sorted(example):
            crc = zlib.crc32(np.asarray(example[key], np.int32).tobytes(), crc)
    return f"{len(examples)} examples, {crc:08x}"


def clear(output: Path) -> None:
    """Removes the checkpoints of a run, unfinished ones too."""
    for path in _folders(output):
        remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint, if it is there; one that a kill leaves half-removed is none any more."""
    (path / STATE).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _folders(output: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [p for _, p in sorted(found)]


def source(output: str | Path, resume: str | None, overwrite: bool) -> Path | None:
    """Returns the checkpoint that a run goes on from, None where it starts anew; changes nothing.

    Args:
        output, resume, overwrite: see Trainer.train. Commands call this before they read data.

    Raises:
        UserError: ``output`` is in use, or ``resume`` names no checkpoint.
    """
    folder, found = Path(output), find(Path(output))
    if resume not in (None, "auto"):
        load(Path(resume))
        return Path(resume)
    if resume == "auto" and found:
        return found[-1]
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder for the result; choose another output")
    used = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if used and not overwrite and resume == "auto" and "log.jsonl" in used and "config.json" in used:
        raise UserError(
            f"{folder} holds a run that is at its end, and no checkpoint to go on from; choose another output, or add "
            f"--overwrite to start anew"
        )
    if used and not overwrite and not (resume == "auto" and "config.json" not in used):
        raise UserError(
            f"{folder} is not empty (it holds {', '.join(used[:4])}); choose another output, "
            f"or add --overwrite, or --resume auto to go on from a checkpoint"
        )
    return None


def prune(output: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest ``keep`` checkpoints and the best one."""
    for path in find(output)[:-keep]:
        if path.name != f"checkpoint-{best_step}":
            remove(path)
