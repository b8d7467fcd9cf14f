"""A model's layers and kernels replaced by those that say how their operators are cut, as a plan says."""

import itertools
from collections.abc import Callable

from mindspore import nn

from msllm.errors import UserError
from msllm.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from msllm.parallel.auto import functions
from msllm.parallel.auto.cuts import Cuts
from msllm.parallel.auto.layers import (
    COLUMNS,
    ROWS_OF_MATRIX,
    WHOLE,
    CutCrossEntropy,
    CutDropout,
    CutEmbedding,
    CutLayerNorm,
    CutLinear,
    CutRMSNorm,
    StageEnd,
    by_heads,
)
from msllm.parallel.config import ParallelConfig
from msllm.parallel.plans import Plan
from msllm.parallel.schedule import cut
from msllm.parallel.spread import cell_at, put_cell

_SIMPLE = {LayerNorm: CutLayerNorm, RMSNorm: CutRMSNorm, Dropout: CutDropout}


def cut_model(model, plan: Plan, config: ParallelConfig, cuts: Cuts) -> dict[str, Callable]:
    """Replaces the layers of a CausalLM in place; parameters may get other names.

    Args:
        plan: of its family.
        config: with ``data`` filled in; its pipeline, recompute and cuts are applied.

    Returns:
        The kernels to compile the model with, for kernels.replaced.

    Raises:
        UserError: a layer is no plain Linear, such as one with adapters; layers that attend in different ways.
    """
    blocks = getattr(model.body, plan.blocks)
    layers = [cell_at(block, plan.counts[0][0]) for block in blocks]
    kernels = _kernels(layers, bool(plan.per_head), cuts)
    for block in blocks:
        for path, matrices in plan.columns.items():
            linear = _plain(block, path)
            for parameter in linear.get_parameters() if matrices > 1 else ():
                by_heads(parameter, layers[0].heads)
            put_cell(block, path, CutLinear(linear, COLUMNS, cuts))
        for path in plan.rows:
            put_cell(block, path, CutLinear(_plain(block, path), ROWS_OF_MATRIX, cuts))
    _cut_ends(model, cuts)
    _cut_simple(model, cuts)
    if config.recompute:
        for block in blocks:
            block.recompute()
    if config.pipeline > 1:
        _stage(model, plan, config.pipeline, cuts)
    return kernels


def _plain(block: nn.Cell, path: str) -> Linear:
    cell = cell_at(block, path)
    if type(cell) is not Linear:
        raise UserError(
            f"{path} is a {type(cell).__name__}, and only a plain Linear can be cut; merge adapters first, or use "
            f"--parallel.mode explicit"
        )
    return cell


def _cut_ends(model, cuts: Cuts) -> None:
    """What lies before the blocks and after them."""
    vocab_size = model.embedding.weight.shape[0]
    for name, cell in list(model.body.name_cells().items()):
        if type(cell) is Embedding:
            words = cell is model.embedding
            setattr(model.body, name, CutEmbedding(cell, cuts, words and model.tied, positions=not words))
    if not model.tied:
        model.lm_head = CutLinear(model.lm_head, COLUMNS if cuts.divides(vocab_size) else WHOLE, cuts)
    model.cross_entropy = CutCrossEntropy(cuts, vocab_size)


def _cut_simple(cell: nn.Cell, cuts: Cuts) -> None:
    """Norms and dropout, wherever they are."""
    for name, inner in list(cell.name_cells().items()):
        if type(inner) in _SIMPLE:
            setattr(cell, name, _SIMPLE[type(inner)](inner, cuts))
        else:
            _cut_simple(inner, cuts)


def _stage(model, plan: Plan, stages: int, cuts: Cuts) -> None:
    """Says on which stage of the pipeline each cell with parameters is."""
    blocks = getattr(model.body, plan.blocks)
    for stage, (start, stop) in enumerate(cut([1.0] * len(blocks), stages)):
        for i in range(start, stop):
            blocks[i].pipeline_stage = stage
        if stage < stages - 1:
            blocks[stop - 1] = StageEnd(blocks[stop - 1], cuts)
            blocks[stop - 1].pipeline_stage = stage
    for name, cell in model.body.name_cells().items():
        if cell is not blocks and any(True for _ in cell.get_parameters()):
            cell.pipeline_stage = stages - 1 if name in plan.last else 0
    if model.tied:
        model.embedding.out.pipeline_stage = stages - 1
        model.embedding.weight.add_pipeline_stage(stages - 1)
        # MindSpore fails to sum up the gradients of both stages where each card updates a share.
        model.embedding.weight.parallel_optimizer = False
    else:
        model.lm_head.pipeline_stage = stages - 1


def _kernels(layers: list[nn.Cell], alibi: bool, cuts: Cuts) -> dict[str, Callable]:
    if any(one.scale != other.scale for one, other in itertools.pairwise(layers)):
        raise UserError(
            "the layers scale their scores in different ways (scale_attn_by_inverse_layer_idx), and auto-parallel has "
            "one attention for all; use --parallel.mode explicit"
        )
    attention = functions.Attention(cuts, layers[0].heads, layers[0].scale, layers[0].dropout, alibi)
    return {
        "add": functions.AddRows(cuts),
        "attention": attention,
        "gelu": functions.GELU(cuts),
        "packed_attention": functions.PackedAttention(cuts, attention),
        "rotary": functions.Rotate(cuts),
        "rotary_angles": functions.RotaryAngles(cuts),
        "swiglu": functions.SwiGLU(cuts),
    }
