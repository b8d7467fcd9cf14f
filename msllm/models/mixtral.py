"""Mixtral (Jiang et al. 2024): a LLaMA whose feed-forward layers are mixtures of experts. Shapes: B batch, T tokens,
D width, K key-value heads, C head width, V vocabulary."""

import dataclasses
from typing import ClassVar

import numpy as np
from mindspore import Tensor, nn, ops

from msllm.errors import UserError
from msllm.layers import MoE, RMSNorm
from msllm.models.causal_lm import CausalLM
from msllm.models.config import ModelConfig
from msllm.models.llama import LlamaAttention, LlamaModel

DEFAULT_ARCHITECTURE = "MixtralForCausalLM"


@dataclasses.dataclass(kw_only=True)
class MixtralConfig(ModelConfig):
    """Hugging Face's config.json of a Mixtral."""

    attention_bias: ClassVar[bool] = False  # what LlamaAttention asks for, and Mixtral never has

    model_type: str = "mixtral"
    architectures: list[str] = dataclasses.field(default_factory=lambda: ["MixtralForCausalLM"])
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: dict | None = None
    sliding_window: int | None = None
    attention_dropout: float = 0.0
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads:
            self.head_dim = self.hidden_size // self.num_attention_heads

    def check(self) -> None:
        super().check()
        self._positive(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
            "num_experts_per_tok",
            "num_local_experts",
            *(("sliding_window",) if self.sliding_window is not None else ()),
        )
        if self.head_dim == self.hidden_size // self.num_attention_heads:
            self._divides("num_attention_heads", "hidden_size")
        self._divides("num_key_value_heads", "num_attention_heads")
        self._one_of("hidden_act", "silu")
        if self.num_experts_per_tok > self.num_local_experts:
            raise UserError(
                f"config.json: num_experts_per_tok = {self.num_experts_per_tok} is above num_local_experts = "
                f"{self.num_local_experts}; correct one of them"
            )
        if self.router_jitter_noise:
            raise UserError(
                f"config.json: router_jitter_noise is {self.router_jitter_noise}, only 0 is supported; set it to 0"
            )


class MixtralAttention(LlamaAttention):
    """Grouped-query attention with rotary positions, of the last ``sliding_window`` keys where the config sets it."""

    def __init__(self, config: MixtralConfig, layer: int):
        super().__init__(config, layer)
        self.sliding_window = config.sliding_window

    def construct(self, x_BTD, cos, sin, key_mask, row_start, cache):
        B, T, _ = x_BTD.shape
        start = 0 if cache is None else cache.length
        if self.sliding_window is not None and start + T > self.sliding_window:
            first = np.maximum(np.arange(start, start + T, dtype=np.int32) - self.sliding_window + 1, 0)
            first_BT = Tensor(np.tile(first, (B, 1)))
            row_start = first_BT if row_start is None else ops.maximum(row_start, first_BT)
        return super().construct(x_BTD, cos, sin, key_mask, row_start, cache)


class MixtralBlock(nn.Cell):
    """Pre-norm: x + attention(norm(x)), then x + experts(norm(x)); its last sum as two terms, as in LlamaBlock."""

    def __init__(self, config: MixtralConfig, layer: int):
        super().__init__()
        c = config
        self.self_attn = MixtralAttention(c, layer)
        self.block_sparse_moe = MoE(
            c.hidden_size, c.intermediate_size, c.num_local_experts, c.num_experts_per_tok, c.initializer_range
        )
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def construct(self, x_BTD, update_BTD, cos, sin, key_mask, row_start, cache):
        T = x_BTD.shape[1]
        x_BTD, normed_BTD = self.input_layernorm.add(x_BTD, update_BTD)
        attention_BTD = self.self_attn(normed_BTD, cos, sin, key_mask, row_start, cache)
        x_BTD, normed_BTD = self.post_attention_layernorm.add(x_BTD, attention_BTD)
        new_mask = key_mask if cache is None or key_mask is None else key_mask[:, key_mask.shape[1] - T :]
        return x_BTD, self.block_sparse_moe(normed_BTD, new_mask, cache is None)

    def parts(self) -> None:
        """There is no kernel for a whole block: see layers.run_blocks."""
        return None


class MixtralModel(LlamaModel):
    """LLaMA's body with Mixtral's blocks."""

    block_class = MixtralBlock


class MixtralForCausalLM(CausalLM):
    """Mixtral with a head that predicts the next token."""

    config_class = MixtralConfig
    base_model_prefix = "model"
    embedding_name = "embed_tokens"

    def __init__(self, config: MixtralConfig):
        super().__init__(config, MixtralModel(config))

    @property
    def moe_layer_count(self) -> int:
        """How many layers of experts the whole model has, see layers.moe_losses."""
        return self.config.num_hidden_layers

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        c = self.config
        return c.num_hidden_layers, c.num_key_value_heads, c.head_dim
