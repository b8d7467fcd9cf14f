"""pytorch_model.bin to safetensors, with PyTorch's weights-only loading: no code in the file is run."""

import pickle
from pathlib import Path

import numpy as np

from msllm.conversion.output import copy_small_files, new_folder
from msllm.errors import UserError
from msllm.files import atomic_folder, read_json
from msllm.models.pretrained import read_config
from msllm.models.weights import TORCH_WEIGHTS, list_folder, write_weights


def convert_folder(source: str | Path, output: str | Path) -> None:
    """Writes ``output``: the tensors of ``source`` as safetensors (float32) and copies of its small files.

    Raises:
        UserError: no pytorch_model.bin; PyTorch is not installed; the file holds more than tensors; ``output`` is
            in use.
    """
    source, output = Path(source), new_folder(output)
    read_config(source)
    files = _files(source)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors.update(_load(file))
    with atomic_folder(output) as tmp:
        copy_small_files(source, tmp)
        write_weights(tmp, tensors)


def _files(source: Path) -> list[Path]:
    whole, index = (source / name for name in TORCH_WEIGHTS)
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise UserError(f"{source} lacks {whole.name} (or {index.name}); found: {list_folder(source)}")
    files = sorted({source / name for name in read_json(index)["weight_map"].values()})
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise UserError(f"{index} names {', '.join(missing)}, which {source} lacks; copy the missing files")
    return files


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            "msllm convert reads PyTorch files with PyTorch, which is not installed; pip install torch"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as e:
        raise UserError(
            f"{path} cannot be read as tensors only: {str(e).splitlines()[0]}; copy it again, or do not trust it"
        ) from None
    # Tied weights share memory in the file; safetensors wants each its own.
    return {
        name: t.to(torch.float32).numpy().copy() if t.is_floating_point() else t.numpy().copy()
        for name, t in tensors.items()
    }
