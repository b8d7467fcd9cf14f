"""A model's layers replaced by those that share their work with other workers, as a plan says."""

import numpy as np
from mindspore import Tensor, nn

from msllm.errors import UserError
from msllm.layers import Linear
from msllm.parallel.experts import GlobalShares, spread
from msllm.parallel.mesh import Mesh
from msllm.parallel.plans import Plan
from msllm.parallel.tensor import (
    ColumnLinear,
    Entry,
    RowLinear,
    SplitTokens,
    VocabularyCrossEntropy,
    VocabularyEmbedding,
    WholeTokens,
    share,
)


def spread_layers(model, plan: Plan, mesh: Mesh) -> set[str]:
    """Replaces layers in place.

    Returns:
        The names of the parameters whose gradients each tensor-parallel worker has a part of only: those that act on
        split tokens.

    Raises:
        UserError: a layer is no plain Linear, such as one with adapters.
    """
    names = {id(p): p.name for p in model.get_parameters()}
    split, partial = mesh.config.split_norms, set()
    if mesh.tensor.size > 1:
        for block in getattr(model.body, plan.blocks):
            _spread_block(block, plan, mesh)
        _spread_ends(model, plan, mesh)
        if split:
            cut = {p.slice.name for p in model.get_parameters() if hasattr(p, "slice")}
            inside = f".{plan.experts}." if plan.experts else None
            partial = {n for n in names.values() if n not in cut and not (inside and inside in n)}
    if plan.experts:
        for block in getattr(model.body, plan.blocks):
            layer = cell_at(block, plan.experts)
            spread(layer, mesh.expert, mesh.tensor)
            if mesh.samples.size > 1:
                layer.shares = GlobalShares(mesh.samples)
            if split:
                put_cell(block, plan.experts, WholeTokens(layer, mesh.tensor))
    for parameter in model.get_parameters():  # moving a cell may have named its parameters anew
        parameter.name = parameter.slice.name if hasattr(parameter, "slice") else names[id(parameter)]
    return partial


def _spread_block(block: nn.Cell, plan: Plan, mesh: Mesh) -> None:
    group, split = mesh.tensor, mesh.config.split_norms
    for path in (*plan.columns, *plan.rows):
        if type(cell_at(block, path)) is not Linear:
            raise UserError(
                f"{path} is a {type(cell_at(block, path)).__name__}, and only a plain Linear can be cut; train "
                f"adapters with --parallel.tensor 1"
            )
    owners = [path.rpartition(".")[0] for path in plan.columns]
    entries = {owner: Entry(group, split, owners.count(owner)) for owner in owners}
    for owner, (path, matrices) in zip(owners, plan.columns.items()):
        put_cell(block, path, ColumnLinear(cell_at(block, path), entries[owner], matrices))
    for path in plan.rows:
        put_cell(block, path, RowLinear(cell_at(block, path), group, split))
    for path, attribute in plan.counts:
        cell = cell_at(block, path)
        setattr(cell, attribute, getattr(cell, attribute) // group.size)


def _spread_ends(model, plan: Plan, mesh: Mesh) -> None:
    group, split, body = mesh.tensor, mesh.config.split_norms, model.body
    vocab_size = model.embedding.weight.shape[0]
    setattr(body, model.embedding_name, VocabularyEmbedding(model.embedding, group, split))
    if not model.tied:
        model.lm_head = ColumnLinear(model.lm_head, Entry(group, split))
    if split and plan.positions:
        setattr(body, plan.positions, SplitTokens(getattr(body, plan.positions), group))
    for name in plan.per_head:
        values = getattr(body, name).asnumpy()
        start, stop = share(len(values), group)
        setattr(body, name, Tensor(np.ascontiguousarray(values[start:stop])))
    model.cross_entropy = VocabularyCrossEntropy(group, vocab_size)


def cell_at(block: nn.Cell, path: str) -> nn.Cell:
    """Returns the cell within a block that a plan names."""
    for name in path.split("."):
        block = getattr(block, name)
    return block


def put_cell(block: nn.Cell, path: str, new: nn.Cell) -> None:
    """Puts another cell in its place."""
    owner, _, name = path.rpartition(".")
    setattr(cell_at(block, owner) if owner else block, name, new)
