"""Which part of a parameter a card holds, from how MindSpore has cut it."""

import math

from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import Plan
from msllm.parallel.slices import Slice


def held_part(
    name: str,
    whole: tuple[int, ...],
    card: tuple[int, ...],
    place: tuple[int, int, int, int],
    config: ParallelConfig,
    plan: Plan,
    model,
) -> tuple[Slice, bool]:
    """Returns the part of a parameter in the order of the model's file, and whether this card is the first that has it.

    The tensor-parallel cards share columns or rows; then those with the same part share its axis 0, where the optimiser
    is parallel. Cards count through tensor first, then data.

    Args:
        name: of the parameter.
        whole: its shape in the model.
        card: the shape of the card's part.
        place: along pipeline, data, sequence and tensor, see mesh.coordinates.
        config, plan: the layout, and what is cut.
        model: a CausalLM; the names of its ends are read.

    Raises:
        ValueError: it is cut in no way that the layout explains.
    """
    _, d, _, t = place
    cell, _, kind = name.rpartition(".")
    by_columns = cell.endswith((*plan.columns, model.embedding_name, "lm_head"))
    by_rows = kind == "weight" and cell.endswith(plan.rows)
    axis = 1 if by_rows else 0
    wanted = config.tensor if (by_columns or by_rows) and whole[axis] % config.tensor == 0 else 1
    size = whole[axis] // wanted
    start = (t if wanted > 1 else 0) * size
    box = (*whole[:axis], size, *whole[axis + 1 :])
    sharers = math.prod(box) // math.prod(card)
    index = {1: 0, config.data: d, config.data * config.tensor: d * config.tensor + t}.get(sharers)
    if index is None or card != (box[0] // sharers, *box[1:]):
        raise ValueError(f"{name} {whole} is {card} on a card of {config}, which no cut of the layout explains")
    others = {1: d, config.data: 0, config.data * config.tensor: 0}[sharers]  # 0: nobody else has this part
    first = others == 0 and (wanted > 1 or t == 0 or sharers == config.data * config.tensor > 1)
    matrices = next((n for path, n in plan.columns.items() if cell.endswith(path)), 1)
    if wanted == sharers == matrices == 1:
        return Slice(name, whole), first
    if by_rows:
        flat = None if sharers == 1 else (index * math.prod(card), (index + 1) * math.prod(card))
        return Slice(name, whole, 1, ((start, start + size),), flat), first
    rows = (start + index * card[0], start + (index + 1) * card[0])
    heads = getattr(model.config, "num_attention_heads", None) or model.config.n_head
    return Slice(name, whole, 0, in_file_order(rows, whole[0], heads) if matrices > 1 else (rows,)), first


def in_file_order(rows: tuple[int, int], size: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Returns rows start to stop of (H, 3, C) as ranges of the rows (3, H, C), see layers.by_heads."""
    width = size // (3 * heads)
    found, row = [], rows[0]
    while row < rows[1]:
        head, inner = divmod(row, 3 * width)
        matrix, column = divmod(inner, width)
        length = min(width - column, rows[1] - row)
        begin = (matrix * heads + head) * width + column
        found.append((begin, begin + length))
        row += length
    return tuple(found)
