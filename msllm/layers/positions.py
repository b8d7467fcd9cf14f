"""Where a token stands: position indices, sinusoids, rotary angles, ALiBi slopes."""

import math
from collections.abc import Mapping

import numpy as np
from mindspore import Tensor, nn

from msllm import kernels
from msllm.errors import UserError

ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


def positions(length: int, start: int = 0) -> Tensor:
    """Returns int32 (1, T): start, start + 1, ..., for ``length`` = T tokens."""
    return Tensor(np.arange(start, start + length, dtype=np.int32)[None])


def sinusoidal(length: int, width: int) -> np.ndarray:
    """Returns the sinusoidal encodings float32 (T, D) of positions 0 to ``length`` - 1 (Vaswani et al. 2017, 3.5).

    Sine and cosine alternate: PE[t, 2i] = sin(t / 10000^(2i/D)), PE[t, 2i+1] = cos of the same.
    """
    exponent = np.arange(0, width, 2, dtype=np.float64) / width
    angle = np.arange(length, dtype=np.float64)[:, None] / 10000**exponent
    encoding = np.empty((length, width), np.float32)
    encoding[:, 0::2], encoding[:, 1::2] = np.sin(angle), np.cos(angle[:, : width // 2])
    return encoding


class Rotary(nn.Cell):
    """Rotary position angles (Su et al. 2021, equation 34), with the scalings of LLaMA's descendants.

    Args:
        head_width: C, even.
        base: theta of the paper.
        scaling: None or Hugging Face's rope_scaling mapping; ``rope_type`` (or ``type``) is one of
            "default", "linear", "dynamic" (NTK-aware, grows with the length) and "llama3" (by wavelength).
        max_positions: the length the model was trained for.

    Raises:
        UserError: on an unknown scaling, or one that lacks a value.
    """

    def __init__(self, head_width: int, base: float, scaling: Mapping | None, max_positions: int):
        super().__init__()
        self.head_width, self.base, self.max_positions = head_width, base, max_positions
        scaling = dict(scaling or {})
        self.kind = scaling.get("rope_type", scaling.get("type", "default"))
        if self.kind not in ROPE_TYPES:
            raise UserError(
                f"rope_scaling type is {self.kind!r}; known are {', '.join(ROPE_TYPES)}; change it in config.json"
            )
        wanted = {
            "default": (),
            "linear": ("factor",),
            "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        }
        missing = [key for key in wanted[self.kind] if key not in scaling]
        if missing:
            raise UserError(f"rope_scaling of type {self.kind!r} lacks {', '.join(missing)}; add it in config.json")
        self.factor = float(scaling.get("factor", 1.0))
        frequency = _inverse_frequencies(head_width, base)
        if self.kind == "linear":
            frequency = frequency / np.float32(self.factor)
        elif self.kind == "llama3":
            frequency = _llama3(frequency, scaling)
        self.inverse_frequency = Tensor(frequency)

    def construct(self, position_ids, total_length: int):
        """Returns cos and sin, each (N, T, R).

        Args:
            position_ids: int32 (N, T), N = 1 or B.
            total_length: keys so far, cached ones included; only "dynamic" looks at it.
        """
        frequency = self.inverse_frequency
        if self.kind == "dynamic" and total_length > self.max_positions:
            growth = self.factor * total_length / self.max_positions - (self.factor - 1)
            base = self.base * growth ** (self.head_width / (self.head_width - 2))
            frequency = Tensor(_inverse_frequencies(self.head_width, base))
        return kernels.rotary_angles(position_ids, frequency)


def _inverse_frequencies(head_width: int, base: float) -> np.ndarray:
    exponent = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    return (1.0 / np.float32(base) ** exponent).astype(np.float32)


def _llama3(frequency: np.ndarray, scaling: Mapping) -> np.ndarray:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended (LLaMA 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - blend) * frequency / scaling["factor"] + blend * frequency).astype(np.float32)


def alibi_slopes(heads: int) -> Tensor:
    """Returns the slopes (H,) of ALiBi (Press et al. 2022, section 3).

    For a head count that is no power of two, the slopes of the next lower power come first, then every second
    slope of the next higher one, as in BLOOM.
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-4 * (i + 1) / lower) for i in range(0, 2 * (heads - lower), 2)]
    return Tensor(np.array(slopes, np.float32))
