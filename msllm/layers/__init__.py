"""nn.Cells and functions that models share. Shapes: B batch, T tokens, S keys, D width, H heads, K key-value heads,
C head width, R = C/2 rotary pairs, E experts."""

from msllm.layers.attention import attend, attend_masked, attend_packed, attention_weights, record_attention, use_core
from msllm.layers.basic import (
    CrossEntropy,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    drawn,
    initialise,
    no_initial_values,
    parameter,
    sum_embeddings,
)
from msllm.layers.cache import KVCache
from msllm.layers.decoder import BlockParts, run_blocks
from msllm.layers.moe import MoE, moe_layers, moe_losses
from msllm.layers.positions import Rotary, alibi_slopes, positions, sinusoidal

__all__ = [
    "BlockParts",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "KVCache",
    "LayerNorm",
    "Linear",
    "MoE",
    "RMSNorm",
    "Rotary",
    "alibi_slopes",
    "attend",
    "attend_masked",
    "attend_packed",
    "attention_weights",
    "drawn",
    "initialise",
    "moe_layers",
    "moe_losses",
    "no_initial_values",
    "parameter",
    "positions",
    "record_attention",
    "run_blocks",
    "sinusoidal",
    "sum_embeddings",
    "use_core",
]
