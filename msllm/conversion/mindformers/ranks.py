"""Reads the tensors of a checkpoint that MindFormers wrote: one file, several, or a folder a rank, merged with
MindSpore's own tools."""

import re
from pathlib import Path

import mindspore as ms
import numpy as np

from msllm.conversion.mindformers.names import is_state
from msllm.errors import UserError
from msllm.models.weights import list_folder, read_file

_FORMATS = (".ckpt", ".safetensors")
_STEPS = re.compile(r".+_rank_\d+(?:_\d+)?-(\d+)_(\d+)")  # {prefix}_rank_{rank}[_{restart}]-{epoch}_{step}


def read_checkpoint(source: str | Path, scratch: Path, strategy: str | Path | None = None) -> dict[str, np.ndarray]:
    """Returns the model's tensors under MindFormers' names; states of the optimiser and counters are left out.

    Args:
        source: a .ckpt or .safetensors file; a folder with one or several; a folder with rank_0, rank_1 and so on, or
            the output folder of a run, where they are in checkpoint/. Of several steps the last is read that every rank
            has.
        scratch: an existing folder for files between, which are no longer needed afterwards.
        strategy: how the ranks cut the parameters: a strategy file, or a folder of one a rank. Without it, "strategy"
            or strategy.ckpt beside the ranks, or in the folder above.

    Raises:
        UserError: no checkpoint; ranks without a step in common; ranks that differ and no strategy; a strategy that is
            not theirs.
    """
    source = Path(source)
    if source.is_file():
        return _read(source)
    base = next((folder for folder in (source, source / "checkpoint") if _ranks(folder)), None)
    if base is None:
        return _read_flat(source)
    files = _last(_ranks(base))
    strategy = Path(strategy) if strategy is not None else _strategy_beside(base)
    if strategy is None or len(files) == 1:
        return _read_copies(files, base)
    return _merged(files, strategy, scratch)


def write_checkpoint(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a .ckpt of MindSpore."""
    values = [{"name": name, "data": ms.Tensor.from_numpy(np.ascontiguousarray(a))} for name, a in tensors.items()]
    ms.save_checkpoint(values, str(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        tensors = {name: tensor for name, tensor in read_file(path).items() if not is_state(name)}
    elif path.suffix == ".ckpt":
        try:
            loaded = ms.load_checkpoint(str(path), choice_func=lambda name: not is_state(name))
        except (ValueError, RuntimeError) as e:
            raise UserError(
                f"{path} cannot be read as a checkpoint of MindSpore, or holds no model: {str(e).splitlines()[0]}; "
                f"copy it again"
            ) from None
        tensors = {name: _array(value) for name, value in loaded.items()}
    else:
        raise UserError(f"{path} is neither .ckpt nor .safetensors; give a checkpoint of MindFormers")
    if not tensors:
        raise UserError(f"{path} holds no tensors of a model; give the file of the model")
    return tensors


def _array(value: ms.Parameter) -> np.ndarray:
    return (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()


def _read_flat(folder: Path) -> dict[str, np.ndarray]:
    files = _weights(folder)
    if not files:
        raise UserError(f"{folder} has no .ckpt or .safetensors and no rank_0; found: {list_folder(folder)}")
    steps = {step: path for path in files if (step := _step(path)) is not None}
    tensors: dict[str, np.ndarray] = {}
    for path in [steps[max(steps)]] if steps else files:
        for name, tensor in _read(path).items():
            if name in tensors:
                raise UserError(f"{folder} has {name} in several files, {path.name} is one; give one file")
            tensors[name] = tensor
    return tensors


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _FORMATS and path.is_file())


def _step(path: Path) -> tuple[int, int] | None:
    match = _STEPS.fullmatch(path.stem)
    return match and (int(match[1]), int(match[2]))


def _ranks(folder: Path) -> dict[int, list[Path]]:
    """Returns the weights of every rank that has some."""
    if not folder.is_dir():
        return {}
    found = {int(p.name[5:]): _weights(p) for p in folder.glob("rank_*") if p.is_dir() and p.name[5:].isdigit()}
    return dict(sorted((rank, files) for rank, files in found.items() if files))


def _last(ranks: dict[int, list[Path]]) -> dict[int, Path]:
    """Returns a file a rank: the only one, or that of the last epoch and step which all ranks have."""
    if all(len(files) == 1 for files in ranks.values()):
        return {rank: files[0] for rank, files in ranks.items()}
    steps = {rank: {_step(path): path for path in files if _step(path)} for rank, files in ranks.items()}
    common = set.intersection(*(set(table) for table in steps.values()))
    if not common:
        raise UserError(
            "the ranks have no step in common, as {prefix}_rank_N-{epoch}_{step} says it; first rank: "
            + ", ".join(path.name for path in next(iter(ranks.values()))[:4])
        )
    return {rank: table[max(common)] for rank, table in steps.items()}


def _strategy_beside(base: Path) -> Path | None:
    places = [folder / name for folder in (base, base.parent) for name in ("strategy", "strategy.ckpt")]
    return next((path for path in places if path.is_file() or (path.is_dir() and any(path.glob("*.ckpt")))), None)


def _read_copies(files: dict[int, Path], base: Path) -> dict[str, np.ndarray]:
    """Ranks without a strategy: data-parallel copies, or one alone."""
    first, *others = files.values()
    tensors = _read(first)
    for path in others:
        for name, tensor in _read(path).items():
            if name not in tensors or not np.array_equal(tensor, tensors[name]):
                raise UserError(
                    f"{first} and {path} differ in {name}: the ranks of {base} hold parts of the model, and no "
                    f"strategy is beside them; add --strategy with the strategy folder of the run"
                )
    return tensors


def _merged(files: dict[int, Path], strategy: Path, scratch: Path) -> dict[str, np.ndarray]:
    """MindSpore's transform_checkpoints, on files without the states, whose strategy need not be the parameters'.

    Its unified_safetensors would do for safetensors, and waits for ever where more than half of the memory is in use.
    """
    for rank, path in files.items():
        (scratch / "ranks" / f"rank_{rank}").mkdir(parents=True)
        write_checkpoint(_read(path), scratch / "ranks" / f"rank_{rank}" / "part.ckpt")
    try:
        if strategy.is_dir():
            ms.merge_pipeline_strategys(str(strategy), str(scratch / "strategy.ckpt"))
            strategy = scratch / "strategy.ckpt"
        ms.transform_checkpoints(str(scratch / "ranks"), str(scratch / "whole"), "whole", str(strategy), None)
    except (ValueError, RuntimeError, KeyError, TypeError) as e:
        raise UserError(
            f"MindSpore cannot merge the ranks as {strategy} says: {str(e).splitlines()[0]}; give the strategy and all "
            f"the ranks of one run (saved without remove_redundancy)"
        ) from None
    (whole,) = (scratch / "whole" / "rank_0").glob("*.ckpt")
    return _read(whole)
