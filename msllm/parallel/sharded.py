"""Checkpoints of parallel runs: each worker writes what it holds, any other layout of workers reads it back.

A folder ``checkpoint-<step>`` holds, for each worker, ``part-00003.safetensors`` (its tensors) and ``part-00003.json``
(which part of which parameter each of them is, and the checksum of the tensors), and ``layout.json``, which is written
after all of them and holds the checksums of the former: parts without it are no checkpoint. A run goes on from those
alone that hold the Trainer's state too, see msllm.training.checkpoint.find.

Reading any part from any others is a matter of copying where their boxes overlap, see msllm.parallel.boxes.
"""

import dataclasses
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from msllm.errors import UserError, nearest
from msllm.files import atomic_file, read_json, write_json
from msllm.models import weights
from msllm.parallel.boxes import Box, boxes_of, common, moved, span, view, without
from msllm.parallel.slices import Slice
from msllm.training.checkpoint import LAYOUT

_CHUNK = 1 << 20  # bytes that are read at a time for a checksum
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_part(folder: str | Path, rank: int, parts: Sequence[tuple[str, Slice, np.ndarray]]) -> None:
    """Writes what one worker holds; each file whole or not at all.

    A ``layout.json`` of an earlier checkpoint in the folder is removed: it is unfinished until ``finish`` is called.

    Args:
        folder: the checkpoint's, the same for all workers; made where it is missing.
        rank: of this worker, from 0.
        parts: (kind, which part, its values of shape ``local_shape``); kinds are "param", "exp_avg", "exp_avg_sq". One
            worker may hold several parts of a parameter, and parts of no elements.

    Raises:
        ValueError: values of another shape than their part, a dtype that the file format lacks.
        UserError: the disk is full or refuses.
    """
    slots = [(kind, part, array.dtype) for kind, part, array in parts]
    _write_part(Path(folder), rank, slots, (array for _, _, array in parts))


def finish(folder: str | Path, world: int, info: Mapping) -> None:
    """Declares a checkpoint complete; the first worker calls it when all have returned from write_part.

    Parts of higher ranks, which an earlier and larger run left unfinished, are removed.

    Args:
        folder: the checkpoint's.
        world: the number of workers.
        info: what JSON can hold: the step, the layout in words, and so on; under "config" the mapping of the model's
            config.json, where folders.to_folder is to build the model from it.

    Raises:
        UserError: the part of a worker is missing or is not what its layout says.
    """
    folder = Path(folder)
    missing = _missing(folder, world)
    if missing:
        raise UserError(
            f"{folder} cannot be finished: it lacks {', '.join(missing[:4])} of {world} workers; look into the log of "
            f"that worker and save again"
        )
    for path in _foreign(folder, world):
        path.unlink()
    sums = [zlib.crc32((folder / _names(rank)[1]).read_bytes()) for rank in range(world)]
    for rank, checksum in enumerate(sums):
        _read_layout(folder, rank, checksum)
    write_json(folder / LAYOUT, {"world": world, "info": dict(info), "layouts": sums})


class ShardedCheckpoint:
    """A finished checkpoint, of which any part can be read.

    Opening checks the folder: all files are there, of one run and of the size that they were. The tensors of a worker
    are compared with their checksum when the first of them is read.

    Attributes:
        folder, world: where it is; how many workers wrote it.
        info: what ``finish`` was given.

    Raises:
        UserError: the folder is unfinished, a file is missing, damaged or of another run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.world, sums, self.info = _read_world(self.folder)
        missing, foreign = _missing(self.folder, self.world), _foreign(self.folder, self.world)
        if missing:
            raise UserError(
                f"{self.folder} lacks {', '.join(missing[:4])} of {self.world} workers; copy it from the machine of "
                f"that worker, or use an earlier checkpoint"
            )
        if foreign:
            raise UserError(
                f"{foreign[0]} does not belong to this checkpoint of {self.world} workers; remove it if {LAYOUT} is "
                f"the right one, or copy the whole folder again"
            )
        self._layouts = [_read_layout(self.folder, rank, checksum) for rank, checksum in enumerate(sums)]
        self._held: dict[tuple[str, str], list[_Held]] = {}
        for held in itertools.chain(*(tensors for _, tensors in self._layouts)):
            self._held.setdefault((held.kind, held.part.name), []).append(held)
        self._boxes: dict[tuple[str, str], tuple] = {}
        self._files: dict[int, safe_open] = {}

    def names(self, kind: str) -> list[str]:
        """Returns the parameters of which the workers hold ``kind``, in the order in which they hold them."""
        return [name for k, name in self._held if k == kind]

    def slices(self, rank: int, kind: str) -> list[Slice]:
        """Returns which parts a worker holds."""
        return [held.part for held in self._layouts[rank][1] if held.kind == kind]

    def whole(self, kind: str, name: str) -> tuple[Slice, np.dtype]:
        """Returns the whole of a parameter as a Slice, and its dtype; UserError where nobody holds it."""
        if (kind, name) not in self._held:
            raise UserError(
                f"{self.folder} holds no {kind} of parameter {name}{nearest(name, self.names(kind))}; it holds "
                f"{len(self.names(kind))} of this kind: use the checkpoint of the same model"
            )
        held = self._held[kind, name]
        for other in held:
            if (other.part.shape, other.dtype) != (held[0].part.shape, held[0].dtype):
                raise UserError(
                    f"{self.folder}: worker {other.rank} holds {kind} of {name} of {other.dtype} {other.part.shape}, "
                    f"worker {held[0].rank} of {held[0].dtype} {held[0].part.shape}; their models differ: save again"
                )
        return Slice(name, held[0].part.shape), held[0].dtype

    def full(self, kind: str, name: str) -> np.ndarray:
        """Returns a whole parameter, or its state of the optimiser; see read."""
        return self.read(kind, self.whole(kind, name)[0])

    def read(self, kind: str, slice: Slice) -> np.ndarray:
        """Puts a part together from what the workers hold.

        Of a file, all is read once, for its checksum; then only the bytes that are asked for. Of elements that several
        workers hold, those of the first are taken.

        Args:
            kind: "param", "exp_avg" or "exp_avg_sq".
            slice: any part, also one that no worker held.

        Returns:
            Array of ``slice.local_shape``, of the dtype and the bits that were written.

        Raises:
            UserError: nobody holds the parameter or some of the elements, its shape is another, a file is damaged.
        """
        whole, dtype = self.whole(kind, slice.name)
        if whole.shape != tuple(slice.shape):
            raise UserError(
                f"{self.folder}: parameter {slice.name} has shape {whole.shape}, {tuple(slice.shape)} is asked for; "
                f"use the checkpoint of the same model"
            )
        out = np.empty(slice.local_shape, dtype)
        lost: list[Box] = []
        for box, shift in boxes_of(slice):
            rest = [box]
            for held, (other, other_shift) in self._touching(kind, slice.name, box):
                if not rest:
                    break
                after = []
                for piece in rest:
                    shared = common(piece, other)
                    if shared is None:
                        after.append(piece)
                        continue
                    values = self._values(held, moved(shared, held.part.axis, -other_shift))
                    mine = moved(shared, slice.axis, -shift)
                    view(out.reshape(-1), slice.box, mine, slice.flat[0] if slice.flat else 0)[...] = values
                    after += without(piece, shared)
                rest = after
            lost += rest
        if lost:
            count = sum(math.prod(stop - start for start, stop in box) for box in lost)
            raise UserError(
                f"{self.folder}: no worker holds {count} elements of {kind} of {slice.name} {whole.shape}, first "
                f"{', '.join(f'{start}:{stop}' for start, stop in lost[0])}; its layout left them out: use another "
                f"checkpoint"
            )
        return out

    def _touching(self, kind: str, name: str, box: Box) -> Iterator[tuple["_Held", tuple[Box, int]]]:
        """Yields the tensors, and those of their boxes, that overlap ``box``, in the order of workers."""
        if (kind, name) not in self._boxes:
            pairs = [(held, piece) for held in self._held[kind, name] for piece in boxes_of(held.part)]
            limits = np.array([piece[0] for _, piece in pairs], np.int64).reshape(len(pairs), len(box), 2)
            self._boxes[kind, name] = pairs, limits
        pairs, limits = self._boxes[kind, name]
        wanted = np.array(box, np.int64).reshape(len(box), 2)
        overlap = (limits[..., 0] < wanted[:, 1]) & (limits[..., 1] > wanted[:, 0])
        return (pairs[i] for i in np.flatnonzero(overlap.all(axis=1)))

    def _values(self, held: "_Held", box: Box) -> np.ndarray:
        """Reads a box, in the coordinates of what the worker holds."""
        tensor = self._file(held.rank).get_slice(held.key)
        if held.part.flat is None:
            return tensor[tuple(slice(start, stop) for start, stop in box)]
        first, stop = span(held.part.box, box)
        values = tensor[first - held.part.flat[0] : stop - held.part.flat[0]]
        return view(values, held.part.box, box, first)

    def _file(self, rank: int) -> safe_open:
        if rank not in self._files:
            path, checksum = self.folder / _names(rank)[0], 0
            with path.open("rb") as f:
                while chunk := f.read(_CHUNK):
                    checksum = zlib.crc32(chunk, checksum)
            expected = self._layouts[rank][0]["crc32"]
            if checksum != expected:
                raise UserError(
                    f"{path} is damaged or of another run: its checksum is {checksum:08x}, expected {expected:08x}; "
                    f"copy it again, or use an earlier checkpoint"
                )
            self._files[rank] = safe_open(path, framework="np")
        return self._files[rank]


def reshard(
    source_folder: str | Path,
    target_folder: str | Path,
    slices_per_rank: Sequence[Sequence[tuple[str, Slice]]],
    info: Mapping,
) -> None:
    """Writes a checkpoint for another layout of workers, tensor by tensor: two at most are in memory.

    Args:
        source_folder, target_folder: a finished checkpoint, and a new or empty folder.
        slices_per_rank: for each worker of the new layout, (kind, which part) of all that it is to hold.
        info: is added to that of the source, and replaces what has the same name.

    Raises:
        UserError: as ShardedCheckpoint and its read; the target holds something.
    """
    source, target = ShardedCheckpoint(source_folder), new_folder(target_folder)
    for rank, parts in enumerate(slices_per_rank):
        slots = [(kind, part, source.whole(kind, part.name)[1]) for kind, part in parts]
        _write_part(target, rank, slots, (source.read(kind, part) for kind, part in parts))
    finish(target, len(slices_per_rank), {**source.info, **info})


def new_folder(path: str | Path) -> Path:
    """Returns ``path`` where it is absent or empty; UserError otherwise."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; choose another output")
    return path


@dataclasses.dataclass(frozen=True)
class _Held:
    """A tensor in the file of a worker."""

    rank: int
    key: str
    kind: str
    part: Slice
    dtype: np.dtype


def _names(rank: int) -> tuple[str, str]:
    return f"part-{rank:05d}.safetensors", f"part-{rank:05d}.json"


def _missing(folder: Path, world: int) -> list[str]:
    return [name for rank in range(world) for name in _names(rank) if not (folder / name).is_file()]


def _foreign(folder: Path, world: int) -> list[Path]:
    own = {name for rank in range(world) for name in _names(rank)}
    return [path for path in sorted(folder.glob("part-*")) if path.name not in own]


def _write_part(
    folder: Path, rank: int, slots: Sequence[tuple[str, Slice, np.dtype]], arrays: Iterable[np.ndarray]
) -> None:
    """Writes a worker's files; ``arrays`` are taken one at a time, in the order of ``slots``."""
    header, layout, start = {}, [], 0
    for kind, part, dtype in slots:
        if dtype.name not in _DTYPES:
            raise ValueError(f"{part.name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}")
        key, others = f"{kind}/{part.name}", itertools.count(1)
        while key in header:
            key = f"{kind}/{part.name}#{next(others)}"
        stop = start + part.size * dtype.itemsize
        header[key] = {"dtype": _DTYPES[dtype.name], "shape": part.local_shape, "data_offsets": [start, stop]}
        layout.append({"key": key, "kind": kind, "dtype": dtype.name, **dataclasses.asdict(part)})
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size, checksum = 0, 0
    with atomic_file(folder / _names(rank)[0]) as tmp, tmp.open("wb") as f:
        (folder / LAYOUT).unlink(missing_ok=True)
        for data in itertools.chain([len(text).to_bytes(8, "little") + text], _bytes(slots, arrays)):
            size += f.write(data)
            checksum = zlib.crc32(data, checksum)
    file = {"bytes": size, "crc32": checksum}
    write_json(folder / _names(rank)[1], {"rank": rank, "file": file, "tensors": layout})


def _bytes(slots: Sequence[tuple[str, Slice, np.dtype]], arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for (kind, part, _), array in zip(slots, arrays, strict=True):
        if array.shape != part.local_shape:
            raise ValueError(f"{kind} of {part.name} has shape {array.shape}, its part {part.local_shape}")
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _read_world(folder: Path) -> tuple[int, list[int], dict]:
    """Returns what layout.json holds: the number of workers, the checksums of their layouts, info."""
    if not (folder / LAYOUT).is_file():
        found = weights.list_folder(folder) if folder.is_dir() else "no such folder"
        raise UserError(
            f"{folder} lacks {LAYOUT}, so it is no finished checkpoint of parallel workers; found: {found}; give an "
            f"earlier checkpoint-<step>"
        )
    values = read_json(folder / LAYOUT)
    try:
        world, sums, info = values["world"], values["layouts"], values["info"]
    except (KeyError, TypeError):
        raise UserError(f"{folder / LAYOUT} lacks world, layouts or info; copy the checkpoint again") from None
    if world != len(sums):
        raise UserError(f"{folder / LAYOUT} says {world} workers and lists {len(sums)}; copy the checkpoint again")
    return world, sums, info


def _read_layout(folder: Path, rank: int, checksum: int) -> tuple[dict, list[_Held]]:
    """Returns what is known of a worker's file, and the tensors in it."""
    path, file = folder / _names(rank)[1], folder / _names(rank)[0]
    content = path.read_bytes()
    if zlib.crc32(content) != checksum:
        raise UserError(
            f"{path} is damaged or of another run: its checksum is {zlib.crc32(content):08x}, {LAYOUT} expects "
            f"{checksum:08x}; copy it again, or use an earlier checkpoint"
        )
    values = json.loads(content)
    if values["rank"] != rank:
        raise UserError(f"{path} was written by worker {values['rank']}; copy the file of worker {rank}")
    if file.stat().st_size != values["file"]["bytes"]:
        raise UserError(
            f"{file} has {file.stat().st_size} bytes, {path.name} says {values['file']['bytes']}; copy it again, or "
            f"use an earlier checkpoint"
        )
    return values["file"], [
        _Held(rank, v["key"], v["kind"], slice_from(v), np.dtype(v["dtype"])) for v in values["tensors"]
    ]


def slice_from(values: Mapping) -> Slice:
    """Returns the Slice of what dataclasses.asdict made of it, read from JSON."""
    ranges, flat = values["ranges"], values["flat"]
    return Slice(
        values["name"],
        tuple(values["shape"]),
        values["axis"],
        None if ranges is None else tuple(map(tuple, ranges)),
        None if flat is None else tuple(flat),
    )
