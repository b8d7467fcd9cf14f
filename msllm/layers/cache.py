"""The key-value cache of decoding: buffers of a fixed size, one pair a layer."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from msllm import kernels

_UNKNOWN = object()


class KVCache:
    """Keys and values of the tokens seen so far.

    Args:
        layers, batch, max_length, kv_heads, head_width: the buffers are (B, max_length, K, C), two a layer.

    Attributes:
        length: tokens written so far by every layer; the model advances it once a forward pass.
    """

    def __init__(self, layers: int, batch: int, max_length: int, kv_heads: int, head_width: int):
        shape = (batch, max_length, kv_heads, head_width)
        self.keys = [ops.zeros(shape, ms.float32) for _ in range(layers)]
        self.values = [ops.zeros(shape, ms.float32) for _ in range(layers)]
        self.max_length, self.length = max_length, 0
        self._decoder = _UNKNOWN

    def decoder(self, blocks):
        """Returns the device's kernel for whole blocks, kernels.make_decoder, or None; made at the first call."""
        if self._decoder is _UNKNOWN:
            parts = [block.parts() for block in blocks]
            plain = all(part is not None and part.is_plain() for part in parts)
            self._decoder = kernels.make_decoder(parts) if plain else None
        return self._decoder

    def update(self, layer: int, k_BTKC: Tensor, v_BTKC: Tensor) -> tuple[Tensor, Tensor, int]:
        """Writes the keys and values of T new tokens; returns both buffers and the number of valid keys."""
        length = self.length + k_BTKC.shape[1]
        if length > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, {length} were asked for")
        self.keys[layer] = kernels.cache_write(self.keys[layer], k_BTKC, self.length)
        self.values[layer] = kernels.cache_write(self.values[layer], v_BTKC, self.length)
        return self.keys[layer], self.values[layer], length

    def reorder(self, rows: np.ndarray) -> None:
        """Row b becomes the old row rows[b] (int (B,)): what beam search does after each step."""
        index = Tensor(np.ascontiguousarray(rows, np.int32))
        self.keys = [ops.gather(k, index, 0) for k in self.keys]
        self.values = [ops.gather(v, index, 0) for v in self.values]
