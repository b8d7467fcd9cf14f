"""How MindSpore's operators are cut, for a ParallelConfig: what ``Primitive.shard`` is given.

A strategy has a tuple for each input of an operator, with the number of pieces of each axis. "data" stands for the
data-parallel workers, "tensor" for those that share a layer, 1 for an axis that stays whole.
"""

import dataclasses

import mindspore as ms

from msllm.parallel.config import ParallelConfig

DATA, TENSOR = "data", "tensor"
STREAM = (DATA, 1, 1)  # the residual stream (B, T, D): each worker of a tensor group has all of its examples' tokens
INNER = (DATA, 1, TENSOR)  # (B, T, F): what lies between a matrix cut by columns and one cut by rows
HEADS = (DATA, 1, TENSOR, 1)  # (B, T, H, C)
SCORES = (DATA, TENSOR, 1, 1)  # (B, H, T, S)
LOGITS = (DATA, TENSOR)  # (N, V)
ROWS = (DATA, 1)  # (N, ...)


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Gives operators their strategies.

    Args:
        data, tensor: numbers of workers.
        cut_operators: which operators get a strategy: "all", "products" (matrix products alone, as seeds for a search),
            or "none".
        dtype: in which activations and products are computed; norms, softmax and loss take float32.
        fused: use Ascend's fused operators: FlashAttentionScore, RmsNorm, LayerNorm.
    """

    data: int = 1
    tensor: int = 1
    cut_operators: str = "all"
    dtype: ms.Type = ms.float32
    fused: bool = False

    @classmethod
    def of(cls, config: ParallelConfig, dtype=ms.bfloat16, fused: bool = True) -> "Cuts":
        """The strategies of a layout; ``data`` is filled in."""
        chosen = {"none": "all", "sharding_propagation": "products"}.get(config.search, "none")
        return cls(config.data, config.tensor, chosen, dtype, fused)

    def __call__(self, operator, *inputs: tuple, product: bool = False):
        """Returns ``operator`` with a strategy for each of its inputs; ``product``: it is a matrix product."""
        if self.cut_operators == "all" or (product and self.cut_operators == "products"):
            numbers = {DATA: self.data, TENSOR: self.tensor}
            operator.shard(tuple(tuple(numbers.get(axis, axis) for axis in axes) for axes in inputs))
        return operator

    def divides(self, size: int) -> bool:
        """Whether the workers of a tensor group can share an axis evenly, as MindSpore wants it."""
        return size % self.tensor == 0
