"""Checkpoints of parallel runs as MindSpore's own: rank folders and the strategy file that says how they are cut.

MindSpore says of each parameter how the devices of a stage are arranged (``dev_matrix``, the last axis the nearest
neighbours) and which axis of that arrangement cuts which axis of the parameter (``tensor_map``, counted from the right,
-1 for none): equal, contiguous blocks. What ``mindspore.transform_checkpoints`` reads, it merges and cuts anew.

Where a matrix holds queries, keys and values above each other, a worker has some rows of each, which is no such block.
It is written as a tensor with one axis more, (3, rows / 3, columns), cut along axis 1: a reshape to the shape in
``shapes.json`` makes the merged one the whole parameter. A strategy to transform to must pack it too: that of a layout
with three ranges for each worker does, also where one worker holds all rows.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
from mindspore.train import node_strategy_pb2

from msllm.errors import UserError
from msllm.files import atomic_file, atomic_folder, write_json
from msllm.parallel.sharded import ShardedCheckpoint, new_folder, slice_from
from msllm.parallel.slices import Slice

STRATEGY, SHAPES = "strategy.ckpt", "shapes.json"
_NEXT = (
    "go on in a layout without such cuts (--parallel.tensor 1) and export that, or use msllm.parallel.sharded.reshard"
)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How the workers of a stage share a parameter.

    Attributes:
        shape: of the whole as MindSpore sees it.
        axis: of ``shape``, that is cut into ``count`` blocks.
        count: of blocks.
        step: neighbours that hold the same block.
    """

    shape: tuple[int, ...]
    axis: int
    count: int
    step: int

    @property
    def local_shape(self) -> tuple[int, ...]:
        return (*self.shape[: self.axis], self.shape[self.axis] // self.count, *self.shape[self.axis + 1 :])


def export(checkpoint_folder: str | Path, output: str | Path) -> Path:
    """Writes the parameters of a checkpoint for ``mindspore.transform_checkpoints``, one worker after the other.

    The output holds ``rank_0/param.ckpt`` and so on, ``strategy.ckpt`` (protobuf) and ``shapes.json``, the shape of
    each whole parameter. A checkpoint of the Trainer says what each worker held, whoever wrote it; of others, workers
    that wrote no parameters are left out, and the rest counted anew. States of the optimiser are not written.

    Args:
        checkpoint_folder: see msllm.parallel.sharded.
        output: new or empty folder.

    Returns:
        The path of the strategy file.

    Raises:
        UserError: as ShardedCheckpoint and write_strategy.
    """
    checkpoint = ShardedCheckpoint(checkpoint_folder)
    output = new_folder(output)
    held = [[slice_from(values) for values in worker] for worker in checkpoint.info.get("held", ())]
    held = held or [parts for rank in range(checkpoint.world) if (parts := checkpoint.slices(rank, "param"))]
    if not held:
        raise UserError(f"{checkpoint_folder} holds no parameters; give a checkpoint of a model")
    with atomic_folder(output) as tmp:
        write_strategy(tmp / STRATEGY, held)
        stages = _stages(held)
        for rank, parts in enumerate(held):
            cuts = stages[rank * len(stages) // len(held)]
            arrays = ((part.name, checkpoint.read("param", part)) for part in parts)
            values = [{"name": n, "data": ms.Tensor(a.reshape(cuts[n].local_shape))} for n, a in arrays]
            (tmp / f"rank_{rank}").mkdir()
            ms.save_checkpoint(values, str(tmp / f"rank_{rank}" / "param.ckpt"))
        write_json(tmp / SHAPES, {part.name: part.shape for part in itertools.chain(*held)})
    return output / STRATEGY


def write_strategy(path: str | Path, slices_per_rank: Sequence[Sequence[Slice]]) -> None:
    """Writes MindSpore's strategy file (protobuf, node_strategy.proto) of a layout of parameters.

    Args:
        path: the file; MindSpore takes any name that does not end in ".json".
        slices_per_rank: for each worker, the parts that it holds. Consecutive workers that hold the same parameters are
            a stage of the pipeline; stages are of one size.

    Raises:
        UserError: what MindSpore's strategy cannot say: shares of a flattened parameter (ZeRO-3), uneven blocks, stages
            of different sizes, workers of a stage that hold different parameters (experts).
    """
    stages = _stages(slices_per_rank)
    devices = len(slices_per_rank) // len(stages)
    table = node_strategy_pb2.ParallelStrategyMap(current_stage=1)
    for i, cuts in enumerate(stages):
        # MindSpore reads a stage's number from its first operator, and takes a file without operators for empty.
        operator = table.parallel_strategy_item.add(node_name=f"stage-{i}")
        operator.parallel_strategys.stage = i
        for name, cut in cuts.items():
            item = table.parallel_layout_item.add(param_name=f"{i}-{name}" if len(stages) > 1 else name)
            layout = item.parallel_layouts
            layout.field = layout.opt_weight_shard_step = layout.opt_weight_shard_size = 0
            layout.dev_matrix.add(dim=(devices // (cut.count * cut.step), cut.count, cut.step))
            cut_axis = cut.axis if cut.count > 1 else None
            layout.tensor_map.add(dim=[1 if axis == cut_axis else -1 for axis in range(len(cut.shape))])
            layout.param_split_shape.add()
            layout.indices_offset.add()
    with atomic_file(path) as tmp:
        tmp.write_bytes(table.SerializeToString())


def _stages(slices_per_rank: Sequence[Sequence[Slice]]) -> list[dict[str, _Cut]]:
    """Returns how each stage's parameters are cut."""
    workers = []
    for rank, parts in enumerate(slices_per_rank):
        held = {part.name: part for part in parts}
        if len(held) < len(parts):
            twice = next(part.name for part in parts if held[part.name] is not part)
            raise UserError(f"worker {rank} holds several parts of {twice}, MindSpore's strategy knows one; {_NEXT}")
        workers.append(held)
    stages = [list(group) for _, group in itertools.groupby(workers, lambda held: sorted(held))]
    sizes = [len(stage) for stage in stages]
    if len(set(sizes)) > 1:
        raise UserError(
            f"consecutive workers with the same parameters make stages of {', '.join(map(str, sizes[:8]))} workers, "
            f"MindSpore's strategy knows stages of one size without experts of their own; {_NEXT}"
        )
    cuts = [{name: _cut([held[name] for held in stage]) for name in stage[0]} for stage in stages]
    seen: dict[str, _Cut] = {}
    for name, cut in itertools.chain(*(stage.items() for stage in cuts)):
        if "-" in name:
            raise UserError(f"MindSpore's strategy reads a stage before the '-' of parameter {name}; rename it")
        if seen.setdefault(name, cut) != cut:
            raise UserError(f"stages cut {name} in different ways, MindSpore's strategy knows one; {_NEXT}")
    return cuts


def _cut(parts: Sequence[Slice]) -> _Cut:
    """Returns how the workers of a stage share the parameter of which each holds one of ``parts``."""
    name, shape = parts[0].name, parts[0].shape
    if any(part.flat for part in parts):
        raise UserError(f"workers hold shares of the flattened {name}, MindSpore's strategy knows blocks; {_NEXT}")
    axis = next((part.axis for part in parts if part.ranges), 0)
    size = shape[axis] if shape else 1
    given = [part.ranges or ((0, size),) for part in parts]
    if all(part.axis == axis for part in parts if part.ranges):
        for ranges in (given, [_joined(r) for r in given]):
            blocks = sorted(set(ranges))
            count, packed = len(blocks), len(blocks[0])
            order = [blocks.index(r) for r in ranges]
            step = next((i for i, block in enumerate(order) if block), 0) or 1
            regular = [i // step % count for i in range(len(parts))]
            if blocks == _even(size, packed, count) and order == regular and len(parts) % (count * step) == 0:
                if packed == 1:
                    return _Cut(shape, axis, count, step)
                return _Cut((*shape[:axis], packed, size // packed, *shape[axis + 1 :]), axis + 1, count, step)
    raise UserError(
        f"workers hold rows {', '.join(map(str, given[:4]))} along axis {axis} of {name} {shape}, MindSpore's strategy "
        f"knows equal blocks in the order of workers; {_NEXT}"
    )


def _even(size: int, packed: int, count: int) -> list[tuple[tuple[int, int], ...]]:
    """Returns the ranges of ``count`` workers that share each of ``packed`` equal parts of an axis evenly."""
    part, block = size // packed, size // (packed * count)
    if block * packed * count != size:
        return []
    return [tuple((i * part + j * block, i * part + (j + 1) * block) for i in range(packed)) for j in range(count)]


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Puts ranges together where one ends at the beginning of the next."""
    joined = [ranges[0]]
    for start, stop in ranges[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
