"""The kernels between the layers that own parameters, as cells of operators that say how they are cut.

They take the places of kernels.attention, rotary and so on while a model is compiled for auto-parallel. Shapes: B
batch, T tokens, D width, H heads, K key-value heads, C head width, F feed-forward width.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from msllm.kernels import stock
from msllm.parallel.auto.cuts import HEADS, INNER, SCORES, STREAM, TENSOR, Cuts

_HIDDEN = -10000.0  # finite in every type, and exp of it is 0
_FLASH_MASK, _RIGHT_DOWN_CAUSAL = 2048, 3  # side of FlashAttentionScore's causal mask, and its sparse_mode
_PAIRS_OF_HALVES = 0  # mode of RotaryPositionEmbedding
_WHOLE = (1, 1, 1, 1)


class AddRows(nn.Cell):
    """kernels.add."""

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.add = cuts(ops.Add(), STREAM, (1, 1, 1))

    def construct(self, x, y):
        """x (B, T, D) and y (1, T, D) -> (B, T, D)."""
        return self.add(x, y)


class SwiGLU(nn.Cell):
    """kernels.swiglu; the sigmoid and its product are one operator where fused ones may be used."""

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.fused = cuts(ops.auto_generate.SiLU(), INNER) if cuts.fused else None
        self.sigmoid = cuts(ops.Sigmoid(), INNER)
        self.times, self.gated = cuts(ops.Mul(), INNER, INNER), cuts(ops.Mul(), INNER, INNER)

    def construct(self, gate, up):
        """gate and up (B, T, F) -> (B, T, F)."""
        if self.fused is not None:
            return self.gated(self.fused(gate), up)
        return self.gated(self.times(gate, self.sigmoid(gate)), up)


class GELU(nn.Cell):
    """kernels.gelu; the tanh form is Ascend's operator where fused ones may be used."""

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.fused = cuts(ops.GeLU(), INNER) if cuts.fused else None
        self.times, self.scale = cuts(ops.Mul(), INNER, INNER), cuts(ops.Mul(), INNER, ())
        self.plus, self.erf, self.sigmoid = (
            cuts(ops.Add(), INNER, ()),
            cuts(ops.Erf(), INNER),
            cuts(ops.Sigmoid(), INNER),
        )

    def construct(self, x, approximate="none"):
        """x (B, T, F) -> (B, T, F)."""
        if approximate == "none":
            return self.scale(self.times(x, self.plus(self.erf(self.scale(x, math.sqrt(0.5))), 1.0)), 0.5)
        if self.fused is not None:
            return self.fused(x)
        inner = self.times(x, self.plus(self.scale(self.times(x, x), 0.044715), 1.0))
        return self.times(x, self.sigmoid(self.scale(inner, 2.0 * math.sqrt(2.0 / math.pi))))


class RotaryAngles(nn.Cell):
    """kernels.rotary_angles; Ascend's operator wants each angle for both numbers of its pair, and an axis of heads."""

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.fused, self.join = cuts.fused, cuts(ops.Concat(-1), _WHOLE[:3], _WHOLE[:3])
        self.expand = ops.ExpandDims()

    def construct(self, position_ids, frequency):
        """position_ids int32 (1, T), frequency (C/2,) -> cos and sin (1, T, C/2), or (1, T, 1, C) where fused."""
        cos, sin = stock.rotary_angles(position_ids, frequency)
        if self.fused:
            return self.expand(self.join((cos, cos)), 2), self.expand(self.join((sin, sin)), 2)
        return cos, sin


class Rotate(nn.Cell):
    """kernels.rotary, in float32; Ascend's operator where fused ones may be used."""

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.dtype = cuts.dtype
        self.fused = cuts(ops.auto_generate.RotaryPositionEmbedding(), HEADS, _WHOLE, _WHOLE) if cuts.fused else None
        self.turn, self.half = cuts(ops.Mul(), HEADS, _WHOLE), cuts(ops.StridedSlice(), HEADS)
        self.minus, self.plus = cuts(ops.Sub(), HEADS, HEADS), cuts(ops.Add(), HEADS, HEADS)
        self.join = cuts(ops.Concat(-1), HEADS, HEADS)
        self.cast, self.expand = ops.Cast(), ops.ExpandDims()

    def construct(self, x_BTHC, cos, sin):
        """x (B, T, H, C), cos and sin of RotaryAngles -> (B, T, H, C)."""
        B, T, H, C = x_BTHC.shape
        x = self.cast(x_BTHC, ms.float32)
        if self.fused is not None:
            return self.cast(self.fused(x, cos, sin, _PAIRS_OF_HALVES), self.dtype)
        cos, sin = self.expand(cos, 2), self.expand(sin, 2)
        low = self.half(x, (0, 0, 0, 0), (B, T, H, C // 2), (1, 1, 1, 1))
        high = self.half(x, (0, 0, 0, C // 2), (B, T, H, C), (1, 1, 1, 1))
        turned_low = self.minus(self.turn(low, cos), self.turn(high, sin))
        turned_high = self.plus(self.turn(high, cos), self.turn(low, sin))
        return self.cast(self.join((turned_low, turned_high)), self.dtype)


class Attention(nn.Cell):
    """kernels.attention for training on whole blocks: causal, without masks, packed documents or a cache.

    Ascend's FlashAttentionScore where it takes the model, else products and a softmax in float32.

    Args:
        heads, scale: of all layers.
        dropout: of the weights.
        alibi: whether there are slopes.
    """

    def __init__(self, cuts: Cuts, heads: int, scale: float, dropout: float, alibi: bool):
        super().__init__()
        self.dtype, self.flash = cuts.dtype, None
        if cuts.fused and cuts.dtype in (ms.float16, ms.bfloat16) and not alibi and dropout == 0.0:
            flash = ops.operations.nn_ops.FlashAttentionScore(
                heads, scale_value=scale, input_layout="BSND", sparse_mode=_RIGHT_DOWN_CAUSAL
            )
            self.flash = cuts(flash, HEADS, HEADS, HEADS, (1, 1), product=True)
            self.flash_mask = Tensor(np.triu(np.ones((_FLASH_MASK, _FLASH_MASK), np.uint8), 1))
        self.swap, self.swap_back = cuts(ops.Transpose(), HEADS), cuts(ops.Transpose(), SCORES)
        self.query_key = cuts(ops.BatchMatMul(transpose_b=True), SCORES, SCORES, product=True)
        self.weigh = cuts(ops.BatchMatMul(), SCORES, SCORES, product=True)
        self.scale, self.hide = cuts(ops.Mul(), SCORES, ()), cuts(ops.Add(), SCORES, _WHOLE)
        # Whole: without examples, MindSpore would deal heads out to other cards than those of the scores.
        self.slope = cuts(ops.Mul(), _WHOLE, _WHOLE)
        self.add_slopes = cuts(ops.Add(), SCORES, (1, TENSOR, 1, 1))
        self.softmax, self.drop = cuts(ops.Softmax(-1), SCORES), cuts(ops.Dropout(1.0 - dropout), SCORES)
        self.cast, self.reshape = ops.Cast(), ops.Reshape()

    def construct(
        self,
        q_BTHC,
        k_BSKC,
        v_BSKC,
        scale,
        causal=True,
        key_mask=None,
        row_start=None,
        slopes=None,
        length=None,
        dropout=0.0,
    ):
        """q (B, T, H, C), k and v (B, T, K, C) -> (B, T, H, C); ValueError for what blocks do not need."""
        if key_mask is not None or row_start is not None or length is not None or not causal:
            raise ValueError("auto-parallel attends causally over whole blocks: no mask, no packed documents, no cache")
        if self.flash is not None:
            return self.flash(q_BTHC, k_BSKC, v_BSKC, None, None, None, self.flash_mask, None)[3]
        B, T, H, C = q_BTHC.shape
        K = k_BSKC.shape[2]
        q, k, v = (self.swap(x, (0, 2, 1, 3)) for x in (q_BTHC, k_BSKC, v_BSKC))
        if K != H:  # the heads of a group are more rows of one product
            q = self.reshape(q, (B, K, H // K * T, C))
        scores = self.reshape(self.cast(self.query_key(q, k), ms.float32), (B, H, T, T))
        scores = self.scale(scores, scale)
        if slopes is not None:
            # The place of a key does for its distance: the same number is missing from all scores of a query.
            places = Tensor(np.arange(T, dtype=np.float32)[None, None, None])
            scores = self.add_slopes(scores, self.slope(self.reshape(slopes, (1, H, 1, 1)), places))
        weights = self.softmax(self.hide(scores, Tensor(causal_scores(T))))
        if dropout > 0.0:
            weights = self.drop(weights)[0]
        weights = self.reshape(self.cast(weights, self.dtype), (B, K, H // K * T, T))
        return self.swap_back(self.reshape(self.weigh(weights, v), (B, H, T, C)), (0, 2, 1, 3))


def causal_scores(T):
    """Returns what is added to the scores to hide the keys after each query, float32 (1, 1, T, T)."""
    places = np.arange(T)
    # In a graph np.where of two float32 numbers is float64, and so would the softmax be.
    return np.where(places > places[:, None], _HIDDEN, 0.0).astype(np.float32)[None, None]


class PackedAttention(nn.Cell):
    """kernels.packed_attention of a projection whose rows are (H, 3, C), see layers.by_heads."""

    def __init__(self, cuts: Cuts, attention: Attention):
        super().__init__()
        self.attention, self.split, self.reshape = attention, cuts(ops.Split(3, 3), HEADS), ops.Reshape()

    def construct(
        self, qkv_BTP, heads, interleaved, scale, causal=True, key_mask=None, row_start=None, slopes=None, dropout=0.0
    ):
        """(B, T, 3 H C) -> (B, T, H C); the heads lie together, whether the model's file has them so or not."""
        B, T, P = qkv_BTP.shape
        q, k, v = self.split(self.reshape(qkv_BTP, (B, T, heads, P // heads)))
        out = self.attention(q, k, v, scale, causal, key_mask, row_start, slopes, None, dropout)
        return self.reshape(out, (B, T, -1))
