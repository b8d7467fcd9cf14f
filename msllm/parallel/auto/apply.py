"""A model's layers and kernels replaced by those that say how their operators are cut, as a plan says."""

import contextlib
from collections.abc import Iterator

from mindspore import nn

from msllm import kernels
from msllm.errors import UserError
from msllm.layers import CrossEntropy, Dropout, Embedding, LayerNorm, Linear, RMSNorm
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
    PackedLinear,
)
from msllm.parallel.plans import Plan
from msllm.parallel.spread import cell_at, put_cell

_SIMPLE = {LayerNorm: CutLayerNorm, RMSNorm: CutRMSNorm, Dropout: CutDropout}


def cut_layers(model, plan: Plan, cuts: Cuts) -> None:
    """Replaces the layers of a CausalLM in place; parameters keep their names.

    Raises:
        UserError: a layer is no plain Linear, such as one with adapters; the model has experts.
    """
    if plan.experts:
        raise UserError(
            f"the {model.config.model_type}'s experts get as many tokens as the router says, and auto-parallel cuts "
            f"equal parts; use --parallel.mode explicit"
        )
    names = {id(p): p.name for p in model.get_parameters()}
    body = model.body
    for block in getattr(body, plan.blocks):
        for path, matrices in plan.columns.items():
            linear = _plain(block, path)
            put_cell(block, path, PackedLinear(linear, cuts) if matrices > 1 else CutLinear(linear, COLUMNS, cuts))
        for path in plan.rows:
            put_cell(block, path, CutLinear(_plain(block, path), ROWS_OF_MATRIX, cuts))
    vocab_size = model.embedding.weight.shape[0]
    for name, cell in list(body.name_cells().items()):
        if type(cell) is Embedding:
            words = cell is model.embedding
            setattr(body, name, CutEmbedding(cell, cuts, words and model.tied, positions=not words))
    if not model.tied:
        model.lm_head = CutLinear(model.lm_head, COLUMNS if cuts.divides(vocab_size) else WHOLE, cuts)
    model.cross_entropy = CutCrossEntropy(cuts, vocab_size)
    _replace_simple(model, cuts)
    for parameter in model.get_parameters():
        parameter.name = names.get(id(parameter), parameter.name)


def _plain(block: nn.Cell, path: str) -> Linear:
    cell = cell_at(block, path)
    if type(cell) is not Linear:
        raise UserError(
            f"{path} is a {type(cell).__name__}, and only a plain Linear can be cut; merge adapters first, or use "
            f"--parallel.mode explicit"
        )
    return cell


def _replace_simple(cell: nn.Cell, cuts: Cuts) -> None:
    for name, inner in list(cell.name_cells().items()):
        if type(inner) in _SIMPLE:
            setattr(cell, name, _SIMPLE[type(inner)](inner, cuts))
        elif isinstance(inner, nn.CellList):
            for one in inner:
                _replace_simple(one, cuts)
        else:
            _replace_simple(inner, cuts)


@contextlib.contextmanager
def cut_kernels(model, plan: Plan, cuts: Cuts) -> Iterator[None]:
    """While open, kernels.attention and the like are cells of cut operators; for compiling ``model``.

    Raises:
        UserError: layers that scale their scores in different ways.
    """
    layers = [cell_at(block, plan.counts[0][0]) for block in getattr(model.body, plan.blocks)]
    scales = {layer.scale for layer in layers}
    if len(scales) > 1:
        raise UserError(
            "the layers scale their scores in different ways (scale_attn_by_inverse_layer_idx), and auto-parallel has "
            "one attention for all; use --parallel.mode explicit"
        )
    attention = functions.Attention(cuts, layers[0].heads, layers[0].scale, layers[0].dropout, bool(plan.per_head))
    with kernels.replaced(
        add=functions.AddRows(cuts),
        attention=attention,
        gelu=functions.GELU(cuts),
        packed_attention=functions.PackedAttention(cuts, attention),
        rotary=functions.Rotate(cuts),
        swiglu=functions.SwiGLU(cuts),
    ):
        yield
