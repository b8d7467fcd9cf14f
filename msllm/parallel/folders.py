"""Hugging Face folders from checkpoints of parallel runs, and back."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from msllm.errors import UserError
from msllm.files import atomic_folder, write_json
from msllm.layers import no_initial_values
from msllm.models import weights
from msllm.models.pretrained import PretrainedModel, from_pretrained
from msllm.parallel.sharded import ShardedCheckpoint, finish, new_folder, write_part
from msllm.parallel.slices import Slice
from msllm.training.checkpoint import LAYOUT


def to_folder(
    checkpoint: ShardedCheckpoint,
    model: PretrainedModel | type[PretrainedModel],
    output: str | Path,
    tokenizer=None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes the parameters as a Hugging Face folder, float32; one shard of it is in memory at a time.

    Args:
        checkpoint: holds "param" of every parameter of the model.
        model: says how they are called and laid out; its own values are not read. A class is built from
            ``checkpoint.info["config"]``.
        output: new or empty folder.
        tokenizer: an msllm.tokenization.Tokenizer to save along.
        max_shard_bytes: of a file; the parameters of one cell stay together, also where they are more.

    Raises:
        UserError: the checkpoint's parameters are not those of the model; the output holds something.
    """
    new_folder(output)
    model = _built(model, checkpoint)
    shapes = {p.name: tuple(p.shape) for p in model.get_parameters()}
    found = {
        name: np.broadcast_to(np.float32(0), checkpoint.whole("param", name)[0].shape)
        for name in checkpoint.names("param")
    }
    weights.compare(shapes, found, checkpoint.folder)
    extra = [name for name in found if name not in shapes]
    if extra:
        raise UserError(
            f"{checkpoint.folder} holds {len(extra)} parameters that the {type(model).__name__} lacks, first "
            f"{extra[0]}; give the model that was trained"
        )
    files = _files_of(shapes, max_shard_bytes)
    with atomic_folder(output) as tmp:
        write_json(tmp / "config.json", model.config_values())
        table, total = {}, 0
        for i, names in enumerate(files):
            tensors = {name: checkpoint.full("param", name).astype(np.float32, copy=False) for name in names}
            tensors = {name: weights.in_order(tensor) for name, tensor in model.unsanitize(tensors).items()}
            file = weights.WEIGHTS if len(files) == 1 else f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
            weights.save_tensors(tensors, tmp / file)
            table.update(dict.fromkeys(tensors, file))
            total += sum(tensor.nbytes for tensor in tensors.values())
        if len(files) > 1:
            write_json(tmp / weights.INDEX, {"metadata": {"total_size": total}, "weight_map": table})
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp)


def from_folder(source: str | Path, output: str | Path, info: Mapping) -> None:
    """Writes the parameters of a Hugging Face folder as a checkpoint of one worker, which any layout can read.

    Args:
        source: config.json and safetensors, mapped; matrices that lie transposed in them (GPT, GPT-2) are copied.
        output: new or empty folder.
        info: see sharded.finish; "config" is added.

    Raises:
        UserError: as from_pretrained; the output holds something.
    """
    target, model = new_folder(output), from_pretrained(source)
    write_part(target, 0, [("param", Slice(p.name, tuple(p.shape)), p.asnumpy()) for p in model.get_parameters()])
    finish(target, 1, {**info, "config": model.config_values()})


def _built(model: PretrainedModel | type[PretrainedModel], checkpoint: ShardedCheckpoint) -> PretrainedModel:
    if not isinstance(model, type):
        return model
    if "config" not in checkpoint.info:
        raise UserError(f"{checkpoint.folder / LAYOUT} has no info.config to build the model from; give a built model")
    with no_initial_values():
        return model(model.config_class.from_dict(checkpoint.info["config"]))


def _files_of(shapes: Mapping[str, tuple[int, ...]], most: int) -> list[list[str]]:
    """Deals parameters out to files of at most ``most`` bytes. Those of one cell stay together: Hugging Face may hold
    them as one tensor."""
    files, used = [[]], 0
    for _, group in itertools.groupby(shapes, lambda name: name.rsplit(".", 2)[0]):
        names = list(group)
        size = sum(4 * math.prod(shapes[name]) for name in names)
        if files[-1] and used + size > most:
            files.append([])
            used = 0
        files[-1] += names
        used += size
    return files
