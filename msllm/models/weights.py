"""Safetensors files: read by memory mapping, checked before use; written whole or not at all."""

import json
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from msllm.errors import UserError
from msllm.files import read_json, write_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def list_folder(folder: Path) -> str:
    """Returns the names in ``folder``, for error messages."""
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"


def read_weights(folder: str | Path, stem: str = WEIGHTS) -> dict[str, np.ndarray]:
    """Returns all tensors of a checkpoint folder by name, mapped from disk.

    Args:
        folder: holds ``stem`` or, sharded, ``stem``.index.json and its parts.

    Returns:
        name -> array. float32 arrays are copy-on-write views of the file; fp16, bf16 and float64 are
        converted to float32.

    Raises:
        UserError: no weights; a shard that the index names is missing; a file that is cut short or damaged.
    """
    folder = Path(folder)
    if (folder / stem).is_file():
        return read_file(folder / stem)
    index = folder / f"{stem}.index.json"
    if index.is_file():
        table = read_json(index)["weight_map"]
        shards = sorted(set(table.values()))
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing:
            raise UserError(
                f"{index} names {', '.join(missing)}, which {folder} lacks; found: {list_folder(folder)}; "
                f"copy the missing files"
            )
        tensors: dict[str, np.ndarray] = {}
        for shard in shards:
            tensors.update(read_file(folder / shard))
        lost = [name for name in table if name not in tensors]
        if lost:
            raise UserError(f"{index} names tensor {lost[0]}, which {table[lost[0]]} lacks; copy that file again")
        return tensors
    for name in TORCH_WEIGHTS:
        if (folder / name).is_file():
            raise UserError(
                f"{folder} holds {name}, which is not read directly; first run: "
                f"msllm convert --source {folder} --output NEW_FOLDER"
            )
    raise UserError(f"{folder} lacks {stem} (or {stem}.index.json); found: {list_folder(folder)}")


def read_file(path: str | Path, writable: bool = True) -> dict[str, np.ndarray]:
    """Returns the tensors of one safetensors file; see read_weights.

    Args:
        writable: what may be written needs room in memory, should it be; the system counts it as if it were.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise UserError(f"{path} is cut short: its header wants {length} bytes, the file has {size}; copy it again")
        try:
            header = json.loads(f.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{path} is not a safetensors file: its header is no JSON; copy it again") from None
    header.pop("__metadata__", None)
    # Mode "c": pages are read when touched and private once written, so training never changes the file.
    mode = "c" if writable else "r"
    data = np.memmap(path, np.uint8, mode=mode, offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return {name: _tensor(path, name, entry, data) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Mapping, data: np.ndarray) -> np.ndarray:
    start, end = entry["data_offsets"]
    if end > data.size:
        raise UserError(
            f"{path} is cut short: tensor {name} of shape {tuple(entry['shape'])} ends at byte {end} "
            f"of the data, which has {data.size}; copy it again"
        )
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UserError(f"{path}: tensor {name} has dtype {entry['dtype']}; known are {', '.join(_DTYPES)}")
    if (end - start) != int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(dtype).itemsize:
        raise UserError(
            f"{path}: tensor {name} says shape {tuple(entry['shape'])} {entry['dtype']} but holds "
            f"{end - start} bytes; copy it again"
        )
    array = data[start:end].view(dtype).reshape(entry["shape"])
    if dtype not in (np.float16, np.float64) and entry["dtype"] != "BF16":
        return array
    # bfloat16 is the upper half of a float32
    copy = (array.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else array.astype(np.float32)
    release(array)
    return copy


def in_order(array: np.ndarray, block: int = 64) -> np.ndarray:
    """Returns the array with its rows one after the other in memory: itself, or a copy in place of the file's pages.

    A transposed matrix is copied block by block: numpy would jump through all of memory for every row.
    """
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    if array.ndim == 2:
        for i in range(0, array.shape[0], block):
            for j in range(0, array.shape[1], block):
                copy[i : i + block, j : j + block] = array[i : i + block, j : j + block]
    else:
        copy[...] = array
    release(array)
    return copy


def release(array: np.ndarray) -> None:
    """Takes the pages of an array that is mapped from a file out of memory; reading it again reads the file again."""
    root = array
    while root is not None and not isinstance(root, np.memmap):
        root = root.base
    while root is not None and isinstance(root.base, np.memmap):
        root = root.base
    if root is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = root.ctypes.data - root.offset % mmap.ALLOCATIONGRANULARITY  # of the mapping
    low, high = (address - start for address in np.byte_bounds(array))
    low, high = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
    if low < high:
        root._mmap.madvise(mmap.MADV_DONTNEED, low, high - low)


def conv1d_to_linear(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Transposes the Conv1D weights of GPT and GPT-2 files from (in, out) to (out, in); drops their causal masks."""
    masks = (".attn.bias", ".attn.masked_bias")
    return {k: v.T if k.endswith(_CONV1D) else v for k, v in tensors.items() if not k.endswith(masks)}


def linear_to_conv1d(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of conv1d_to_linear; the masks hold nothing."""
    return {k: v.T if k.endswith(_CONV1D) else v for k, v in tensors.items()}


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one safetensors file; OSError where the disk refuses."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as e:
        if code := re.search(r"os error (\d+)", str(e)):  # a full disk should look the same from every writer
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from e
        raise


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes ``tensors`` into ``folder`` as Hugging Face does: one file, or shards and an index.

    Args:
        folder: an existing folder; callers write into a temporary one and rename it.
        max_shard_bytes: a shard is closed before it grows beyond this many bytes.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, array in tensors.items():
        if shards[-1] and used + array.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = np.ascontiguousarray(array)
        used += array.nbytes
    if len(shards) == 1:
        save_tensors(shards[0], folder / WEIGHTS)
        return
    table = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(shard, folder / file)
        table.update(dict.fromkeys(shard, file))
    total = sum(a.nbytes for a in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})


def compare(
    expected: Mapping[str, tuple], found: Mapping[str, np.ndarray], where: str | Path, may_lack: Iterable[str] = ()
) -> list[str]:
    """Checks the tensors of a file against those of a model.

    Args:
        expected: name -> shape in the model; found: name -> array in the file.
        where: the folder, for messages.
        may_lack: first parts of names that a file need not have (new heads).

    Returns:
        The expected names that are allowed to be missing and are.

    Raises:
        UserError: a shape differs or a tensor is missing.
    """
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != tuple(shape):
            raise UserError(
                f"{where}: tensor {name} has shape {tuple(found[name].shape)}, config.json asks for "
                f"{tuple(shape)}; use the config.json that belongs to these weights"
            )
    missing = [name for name in expected if name not in found]
    fatal = [name for name in missing if not name.startswith(tuple(may_lack))]
    if fatal:
        raise UserError(
            f"{where}: the weights lack {len(fatal)} tensors that config.json asks for, first {fatal[0]} "
            f"of shape {tuple(expected[fatal[0]])}; use the config.json that belongs to these weights"
        )
    return missing
